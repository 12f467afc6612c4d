"""Activations joined with what is known of their tokens: concept labels, token ids, documents.

A fixed number of tokens of a split, as whole windows drawn at random and in text order
(`stages.lib.activations.parts`).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.lib.activations.parts import draw_rows, read_rows
from stages.lib.activations.store import Store
from stages.lib.concepts.labels import read_labels
from stages.lib.concepts.ngrams import contexts
from stages.lib.io.errors import UserError
from stages.lib.language.windows import read_windows


class Batch(NamedTuple):
    """Some tokens in the order of the text."""

    x: Float[Tensor, "token d_in"]
    """Raw activations."""
    labels: npt.NDArray[np.bool_]
    """[token, concept]"""
    context: npt.NDArray[np.int64]
    """[token, 3]: `stages.lib.concepts.ngrams.contexts`"""
    documents: npt.NDArray[np.int64]
    """Numbered from 0 within the part, without gaps."""

    @property
    def tokens(self) -> Int[np.ndarray, " token"]:
        """The token ids."""
        return self.context[:, -1]


class Shared(NamedTuple):
    """Some tokens of a split that two parts of it have, or one of them, each once."""

    x: Float[Tensor, "token d_in"]
    """Raw activations."""
    places: npt.NDArray[np.int64]
    """Which of them are in the first part."""
    batch: Batch
    """Those."""
    other_places: npt.NDArray[np.int64]
    """Which are in the second part."""
    first: int
    """How many tokens the second part has before those."""


def in_first_half(documents: Int[np.ndarray, " any"]) -> Bool[np.ndarray, " any"]:
    """Which documents, by number, are in the first of the two halves in which a part is measured twice.

    By parity, so that both halves have documents from everywhere in the split.
    """
    even: npt.NDArray[np.bool_] = documents % 2 == 0
    return even


@dataclass(frozen=True)
class Labelled:
    """A part of a split; labels and ids are in memory, activations are read as they are needed."""

    store: Store
    split: str
    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.bool_]
    context: npt.NDArray[np.int64]
    """[token, 3]: `stages.lib.concepts.ngrams.contexts`"""
    documents: npt.NDArray[np.int64]
    n_documents: int

    def __len__(self) -> int:
        """How many tokens the part has."""
        return len(self.rows)

    @property
    def tokens(self) -> Int[np.ndarray, " token"]:
        """The token ids."""
        return self.context[:, -1]

    def x(self) -> Float[Tensor, "token d_in"]:
        """The raw activations of all tokens."""
        return read_rows(self.store, self.split, self.rows)

    def halves(self) -> tuple[Int[np.ndarray, " first"], Int[np.ndarray, " second"]]:
        """The places of the tokens of the first half's documents and of the second's, in the order of the text."""
        first = in_first_half(self.documents)
        return np.flatnonzero(first), np.flatnonzero(~first)

    def batches(self, size: int) -> Iterator[Batch]:
        """All tokens, `size` at a time."""
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            x = read_rows(self.store, self.split, self.rows[part])
            yield Batch(x, self.labels[part], self.context[part], self.documents[part])


def shared_batches(part: Labelled, other: Labelled, size: int) -> Iterator[Shared]:
    """All tokens that two parts of a split have, `size` at a time, so that none is looked at twice."""
    rows = np.union1d(part.rows, other.rows)
    for start in range(0, len(rows), size):
        own = rows[start : start + size]
        (begin, end), (first, last) = (np.searchsorted(one.rows, [own[0], own[-1] + 1]) for one in (part, other))
        x, places = read_rows(part.store, part.split, own), np.searchsorted(own, part.rows[begin:end])
        chosen, some = slice(begin, end), x if len(places) == len(own) else x[torch.from_numpy(places)]
        batch = Batch(some, part.labels[chosen], part.context[chosen], part.documents[chosen])
        yield Shared(x, places, batch, np.searchsorted(own, other.rows[first:last]), int(first))


def read_labelled(store: Store, split: str, n_tokens: int, generator: np.random.Generator) -> Labelled:
    """As few whole windows of a split as hold `n_tokens` tokens, or the whole split if it is smaller."""
    windows = read_windows(split)
    positions = store.positions(split)
    rows = draw_rows(positions // windows.n_ctx, n_tokens, generator)
    chosen = positions[rows]
    found, documents = np.unique(windows.document.numpy()[chosen // windows.n_ctx], return_inverse=True)
    context = contexts(windows.tokens.numpy(), chosen)
    return Labelled(store, split, rows, read_labels(split, chosen), context, documents, len(found))


def usable_concepts(parts: Sequence[Labelled]) -> npt.NDArray[np.int64]:
    """The concepts that have positives and negatives in every part.

    Raises:
        UserError: if there is none.
    """
    usable = np.logical_and.reduce([part.labels.any(0) & ~part.labels.all(0) for part in parts])
    if not usable.any():
        raise UserError("no concept is present and absent in every split: raise tokens.n_fit, n_validation and n_test")
    return np.flatnonzero(usable)


def frequent_concepts(parts: Collection[Labelled], min_positives: int) -> npt.NDArray[np.int64]:
    """The concepts that enough tokens of every part have, and enough have not.

    Raises:
        UserError: if there is none.
    """
    counts = np.min([part.labels.sum(axis=0) for part in parts], axis=0)
    # A concept that is on everywhere has no tokens without it to compare with.
    missing = np.min([(~part.labels).sum(axis=0) for part in parts], axis=0)
    kept = np.flatnonzero((counts >= min_positives) & (missing >= min_positives))
    if not len(kept):
        raise UserError(
            f"no concept has {min_positives} tokens in each part (the most frequent of {len(counts)} has "
            f"{int(counts.max(initial=0))}): lower emergence.min_positives or raise emergence.n_fit, "
            "emergence.n_validation and emergence.n_test"
        )
    return kept


def with_concepts(part: Labelled, concepts: npt.NDArray[np.int64]) -> Labelled:
    """The part with some of the concepts."""
    return replace(part, labels=np.take(part.labels, concepts, axis=1))
