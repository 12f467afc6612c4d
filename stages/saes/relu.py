"""ReLU with an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity", transformer-circuits.pub, appendix).

    z = (x - b_dec) W_enc + b_enc                               [token, d_sae]
    f = max(z, 0)                                               [token, d_sae]
    x_hat = f W_dec + b_dec,   ||W_dec[i]|| = 1                 [token, d_in]
    L = mean_n ||x_n - x_hat_n||^2 + l1_coefficient mean_n sum_i f_ni

Without the fixed norm of W_dec the penalty would be evaded by a small f and a long W_dec. It shrinks f by up to
l1_coefficient / 2, so reconstructions are biased towards the mean.

With `decoder_norm: free` it is the form of Anthropic's update of April 2024 ("Training Sparse Autoencoders", same
site): the norms of W_dec are free, start at 0.1, and the penalty is evaded no longer since they weigh it,

    L = mean_n ||x_n - x_hat_n||^2 + l1_coefficient mean_n sum_i f_ni ||W_dec[i]||

It is saved with the norms moved into the code: f ||W_dec[i]||, W_dec[i] / ||W_dec[i]||.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from stages.lib.sae import base
from stages.lib.sae.pairs import decoded, pairs_above, squared, which_fired, write_gradients
from stages.lib.sae.penalty import PenaltyParams, PenaltySAE

FREE_NORM = 0.1
"""Of free decoder rows, at the start."""


class SAEParams(PenaltyParams):
    """A level is a weight of the penalty."""

    own_level: ClassVar[str] = "l1_coefficient"
    l1_coefficient: list[PositiveFloat] | None = Field(default=None, min_length=1)
    decoder_norm: Literal["unit", "free"] = "unit"


class Variant(PenaltySAE):
    """A ReLU SAE in training."""

    architecture = "standard"
    usual_coefficient = 0.2

    def more_weights(self, decoder: Float[Tensor, "d_sae d_in"]) -> dict[str, Tensor]:
        """Other initial values, where norms are free."""
        short = FREE_NORM * torch.nn.functional.normalize(decoder, dim=1)
        return {} if self.params.decoder_norm == "unit" else {"W_enc": short, "W_dec": short}

    def begin(self, decoder: Float[Tensor, "d_sae d_in"]) -> None:
        """Set the weight of the penalty, and what becomes of the decoder's norms."""
        super().begin(decoder)
        self.unit_norm = self.params.decoder_norm == "unit"

    def export(self) -> dict[str, Tensor]:
        """The weights, with a decoder of norm 1."""
        weights = self.weights()
        if self.unit_norm:
            return weights
        norm = weights["W_dec"].norm(dim=1)
        W_dec = torch.nn.functional.normalize(weights["W_dec"], dim=1)
        return {**weights, "W_enc": weights["W_enc"] * norm, "b_enc": weights["b_enc"] * norm, "W_dec": W_dec}

    def losses(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:
        """L."""
        feature_acts = self.hidden_pre(x).relu()
        active = feature_acts > 0
        weighed = feature_acts if self.unit_norm else feature_acts * self.W_dec.norm(dim=1)
        return base.Losses(
            fvu=(x - self.decode(feature_acts)).square().sum() / len(x),
            sparsity=warm_up * self.coefficient * weighed.sum() / len(x),
            auxiliary=x.new_zeros(()),
            l0=active.sum() / len(x),
            fired=active.any(0),
        )

    def gradients(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:
        """The gradient of L, on a CPU over active features: dL/dz = W_dec[i] . dL/dx_hat + the penalty's."""
        if x.device.type != "cpu":
            return super().gradients(x, warm_up)
        pairs = pairs_above(self, x, torch.zeros_like(self.b_enc))
        codes = pairs.z.relu()
        error, slope = decoded(self, x, pairs, codes)
        active, weight = codes > 0, warm_up * self.coefficient / len(x)
        norm = None if self.unit_norm else self.W_dec.detach().norm(dim=1)
        penalty = weight if norm is None else weight * norm[pairs.feature]
        write_gradients(self, x, pairs, codes, slope.mul_(2 / len(x)).add_(penalty).mul_(active), error)
        if norm is not None:  # d||W_dec[i]|| / dW_dec[i] is its direction
            assert self.W_dec.grad is not None
            strength = weight * torch.bincount(pairs.feature, codes, self.d_sae).to(x.dtype)
            self.W_dec.grad.addcmul_((strength / norm)[:, None], self.W_dec.detach())
        return base.Losses(
            fvu=squared(error) / len(x),
            sparsity=(penalty * codes).sum(),
            auxiliary=x.new_zeros(()),
            l0=active.sum() / len(x),
            fired=which_fired(pairs, codes, self.d_sae),
        )
