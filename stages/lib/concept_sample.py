"""Smaller parts of the splits that all SAEs of an arm share, kept in memory: for maxima, shifted labels and probes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from stages.lib.confusion import auroc, encoded
from stages.lib.coverage import Features
from stages.lib.labelled import Labelled
from stages.lib.probes import Examples, Probe, draw_examples, largest_differences, sparse_auroc
from stages.lib.shift_null import concept_null, offsets, record

MIN_POSITIVES = 20
"""Positives, and negatives, in the fit and test samples from which a concept is probed: fewer rank too coarsely."""


class Sample(NamedTuple):
    """Parts of fit, validation and test with their activations."""

    part: dict[str, Labelled]
    x: dict[str, Tensor]
    shifts: dict[str, npt.NDArray[np.int64]]
    """Offsets of the label tracks, for validation and test."""
    probed: npt.NDArray[np.int64]
    """Concepts with enough examples, as columns."""
    examples: dict[str, Examples]
    """Of the probed concepts, for fit and test."""


def draw_sample(
    parts: dict[str, Labelled], *, mean_run: float, n_shifts: int, n_examples: int, generator: np.random.Generator
) -> Sample:
    """Read the parts and draw shifts and examples."""
    shifts = {split: offsets(len(parts[split]), mean_run, n_shifts, generator) for split in ("validation", "test")}
    counts = [(parts[split].labels.sum(0), len(parts[split])) for split in ("fit", "test")]
    enough = np.logical_and.reduce([np.minimum(positive, n - positive) >= MIN_POSITIVES for positive, n in counts])
    probed = np.flatnonzero(enough)
    examples = {s: draw_examples(parts[s].labels[:, probed], n_examples, generator) for s in ("fit", "test")}
    x = {split: torch.cat([batch.x for batch in part.batches(len(part))]) for split, part in parts.items()}
    return Sample(parts, x, shifts, probed, examples)


def shifted(features: Features, sample: Sample, which: slice) -> Float[np.ndarray, "shift concept"]:
    """The F1 that features reach on shifted labels, for some of the shifts."""
    tracks = {
        split: record(features.encode, sample.x[split], features.maximum, sample.part[split].labels)
        for split in sample.shifts
    }
    by = {split: offset[which] for split, offset in sample.shifts.items()}
    return concept_null(tracks["validation"], tracks["test"], by["validation"], by["test"])


def sparse_aurocs(
    features: Features, sample: Sample, k: Sequence[int], l2: float
) -> dict[int, Float[np.ndarray, " concept"]]:
    """The test AUROC of each probed concept from its k most different features, for each k."""
    fit, test = (torch.cat(list(encoded(features.encode, sample.x[split]))) for split in ("fit", "test"))
    ranked = largest_differences(fit, sample.part["fit"].labels[:, sample.probed], max(k))
    examples = sample.examples["fit"], sample.examples["test"]
    return {one: sparse_auroc(fit, test, ranked[:, :one], *examples, l2) for one in k}


def dense_auroc(probe: Probe, sample: Sample) -> Float[np.ndarray, " concept"]:
    """The test AUROC of each probed concept from the dense probe, on the same examples."""
    examples = sample.examples["test"]
    p = probe.probability(sample.x["test"])[:, sample.probed]
    return auroc(np.take_along_axis(p.T, examples.rows, 1), examples.positive)
