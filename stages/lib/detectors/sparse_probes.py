"""What a few features tell of a concept: k-sparse probes, and the balanced examples on which probes are ranked.

The k features with the largest |mean over positives - mean over negatives| (Gurnee et al. 2023, arXiv 2305.01610,
section 4.1), then logistic regression on them, on as many positives as negatives. All of it is made of the firings:
activations that are 0 are never written down.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.lib.detectors.firings import Firings
from stages.lib.detectors.logistic import fit_logistic
from stages.lib.detectors.probes import Probe
from stages.lib.detectors.sample import Sample
from stages.lib.run.parallel import compiled
from stages.lib.stats.correlation import auroc


def balanced_examples(
    labels: Bool[np.ndarray, "token concept"], n_examples: int, generator: np.random.Generator
) -> Int[np.ndarray, "concept example"]:
    """Rows of positives (first half) and of negatives (second half) of each concept, drawn with replacement."""
    half = n_examples // 2
    rows = [
        np.concatenate([generator.choice(np.flatnonzero(column == kind), half) for kind in (True, False)])
        for column in labels.T
    ]
    return np.array(rows, np.int64).reshape(len(rows), 2 * half)


class Examples(NamedTuple):
    """Balanced examples of some concepts among the tokens of one part."""

    rows: npt.NDArray[np.int64]
    """[concept, example], into the part's tokens."""
    positive: npt.NDArray[np.bool_]
    """[concept, example]"""


def draw_examples(
    labels: Bool[np.ndarray, "token concept"], n_examples: int, generator: np.random.Generator
) -> Examples:
    """Balanced examples with their labels."""
    rows = balanced_examples(labels, n_examples, generator)
    return Examples(rows, np.take_along_axis(labels.T, rows, 1))


MIN_POSITIVES = 20
"""Positives, and negatives, in the fit and test samples from which a concept is probed: fewer rank too coarsely."""


class Probed(NamedTuple):
    """The concepts with enough examples."""

    columns: npt.NDArray[np.int64]
    fit: Examples
    test: Examples


def draw_probed(sample: Sample, n_examples: int, generator: np.random.Generator) -> Probed:
    """The concepts that can be probed, and their examples."""
    fit, test = (sample.part[split].labels for split in ("fit", "test"))
    rarer = [np.minimum(labels.sum(0), (~labels).sum(0)) for labels in (fit, test)]
    columns = np.flatnonzero(np.minimum(*rarer) >= MIN_POSITIVES)
    return Probed(columns, *(draw_examples(labels[:, columns], n_examples, generator) for labels in (fit, test)))


@compiled
def _add_activations(
    row: np.ndarray, feature: np.ndarray, activation: np.ndarray, labels: np.ndarray, sums: np.ndarray
) -> None:
    for p in range(row.shape[0]):
        a, i, r = np.float64(activation[p]), feature[p], row[p]
        for c in range(labels.shape[1]):
            sums[i, c] += a * labels[r, c]


def largest_differences(
    found: Firings, labels: Bool[np.ndarray, "token concept"], k: int, d_sae: int
) -> Int[Tensor, "concept k"]:
    """The k features whose mean differs most between positives and negatives of each concept."""
    inside = np.zeros((d_sae, labels.shape[1]))
    _add_activations(*found, labels.view(np.uint8), inside)
    n, total = labels.sum(0), np.bincount(found.feature, found.activation, d_sae)
    difference = inside / n - (total[:, None] - inside) / (len(labels) - n)
    return torch.from_numpy(np.abs(difference)).topk(k, dim=0).indices.T


def _inputs(found: Firings, ranked: Int[Tensor, "concept k"], examples: Examples) -> Float[Tensor, "concept example k"]:
    """The activations of each concept's features on its examples."""
    used, place = np.unique(ranked.numpy(), return_inverse=True)
    column = np.full(1 + max(used[-1], found.feature.max(initial=0)), len(used))
    column[used] = np.arange(len(used))
    wanted = column[found.feature] < len(used)
    acts = np.zeros((len(used), 1 + max(examples.rows.max(), found.row.max(initial=0))), np.float32)
    acts[column[found.feature[wanted]], found.row[wanted]] = found.activation[wanted]
    return torch.from_numpy(acts[place.reshape(ranked.shape)[:, None, :], examples.rows[:, :, None]])


def fit_sparse(
    feature_acts: Float[Tensor, "concept example k"], labels: Bool[np.ndarray, "concept example"], l2: float
) -> tuple[Float[Tensor, "concept k"], Float[Tensor, " concept"]]:
    """Logistic weights and bias of each concept on its own examples, whose inputs should be of order 1."""
    theta = torch.from_numpy(fit_logistic(feature_acts.numpy(), labels, l2)).float()
    return theta[:, :-1], theta[:, -1]


class SparseProbes(NamedTuple):
    """A logistic probe of each concept on its own k features."""

    ranked: Tensor
    """[concept, k]"""
    weights: Tensor
    """[concept, k], of the raw activations."""

    def aurocs(self, found: Firings, examples: Examples) -> Float[np.ndarray, " concept"]:
        """The AUROC on other examples."""
        scores = torch.einsum("cek,ck->ce", _inputs(found, self.ranked, examples), self.weights)
        return auroc(scores.numpy(), examples.positive)


def fit_sparse_probes(
    found: Firings, ranked: Int[Tensor, "concept most"], examples: Examples, k: Sequence[int], l2: float
) -> dict[int, SparseProbes]:
    """For each k the probes on the first k ranked features."""
    inputs = _inputs(found, ranked, examples)
    # A common unit, so that the penalty weighs the same on all features.
    unit = inputs.square().mean(1).sqrt().clamp_min(1e-12)
    scaled = inputs / unit[:, None]
    probes = {}
    for one in k:
        weights, _ = fit_sparse(scaled[:, :, :one], examples.positive, l2)
        probes[one] = SparseProbes(ranked[:, :one], weights / unit[:, :one])
    return probes


def dense_auroc(probe: Probe, sample: Sample, probed: Probed) -> Float[np.ndarray, " concept"]:
    """The test AUROC of each probed concept from the dense probe, on the same examples."""
    p = probe.probability(sample.x["test"])[:, probed.columns]
    return auroc(np.take_along_axis(p.T, probed.test.rows, 1), probed.test.positive)
