"""N-gram language models: what a model must beat before its activations are worth studying.

Interpolated Witten-Bell smoothing (Witten and Bell 1991, method C), which has no parameter to tune:
`P(w | h) = (c(h, w) + t(h) P(w | h')) / (c(h) + t(h))`, where `c` counts, `t(h)` is the number of distinct tokens seen
after `h`, and `h'` drops the oldest token of `h`; below the unigram stands the uniform distribution.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

MAX_ORDER = 3
"""Keys of longer n-grams would not fit 64 bits for a vocabulary of 10^5."""


def nats_per_token(
    train: Int[np.ndarray, " n_train"], heldout: Int[np.ndarray, " n_heldout"], *, order: int, d_vocab: int
) -> float:
    """The mean of -ln P over held-out tokens that have `order - 1` tokens before them.

    Both streams are read as one sequence, so that all orders are scored on comparable tokens.
    """
    assert 1 <= order <= MAX_ORDER, order
    probability: Float[np.ndarray, " n_scored"] = np.full(len(heldout) - order + 1, 1.0 / d_vocab)
    for n in range(1, order + 1):
        histories, continuations = _counts(train, n, d_vocab)
        scored = heldout[order - n :]
        keys = _keys(scored, n, d_vocab)
        total, distinct = _look_up(histories, keys // d_vocab)
        count, _ = _look_up(continuations, keys)
        weight = total + distinct
        smoothed = (count + distinct * probability) / np.maximum(weight, 1)
        probability = np.where(weight > 0, smoothed, probability)
    return float(-np.log(probability).mean())


class Table(NamedTuple):
    """N-grams or their histories, sorted by key."""

    keys: Int[np.ndarray, " key"]
    counts: Int[np.ndarray, " key"]
    distinct: Int[np.ndarray, " key"]
    """Of each history, the number of different tokens seen after it."""


def _keys(tokens: Int[np.ndarray, " token"], n: int, d_vocab: int) -> Int[np.ndarray, " gram"]:
    """One number for each n-gram; the quotient by `d_vocab` is the number of its history."""
    keys = np.zeros(len(tokens) - n + 1, dtype=np.int64)
    for offset in range(n):
        keys = keys * d_vocab + tokens[offset : offset + len(keys)]
    return keys


def _counts(tokens: Int[np.ndarray, " token"], n: int, d_vocab: int) -> tuple[Table, Table]:
    """The tables of the histories and of the n-grams."""
    grams, counts = np.unique(_keys(tokens, n, d_vocab), return_counts=True)
    histories, first = np.unique(grams // d_vocab, return_index=True)
    edges = np.append(first, len(grams))
    totals = np.add.reduceat(counts, first)
    return Table(histories, totals, np.diff(edges)), Table(grams, counts, np.ones_like(counts))


def _look_up(table: Table, keys: Int[np.ndarray, " gram"]) -> tuple[Int[np.ndarray, " gram"], Int[np.ndarray, " gram"]]:
    """The count and the distinct continuations of each key, 0 where it is unknown."""
    index = np.minimum(np.searchsorted(table.keys, keys), len(table.keys) - 1)
    found = table.keys[index] == keys
    return np.where(found, table.counts[index], 0), np.where(found, table.distinct[index], 0)
