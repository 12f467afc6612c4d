"""Choosing on shifted labels and counting on others, for many shifts, in compiled loops (`stages.lib.detectors.null`).

For each shift the labels are added up feature by feature (`stages.lib.detectors.abacus`), and what is chosen by the
sums is kept instead of the sums, which would be [feature, level, concept]. Counts on the other labels are those of the
chosen pairs alone; there the labels of a concept stand together, a bit a token. Shifts share nothing, so threads share
them.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Int

from stages.lib.detectors.abacus import SIZE, clear, count_rows, digits, read
from stages.lib.detectors.label_sums import Members, Words, bits, in_words
from stages.lib.run.parallel import compiled, over_rows

Shifts = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""By how many tokens the labels are shifted that choose, and those that score, [shift]."""


class Circle(NamedTuple):
    """The labels of consecutive tokens, of which those of any shift are easily had; made once for all features."""

    twice: Words
    """All tokens two times, so that shifted labels are a part of them."""
    tracks: npt.NDArray[np.uint64]
    """Once, [concept, word], a bit a token."""
    positives: npt.NDArray[np.int32]
    """[concept]"""

    def __len__(self) -> int:
        """How many tokens there are."""
        return len(self.twice) // 2

    def starts(self, by: Int[np.ndarray, " shift"]) -> Int[np.ndarray, " shift"]:
        """Which row of the labels is the first of those that are shifted by so much."""
        return -np.asarray(by, np.int64) % len(self)


def circle(labels: Bool[np.ndarray, "token concept"]) -> Circle:
    """The labels of consecutive tokens, closed to a circle."""
    tracks = bits(np.ascontiguousarray(labels.T))
    return Circle(in_words(labels, copies=2), tracks, labels.sum(0, dtype=np.int32))


@compiled
def _present(track: np.ndarray, base: int, n: int, row: np.ndarray, start: int, stop: int) -> np.int64:
    """On how many of some tokens a concept is present, when its labels begin with row `base` of n."""
    count = np.int64(0)
    for p in range(start, stop):
        at = base + row[p]
        place = np.uint64(at - n if at >= n else at)
        count += np.int64((track[place >> np.uint64(6)] >> (place & np.uint64(63))) & np.uint64(1))
    return count


@compiled
def _keep_better(
    total: np.ndarray, n_fired: int, positives: np.ndarray, at: int, score: np.ndarray, level: np.ndarray
) -> None:
    """Take a level for the concepts whose F1 is at least as high as those of the levels above."""
    for c in range(total.shape[0]):
        one = np.float32(2) * np.float32(total[c]) / np.float32(max(np.int32(n_fired) + positives[c], np.int32(1)))
        better = one >= score[c]
        score[c] = one if better else score[c]
        level[c] = at if better else level[c]


@compiled
def _choose_detectors(
    words: np.ndarray, base: int, pairs: tuple[np.ndarray, np.ndarray], n_levels: int, positives: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each concept the feature and level with the highest F1: the lowest of equal levels, the first feature."""
    (first, row), n_concepts = pairs, positives.shape[0]
    abacus, total = np.zeros(SIZE, np.uint64), np.zeros(n_concepts, np.int32)
    feature, level = np.zeros(n_concepts, np.int64), np.zeros(n_concepts, np.int64)
    score, own_score = np.full(n_concepts, -1, np.float32), np.zeros(n_concepts, np.float32)
    own_level = np.zeros(n_concepts, np.int32)
    for i in range((first.shape[0] - 1) // n_levels):
        begin, end = first[i * n_levels], first[(i + 1) * n_levels]
        if begin == end and i > 0:  # no better than the first feature
            continue
        n_digits = digits(end - begin)
        clear(abacus, n_digits)
        own_score[:], own_level[:] = 0, n_levels
        for back in range(n_levels):
            at = n_levels - 1 - back
            start, stop = first[i * n_levels + at], first[i * n_levels + at + 1]
            if start == stop:  # as good as the level above
                for c in range(n_concepts):
                    own_level[c] = at if own_level[c] == at + 1 else own_level[c]
                continue
            # Not cleared between levels: a firing counts at its level and at all below.
            count_rows(abacus, n_digits, words, base, row, start, stop)
            read(abacus, n_digits, total)
            _keep_better(total, end - start, positives, at, own_score, own_level)
        for c in range(n_concepts):
            if own_score[c] > score[c]:
                score[c], feature[c], level[c] = own_score[c], i, own_level[c]
    return feature, level


@compiled
def _count_detectors(
    words: np.ndarray, rest: tuple[np.ndarray, ...], start: int, stop: int, counts: np.ndarray, n_levels: np.ndarray
) -> None:
    base, first, row, positives, tracks, other_base, other_first, other_row, n = rest
    for shift in range(start, stop):
        feature, level = _choose_detectors(words, base[shift], (first, row), n_levels[0], positives)
        for c in range(positives.shape[0]):
            begin, end = other_first[feature[c] * n_levels[0] + level[c]], other_first[(feature[c] + 1) * n_levels[0]]
            counts[0, shift, c] = _present(tracks[c], other_base[shift], n[0], other_row, begin, end)
            counts[1, shift, c] = end - begin


def _arguments(keys: Members, labels: Circle, other_keys: Members, other: Circle, by: Shifts) -> tuple[np.ndarray, ...]:
    chosen_by = labels.starts(by[0]), *keys, labels.positives
    return *chosen_by, other.tracks, other.starts(by[1]), *other_keys, np.array([len(other)])


def detector_counts(
    keys: Members, labels: Circle, other_keys: Members, other: Circle, by: Shifts, n_levels: int
) -> Int[np.ndarray, "2 shift concept"]:
    """On how many other tokens each concept's detector fires where the concept is present, and on how many it fires.

    The detector is the feature and level with the highest F1 on the first labels, shifted by `by[0]`; the others are
    shifted by `by[1]`. Keys are feature * n_levels + level.
    """
    counts = np.empty((2, len(by[0]), len(labels.positives)), np.int64)
    arguments = _arguments(keys, labels, other_keys, other, by)
    work = len(by[0]) * len(keys.row) * labels.twice.words.shape[1]
    levels = np.array([n_levels])
    over_rows(_count_detectors, labels.twice.words, arguments, counts, levels, n_rows=len(by[0]), work=work)
    return counts


@compiled
def _choose_concepts(
    words: np.ndarray, base: int, pairs: tuple[np.ndarray, np.ndarray], positives: np.ndarray, concept: np.ndarray
) -> None:
    """For each feature the first concept with the highest MCC, as `stages.lib.detectors.counts.mcc` defines it."""
    (first, row), n = pairs, np.float64(words.shape[0] // 2)
    abacus, total = np.zeros(SIZE, np.uint64), np.zeros(positives.shape[0], np.int32)
    b = positives.astype(np.float64)
    root = np.sqrt(b * (n - b))
    for i in range(concept.shape[0]):
        start, stop = first[i], first[i + 1]
        concept[i] = 0
        if start == stop:
            continue
        n_digits = digits(stop - start)
        clear(abacus, n_digits)
        count_rows(abacus, n_digits, words, base, row, start, stop)
        read(abacus, n_digits, total)
        a, best = np.float64(stop - start), -np.inf
        own = np.sqrt(a * (n - a))
        for c in range(b.shape[0]):
            spread = own * root[c]
            one = (n * np.float64(total[c]) - a * b[c]) / spread if spread > 0 else 0.0
            if one > best:
                best, concept[i] = one, c


@compiled
def _count_concepts(
    words: np.ndarray, rest: tuple[np.ndarray, ...], start: int, stop: int, concept: np.ndarray, hits: np.ndarray
) -> None:
    base, first, row, positives, tracks, other_base, other_first, other_row, n = rest
    for shift in range(start, stop):
        _choose_concepts(words, base[shift], (first, row), positives, concept[shift])
        for i in range(hits.shape[1]):
            begin, end = other_first[i], other_first[i + 1]
            hits[shift, i] = _present(tracks[concept[shift, i]], other_base[shift], n[0], other_row, begin, end)


def concept_counts(
    keys: Members, labels: Circle, other_keys: Members, other: Circle, by: Shifts
) -> tuple[Int[np.ndarray, "shift feature"], Int[np.ndarray, "shift feature"]]:
    """Each feature's concept, and on how many other tokens the feature fires where the concept is present.

    The concept is the one with the highest MCC on the first labels, shifted by `by[0]`; the others are shifted by
    `by[1]`. Keys are features.
    """
    concept, hits = np.empty((2, len(by[0]), len(keys.first) - 1), np.int64)
    arguments = _arguments(keys, labels, other_keys, other, by)
    work = len(by[0]) * len(keys.row) * labels.twice.words.shape[1]
    over_rows(_count_concepts, labels.twice.words, arguments, concept, hits, n_rows=len(by[0]), work=work)
    return concept, hits
