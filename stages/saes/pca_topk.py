"""TopK over principal directions and their opposites, which are not trained: a control (a basis is no dictionary).

    v_1, v_2, ...: eigenvectors of mean_n x_n^T x_n over validation activations, by falling eigenvalue
    W_dec = v_1, -v_1, v_2, -v_2, ...,   W_enc = W_dec^T,   biases 0
    f = max(z, 0) at the k largest z of each token, else 0;   x_hat = f W_dec

With at least twice as many features as dimensions, f holds the k coordinates of a token that are largest in absolute
value. Features beyond that have no encoder and never fire; with fewer features the last directions are left out. What
its features score on a measure of interpretability is what directions of large variance give.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from stages.lib.sae import base
from stages.lib.sae.topk import KParams, keep_top_k

SAEParams = KParams


class Variant(base.SAE):
    """Principal directions."""

    architecture = "topk"
    trained = ()

    def look_at(self, sample: Float[Tensor, "token d_in"]) -> None:
        """Find the directions."""
        n = min(self.d_in, self.d_sae // 2)
        # Eigenvalues rise. In double precision, so that close ones are kept apart.
        vectors = torch.linalg.eigh(sample.double().T @ sample.double()).eigenvectors.flip(1)[:, :n]
        # Each direction's largest entry is positive, so that its sign does not depend on the library.
        vectors *= vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        self.W_enc.zero_()
        self.W_dec[: 2 * n] = torch.stack([vectors, -vectors], 2).flatten(1).T.to(self.W_dec.dtype)
        self.W_enc[:, : 2 * n] = self.W_dec[: 2 * n].T

    def losses(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:  # noqa: ARG002
        """The error; nothing is trained."""
        feature_acts = keep_top_k(self.hidden_pre(x), int(self.level))
        active = feature_acts > 0
        return base.Losses(
            fvu=(x - self.decode(feature_acts)).square().sum() / len(x),
            sparsity=x.new_zeros(()),
            auxiliary=x.new_zeros(()),
            l0=active.sum() / len(x),
            fired=active.any(0),
        )

    @torch.no_grad()
    def step(self, x: Float[Tensor, "token d_in"], lr: float, warm_up: float) -> base.Losses:  # noqa: ARG002
        """Measure a batch."""
        losses = self.losses(x, warm_up)
        self.tokens_since_fired.add_(len(x)).masked_fill_(losses.fired, 0)
        return losses
