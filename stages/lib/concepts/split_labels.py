"""The labels of all tokens of a split, from the documents that its windows are cut from."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.lib.concepts.labels import Spec, pack
from stages.lib.concepts.token_labels import label_tokens
from stages.lib.io.errors import UserError
from stages.lib.language.documents import Document, read_documents
from stages.lib.language.windows import Windows

CORPUS_SPLIT = {"fit": "sae_train", "validation": "validation", "test": "test"}
"""Where the documents of a split of the tokens come from."""


class Labelled(NamedTuple):
    """The labels of one split and what was counted."""

    packed: NDArray[np.uint8]
    positives: NDArray[np.int64]
    """Tokens by concept."""
    runs: NDArray[np.int64]
    """Runs of consecutive tokens by concept."""
    n_tokens: int
    unparsed: list[str]
    """Python documents without a syntax tree."""


def used_documents(split: str, windows: Windows) -> Iterator[tuple[int, Document]]:
    """The documents of a split's windows with their numbers, as they come in the corpus.

    Raises:
        UserError: if one is not in the corpus.
    """
    wanted = {name: number for number, name in enumerate(windows.document_ids)}
    for document in read_documents(CORPUS_SPLIT[split]):
        if document.id in wanted:
            yield wanted.pop(document.id), document
    if wanted:
        raise UserError(
            f"data/tokens has {sorted(wanted)[0]!r} in {split}, which data/corpus/{CORPUS_SPLIT[split]}.jsonl has not: "
            "they are of different runs; `dvc repro tokens` makes them agree"
        )


def label_split(split: str, windows: Windows, specs: Sequence[Spec], advance: Callable[[int], None]) -> Labelled:
    """The labels of every position of a split; `advance` is told of the characters that are done."""
    n_positions = windows.tokens.numel()
    valid = windows.valid().numpy().ravel()
    owner = np.repeat(windows.document.numpy(), windows.n_ctx)
    start, end = (spans.numpy().ravel().astype(np.int64) for spans in (windows.start, windows.end))
    packed = np.zeros((n_positions, -(-len(specs) // 8)), np.uint8)
    positives, runs = np.zeros((2, len(specs)), np.int64)
    unparsed = []
    for number, document in used_documents(split, windows):
        # In text order, since the windows of a document are.
        rows = np.flatnonzero(valid & (owner == number))
        advance(len(document.text))
        if not len(rows):
            continue
        if int(end[rows].max()) > len(document.text):
            raise UserError(f"data/tokens goes beyond the end of {document.id!r} in data/corpus; `dvc repro tokens`")
        labels, parsed = label_tokens(document, start[rows], end[rows], specs)
        packed[rows] = pack(labels)
        positives += labels.sum(axis=0)
        runs += labels[0] + (labels[1:] & ~labels[:-1]).sum(axis=0)
        if not parsed:
            unparsed.append(document.id)
    return Labelled(packed, positives, runs, int(valid.sum()), sorted(unparsed))
