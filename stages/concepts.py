"""Which concepts hold at each token.      in: data/corpus, data/tokens      out: data/concepts.

Which concepts there are, and how they come from the characters of a document to its tokens, is in
`stages.lib.concepts.token_labels`. A concept with too few positives or negatives in a split cannot be measured and is
left out: `dropped.json` has its name and counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from stages.lib.concepts.labels import CONCEPTS, SPLITS, Concept, Spec, pack, unpack, write_concepts, write_labels
from stages.lib.concepts.token_labels import choose_specs, label_tokens
from stages.lib.io import params
from stages.lib.io.errors import UserError
from stages.lib.io.files import write_json
from stages.lib.language.documents import Document, read_documents
from stages.lib.language.windows import Windows, read_windows
from stages.lib.run.log import Log
from stages.lib.run.start import run

CORPUS_SPLIT = {"fit": "sae_train", "validation": "validation", "test": "test"}
"""Where the documents of a split of the tokens come from."""
ROWS = 1 << 16
"""Rows that are unpacked at a time."""


class MinPositives(params.Params):
    """The fewest tokens with a concept, and without it, in each split."""

    fit: PositiveInt
    validation: PositiveInt
    test: PositiveInt


class ConceptsParams(params.Params):
    """Which concepts are kept."""

    min_positives: MinPositives


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


def settings() -> ConceptsParams:
    """The stage's settings."""
    return params.read("concepts", ConceptsParams)


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


def label_split(split: str, windows: Windows, specs: Sequence[Spec], log: Log) -> Labelled:
    """The labels of every position of a split."""
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
        log.advance(len(rows))
    return Labelled(packed, positives, runs, int(valid.sum()), sorted(unparsed))


def choose_columns(labelled: dict[str, Labelled], least: MinPositives) -> NDArray[np.int64]:
    """The columns with enough positives and negatives in every split.

    Raises:
        UserError: if none is left.
    """
    enough = [
        (part.positives >= getattr(least, split)) & (part.n_tokens - part.positives >= getattr(least, split))
        for split, part in labelled.items()
    ]
    columns = np.flatnonzero(np.logical_and.reduce(enough))
    if not len(columns):
        counts = ", ".join(f"{split} has {part.n_tokens} tokens" for split, part in labelled.items())
        raise UserError(f"concepts.min_positives leaves no concept: {counts}; lower it or raise tokens.n_*")
    return columns


def describe(
    specs: Sequence[Spec], labelled: dict[str, Labelled], columns: Sequence[int]
) -> tuple[list[Concept], dict[str, dict[str, int]]]:
    """The concepts that are kept, and the positives of those that are not."""
    counts = [{split: int(part.positives[i]) for split, part in labelled.items()} for i in range(len(specs))]
    kept_names = {specs[i].name for i in columns}
    kept = []
    for i in columns:
        spec = specs[i]
        runs = sum(int(part.runs[i]) for part in labelled.values())
        counted: dict[str, Any] = {
            "prevalence": {split: counts[i][split] / part.n_tokens for split, part in labelled.items()},
            "positives": counts[i],
            "mean_run": sum(counts[i].values()) / runs,
        }
        kept_spec = replace(spec, parents=tuple(name for name in spec.parents if name in kept_names))
        kept.append(Concept(**vars(kept_spec), **counted))
    return kept, {spec.name: counts[i] for i, spec in enumerate(specs) if spec.name not in kept_names}


def select_columns(packed: NDArray[np.uint8], columns: NDArray[np.int64], n_concepts: int) -> NDArray[np.uint8]:
    """Packed labels of some of the concepts."""
    blocks = [pack(unpack(packed[i : i + ROWS], n_concepts)[:, columns]) for i in range(0, len(packed), ROWS)]
    return np.concatenate(blocks)


def main() -> None:
    """Label all three splits, then keep the concepts that all of them have."""
    own = settings()
    windows = {split: read_windows(split) for split in SPLITS}
    languages = {document.language for split in SPLITS for _, document in used_documents(split, windows[split])}
    specs = choose_specs(languages)
    total = sum(int(part.valid().sum()) for part in windows.values())
    with Log("concepts", total, "tokens") as log:
        labelled = {split: label_split(split, windows[split], specs, log) for split in SPLITS}
        columns = choose_columns(labelled, own.min_positives)
        kept, dropped = describe(specs, labelled, columns.tolist())
        log.write(concepts=len(kept), dropped=len(dropped))
    for split, part in labelled.items():
        write_labels(split, select_columns(part.packed, columns, len(specs)), kept)
    write_concepts(kept)
    unparsed = {split: part.unparsed for split, part in labelled.items()}
    write_json(CONCEPTS / "dropped.json", {"too_rare": dropped, "n_too_rare": len(dropped), "unparsed": unparsed})


if __name__ == "__main__":
    run(main)
