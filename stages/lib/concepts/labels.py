"""Concept labels of the tokens: how they are described, written and read.

`data/concepts/concepts.json` lists the concepts in column order; `data/concepts/<split>.safetensors` holds `labels`,
uint8 [position, ceil(concept / 8)]: bit 7 - c % 8 of byte c // 8 is concept c (`numpy.packbits`, big-endian). A flat
position is window * n_ctx + pos. Positions that are no text token (BOS, padding, position 0) have no label.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from stages.lib.io import tensors
from stages.lib.io.errors import UserError
from stages.lib.io.files import read_json, write_json

CONCEPTS = Path("data/concepts")
SPLITS = ("fit", "validation", "test")
ROWS = 1 << 16
"""Rows that are unpacked at a time."""

Kind = Literal["lexical", "local", "syntactic", "contextual", "positional"]
"""What a reader must know to tell the concept: the piece of text itself, it and the one or two words or symbols before
it, its role in the statement or sentence, more of the text than that, or only the place in the line, the block or the
document."""


@dataclass(frozen=True)
class Spec:
    """What a concept is, apart from any data."""

    name: str
    kind: Kind
    parents: tuple[str, ...] = ()
    """Concepts that are present wherever this one is."""
    group: str | None = None
    """At most one concept of a group is present at a token."""
    needs_lookahead: bool = False
    """Whether text after the token may be needed to tell, so that a causal model can only guess. (That an operator or
    a keyword may turn out to be the beginning of a longer one is not counted.)"""


@dataclass(frozen=True, kw_only=True)
class Concept(Spec):
    """A concept with what was counted in the data."""

    prevalence: dict[str, float]
    """Share of the text tokens of each split."""
    positives: dict[str, int]
    """Tokens of each split."""
    mean_run: float
    """Mean number of consecutive text tokens, in one document, over all splits."""


def pack(labels: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Labels [position, concept] as bits [position, ceil(concept / 8)]."""
    return np.packbits(labels, axis=1)


def unpack(packed: NDArray[np.uint8], n_concepts: int) -> NDArray[np.bool_]:
    """The inverse of `pack`."""
    return np.unpackbits(packed, axis=1, count=n_concepts).astype(np.bool_)


def select_columns(packed: NDArray[np.uint8], columns: NDArray[np.int64], n_concepts: int) -> NDArray[np.uint8]:
    """Packed labels of some of the concepts."""
    blocks = [pack(unpack(packed[i : i + ROWS], n_concepts)[:, columns]) for i in range(0, len(packed), ROWS)]
    return np.concatenate(blocks)


def write_concepts(concepts: Sequence[Concept]) -> None:
    """Write the list of concepts, in column order."""
    write_json(CONCEPTS / "concepts.json", [asdict(concept) for concept in concepts])


def write_labels(split: str, packed: NDArray[np.uint8], concepts: Sequence[Concept]) -> None:
    """Write the packed labels of one split with the names of the columns."""
    description = {"concepts": [concept.name for concept in concepts], "split": split, "bit_order": "big"}
    tensors.save(CONCEPTS / f"{split}.safetensors", {"labels": torch.from_numpy(packed)}, description)


def read_concepts() -> list[Concept]:
    """The concepts in column order.

    Raises:
        UserError: if the file is missing or was not written by this version.
    """
    path = CONCEPTS / "concepts.json"
    entries: list[dict[str, Any]] = read_json(path)
    try:
        return [Concept(**{**entry, "parents": tuple(entry["parents"])}) for entry in entries]
    except (TypeError, KeyError):
        raise UserError(f"{path} has other fields than {', '.join(Concept.__dataclass_fields__)}; "
                        "`dvc repro concepts` writes it anew") from None  # fmt: skip


def read_labels(split: str, positions: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """Labels [token, concept] of the given flat positions, or of all positions.

    Raises:
        UserError: if the file is missing, has other columns than `concepts.json` or too few positions.
    """
    path = CONCEPTS / f"{split}.safetensors"
    names = [concept.name for concept in read_concepts()]
    if tensors.describe(path).get("concepts") != names:
        raise UserError(f"{path} has other columns than {CONCEPTS}/concepts.json; `dvc repro concepts` writes both")
    packed: NDArray[np.uint8] = tensors.load(path, ["labels"])["labels"].numpy()
    if positions is None:
        return unpack(packed, len(names))
    if len(positions) and int(positions.max()) >= len(packed):
        raise UserError(
            f"{path} has {len(packed)} positions, but position {int(positions.max())} is asked for: "
            "it was made from other tokens; `dvc repro` makes both from the same"
        )
    return unpack(packed[positions], len(names))
