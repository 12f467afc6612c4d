"""TopK (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093, section 2.3 and appendix A.2).

    z = (x - b_dec) W_enc + b_enc                               [token, d_sae]
    f = max(z, 0) at the k largest z of each token, else 0      [token, d_sae]
    x_hat = f W_dec + b_dec                                     [token, d_in]
    L = mean_n ||x_n - x_hat_n||^2 + aux_coefficient L_aux

L_aux (`stages.lib.sae.auxk`) lets features that no longer fire explain what the others leave over. A token with fewer
than k positive z has fewer than k active features, so L0 is measured and not assumed; k needs no warm-up.
"""

from jaxtyping import Float
from torch import Tensor

from stages.lib.sae import base
from stages.lib.sae.topk import TopKParams, topk_gradients, topk_losses

SAEParams = TopKParams


class Variant(base.SAE):
    """A TopK SAE in training."""

    architecture = "topk"

    def losses(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:  # noqa: ARG002
        """L."""
        return topk_losses(self, x, int(self.level), self.params.aux_coefficient)

    def gradients(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:
        """The gradient of L, on a CPU over active features alone."""
        if x.device.type != "cpu":
            return super().gradients(x, warm_up)
        return topk_gradients(self, x, int(self.level), self.params.aux_coefficient)
