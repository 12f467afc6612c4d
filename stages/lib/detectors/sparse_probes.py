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
from scipy.sparse import csr_array
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
    row: np.ndarray, feature: np.ndarray, activation: np.ndarray, first: np.ndarray, concept: np.ndarray,
    sums: np.ndarray,
) -> None:  # fmt: skip
    for p in range(row.shape[0]):
        a, i = np.float64(activation[p]), feature[p]
        for q in range(first[row[p]], first[row[p] + 1]):
            sums[i, concept[q]] += a


def largest_differences(found: Firings, labels: csr_array, k: int, d_sae: int) -> Int[Tensor, "concept k"]:
    """The k features whose mean differs most between positives and negatives of each concept.

    Labels are [token, concept]; most are absent, and what is absent takes no time.
    """
    inside = np.zeros((d_sae, labels.shape[1]))
    _add_activations(*found, labels.indptr, labels.indices, inside)
    n = np.bincount(labels.indices, minlength=labels.shape[1])
    total = np.bincount(found.feature, found.activation, d_sae)
    difference = inside / n - (total[:, None] - inside) / (labels.shape[0] - n)
    return torch.from_numpy(np.abs(difference)).topk(k, dim=0).indices.T


@compiled
def _gather(acts: np.ndarray, column: np.ndarray, rows: np.ndarray, inputs: np.ndarray) -> None:
    # Feature by feature: a feature's activations stay in the processor's cache, those of all would not.
    for c in range(column.shape[0]):
        for j in range(column.shape[1]):
            own = acts[column[c, j]]
            for e in range(rows.shape[1]):
                inputs[c, e, j] = own[rows[c, e]]


def _inputs(found: Firings, ranked: Int[Tensor, "concept k"], examples: Examples) -> Float[Tensor, "concept example k"]:
    """The activations of each concept's features on its examples."""
    used, place = np.unique(ranked.numpy(), return_inverse=True)
    number = np.zeros(1 + max(int(used[-1]), int(found.feature.max(initial=0))), np.int32)
    number[used] = np.arange(1, 1 + len(used))
    wanted = number[found.feature] > 0
    acts = np.zeros((len(used), 1 + max(examples.rows.max(), found.row.max(initial=0))), np.float32)
    acts[number[found.feature[wanted]] - 1, found.row[wanted]] = found.activation[wanted]
    inputs = np.empty((*examples.rows.shape, ranked.shape[1]), np.float32)
    _gather(acts, place.reshape(ranked.shape), examples.rows, inputs)
    return torch.from_numpy(inputs)


def fit_sparse(
    feature_acts: Float[Tensor, "concept example k"], labels: Bool[np.ndarray, "concept example"], l2: float
) -> tuple[Float[Tensor, "concept k"], Float[Tensor, " concept"]]:
    """Logistic weights and bias of each concept on its own examples, whose inputs should be of order 1."""
    theta = torch.from_numpy(fit_logistic(feature_acts.numpy(), labels, l2)).float()
    return theta[:, :-1], theta[:, -1]


class SparseProbes(NamedTuple):
    """Logistic probes of each concept on its own features."""

    ranked: Tensor
    """[concept, most]"""
    weights: dict[int, Tensor]
    """[concept, k], of the activations of the first k, by k."""

    def aurocs(self, found: Firings, examples: Examples) -> dict[int, Float[np.ndarray, " concept"]]:
        """The AUROC on other examples, by k."""
        inputs = _inputs(found, self.ranked, examples)
        scores = {k: torch.einsum("cek,ck->ce", inputs[:, :, :k], own) for k, own in self.weights.items()}
        return {k: auroc(own.numpy(), examples.positive) for k, own in scores.items()}


def fit_sparse_probes(
    found: Firings, ranked: Int[Tensor, "concept most"], examples: Examples, k: Sequence[int], l2: float
) -> SparseProbes:
    """For each k the probes on the first k ranked features."""
    inputs = _inputs(found, ranked, examples)
    # A common unit, so that the penalty weighs the same on all features.
    unit = inputs.square().mean(1).sqrt().clamp_min(1e-12)
    scaled = inputs / unit[:, None]
    weights = {one: fit_sparse(scaled[:, :, :one], examples.positive, l2)[0] / unit[:, :one] for one in k}
    return SparseProbes(ranked, weights)


def dense_auroc(probe: Probe, sample: Sample, probed: Probed) -> Float[np.ndarray, " concept"]:
    """The test AUROC of each probed concept from the dense probe, on the same examples."""
    p = probe.probability(sample.x["test"])[:, probed.columns]
    return auroc(np.take_along_axis(p.T, probed.test.rows, 1), probed.test.positive)
