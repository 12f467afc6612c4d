"""The tokens on which concept detectors are chosen and scored, and fewer kept in memory: for maxima and shifted labels.

What is drawn depends on the seed, the sizes and the text alone, so that the SAEs of every arm and what they are
compared with (`stages.baselines`) meet the same tokens, concepts, shifts and resamples.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from torch import Tensor

from stages.lib.activations.store import Store
from stages.lib.concepts.labelled import Labelled, read_labelled, usable_concepts, with_concepts
from stages.lib.concepts.labels import Concept, read_concepts
from stages.lib.detectors.coverage import Features
from stages.lib.detectors.firings import Encode, Firings, encoded_firings, largest, level_of
from stages.lib.detectors.null import Track, concept_null, offsets
from stages.lib.detectors.shifted import Circle, circle
from stages.lib.run.seeds import numpy_generator
from stages.lib.stats.intervals import resample_counts

SPLITS = ("fit", "validation", "test")


def stream(seed: int, *names: str) -> np.random.Generator:
    """A random stream that is the same in all stages that detect concepts."""
    return numpy_generator(seed, "interpret", *names)


class Parts(NamedTuple):
    """Parts of the splits with the concepts that can be told in all of them."""

    whole: dict[str, Labelled]
    """For choosing and scoring detectors."""
    sample: dict[str, Labelled]
    """Smaller, for what is learnt or repeated in memory."""
    concepts: list[Concept]
    """In the order of the labels' columns."""


def read_parts(store: Store, *, n_tokens: int, n_sample: int, seed: int) -> Parts:
    """`n_tokens` and `n_sample` tokens of each split, and the concepts that have both kinds in each of the former."""

    def read(name: str, n: int) -> dict[str, Labelled]:
        return {split: read_labelled(store, split, n, stream(seed, name, split)) for split in SPLITS}

    whole, sample = read("all", n_tokens), read("sample", min(n_sample, n_tokens))
    usable = usable_concepts(list(whole.values()))
    concepts = read_concepts()
    whole, sample = ({split: with_concepts(part, usable) for split, part in some.items()} for some in (whole, sample))
    return Parts(whole, sample, [concepts[column] for column in usable])


def document_resamples(test: Labelled, n_resamples: int, seed: int) -> Int[np.ndarray, "resample document"]:
    """How often each resample takes each document of `test`."""
    return resample_counts(test.n_documents, n_resamples, stream(seed, "documents"))


class Sample(NamedTuple):
    """The smaller parts, with the activations on which something is fitted."""

    part: dict[str, Labelled]
    x: dict[str, Tensor]
    """Of `fit` and `test`."""
    shifts: dict[str, npt.NDArray[np.int64]]
    """Offsets of the label tracks, for validation and test."""
    circles: dict[str, Circle]
    """Those label tracks."""


def draw_sample(parts: Parts, n_shifts: int, generator: np.random.Generator) -> Sample:
    """Read the activations and draw the shifts."""
    mean_run = max(concept.mean_run for concept in parts.concepts)
    shifts = {s: offsets(len(parts.sample[s]), mean_run, n_shifts, generator) for s in ("validation", "test")}
    x = {split: parts.sample[split].x() for split in ("fit", "test")}
    return Sample(parts.sample, x, shifts, {split: circle(parts.sample[split].labels) for split in shifts})


def candidates(encode: Encode, d_sae: int, sample: Sample) -> tuple[Features, Firings]:
    """The features that `encode` gives, their maxima taken on `fit`, and where they fire there."""
    found = encoded_firings(encode, sample.x["fit"])
    return Features(encode, largest(found, d_sae), sample.part["fit"].labels.shape[1]), found


def shifted(features: Features, sample: Sample, which: slice) -> Float[np.ndarray, "shift concept"]:
    """The F1 that features reach on shifted labels, for some of the shifts, after the passes over both splits."""

    def track(split: str) -> Track:
        (row, feature, activation), maximum = features.sampled(split), features.maximum
        level = level_of(activation, maximum[feature])
        return Track(row, feature, level, sample.part[split].labels, len(maximum), sample.circles[split])

    by = {split: offset[which] for split, offset in sample.shifts.items()}
    return concept_null(track("validation"), track("test"), by["validation"], by["test"])
