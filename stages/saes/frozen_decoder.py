"""TopK with a decoder that stays random: a control (Korznikov et al. 2026; after Heap et al. 2025, arXiv:2501.17727).

    z = (x - b_dec) W_enc + b_enc                               [token, d_sae]
    f = max(z, 0) at the k largest z of each token, else 0      [token, d_sae]
    x_hat = f W_dec + b_dec,   W_dec [d_sae, d_in]: random unit rows, never trained
    L = mean_n ||x_n - x_hat_n||^2 + aux_coefficient L_aux      (L_aux: `stages.lib.sae.auxk`)

What its features score on a measure of interpretability is what fitting the encoder to arbitrary directions gives.
"""

from jaxtyping import Float
from torch import Tensor

from stages.lib.sae import base
from stages.lib.sae.topk import TopKParams, topk_gradients, topk_losses

SAEParams = TopKParams


class Variant(base.SAE):
    """A TopK SAE whose encoder alone is trained."""

    architecture = "topk"
    trained = ("W_enc", "b_enc", "b_dec")

    def losses(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:  # noqa: ARG002
        """L."""
        return topk_losses(self, x, int(self.level), self.params.aux_coefficient)

    def gradients(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:
        """The gradient of L, on a CPU over active features alone."""
        if x.device.type != "cpu":
            return super().gradients(x, warm_up)
        return topk_gradients(self, x, int(self.level), self.params.aux_coefficient)
