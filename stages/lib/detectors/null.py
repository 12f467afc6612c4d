"""How well features detect concepts by chance: label tracks shifted in a circle against the features.

Labels and features both come in runs, so two independent tracks agree more than independent tokens would, and the best
of many features more still. Rotating the label tracks by a random offset keeps the runs of both and breaks their
relation; permuting single tokens would break the runs too and make chance look too small (Politis and Romano 1994 use
the circle for the same reason). The offset is at least ten times the concepts' mean run, and the same for all concepts,
so that concepts that go together stay together.

Every selection that the observed number went through is repeated on the shifted labels.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.lib.detectors.counts import f1, mcc
from stages.lib.detectors.firings import N_LEVELS, Encode, encoded_firings, level_of
from stages.lib.detectors.label_sums import Members, Words, add_label_sums, best_f1, detector_counts, in_words, members

RUNS = 10
"""Offset in mean runs of the concept with the longest, after which the track has forgotten itself."""


def offsets(n_rows: int, mean_run: float, n_shifts: int, generator: np.random.Generator) -> Int[np.ndarray, " shift"]:
    """Random offsets, at least `RUNS` mean runs (but at most a quarter of the circle) from no shift on either side."""
    least = max(1, min(round(RUNS * mean_run), n_rows // 4))
    return generator.integers(least, n_rows - least + 1, n_shifts)


class Track(NamedTuple):
    """Firings on consecutive tokens, in the order of the rows, with the labels of the same tokens."""

    row: npt.NDArray[np.int32]
    feature: npt.NDArray[np.int32]
    level: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.bool_]
    """[token, concept]"""
    d_sae: int


def record(
    encode: Encode,
    x: Float[Tensor, "token d_in"],
    maximum: Float[np.ndarray, " d_sae"],
    labels: Bool[np.ndarray, "token concept"],
) -> Track:
    """The track of features on consecutive tokens; levels are shares of `maximum`."""
    found = encoded_firings(encode, x)
    return Track(found.row, found.feature, level_of(found.activation, maximum[found.feature]), labels, len(maximum))


def rotations(labels: Bool[np.ndarray, "token concept"], by: Int[np.ndarray, " shift"]) -> list[Words]:
    """Views of the labels rotated by each offset: row r of a view is row r - offset of the labels."""
    n, twice = len(labels), in_words(labels, copies=2)
    return [Words(twice.words[n - offset : 2 * n - offset], twice.n_concepts) for offset in by]


def concept_null(
    validation: Track, test: Track, by_validation: Int[np.ndarray, " shift"], by_test: Int[np.ndarray, " shift"]
) -> Float[np.ndarray, "shift concept"]:
    """F1 on shifted test labels of the feature and level that is best for the concept on shifted validation labels."""
    key = validation.feature * N_LEVELS + validation.level
    keys = members(validation.row, key, validation.d_sae * N_LEVELS)
    fired = np.diff(keys.first).reshape(-1, N_LEVELS)
    positives = validation.labels.sum(0)
    by_feature = members(np.arange(len(test.row)), test.feature, test.d_sae)
    test_keys, level = Members(by_feature.first, test.row[by_feature.row]), test.level[by_feature.row]
    test_positives = test.labels.sum(0)
    both = np.empty((*fired.shape, validation.labels.shape[1]), np.int32)
    null = []
    for labels, other in zip(rotations(validation.labels, by_validation), rotations(test.labels, by_test), strict=True):
        both[:] = 0
        add_label_sums(both.reshape(fired.size, -1), keys, labels)
        feature, least, _ = best_f1(both, fired, positives)
        hits, n_fired = detector_counts(feature, least, test_keys, level, other)
        null.append(f1(hits, n_fired, test_positives))
    return np.stack(null)


def feature_null(
    validation: Track, test: Track, by_validation: Int[np.ndarray, " shift"], by_test: Int[np.ndarray, " shift"]
) -> Float[np.ndarray, "shift d_sae"]:
    """MCC on shifted test labels of the concept that is best for the feature on shifted validation labels.

    Both at threshold 0. Choice and score are on different documents, as for the observed number, so chance is about 0
    however many concepts there are to choose from; the highest MCC on one set of labels would not be.
    """
    keys = members(validation.row, validation.feature, validation.d_sae)
    fired, positives = np.diff(keys.first)[:, None], validation.labels.sum(0)
    test_fired, test_positives = np.bincount(test.feature, minlength=test.d_sae), test.labels.sum(0)
    both = np.empty((validation.d_sae, validation.labels.shape[1]), np.int32)
    null = []
    for labels, other in zip(rotations(validation.labels, by_validation), rotations(test.labels, by_test), strict=True):
        both[:] = 0
        add_label_sums(both, keys, labels)
        concept = mcc(both, fired, positives, len(labels)).argmax(1)
        present = other.labels()[test.row, concept[test.feature]]
        hits = np.bincount(test.feature, present, test.d_sae).astype(np.int64)  # sums of 0 and 1, exact in float64
        null.append(mcc(hits, test_fired, test_positives[concept], len(other)))
    return np.stack(null)
