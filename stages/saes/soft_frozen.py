"""TopK whose decoder stays near its random start: a control (Korznikov et al. 2026, "soft-frozen decoder").

    z, f, x_hat, L as in `stages.saes.topk`; after every step, for each feature,
    cos(W_dec[i], W_dec[i] at the start) >= min_cosine

A direction that has left its cone is turned back, in the plane that it spans with its start, onto the border. What its
features score above those of `frozen_decoder` is what little turns of random directions give.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from stages.lib.sae import base
from stages.lib.sae.topk import TopKParams, topk_gradients, topk_losses


class SAEParams(TopKParams):
    """A level is a k."""

    min_cosine: float = Field(ge=0, lt=1)
    """Between a direction and its start; 0.8 in the paper."""


def into_cone_(directions: Float[Tensor, "d_sae d_in"], axes: Float[Tensor, "d_sae d_in"], min_cosine: float) -> None:
    """Turn unit rows whose cosine to their axis is below `min_cosine` onto the cone around it, in place."""
    cosine = (directions * axes).sum(1, keepdim=True)
    across = torch.nn.functional.normalize(directions - cosine * axes, dim=1)
    border = min_cosine * axes + (1 - min_cosine**2) ** 0.5 * across
    directions.copy_(torch.where(cosine < min_cosine, border, directions))


class Variant(base.SAE):
    """A TopK SAE whose decoder may turn a little."""

    architecture = "topk"

    def begin(self, decoder: Float[Tensor, "d_sae d_in"]) -> None:
        """Keep the directions of the start."""
        self.axes = decoder.clone()

    def constrain_(self) -> None:
        """Keep every direction in its cone."""
        into_cone_(self.W_dec, self.axes, self.params.min_cosine)

    def losses(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:  # noqa: ARG002
        """L."""
        return topk_losses(self, x, int(self.level), self.params.aux_coefficient)

    def gradients(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:
        """The gradient of L, on a CPU over active features alone."""
        if x.device.type != "cpu":
            return super().gradients(x, warm_up)
        return topk_gradients(self, x, int(self.level), self.params.aux_coefficient)
