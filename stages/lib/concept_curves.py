"""What the features of one checkpoint detect: F1 of every concept, and each feature's own numbers on two halves.

The best feature and level of a concept are chosen on validation tokens and scored on test tokens, anew at every
checkpoint (science 3.4). Validation documents are in two halves, so that a change of a feature's best concept between
checkpoints can be compared with the change between two measurements of the same checkpoint.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.lib.confusion import (
    N_LEVELS,
    Choice,
    Confusion,
    Firings,
    Table,
    best_detectors,
    encoded_firings,
    f1,
    level_of,
    mcc,
)
from stages.lib.coverage import chance_level
from stages.lib.saelens import SAE
from stages.lib.shift_null import Track, concept_null, offsets, record

BLOCK = 2048
"""Tokens encoded at a time."""


class Sample(NamedTuple):
    """Tokens of a held-out split, the documents of the first half before those of the second."""

    x: Tensor
    """[token, d_in]"""
    labels: np.ndarray
    """Bool [token, concept]"""
    n_first: int
    """Tokens of the first half."""

    variation: float
    """`sum ||x - mean x||^2`, in float64."""

    def halves(self) -> tuple[slice, slice]:
        """The tokens of each half."""
        return slice(0, self.n_first), slice(self.n_first, len(self.x))


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
    maximum = np.zeros(d_sae, np.float32)
    np.maximum.at(maximum, fired.feature, fired.activation)
    scores = mcc(table.both[:, 0], table.fired[:, :1], table.positives, table.n)
    concept = scores.argmax(axis=1)
    best = scores[np.arange(d_sae), concept]
    return Half(n_firings, total / np.maximum(n_firings, 1), maximum, concept, best)


def select(sae: SAE, sample: Sample) -> Selection:
    """The best detector of each concept, and each feature's numbers on both halves."""
    fired = encoded_firings(sae.encode, sample.x)
    maximum = np.zeros(sae.d_sae, np.float32)
    np.maximum.at(maximum, fired.feature, fired.activation)
    level = level_of(fired.activation, maximum[fired.feature])
    tables, halves = [], []
    for half in sample.halves():
        first, last = np.searchsorted(fired.row, [half.start, half.stop])
        part = Firings(fired.row[first:last], fired.feature[first:last], fired.activation[first:last])
        counts = Confusion(sae.d_sae, sample.labels.shape[1])
        counts.add(part.row - np.int32(half.start), part.feature, level[first:last], sample.labels[half])
        tables.append(counts.table())
        halves.append(_half(part, tables[-1], sae.d_sae))
    one, two = tables
    whole = Table(one.both + two.both, one.fired + two.fired, one.positives + two.positives, one.n + two.n)
    track = Track(fired.row, fired.feature, level, sample.labels, sae.d_sae)
    return Selection(best_detectors(whole), maximum, (halves[0], halves[1]), track)


def fires(
    feature_acts: Float[Tensor, "token d_sae"], choice: Choice, maximum: Float[np.ndarray, " d_sae"]
) -> Bool[np.ndarray, "token concept"]:
    """Whether each concept's detector fires: `10 f / max f > level`, as `stages.lib.confusion` defines levels.

    Apart from its `detect`, which encodes: here one encoding serves several choices, the FVU and L0.
    """
    acts = feature_acts.index_select(1, torch.from_numpy(choice.feature))
    above = N_LEVELS * acts / torch.from_numpy(maximum[choice.feature]) > torch.from_numpy(choice.level)
    return np.asarray(above.numpy())


class Scores(NamedTuple):
    """What was measured on the test tokens."""

    f1: list[np.ndarray]
    """[concept] for each choice of detectors."""
    fvu: float
    l0: float


def score(sae: SAE, sample: Sample, choices: list[Choice], maximum: Float[np.ndarray, " d_sae"]) -> Scores:
    """F1 of the chosen detectors, FVU and L0.

    `FVU = sum ||x - x_hat||^2 / sum ||x - mean x||^2` over the sample (science 0.3); errors are added up in float64.
    """
    counts = np.zeros((len(choices), 2, sample.labels.shape[1]), np.int64)
    error = n_active = 0.0
    for start in range(0, len(sample.x), BLOCK):
        x, labels = sample.x[start : start + BLOCK], sample.labels[start : start + BLOCK]
        acts = sae.encode(x)
        error += float((x - sae.decode(acts)).square().sum(dim=1).double().sum())
        n_active += float((acts > 0).sum())
        for count, choice in zip(counts, choices, strict=True):
            predicted = fires(acts, choice, maximum)
            count[0] += (predicted & labels).sum(axis=0)
            count[1] += predicted.sum(axis=0)
    positives = sample.labels.sum(axis=0)
    scores = [f1(both, fired, positives) for both, fired in counts]
    return Scores(scores, error / sample.variation, n_active / len(sample.x))


def chance_f1(
    sae: SAE,
    selection: Selection,
    test: Sample,
    *,
    mean_run: float,
    n_shifts: int,
    generator: np.random.Generator,
) -> Float[np.ndarray, " concept"]:
    """F0 of each concept on the test tokens (`stages.lib.coverage`), the selection repeated on shifted labels."""
    track = record(sae.encode, test.x, selection.maximum, test.labels)
    by_validation = offsets(len(selection.track.labels), mean_run, n_shifts, generator)
    by_test = offsets(len(test.labels), mean_run, n_shifts, generator)
    null = concept_null(selection.track, track, by_validation, by_test)
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

    Both compare different halves, so both contain the same noise, and the difference is change (science 1.4 g).
    """
    enough = np.all([half.n_firings >= min_firings for half in (*before, *after)], axis=0)
    if not enough.any():
        return None

    def changed(a: Int[np.ndarray, " d_sae"], b: Int[np.ndarray, " d_sae"]) -> float:
        return float((a != b)[enough].mean())

    observed = [changed(before[0].concept, after[1].concept), changed(before[1].concept, after[0].concept)]
    null = [changed(one.concept, two.concept) for one, two in (before, after)]
    return Churn(float(np.mean(observed)), float(np.mean(null)), int(enough.sum()))
