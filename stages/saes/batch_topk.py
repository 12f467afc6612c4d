"""BatchTopK (Bussmann, Leask and Nanda 2024, "BatchTopK Sparse Autoencoders", arXiv:2412.06410, sections 3 and 3.1).

    z = (x - b_dec) W_enc + b_enc                                       [token, d_sae]
    training    f = max(z, 0) at the k N largest z of a batch of N tokens, else 0
    inference   f = z where z > threshold, else 0                       threshold: one number, here [d_sae]
    x_hat = f W_dec + b_dec                                             [token, d_in]
    L = mean_n ||x_n - x_hat_n||^2 + aux_coefficient L_aux              (L_aux: `stages.lib.sae.auxk`)

A code that depends on the other tokens of its batch is no code of the token, so wherever the SAE is used it is the one
of inference. The paper averages the smallest active z over batches; here the threshold is the quantile of z on
validation activations that leaves k active features a token, exactly, so it does not lag behind the weights.
"""

from jaxtyping import Float
from torch import Tensor

from stages.lib.sae import base
from stages.lib.sae.auxk import auxk
from stages.lib.sae.batch_topk import BatchSAE, batch_gradients, keep_largest
from stages.lib.sae.topk import TopKParams

SAEParams = TopKParams


class Variant(BatchSAE):
    """A BatchTopK SAE in training."""

    def losses(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:  # noqa: ARG002
        """L."""
        z = self.hidden_pre(x)
        feature_acts = keep_largest(z, int(self.level))
        error = x - self.decode(feature_acts)
        active = feature_acts > 0
        return base.Losses(
            fvu=error.square().sum() / len(x),
            sparsity=x.new_zeros(()),
            auxiliary=self.params.aux_coefficient * auxk(self, z, error, self.dead()),
            l0=active.sum() / len(x),
            fired=active.any(0),
        )

    def gradients(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:
        """The gradient of L, on a CPU over active features alone."""
        if x.device.type != "cpu":
            return super().gradients(x, warm_up)
        return batch_gradients(self, x, int(self.level), self.params.aux_coefficient)
