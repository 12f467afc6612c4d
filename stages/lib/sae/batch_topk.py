"""What variants share that keep the k N largest pre-activations of a batch of N tokens.

Fewer are kept where fewer are positive. Of equal ones the first, by token and then by feature, is kept.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stages.lib.sae import search
from stages.lib.sae.base import SAE, Losses
from stages.lib.sae.pairs import Pairs, encoder, largest_of, pairs_above
from stages.lib.sae.topk import code_gradients

N_SAMPLED = 64
"""Tokens from which the least number that is kept is guessed, ..."""
SLACK = 1.25
"""... so that this times as many as are kept lie above it."""


def keep_largest(z: Float[Tensor, "token d_sae"], k: int) -> Float[Tensor, "token d_sae"]:
    """The dense code f of training."""
    values = z.detach().relu().flatten()
    return (z.relu().flatten() * largest(values, k * len(z))).view(z.shape)


def largest(values: Float[Tensor, " entry"], n: int) -> Bool[Tensor, " entry"]:
    """Where the n largest of the numbers above 0 are, the first of equals."""
    positive = values > 0
    if values.device.type != "cpu":  # PyTorch's own choice among equals, for which nothing has to wait
        chosen = torch.topk(values, min(n, len(values)), sorted=False).indices
        return torch.zeros_like(positive).scatter(0, chosen, True).logical_and(positive)
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
    return max(0.0, sum(search.nth_largest(values, n)) / 2)


def largest_of_batch(sae: SAE, x: Float[Tensor, "token d_in"], k: int) -> tuple[Pairs, Float[Tensor, " pair"]]:
    """The pairs that are kept, and their codes."""
    weights, n = encoder(sae), k * len(x)
    guess = guessed_least(weights, x, k)
    for least in (guess, guess / 2, 0.0):
        pairs = pairs_above(sae, x, torch.full_like(weights.bias, least), weights)
        # Where enough lie above the guess, the largest are among them; so the result does not depend on it.
        if int(torch.count_nonzero(pairs.z > least)) >= n:
            break
    pairs = largest_of(pairs, n)
    return pairs, pairs.z


def guessed_least(weights: search.Encoder, x: Float[Tensor, "token d_in"], k: int) -> float:
    """A number, 0 or more, above which not many more than the k N largest lie, if some tokens are like all."""
    sample = x[:: max(1, len(x) // N_SAMPLED)]
    z = torch.mm(sample.to(weights.W.dtype), weights.W).add(weights.bias).flatten()
    n = int(SLACK * k * len(sample))
    return max(0.0, search.reached_by(z.numpy(), len(z), n)) if n < len(z) else 0.0


def batch_gradients(sae: SAE, x: Float[Tensor, "token d_in"], k: int, aux_coefficient: float) -> Losses:
    """The gradient of mean_n ||x_n - x_hat_n||^2 + aux_coefficient L_aux, over active pairs alone."""
    return code_gradients(sae, x, *largest_of_batch(sae, x, k), aux_coefficient)


class BatchSAE(SAE):
    """An SAE that keeps the largest of a batch in training and has a threshold at inference."""

    architecture = "jumprelu"

    def more_weights(self, decoder: Float[Tensor, "d_sae d_in"]) -> dict[str, Tensor]:
        """The threshold of inference, which is not trained."""
        return {"threshold": decoder.new_zeros(len(decoder))}

    @torch.no_grad()
    def settle(self, x: Float[Tensor, "token d_in"]) -> None:
        """Set the threshold on validation activations."""
        self.threshold.fill_(active_share_threshold(self.hidden_pre(x), int(self.level)))
