"""What the features of one checkpoint detect: F1 of every concept, and each feature's own numbers on two halves.

The best feature and level of a concept are chosen on validation tokens and scored on test tokens, anew at every
checkpoint. Validation documents are in two halves, so that a change of a feature's best concept between
checkpoints can be compared with the change between two measurements of the same checkpoint.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.lib.detectors.counts import Choice, Confusion, Table, f1, mcc
from stages.lib.detectors.coverage import chance_level
from stages.lib.detectors.firings import Firings, encoded_firings, largest, level_of, listed
from stages.lib.detectors.label_sums import Members, Words, detector_counts, in_words, members
from stages.lib.detectors.null import Track, concept_null, offsets
from stages.lib.detectors.shifted import Circle, circle
from stages.lib.sae.saved import SAE, Encoder
from stages.lib.sae.selection import Active

BLOCK = 2048
"""Tokens decoded at a time."""


class Sample(NamedTuple):
    """Tokens of a held-out split, those of its first half before those of its second (`Labelled.halves`)."""

    x: Tensor
    """[token, d_in]"""
    labels: np.ndarray
    """Bool [token, concept]"""
    n_first: int
    """Tokens of the first half."""

    variation: float
    """`sum ||x - mean x||^2`, in float64."""
    words: Words
    """The labels in the form in which they add up fastest, made once for all checkpoints."""
    positives: np.ndarray
    """Tokens with each concept."""
    circle: Circle
    """The labels in the form in which shifted ones add up fastest."""

    def halves(self) -> tuple[slice, slice]:
        """The tokens of each half."""
        return slice(0, self.n_first), slice(self.n_first, len(self.x))


def make_sample(x: Float[Tensor, "token d_in"], labels: Bool[np.ndarray, "token concept"], n_first: int) -> Sample:
    """A sample with what all checkpoints need of it."""
    variation = float((x - x.double().mean(dim=0)).square().sum())
    return Sample(x, labels, n_first, variation, in_words(labels), labels.sum(axis=0), circle(labels))


class Shifts(NamedTuple):
    """By how many tokens labels are shifted, for the chance level, [shift]."""

    validation: np.ndarray
    test: np.ndarray


def draw_shifts(
    validation: Sample, test: Sample, mean_run: float, n_shifts: int, generator: np.random.Generator
) -> Shifts:
    """Random shifts of both samples; `mean_run` is that of the concept with the longest runs."""
    by = (offsets(len(sample.labels), mean_run, n_shifts, generator) for sample in (validation, test))
    return Shifts(*by)


class Half(NamedTuple):
    """Each feature's numbers on one half of the validation tokens, [feature]."""

    n_firings: np.ndarray
    mean: np.ndarray
    """Of the activations above 0; 0 for a feature without any."""
    maximum: np.ndarray
    concept: np.ndarray
    """The concept with the highest MCC at threshold 0, chosen on this half alone."""
    mcc: np.ndarray


class Selection(NamedTuple):
    """What was found on the validation tokens."""

    choice: Choice
    maximum: np.ndarray
    """Each feature's largest activation."""
    halves: tuple[Half, Half]
    track: Track


def _half(fired: Firings, table: Table, d_sae: int) -> Half:
    n_firings = np.bincount(fired.feature, minlength=d_sae)
    total = np.bincount(fired.feature, weights=fired.activation, minlength=d_sae)
    maximum = largest(fired, d_sae)
    scores = mcc(table.both[:, 0], table.fired[:, :1], table.positives, table.n)
    concept = scores.argmax(axis=1)
    best = scores[np.arange(d_sae), concept]
    return Half(n_firings, total / np.maximum(n_firings, 1), maximum, concept, best)


def select(sae: SAE, sample: Sample) -> Selection:
    """The best detector of each concept, and each feature's numbers on both halves."""
    fired = encoded_firings(Encoder(sae), sample.x)
    maximum = largest(fired, sae.d_sae)
    level = level_of(fired.activation, maximum[fired.feature])
    counts = Confusion(sae.d_sae, sample.labels.shape[1])
    halves: list[Half] = []
    before: Table | None = None
    for half in sample.halves():
        first, last = np.searchsorted(fired.row, [half.start, half.stop])
        part = Firings(fired.row[first:last], fired.feature[first:last], fired.activation[first:last])
        counts.add(part.row - np.int32(half.start), part.feature, level[first:last], sample.words.rows(half))
        table = counts.totals()
        halves.append(_half(part, table.less(before) if before else table, sae.d_sae))
        before = table
    track = Track(fired.row, fired.feature, level, sample.labels, sae.d_sae, sample.circle)
    return Selection(counts.best_detectors(), maximum, (halves[0], halves[1]), track)


class Scores(NamedTuple):
    """What was measured on the test tokens."""

    f1: list[np.ndarray]
    """[concept] for each choice of detectors."""
    fvu: float
    l0: float


def squared_error(sae: SAE, x: Float[Tensor, "token d_in"], active: Active) -> float:
    """`sum ||x - x_hat||^2`, decoded a few tokens at a time and added up in float64."""
    error = 0.0
    for start in range(0, len(x), BLOCK):
        part = x[start : start + BLOCK]
        first = active.first[start : start + len(part) + 1]
        own = slice(int(first[0]), int(first[-1]))
        x_hat = sae.decode_active(Active(first - first[0], active.feature[own], active.value[own]))
        error += float(x_hat.sub_(part).square_().sum(dim=1).double().sum())
    return error


def score(
    sae: SAE, sample: Sample, choices: list[Choice], maximum: Float[np.ndarray, " d_sae"]
) -> tuple[Scores, Track]:
    """F1 of the chosen detectors, FVU and L0; and the firings that they are from.

    `FVU = sum ||x - x_hat||^2 / sum ||x - mean x||^2` over the sample.
    """
    active = Encoder(sae).active(sample.x)
    error, fired = squared_error(sae, sample.x, active), listed(active)
    order = members(np.arange(len(fired.row)), fired.feature, sae.d_sae)
    level_by_firing = level_of(fired.activation, maximum[fired.feature])
    level = level_by_firing[order.row]
    keys, labels = Members(order.first, fired.row[order.row]), sample.words
    counts = [detector_counts(choice.feature, choice.level, keys, level, labels) for choice in choices]
    scores = [f1(both, n_fired, sample.positives) for both, n_fired in counts]
    track = Track(fired.row, fired.feature, level_by_firing, sample.labels, sae.d_sae, sample.circle)
    return Scores(scores, error / sample.variation, len(fired.row) / len(sample.x)), track


def chance_f1(validation: Track, test: Track, shifts: Shifts) -> Float[np.ndarray, " concept"]:
    """F0 of each concept on the test tokens (`stages.lib.detectors.coverage`): the selection, on shifted labels."""
    null = concept_null(validation, test, shifts.validation, shifts.test)
    return chance_level(test.labels.mean(axis=0), null)


class Churn(NamedTuple):
    """The share of features with another best concept."""

    observed: float
    """From one checkpoint to the next, one half against the other."""
    null: float
    """Within each of the two checkpoints, one half against the other."""
    n: int
    """Features that fire often enough in both halves at both checkpoints."""


def churn(before: tuple[Half, Half], after: tuple[Half, Half], min_firings: int) -> Churn | None:
    """How many best concepts change between checkpoints, beside how many change between halves of one checkpoint.

    Both compare different halves, so both contain the same noise. With A and B the chance that two halves agree about
    a feature whose concept did not and did change, and r the share of features whose concept did, `observed - null` is
    r (A - B) on average: 0 where nothing changes.
    """
    enough = np.all([half.n_firings >= min_firings for half in (*before, *after)], axis=0)
    if not enough.any():
        return None

    def changed(a: Int[np.ndarray, " d_sae"], b: Int[np.ndarray, " d_sae"]) -> float:
        return float((a != b)[enough].mean())

    observed = [changed(before[0].concept, after[1].concept), changed(before[1].concept, after[0].concept)]
    null = [changed(one.concept, two.concept) for one, two in (before, after)]
    return Churn(float(np.mean(observed)), float(np.mean(null)), int(enough.sum()))
