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
from stages.lib.detectors.label_sums import members
from stages.lib.detectors.shifted import Circle, circle, concept_counts, detector_counts

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
    circle: Circle | None = None
    """The same labels (`stages.lib.detectors.shifted.circle`), if they are not to be closed for this track alone."""

    def closed(self) -> Circle:
        """The labels as a circle."""
        return circle(self.labels) if self.circle is None else self.circle


def record(
    encode: Encode,
    x: Float[Tensor, "token d_in"],
    maximum: Float[np.ndarray, " d_sae"],
    labels: Bool[np.ndarray, "token concept"],
) -> Track:
    """The track of features on consecutive tokens; levels are shares of `maximum`."""
    found = encoded_firings(encode, x)
    return Track(found.row, found.feature, level_of(found.activation, maximum[found.feature]), labels, len(maximum))


def concept_null(
    validation: Track, test: Track, by_validation: Int[np.ndarray, " shift"], by_test: Int[np.ndarray, " shift"]
) -> Float[np.ndarray, "shift concept"]:
    """F1 on shifted test labels of the feature and level that is best for the concept on shifted validation labels."""
    keys, other_keys = (
        members(one.row, one.feature * np.int32(N_LEVELS) + one.level, one.d_sae * N_LEVELS)
        for one in (validation, test)
    )
    labels, other = validation.closed(), test.closed()
    both, fired = detector_counts(keys, labels, other_keys, other, (by_validation, by_test), N_LEVELS)
    return f1(both, fired, other.positives)


def feature_null(
    validation: Track, test: Track, by_validation: Int[np.ndarray, " shift"], by_test: Int[np.ndarray, " shift"]
) -> Float[np.ndarray, "shift d_sae"]:
    """MCC on shifted test labels of the concept that is best for the feature on shifted validation labels.

    Both at threshold 0. Choice and score are on different documents, as for the observed number, so chance is about 0
    however many concepts there are to choose from; the highest MCC on one set of labels would not be.
    """
    keys, other_keys = (members(one.row, one.feature, one.d_sae) for one in (validation, test))
    labels, other = validation.closed(), test.closed()
    concept, both = concept_counts(keys, labels, other_keys, other, (by_validation, by_test))
    return mcc(both, np.diff(other_keys.first), other.positives[concept], len(other))
