"""Documents in random order, and as tokens with the place of each in its text."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Int

from stages.lib.io.errors import UserError
from stages.lib.language.documents import CORPUS, Document

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

CHUNK = 1_000_000
"""Characters that are tokenised at once: enough to keep all cores busy, little enough to hold."""


class Encoded(NamedTuple):
    """A document as tokens."""

    id: str
    ids: Int[np.ndarray, " token"]
    spans: Int[np.ndarray, "token 2"]
    """First character of each token, and one past its last.

    Tokens that share a character (the bytes of one emoji, say) have the same span; a token that stands for no character
    (the space that some tokenizers put before a text) has an empty one.
    """


def special_ids(tokenizer: "PreTrainedTokenizerFast") -> tuple[int, int]:
    """The ids that begin and pad windows.

    Padding is on the right and attention is causal, so the padding token is seen by no other and any will do.

    Raises:
        UserError: if the tokenizer has neither a BOS nor an end-of-text token.
    """
    bos_id = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos_id is None:
        raise UserError(
            "the model's tokenizer has neither a bos_token nor an eos_token to begin a window with; choose another "
            "model.name, or a local copy of it with bos_token in its tokenizer_config.json"
        )
    return bos_id, tokenizer.pad_token_id if tokenizer.pad_token_id is not None else bos_id


def drawn(splits: Sequence[str], generator: np.random.Generator) -> Iterator[Document]:
    """All documents of some corpus splits in random order; only where each begins in its file is held in memory."""
    with ExitStack() as files:
        handles = [files.enter_context((CORPUS / f"{split}.jsonl").open("rb")) for split in splits]
        begins = [np.cumsum([0, *(len(line) for line in handle)])[:-1] for handle in handles]
        owner = np.repeat(np.arange(len(handles)), [len(some) for some in begins])
        begin = np.concatenate(begins)
        for index in generator.permutation(len(owner)):
            handle = handles[owner[index]]
            handle.seek(int(begin[index]))
            yield Document(**json.loads(handle.readline()))


def chunks(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """Documents in runs of about `size` characters."""
    chunk: list[Document] = []
    n_characters = 0
    for document in documents:
        chunk.append(document)
        n_characters += len(document.text)
        if n_characters >= size:
            yield chunk
            chunk, n_characters = [], 0
    if chunk:
        yield chunk


def encode(backend: "Tokenizer", documents: Iterable[Document]) -> Iterator[Encoded]:
    """Documents as tokens, without special ones: `<|endoftext|>` in a source file is text like any other.

    `backend` is the `backend_tokenizer` of the model's tokenizer.
    """
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    for chunk in chunks(documents, CHUNK):
        encodings = backend.encode_batch([document.text for document in chunk], add_special_tokens=False)
        for document, encoding in zip(chunk, encodings, strict=True):
            spans = np.fromiter(chain.from_iterable(encoding.offsets), np.int32, 2 * len(encoding))
            yield Encoded(document.id, np.array(encoding.ids, dtype=np.int32), spans.reshape(-1, 2))
