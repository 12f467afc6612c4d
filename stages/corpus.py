"""Text documents from a source, near-copies removed, split by document.    in: a text source    out: data/corpus.

Splitting by document (a source file) keeps windows of one file on one side; near-copies are removed first, since a copy
on the other side would leak just the same.
"""

import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import blake2b
from heapq import nsmallest
from itertools import accumulate
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveFloat

from stages.lib.io import params, plugins
from stages.lib.io.errors import UserError
from stages.lib.io.files import atomic, write_json
from stages.lib.language.documents import CORPUS, SPLITS, Document, to_line
from stages.lib.run.start import run

SHINGLE = 8
"""Words in a shingle."""
SKETCH = 64
"""Shingles kept of each document: the standard error of the estimated resemblance is at most 1 / (2 sqrt(64)) = .06."""


class Shares(params.Params):
    """The share of the documents in each split; they are relative to their sum."""

    lm_train: PositiveFloat
    sae_train: PositiveFloat
    validation: PositiveFloat
    test: PositiveFloat


class CorpusParams(params.Params):
    """What the corpus is made of, apart from the source's own settings."""

    source: str
    seed: NonNegativeInt
    min_characters: NonNegativeInt
    near_copy: Annotated[float, Field(gt=0, le=1)]
    split: Shares


def settings() -> tuple[CorpusParams, Any, Any]:
    """The stage's settings, the source's module and the source's settings."""
    fields = {name: params.value(f"corpus.{name}") for name in CorpusParams.model_fields}
    own = params.check("corpus", fields, CorpusParams)
    source = plugins.load("sources", own.source, "corpus.source")
    return own, source, params.read(f"corpus.{own.source}", source.SourceParams)


def sketch(text: str) -> list[int]:
    """The `SKETCH` smallest hashes of a text's shingles, sorted (bottom-k sketch, Broder 1997, section 4)."""
    words = [word.encode() for word in text.split()]
    joined, ends = b" ".join(words), [*accumulate(len(word) + 1 for word in words)]
    # A shingle is a piece of the joined words, from where a word begins to where the last of its words ends.
    hashes = {zlib.crc32(joined[begin : end - 1]) for begin, end in zip([0, *ends], ends[SHINGLE - 1 :], strict=False)}
    return nsmallest(SKETCH, hashes or {zlib.crc32(joined)})


def resemblance(a: list[int], b: list[int]) -> float:
    """The estimated Jaccard index of two texts' shingles: the share of the union's bottom-k that both have."""
    union = sorted({*a, *b})[:SKETCH]
    return len(set(a) & set(b) & set(union)) / len(union)


class Deduplicator:
    """Tells whether a document nearly repeats one that was kept before it; memory: one sketch per document kept."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._sketches: list[list[int]] = []
        self._by_hash: dict[int, list[int]] = {}

    def is_near_copy(self, text: str) -> bool:
        """Whether the text resembles a kept one at or above the threshold; if not, it is kept."""
        own = sketch(text)
        shared = Counter(index for key in own for index in self._by_hash.get(key, ()))
        if any(resemblance(own, self._sketches[index]) >= self.threshold for index in shared):
            return True
        for key in own:
            self._by_hash.setdefault(key, []).append(len(self._sketches))
        self._sketches.append(own)
        return False


def split_of(document_id: str, shares: Shares, seed: int) -> str:
    """The split of a document: a function of its name and the seed, so that adding documents moves no other."""
    point = int.from_bytes(blake2b(f"{seed}:{document_id}".encode(), digest_size=8).digest()) / 2**64
    total = sum(getattr(shares, name) for name in SPLITS)
    edge = 0.0
    for name in SPLITS:
        edge += getattr(shares, name) / total
        if point < edge:
            return name
    return SPLITS[-1]


def clean(documents: Iterator[Document], own: CorpusParams, dropped: Counter[str]) -> Iterator[Document]:
    """Documents with unix line ends, without the short ones and the near-copies, which are counted in `dropped`."""
    copies = Deduplicator(own.near_copy)
    for document in documents:
        text = document.text.replace("\r\n", "\n").replace("\r", "\n")
        if len(text) < own.min_characters:
            dropped["short"] += 1
        elif copies.is_near_copy(text):
            dropped["near_copy"] += 1
        else:
            yield document._replace(text=text)


def main() -> None:
    """Write one JSONL file a split as the documents come, and the counts."""
    own, source, source_params = settings()
    dropped: Counter[str] = Counter(short=0, near_copy=0)
    documents: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    with ExitStack() as files:
        paths = {name: files.enter_context(atomic(CORPUS / f"{name}.jsonl")) for name in SPLITS}
        handles = {
            name: files.enter_context(path.open("w", encoding="utf-8", newline="\n")) for name, path in paths.items()
        }
        for document in clean(source.documents(source_params), own, dropped):
            split = split_of(document.id, own.split, own.seed)
            handles[split].write(to_line(document))
            documents[split] += 1
            characters[split] += len(document.text)
        empty = [name for name in SPLITS if not documents[name]]
        if empty:
            raise UserError(
                f"corpus.{own.source} gives no document for {', '.join(empty)}: {documents.total()} kept, "
                f"{dropped['short']} shorter than corpus.min_characters = {own.min_characters}, "
                f"{dropped['near_copy']} near-copies; give more text or change corpus.split"
            )
    counts = {name: {"documents": documents[name], "characters": characters[name]} for name in SPLITS}
    write_json(CORPUS / "corpus.json", {"source": own.source, "splits": counts, "dropped": dict(dropped)})


if __name__ == "__main__":
    run(main)
