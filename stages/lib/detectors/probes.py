"""What else tells a concept from a token: its id alone, or all of the activation.

- Token lookup: P(c | token id) from counts, smoothed towards the concept's rate, thresholded.
- Dense probe, the ceiling: logistic regression on the whitened activation with a penalty l2 / 2 ||w||^2 on the mean
  log-loss. Whitening makes the problem well-conditioned and the penalty the same for all directions.

Thresholds are chosen on validation by F1, from the exact distribution of the scores (lookup) or from a fine histogram.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

N_BINS = 200
"""Bins of the predicted probability among which thresholds are chosen."""
MAX_ITERATIONS = 40
"""Of L-BFGS."""


def lookup(
    positives: Int[np.ndarray, "token_id concept"], totals: Int[np.ndarray, " token_id"]
) -> Float[np.ndarray, "token_id concept"]:
    """P(concept | token id) as if two more tokens of each id had been seen, with the concept's rate.

    Ids that were never seen get that rate. Smoothed towards 1/2 instead, ids that were never or rarely seen would be
    taken for any rare concept.
    """
    rate = positives.sum(0) / max(1, int(totals.sum()))
    probability: npt.NDArray[np.float64] = (positives + 2 * rate) / (totals[:, None] + 2)
    return probability


def accepted_ids(
    probability: Float[np.ndarray, "token_id concept"],
    positives: Int[np.ndarray, "token_id concept"],
    totals: Int[np.ndarray, " token_id"],
) -> Bool[np.ndarray, "token_id concept"]:
    """Which ids are taken for the concept: those at or above the threshold with the highest F1 on the given counts."""
    order = np.argsort(-probability, axis=0, kind="stable")
    ordered = np.take_along_axis(probability, order, 0)
    both = np.take_along_axis(positives, order, 0).cumsum(0)
    score = 2 * both / np.maximum(totals[order].cumsum(0) + positives.sum(0), 1)
    # Equal probabilities cannot be told apart: a threshold can only fall behind the last of them.
    score[:-1][ordered[:-1] == ordered[1:]] = -1
    best = score.argmax(0)
    accepted: npt.NDArray[np.bool_] = probability >= ordered[best, np.arange(probability.shape[1])]
    return accepted


class Probe(NamedTuple):
    """A logistic probe of every concept on the same inputs."""

    weights: Tensor
    """[d_in, concept]"""
    bias: Tensor
    """[concept]"""

    def probability(self, x: Float[Tensor, "token d_in"]) -> Float[np.ndarray, "token concept"]:
        """The probe's P(concept)."""
        p: npt.NDArray[np.float32] = torch.sigmoid(torch.addmm(self.bias, x, self.weights)).numpy()
        return p


def fit_dense(x: Float[Tensor, "token d_in"], labels: Bool[np.ndarray, "token concept"], l2: float) -> Probe:
    """Logistic probes of all concepts on whitened inputs, expressed in the inputs themselves.

    Each starts from its least-squares solution, which in whitened space is E[x (y - p)] / (p (1 - p)).
    """
    y = torch.from_numpy(labels).float()
    mean = x.double().mean(0)
    centred = x.double() - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    # Directions without variance would be blown up to unit variance.
    whiten = (vectors * torch.rsqrt(values.clamp_min(1e-6 * float(values[-1])))).float()
    white = centred.float() @ whiten
    p = y.mean(0).clamp(0.5 / len(x), 1 - 0.5 / len(x))
    weights = white.T @ (y - p) / len(x) / (p * (1 - p))
    bias = torch.logit(p)
    _minimise_logistic(lambda: torch.addmm(bias, white, weights), lambda r: white.T @ r, y, weights, bias, l2)
    weights = whiten @ weights
    return Probe(weights, bias - mean.float() @ weights)


def _minimise_logistic(
    logits: Callable[[], Tensor],
    gradient: Callable[[Tensor], Tensor],
    y: Tensor,
    weights: Tensor,
    bias: Tensor,
    l2: float,
) -> None:
    """Minimise the mean log-loss of each concept, summed over concepts, plus the penalty, by L-BFGS, in place.

    `logits` are [example, concept], like `y`; `gradient` makes that of the weights from that of the logits, which is
    sigmoid(z) - y: written out, because autograd takes twice as long.
    """
    optimiser = torch.optim.LBFGS(
        [weights, bias], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe", tolerance_change=1e-6
    )

    @torch.no_grad()
    def closure() -> Tensor:
        z = logits()
        residual = (torch.sigmoid(z) - y) / len(y)
        weights.grad = gradient(residual) + l2 * weights
        bias.grad = residual.sum(0)
        loss = (torch.nn.functional.softplus(z) - y * z).sum() / len(y)
        return loss + 0.5 * l2 * weights.square().sum()

    optimiser.step(closure)  # type: ignore[no-untyped-call]


class ProbabilityHistogram:
    """Predicted probabilities of positives and of all tokens, counted in bins, to choose thresholds by F1."""

    def __init__(self, n_concepts: int) -> None:
        self._positive = np.zeros((n_concepts, N_BINS), np.int64)
        self._all = np.zeros((n_concepts, N_BINS), np.int64)

    def add(self, probability: Float[np.ndarray, "token concept"], labels: Bool[np.ndarray, "token concept"]) -> None:
        """Count a batch."""
        shape = self._all.shape
        key = np.minimum((probability * N_BINS).astype(np.int64), N_BINS - 1) + np.arange(shape[0]) * N_BINS
        self._all += np.bincount(key.ravel(), minlength=self._all.size).reshape(shape)
        self._positive += np.bincount(key[labels], minlength=self._all.size).reshape(shape)

    def thresholds(self) -> Float[np.ndarray, " concept"]:
        """The lower edge of the bin from which on F1 is highest."""
        both, fired = (counts[:, ::-1].cumsum(1)[:, ::-1] for counts in (self._positive, self._all))
        score = 2 * both / np.maximum(fired + both[:, :1], 1)
        edges: npt.NDArray[np.float64] = score.argmax(1) / N_BINS
        return edges
