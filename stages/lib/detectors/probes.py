"""What else tells a concept from a token: its id alone, or all of the activation.

- Token lookup: P(c | token id) from counts, smoothed towards the concept's rate, thresholded.
- Dense probe, the ceiling: logistic regression on the whitened activation with a penalty l2 / 2 ||w||^2 on the mean
  log-loss. Whitening makes the problem well-conditioned and the penalty the same for all directions.

Thresholds are chosen on validation by F1, from the exact distribution of the scores (lookup) or from a fine histogram.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from stages.lib.detectors.lbfgs import minimise
from stages.lib.run.parallel import side_by_side

N_BINS = 200
"""Bins of the predicted probability among which thresholds are chosen."""
BLOCK = 4096
"""Tokens whose logits are in memory at once while the dense probe is fitted."""
GROUP = 64
"""Concepts, at most, that one thread fits at once."""


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

    In whitened space the curvature of a concept's loss is about p (1 - p) in every direction at the start, where only
    the rate p is known, so that the first step is its least-squares solution.
    """
    n, d_in = x.shape
    mean = x.double().mean(0)
    centred = x.double() - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / n)
    # Directions without variance would be blown up to unit variance.
    whiten = (vectors * torch.rsqrt(values.clamp_min(1e-6 * float(values[-1])))).float()
    inputs = torch.ones(n, d_in + 1)
    inputs[:, :-1] = centred.float() @ whiten
    positive = torch.from_numpy(labels)
    p = positive.float().mean(0).clamp(0.5 / n, 1 - 0.5 / n)
    start = torch.zeros(d_in + 1, len(p))
    start[-1] = torch.logit(p)

    def fit_some(which: Tensor) -> Tensor:
        own, rate = positive[:, which].to(torch.uint8), p[which]
        return minimise(partial(logistic_gradient, inputs, own, l2), start[:, which], rate * (1 - rate) + l2)

    # In groups whatever the number of threads: the bits of a product depend on its shape.
    found = torch.cat(side_by_side(fit_some, torch.arange(len(p)).tensor_split(-(-len(p) // GROUP))), 1)
    weights = whiten @ found[:-1]
    return Probe(weights, found[-1] - mean.float() @ weights)


def logistic_gradient(
    inputs: Float[Tensor, "token d_in_plus_one"],
    labels: UInt8[Tensor, "token concept"],
    l2: float,
    theta: Float[Tensor, "d_in_plus_one column"],
    columns: Int[Tensor, " column"],
) -> Float[Tensor, "d_in_plus_one column"]:
    """The gradient of the mean log-loss of some concepts, with the penalty on all but the bias, which is last.

    Inputs end with a 1. That of the logits z is sigmoid(z) - y, made in blocks that stay in the processor's cache.
    """
    found = torch.zeros_like(theta)
    for start in range(0, len(inputs), BLOCK):
        x, y = inputs[start : start + BLOCK], labels[start : start + BLOCK]
        residual = (x @ theta).sigmoid_().sub_(y[:, columns])
        found.addmm_(x.T, residual)
    found /= len(inputs)
    found[:-1] += l2 * theta[:-1]
    return found


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
