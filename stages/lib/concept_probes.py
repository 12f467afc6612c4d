"""Probes of a sample's concepts on balanced examples: of a few features of an SAE, and of all coordinates."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from stages.lib.concept_sample import Sample
from stages.lib.confusion import Encode, auroc, encoded
from stages.lib.probes import Examples, Probe, draw_examples, largest_differences, sparse_auroc

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


def sparse_aurocs(
    fit_acts: Float[Tensor, "token d_sae"], encode: Encode, sample: Sample, probed: Probed, k: Sequence[int], l2: float
) -> dict[int, Float[np.ndarray, " concept"]]:
    """The test AUROC of each probed concept from its k most different features, for each k."""
    test_acts = torch.cat(list(encoded(encode, sample.x["test"])))
    ranked = largest_differences(fit_acts, sample.part["fit"].labels[:, probed.columns], max(k))
    return {one: sparse_auroc(fit_acts, test_acts, ranked[:, :one], probed.fit, probed.test, l2) for one in k}


def dense_auroc(probe: Probe, sample: Sample, probed: Probed) -> Float[np.ndarray, " concept"]:
    """The test AUROC of each probed concept from the dense probe, on the same examples."""
    p = probe.probability(sample.x["test"])[:, probed.columns]
    return auroc(np.take_along_axis(p.T, probed.test.rows, 1), probed.test.positive)
