"""Documents turned into counts of the contexts in them (`stages.lib.concepts.ngrams`), in memory of one chunk.

Nothing but the counts is kept, neither tokens nor labels. A document is cut into windows as the stage `tokens` cuts
those of the split `train`, so a context is what a model sees.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Int
from scipy.sparse import csr_array

from stages.lib.concepts.labels import Spec
from stages.lib.concepts.ngrams import ORDERS, Asked, contexts
from stages.lib.concepts.tally import tally
from stages.lib.concepts.token_labels import label_tokens
from stages.lib.language.documents import Document
from stages.lib.language.encoding import Encoded, chunks, encode
from stages.lib.language.windows import Windows, windows_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK = 500_000
"""Characters that are counted at once: some 200,000 tokens of source code."""


class Chunk(NamedTuple):
    """Documents that are counted at once."""

    number: int
    """Of the first document in the text; even ones are one half, odd ones the other."""
    documents: list[Document]


class Counts(NamedTuple):
    """What was counted in some documents."""

    own: csr_array
    """As `stages.lib.concepts.tally` gives it."""
    lengths: list[int]
    """Tokens of each document."""
    n_unparsed: int
    """Python documents without a syntax tree."""


def numbered_chunks(documents: Iterable[Document]) -> Iterator[Chunk]:
    """Documents in runs of about `CHUNK` characters, numbered from 0."""
    number = 0
    for some in chunks(documents, CHUNK):
        yield Chunk(number, some)
        number += len(some)


@dataclass(frozen=True)
class Counter:
    """Counts the contexts in documents; goes to other processes as it is."""

    backend: "Tokenizer"
    specs: Sequence[Spec]
    """The concepts that are counted."""
    asked: Asked
    n_ctx: int
    bos_id: int
    pad_id: int

    def _contexts(self, encoded: Encoded) -> Int[np.ndarray, "token 3"]:
        """The contexts of a document's tokens."""
        shape = {"n_ctx": self.n_ctx, "bos_id": self.bos_id, "pad_id": self.pad_id}
        tokens = windows_of(encoded.ids, encoded.spans, **shape)["tokens"]
        token, n_text = np.arange(len(encoded.ids)), self.n_ctx - 1
        found = contexts(tokens, token // n_text * self.n_ctx + 1 + token % n_text)
        # Tokens that the model has no embedding for are in no context that is asked about: all are the last number.
        clipped: npt.NDArray[np.int64] = np.minimum(found, self.asked.d_vocab - 1)
        return clipped

    def __call__(self, chunk: Chunk) -> Counts:
        """The counts of a chunk's documents."""
        encodings = [*encode(self.backend, chunk.documents)]
        lengths = [len(encoded.ids) for encoded in encodings]
        labels, first, n_unparsed = np.zeros((sum(lengths), len(self.specs)), np.bool_), 0, 0
        for document, encoded in zip(chunk.documents, encodings, strict=True):
            if len(encoded.ids):
                start, end = encoded.spans.T.astype(np.int64)
                own = labels[first : first + len(start)]
                n_unparsed += not label_tokens(document, start, end, self.specs, own).parsed
                first += len(start)
        if not first:
            return Counts(csr_array((self.asked.first[-1], len(self.specs) + 2), dtype=np.int32), lengths, 0)
        context = np.concatenate([self._contexts(encoded) for encoded in encodings if len(encoded.ids)])
        in_half = np.repeat((chunk.number + np.arange(len(lengths))) % 2 == 0, lengths)
        return Counts(tally(self.asked, context, labels, in_half), lengths, n_unparsed)


def context_of_split(windows: Windows) -> Int[np.ndarray, "token 3"]:
    """The contexts of all tokens of a split."""
    return contexts(windows.tokens.numpy(), np.flatnonzero(windows.valid().numpy()))


def seen_shares(
    asked: Asked, own: csr_array, held_out: dict[str, Int[np.ndarray, "token 3"]]
) -> dict[str, dict[str, dict[str, float]]]:
    """The shares of the held-out tokens whose contexts were counted at least once, in all text and in its first half.

    `all` and `half`, each by split and by the names of `ORDERS`.
    """
    counts = asked.summed(own)[:, -2:].toarray()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for text, total in (("all", counts.sum(1)), ("half", counts[:, 0])):
        found[text] = {
            split: {
                name: float((total[asked.nodes(n)][asked.places(context, n)] > 0).mean()) for name, n in ORDERS.items()
            }
            for split, context in held_out.items()
        }
    return found
