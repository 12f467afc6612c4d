"""Counts between thresholded features and concepts, streamed over tokens, and the scores made of them.

For a detector (a feature with a threshold, `stages.lib.detectors.firings`) that fires on n_f of n tokens, a concept
with n_c positives and n_fc tokens in both,

    TP = n_fc     FP = n_f - n_fc     FN = n_c - n_fc     F1 = 2 n_fc / (n_f + n_c)
    MCC = (n n_fc - n_f n_c) / sqrt(n_f (n - n_f) n_c (n - n_c))

so the counts n_fc, n_f, n_c and n say everything. Features are sparse, so n_fc is a sum over firings, not over tokens
and features: each token adds its row of labels to the rows of the features that fire on it
(`stages.lib.detectors.label_sums`).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int, Integer, UInt8
from torch import Tensor

from stages.lib.detectors import label_sums
from stages.lib.detectors.firings import N_LEVELS, Encode, Firings, encoded_firings, level_of
from stages.lib.detectors.label_sums import Members, Words

AT_ONCE = 2**20
"""Firings, or tokens, of several batches that are added up together."""


def joint_counts(keys: Members, labels: Words) -> Int[np.ndarray, "key concept"]:
    """For each key the sum of the labels of its rows; both come from `label_sums`."""
    counts = np.zeros((len(keys.first) - 1, labels.n_concepts), np.int32)
    label_sums.add_label_sums(counts, keys, labels)
    return counts


def at_least(counts: Int[np.ndarray, "feature level *concept"]) -> Int[np.ndarray, "feature level *concept"]:
    """Counts of firings at exactly each level turned into counts at that level or above."""
    total = counts.copy()
    for level in range(total.shape[1] - 2, -1, -1):
        np.add(total[:, level], total[:, level + 1], out=total[:, level])
    return total


class Table(NamedTuple):
    """Counts over tokens: in both, of firings, of positives, of all."""

    both: npt.NDArray[np.int64]
    """[feature, level, concept]"""
    fired: npt.NDArray[np.int64]
    """[feature, level]"""
    positives: npt.NDArray[np.int64]
    """[concept]"""
    n: int

    def less(self, other: "Table") -> "Table":
        """The counts without those of another table."""
        return Table(
            self.both - other.both, self.fired - other.fired, self.positives - other.positives, self.n - other.n
        )


class Confusion:
    """Adds up the counts of all features, levels and concepts; memory does not grow with tokens.

    Firings of several batches are added up at once, since each feature and level with a firing costs as much as many
    firings do.
    """

    def __init__(self, d_sae: int, n_concepts: int, n_levels: int = N_LEVELS) -> None:
        self._both = np.zeros((d_sae, n_levels, n_concepts), np.int64)
        self._fired = np.zeros((d_sae, n_levels), np.int64)
        self._positives = np.zeros(n_concepts, np.int64)
        self._n = 0
        self._waiting: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Words]] = []
        """Rows, counted from the first that waits, with their keys, and labels."""
        self._n_waiting = np.zeros(2, np.int64)
        """Tokens and firings."""

    def add(
        self,
        row: Int[np.ndarray, " firing"],
        feature: Int[np.ndarray, " firing"],
        level: UInt8[np.ndarray, " firing"] | None,
        labels: Bool[np.ndarray, "token concept"] | Words,
    ) -> None:
        """Count a batch: its firings with their levels (None where there is one level only) and its labels."""
        key = feature if level is None else feature * np.int32(self._both.shape[1]) + level
        words = labels if isinstance(labels, Words) else label_sums.in_words(labels)
        place = row.astype(np.int32, copy=False) + np.int32(self._n_waiting[0])
        self._waiting.append((place, key.astype(np.int32, copy=False), words))
        self._n_waiting += len(words), len(row)
        if self._n_waiting.max() >= AT_ONCE:
            self._settle()

    def _settle(self) -> None:
        """Add up what waits."""
        if not self._waiting:
            return
        d_sae, n_levels, n_concepts = self._both.shape
        rows, key, parts = zip(*self._waiting, strict=True)
        words = Words(np.concatenate([part.words for part in parts]), n_concepts)
        keys = label_sums.members(np.concatenate(rows), np.concatenate(key), d_sae * n_levels)
        label_sums.add_label_sums(self._both.reshape(-1, n_concepts), keys, words)
        self._fired += np.diff(keys.first).reshape(d_sae, n_levels)
        every = Members(np.array([0, len(words)]), np.arange(len(words), dtype=np.int32))
        label_sums.add_label_sums(self._positives[None], every, words)
        self._n += len(words)
        self._waiting, self._n_waiting = [], np.zeros(2, np.int64)

    def best_detectors(self) -> "Choice":
        """For each concept the feature and level with the highest F1, the first of equals."""
        self._settle()
        return Choice(*label_sums.best_f1(self._both, self._fired, self._positives))

    def table(self) -> Table:
        """The counts so far; a firing counts at its level and at all below."""
        self._settle()
        return Table(at_least(self._both), at_least(self._fired), self._positives.copy(), self._n)

    def totals(self) -> Table:
        """The counts so far at the lowest level alone."""
        self._settle()
        both, fired = self._both.sum(1, keepdims=True), self._fired.sum(1, keepdims=True)
        return Table(both, fired, self._positives.copy(), self._n)


def f1(
    both: Integer[np.ndarray, "*any"], fired: Integer[np.ndarray, "*#any"], positives: Integer[np.ndarray, "*#any"]
) -> Float[np.ndarray, "*any"]:
    """F1 = 2 TP / (2 TP + FP + FN), with 0 / 0 = 0."""
    below = np.maximum(fired + positives, 1).astype(np.float32 if both.dtype.itemsize <= 4 else np.float64)
    score: npt.NDArray[np.float64] = 2 * both.astype(below.dtype) / below
    return score


def mcc(
    both: Integer[np.ndarray, "*any"],
    fired: Integer[np.ndarray, "*#any"],
    positives: Integer[np.ndarray, "*#any"],
    n: int,
) -> Float[np.ndarray, "*any"]:
    """Matthews' correlation coefficient (Matthews 1975, equation 3), with 0 / 0 = 0."""
    a, b = fired.astype(np.float64), positives.astype(np.float64)
    spread = np.sqrt(a * (n - a)) * np.sqrt(b * (n - b))
    above = n * both.astype(np.float64) - a * b
    score: npt.NDArray[np.float64] = np.divide(above, spread, out=np.zeros_like(above), where=spread > 0)
    return score


class Choice(NamedTuple):
    """The best detector of each concept."""

    feature: npt.NDArray[np.int64]
    level: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]


def detected(
    found: Firings, choice: Choice, maximum: Float[np.ndarray, " d_sae"], n_rows: int
) -> Bool[np.ndarray, "token concept"]:
    """Whether each concept's chosen detector is among the firings of a token."""
    fires = np.zeros((n_rows, len(choice.feature)), np.bool_)
    level = level_of(found.activation, maximum[found.feature])
    chosen = label_sums.members(np.arange(len(choice.feature)), choice.feature, len(maximum))
    label_sums.mark_firing(fires, (found.row, found.feature, level), chosen, choice.level)
    return fires


def detect(
    encode: Encode, x: Float[Tensor, "token d_in"], choice: Choice, maximum: Float[np.ndarray, " d_sae"]
) -> Bool[np.ndarray, "token concept"]:
    """Whether each concept's chosen detector fires."""
    return detected(encoded_firings(encode, x), choice, maximum, len(x))


class Predictions:
    """Counts by document between one prediction a concept and its labels, so that documents can be resampled."""

    def __init__(self, n_documents: int, n_concepts: int) -> None:
        self._counts = np.zeros((3, n_documents, n_concepts), np.int64)
        self._n = 0

    def add(
        self,
        predicted: Bool[np.ndarray, "token concept"],
        labels: Bool[np.ndarray, "token concept"],
        documents: Int[np.ndarray, " token"],
    ) -> None:
        """Count a batch."""
        keys = label_sums.members(np.arange(len(labels)), documents, self._counts.shape[1])
        for counts, values in zip(self._counts, (predicted & labels, predicted, labels), strict=True):
            counts += joint_counts(keys, label_sums.in_words(values))
        self._n += len(labels)

    def f1(self) -> Float[np.ndarray, " concept"]:
        """F1 over all tokens."""
        return f1(*self._counts.sum(1))

    def mcc(self) -> Float[np.ndarray, " concept"]:
        """MCC over all tokens."""
        both, fired, positives = self._counts.sum(1)
        return mcc(both, fired, positives, self._n)

    def prevalence(self) -> Float[np.ndarray, " concept"]:
        """The share of positive tokens."""
        share: npt.NDArray[np.float64] = self._counts[2].sum(0) / self._n
        return share

    def resampled_f1(self, counts: Int[np.ndarray, "resample document"]) -> Float[np.ndarray, "resample concept"]:
        """F1 when document d is taken `counts[r, d]` times (bootstrap over documents)."""
        both, fired, positives = (counts.astype(np.float64) @ part for part in self._counts)
        return 2 * both / np.maximum(fired + positives, 1)
