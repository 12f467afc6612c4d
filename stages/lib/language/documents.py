"""What a text source yields and the corpus stage writes: one document a line of JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from stages.lib.io.errors import UserError

CORPUS = Path("data/corpus")
SPLITS = ("lm_train", "sae_train", "validation", "test")


class Document(NamedTuple):
    """One source file or record."""

    id: str
    """Unique in the corpus and the same on every machine, such as `sympy/core/add.py`."""
    text: str
    language: Literal["python", "text"]


def to_line(document: Document) -> str:
    """The document as one line of JSON."""
    return json.dumps(document._asdict(), ensure_ascii=False) + "\n"


def read_documents(split: str, corpus: Path = CORPUS) -> Iterator[Document]:
    """The documents of one split, in the order of the file.

    Raises:
        UserError: if the file is missing or a line is damaged.
    """
    path = corpus / f"{split}.jsonl"
    if not path.exists():
        raise UserError(f"{path} is missing; `dvc checkout corpus` or `dvc repro corpus` brings it back")
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            try:
                yield Document(**json.loads(line))
            except (ValueError, TypeError):
                raise UserError(f"{path} is damaged at line {number}; `dvc checkout --force` restores it") from None
