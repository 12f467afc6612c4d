"""Sums of rows of labels over groups of rows, and what is chosen and detected with them, in compiled loops.

    sums[key] = sum over the rows r of the key of labels[r]

Labels are bits, 64 of them in a word (`stages.lib.detectors.abacus`). Sums of integers have no order and each key is
in one thread, so nothing depends on the number of threads.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int, Integer, UInt8

from stages.lib.detectors.abacus import MOST_WORDS, SIZE, clear, count_rows, digits, read
from stages.lib.run.parallel import compiled, over_rows


class Members(NamedTuple):
    """The rows of each key."""

    first: npt.NDArray[np.int64]
    """Where each key's rows start, and at last how many there are, [key + 1]."""
    row: npt.NDArray[np.int32]
    """By key, in the given order within a key."""


@dataclass(frozen=True)
class Words:
    """Labels as bits: concept c is bit c % 64 of word c // 64."""

    words: npt.NDArray[np.uint64]
    """[token, word]"""
    n_concepts: int

    def __len__(self) -> int:
        """How many tokens there are."""
        return len(self.words)

    def rows(self, which: slice) -> "Words":
        """Some of the tokens, as a view."""
        return Words(self.words[which], self.n_concepts)

    def labels(self) -> UInt8[np.ndarray, "token concept"]:
        """The labels, 0 or 1."""
        packed = np.ascontiguousarray(self.words).view(np.uint8)
        return np.unpackbits(packed, axis=1, count=self.n_concepts, bitorder="little")


def bits(labels: Bool[np.ndarray, "row column"]) -> npt.NDArray[np.uint64]:
    """Each row's labels as bits in whole words."""
    n_bytes = -(-labels.shape[1] // 8)
    padded = np.zeros((len(labels), -(-n_bytes // 8) * 8), np.uint8)
    padded[:, :n_bytes] = np.packbits(labels, axis=1, bitorder="little")
    return padded.view(np.uint64)


def in_words(labels: Bool[np.ndarray, "token concept"], copies: int = 1) -> Words:
    """The labels as words, several times one below the other."""
    words = bits(labels)
    assert words.shape[1] <= MOST_WORDS, f"{labels.shape[1]} concepts are more than {64 * MOST_WORDS}"
    return Words(np.tile(words, (copies, 1)) if copies > 1 else words, labels.shape[1])


@compiled
def _sort(row: np.ndarray, key: np.ndarray, first: np.ndarray, sorted_row: np.ndarray) -> None:
    for p in range(key.shape[0]):
        first[key[p] + 1] += 1
    for i in range(first.shape[0] - 1):
        first[i + 1] += first[i]
    place = first[:-1].copy()
    for p in range(key.shape[0]):
        q = place[key[p]]
        place[key[p]] = q + 1
        sorted_row[q] = row[p]


def members(row: Int[np.ndarray, " pair"], key: Int[np.ndarray, " pair"], n_keys: int) -> Members:
    """Pairs of a row and a key in the order of the keys, by a counting sort."""
    first, sorted_row = np.zeros(n_keys + 1, np.int64), np.empty(len(row), np.int32)
    _sort(row.astype(np.int32, copy=False), key.astype(np.int32, copy=False), first, sorted_row)
    return Members(first, sorted_row)


@compiled
def _add_rows(sums: np.ndarray, words: np.ndarray, start: int, stop: int, first: np.ndarray, row: np.ndarray) -> None:
    abacus, total = np.zeros(SIZE, np.uint64), np.zeros(sums.shape[1], np.int32)
    for key in range(start, stop):
        n_rows = first[key + 1] - first[key]
        if n_rows == 0:
            continue
        n_digits = digits(n_rows)
        clear(abacus, n_digits)
        count_rows(abacus, n_digits, words, 0, row, first[key], first[key + 1])
        read(abacus, n_digits, total)
        for c in range(total.shape[0]):
            sums[key, c] += total[c]


def add_label_sums(sums: Integer[np.ndarray, "key concept"], keys: Members, labels: Words) -> None:
    """Add to the sums of each key the labels of its rows."""
    over_rows(_add_rows, sums, labels.words, keys.first, keys.row)


@compiled
def _best(
    both: np.ndarray,
    fired: np.ndarray,
    positives: np.ndarray,
    score: np.ndarray,
    feature: np.ndarray,
    level: np.ndarray,
) -> None:
    kind = score.dtype.type
    n_features, n_levels, n_concepts = both.shape
    total = np.zeros(n_concepts, both.dtype)
    own_score, own_level = np.empty_like(score), np.empty_like(level)
    for i in range(n_features):
        total[:] = 0
        own_score[:] = -1
        n_fired = np.int64(0)
        for back in range(n_levels):
            at = n_levels - 1 - back
            n_fired += fired[i, at]
            for c in range(n_concepts):
                total[c] += both[i, at, c]
                one = kind(2) * kind(total[c]) / kind(max(n_fired + positives[c], 1))
                better = one >= own_score[c]  # the lowest of equal levels
                own_score[c] = one if better else own_score[c]
                own_level[c] = at if better else own_level[c]
        for c in range(n_concepts):
            if own_score[c] > score[c]:  # the first of equal features
                score[c], feature[c], level[c] = own_score[c], i, own_level[c]


def best_f1(
    both: Integer[np.ndarray, "feature level concept"],
    fired: Integer[np.ndarray, "feature level"],
    positives: Integer[np.ndarray, " concept"],
) -> tuple[Int[np.ndarray, " concept"], Int[np.ndarray, " concept"], Float[np.ndarray, " concept"]]:
    """For each concept the feature and level with the highest F1, the first of equals, and that F1.

    The counts are those at exactly each level; a feature fires at a level if it reaches it or a higher one.
    """
    score = np.full(both.shape[2], -1, np.float32 if both.dtype.itemsize <= 4 else np.float64)
    feature, level = np.zeros(len(score), np.int64), np.zeros(len(score), np.int64)
    _best(both, fired.astype(np.int64, copy=False), positives.astype(np.int64, copy=False), score, feature, level)
    return feature, level, score


@compiled
def _hits(
    feature: np.ndarray,
    level: np.ndarray,
    first: np.ndarray,
    row: np.ndarray,
    levels: np.ndarray,
    words: np.ndarray,
    counts: np.ndarray,
) -> None:
    for c in range(feature.shape[0]):
        word, bit = c // 64, np.uint64(c % 64)
        hits = fired = np.int64(0)
        for p in range(first[feature[c]], first[feature[c] + 1]):
            on = np.int64(levels[p] >= level[c])
            fired += on
            hits += on & np.int64((words[row[p], word] >> bit) & np.uint64(1))
        counts[0, c] = hits
        counts[1, c] = fired


def detector_counts(
    feature: Int[np.ndarray, " concept"],
    level: Int[np.ndarray, " concept"],
    keys: Members,
    levels: UInt8[np.ndarray, " pair"],
    labels: Words,
) -> Int[np.ndarray, "2 concept"]:
    """On how many tokens each concept's detector fires and the concept is present, and on how many it fires.

    `keys` are the rows of each feature, `levels` the levels of its firings in the same order.
    """
    counts = np.empty((2, len(feature)), np.int64)
    _hits(feature, level, keys.first, keys.row, levels, labels.words, counts)
    return counts


@compiled
def _mark(
    row: np.ndarray,
    feature: np.ndarray,
    level: np.ndarray,
    first: np.ndarray,
    concept: np.ndarray,
    least: np.ndarray,
    fires: np.ndarray,
) -> None:
    for p in range(row.shape[0]):
        for q in range(first[feature[p]], first[feature[p] + 1]):
            c = concept[q]
            if level[p] >= least[c]:
                fires[row[p], c] = True


def mark_firing(
    fires: Bool[np.ndarray, "token concept"],
    pairs: tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"], UInt8[np.ndarray, " pair"]],
    chosen: Members,
    least: Int[np.ndarray, " concept"],
) -> None:
    """Set where each concept's detector fires, from the rows, features and levels of all firings.

    `chosen` has the concepts of each feature, `least` the level that each concept asks for.
    """
    _mark(*pairs, chosen.first, chosen.row, least, fires)
