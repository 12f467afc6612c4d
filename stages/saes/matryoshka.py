"""Matryoshka BatchTopK (Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka SAEs", arXiv:2503.17547).

Nested dictionaries of the first m_1 < ... < m_G = d_sae features share one code f, that of `stages.saes.batch_topk`:

    x_hat^(g) = sum_{i < m_g} f_i W_dec[i] + b_dec              [token, d_in]
    L = 1/G sum_g mean_n ||x_n - x_hat_n^(g)||^2 + aux_coefficient L_aux(x_hat^(G))

so the first features have to do well without the later ones, which keeps general features from being split up. The
mean over dictionaries, and not their sum, keeps the learning rate comparable with other methods. The order of features
has a meaning here.
"""

from itertools import accumulate
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from stages.lib.io.errors import UserError
from stages.lib.sae import base
from stages.lib.sae.auxk import add_auxk_gradients, auxk
from stages.lib.sae.batch_topk import BatchSAE, keep_largest, largest_of_batch
from stages.lib.sae.pairs import Backward, nested, which_fired, write_bias_gradient, write_sums
from stages.lib.sae.topk import TopKParams


class SAEParams(TopKParams):
    """A level is a k."""

    groups: list[Annotated[float, Field(gt=0, lt=1)]] = Field(min_length=1)
    """Shares of the features that each dictionary adds to the one before; what is left of 1 is the last one's."""

    def check(self, arm: str, d_sae: int) -> None:
        """Raise a `UserError` for levels or groups that do not fit."""
        super().check(arm, d_sae)
        ends = sizes(self.groups, d_sae)
        if sum(self.groups) >= 1 or any(end <= start for start, end in zip([0, *ends], ends, strict=False)):
            raise UserError(
                f"saes.{arm}.groups must be shares of the {d_sae} features that hold at least one feature each and "
                f"leave some to the last dictionary, not {self.groups}"
            )


def sizes(groups: list[float], d_sae: int) -> list[int]:
    """m_1, ..., m_G."""
    return [*(round(share * d_sae) for share in accumulate(groups)), d_sae]


class Variant(BatchSAE):
    """A Matryoshka SAE in training."""

    def losses(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:  # noqa: ARG002
        """L; what the smaller dictionaries add to the last one's error counts as auxiliary."""
        z = self.hidden_pre(x)
        feature_acts = keep_largest(z, int(self.level))
        ends = sizes(self.params.groups, self.d_sae)
        errors = [x - self.b_dec - feature_acts[:, :end] @ self.W_dec[:end] for end in ends]
        by_group = torch.stack([error.square().sum() for error in errors]) / len(x)
        active = feature_acts > 0
        return base.Losses(
            fvu=by_group[-1],
            sparsity=x.new_zeros(()),
            auxiliary=by_group.mean()
            - by_group[-1]
            + self.params.aux_coefficient * auxk(self, z, errors[-1], self.dead()),
            l0=active.sum() / len(x),
            fired=active.any(0),
        )

    def gradients(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:
        """The gradient of L, on a CPU over active features alone."""
        if x.device.type != "cpu":
            return super().gradients(x, warm_up)
        pairs, codes = largest_of_batch(self, x, int(self.level))
        ends = sizes(self.params.groups, self.d_sae)
        scale = 2 / (len(ends) * len(x))
        # A feature is in its own dictionary and in all larger ones, so it sees the sum of their errors.
        errors, squares, slope = nested(self, x, pairs, codes, ends)
        by_group = squares / len(x)
        write_sums(self, x, Backward(pairs, codes * scale, slope.mul_(scale)), errors, ends)
        write_bias_gradient(self, errors[0].sum(0).mul_(scale))
        revival = add_auxk_gradients(self, x, errors[-1], self.params.aux_coefficient)
        return base.Losses(
            fvu=by_group[-1],
            sparsity=x.new_zeros(()),
            auxiliary=by_group.mean() - by_group[-1] + self.params.aux_coefficient * revival,
            l0=x.new_tensor(len(codes) / len(x)),
            fired=which_fired(pairs, codes, self.d_sae),
        )
