"""Activations joined with what is known of their tokens: concept labels, token ids, documents.

A fixed number of tokens of a split, as whole windows drawn at random and in text order
(`stages.lib.activations.parts`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from stages.lib.activations.parts import draw_rows, read_rows
from stages.lib.activations.store import Store
from stages.lib.concepts.labels import read_labels
from stages.lib.io.errors import UserError
from stages.lib.language.windows import read_windows


class Batch(NamedTuple):
    """Some tokens in the order of the text."""

    x: Float[Tensor, "token d_in"]
    """Raw activations."""
    labels: npt.NDArray[np.bool_]
    """[token, concept]"""
    tokens: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    """Numbered from 0 within the part, without gaps."""


@dataclass(frozen=True)
class Labelled:
    """A part of a split; labels and ids are in memory, activations are read as they are needed."""

    store: Store
    split: str
    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    n_documents: int

    def __len__(self) -> int:
        """How many tokens the part has."""
        return len(self.rows)

    def batches(self, size: int) -> Iterator[Batch]:
        """All tokens, `size` at a time."""
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            x = read_rows(self.store, self.split, self.rows[part])
            yield Batch(x, self.labels[part], self.tokens[part], self.documents[part])


def read_labelled(store: Store, split: str, n_tokens: int, generator: np.random.Generator) -> Labelled:
    """As few whole windows of a split as hold `n_tokens` tokens, or the whole split if it is smaller."""
    windows = read_windows(split)
    positions = store.positions(split)
    rows = draw_rows(positions // windows.n_ctx, n_tokens, generator)
    chosen = positions[rows]
    found, documents = np.unique(windows.document.numpy()[chosen // windows.n_ctx], return_inverse=True)
    tokens = windows.tokens.flatten().numpy()[chosen].astype(np.int64)
    return Labelled(store, split, rows, read_labels(split, chosen), tokens, documents, len(found))


def usable_concepts(parts: Sequence[Labelled]) -> npt.NDArray[np.int64]:
    """The concepts that have positives and negatives in every part.

    Raises:
        UserError: if there is none.
    """
    usable = np.logical_and.reduce([part.labels.any(0) & ~part.labels.all(0) for part in parts])
    if not usable.any():
        raise UserError("no concept is present and absent in every split: raise tokens.n_fit, n_validation and n_test")
    return np.flatnonzero(usable)


def with_concepts(part: Labelled, concepts: npt.NDArray[np.int64]) -> Labelled:
    """The part with some of the concepts."""
    return replace(part, labels=np.ascontiguousarray(part.labels[:, concepts]))
