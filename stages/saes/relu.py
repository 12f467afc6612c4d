"""ReLU with an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity", transformer-circuits.pub, appendix).

    z = (x - b_dec) W_enc + b_enc                               [token, d_sae]
    f = max(z, 0)                                               [token, d_sae]
    x_hat = f W_dec + b_dec,   ||W_dec[i]|| = 1                 [token, d_in]
    L = mean_n ||x_n - x_hat_n||^2 + l1_coefficient mean_n sum_i f_ni

Without the fixed norm of W_dec the penalty would be evaded by a small f and a long W_dec. It shrinks f by up to
l1_coefficient / 2, so reconstructions are biased towards the mean.
"""

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from stages.lib import sae
from stages.lib.pairs import decoded, pairs_above, squared, which_fired, write_gradients


class SAEParams(sae.SAEParams):
    """A level is a weight of the penalty."""

    l1_coefficient: list[PositiveFloat] = Field(min_length=1)


class Variant(sae.SAE):
    """A ReLU SAE in training."""

    architecture = "standard"
    sparsity_name = "l1_coefficient"

    def losses(self, x: Float[Tensor, "token d_in"], warm_up: float) -> sae.Losses:
        """L."""
        feature_acts = self.hidden_pre(x).relu()
        active = feature_acts > 0
        return sae.Losses(
            fvu=(x - self.decode(feature_acts)).square().sum() / len(x),
            sparsity=warm_up * self.sparsity * feature_acts.sum() / len(x),
            auxiliary=x.new_zeros(()),
            l0=active.sum() / len(x),
            fired=active.any(0),
        )

    def gradients(self, x: Float[Tensor, "token d_in"], warm_up: float) -> sae.Losses:
        """The gradient of L, on a CPU over active features: dL/dz = W_dec[i] . dL/dx_hat + the penalty's."""
        if x.device.type != "cpu":
            return super().gradients(x, warm_up)
        pairs = pairs_above(self, x, torch.zeros_like(self.b_enc))
        codes = pairs.z.relu()
        error, slope = decoded(self, x, pairs, codes)
        active, weight = codes > 0, warm_up * self.sparsity / len(x)
        write_gradients(self, x, pairs, codes, slope.mul_(2 / len(x)).add_(weight).mul_(active), error)
        return sae.Losses(
            fvu=squared(error) / len(x),
            sparsity=weight * codes.sum(),
            auxiliary=x.new_zeros(()),
            l0=active.sum() / len(x),
            fired=which_fired(pairs, codes, self.d_sae),
        )
