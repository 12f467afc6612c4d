"""What variants share that keep the k N largest pre-activations of a batch of N tokens.

Fewer are kept where fewer are positive. Of equal ones the first, by token and then by feature, is kept.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stages.lib.pairs import Pairs, pairs_above
from stages.lib.sae import SAE, Losses
from stages.lib.selection import compiled
from stages.lib.topk import code_gradients

N_BINS = 4096


@compiled
def _histogram(z: np.ndarray, low: float, width: float, counts: np.ndarray) -> None:
    last = counts.shape[0] - 1
    for r in range(z.shape[0]):
        for j in range(z.shape[1]):
            if z[r, j] > low:
                counts[min(np.int64((z[r, j] - low) / width), last)] += 1


def keep_largest(z: Float[Tensor, "token d_sae"], k: int) -> Float[Tensor, "token d_sae"]:
    """The dense code f of training."""
    values = z.detach().relu().flatten()
    return (z.relu().flatten() * largest(values, k * len(z))).view(z.shape)


def largest(values: Float[Tensor, " entry"], n: int) -> Bool[Tensor, " entry"]:
    """Where the n largest of the numbers above 0 are, the first of equals."""
    positive = values > 0
    if int(positive.sum()) <= n:
        return positive
    least = values.kthvalue(len(values) - n + 1).values
    kept = values > least
    equal = (values == least).nonzero()[:, 0]
    kept[equal[: n - int(kept.sum())]] = True
    return kept


def active_share_threshold(z: Float[Tensor, "token d_sae"], k: int) -> float:
    """The number above which exactly k z a token lie, or 0 where fewer are positive: midway between its neighbours."""
    values, n = z.flatten(), k * len(z)
    if n >= len(values):
        return 0.0
    above = values.kthvalue(len(values) - n + 1).values
    below = values.kthvalue(len(values) - n).values
    return max(0.0, float((above.double() + below.double()) / 2))


def largest_of_batch(sae: SAE, x: Float[Tensor, "token d_in"], k: int) -> tuple[Pairs, Tensor]:
    """Pairs among which the k N largest are, and their codes, which are 0 at the others."""
    # A first guess at the least of them, from a coarse count; then the exact one among the few that are above it.
    pairs = pairs_above(sae, x, lambda z: z.new_full((z.shape[1],), coarse_least(z, k * len(x))))
    return pairs, pairs.z * largest(pairs.z, k * len(x))


def coarse_least(z: Float[Tensor, "token d_sae"], n: int) -> float:
    """A number, 0 or more, above which at least the n largest positive z lie, and few more."""
    top = float(z.max())
    if top <= 0:
        return 0.0
    counts = np.zeros(N_BINS, np.int64)
    _histogram(z.numpy(), 0.0, top / N_BINS, counts)
    above = counts[::-1].cumsum()[::-1]
    bins = np.flatnonzero(above >= n)
    # One bin lower: the division may have put a number into the next bin.
    return max(0.0, (int(bins[-1]) - 1) * top / N_BINS) if len(bins) else 0.0


def batch_gradients(sae: SAE, x: Float[Tensor, "token d_in"], k: int, aux_coefficient: float) -> Losses:
    """The gradient of mean_n ||x_n - x_hat_n||^2 + aux_coefficient L_aux, over active pairs alone."""
    return code_gradients(sae, x, *largest_of_batch(sae, x, k), aux_coefficient)


class BatchSAE(SAE):
    """An SAE that keeps the largest of a batch in training and has a threshold at inference."""

    architecture = "jumprelu"
    sparsity_name = "k"

    def more_weights(self, decoder: Float[Tensor, "d_sae d_in"]) -> dict[str, Tensor]:
        """The threshold of inference, which is not trained."""
        return {"threshold": decoder.new_zeros(len(decoder))}

    @torch.no_grad()
    def settle(self, x: Float[Tensor, "token d_in"]) -> None:
        """Set the threshold on validation activations."""
        self.threshold.fill_(active_share_threshold(self.hidden_pre(x), int(self.sparsity)))
