"""Windows of tokens, with the place of each token in its text.    in: data/corpus, data/model    out: data/tokens.

`train` is all of the corpus's `sae_train`; `fit` is a random sample of the same documents, for what is fitted to text
in order (probes, thresholds); `validation` and `test` are samples of those corpus splits. Samples take documents in
random order, up to the first that reaches the number of tokens asked for; of a long document they take one excerpt, so
that a sample has many documents: they, not tokens, are what intervals resample.

Each window begins with the token that the model knows as the beginning of a text: BOS, or where a tokenizer has none
its end-of-text token, which separates documents in such models' training (TransformerLens falls back in the same way).
That holds for every architecture, also those for which TransformerLens itself prepends nothing (GPT-NeoX, Qwen): the
first position is an attention sink, its activations of another size than all others (Xiao et al. 2023,
arXiv:2309.17453, section 3), so it takes part in no analysis, and without BOS a token of each window would be lost.
"""

import json
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int
from pydantic import Field, NonNegativeInt, PositiveInt

from stages.lib.io import params
from stages.lib.io.errors import UserError
from stages.lib.io.files import sha256, write_json
from stages.lib.language.documents import CORPUS, Document, read_documents
from stages.lib.language.model import limits, load_tokenizer, model_path
from stages.lib.language.windows import TOKENS, WindowWriter
from stages.lib.run.log import Log
from stages.lib.run.seeds import numpy_generator
from stages.lib.run.start import run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHUNK = 1_000_000
"""Characters that are tokenised at once: enough to keep all cores busy, little enough to hold."""


class TokensParams(params.Params):
    """Size of the windows and of the samples, in tokens of text."""

    n_ctx: int = Field(ge=2)
    excerpt: PositiveInt
    n_fit: PositiveInt
    n_validation: PositiveInt
    n_test: PositiveInt
    seed: NonNegativeInt


class Encoded(NamedTuple):
    """A document as tokens."""

    id: str
    ids: Int[np.ndarray, " token"]
    spans: Int[np.ndarray, "token 2"]
    """First character of each token, and one past its last.

    Tokens that share a character (the bytes of one emoji, say) have the same span; a token that stands for no character
    (the space that some tokenizers put before a text) has an empty one.
    """


def settings() -> TokensParams:
    """The stage's settings."""
    return params.read("tokens", TokensParams)


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


def drawn(split: str, n_documents: int, seed: int) -> Iterator[Document]:
    """The documents of a corpus split in random order; only where each begins in the file is held in memory."""
    with (CORPUS / f"{split}.jsonl").open("rb") as handle:
        begins = np.cumsum([0, *(len(line) for line in handle)])
        for index in numpy_generator(seed, "tokens", split).permutation(n_documents):
            handle.seek(int(begins[index]))
            yield Document(**json.loads(handle.readline()))


def chunks(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents in runs of about `CHUNK` characters."""
    chunk: list[Document] = []
    n_characters = 0
    for document in documents:
        chunk.append(document)
        n_characters += len(document.text)
        if n_characters >= CHUNK:
            yield chunk
            chunk, n_characters = [], 0
    if chunk:
        yield chunk


def encode(tokenizer: "PreTrainedTokenizerFast", documents: Iterator[Document]) -> Iterator[Encoded]:
    """Documents as tokens, without special ones: `<|endoftext|>` in a source file is text like any other."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    for chunk in chunks(documents):
        encodings = backend.encode_batch([document.text for document in chunk], add_special_tokens=False)
        for document, encoding in zip(chunk, encodings, strict=True):
            spans = np.fromiter(chain.from_iterable(encoding.offsets), np.int32, 2 * len(encoding))
            yield Encoded(document.id, np.array(encoding.ids, dtype=np.int32), spans.reshape(-1, 2))


def excerpts(
    encoded: Iterator[Encoded], longest: int, n_text: int, generator: np.random.Generator
) -> Iterator[Encoded]:
    """Of each document at most `longest` tokens in a row, which begin at a random window of `n_text` tokens."""
    for document in encoded:
        spare = max(0, len(document.ids) - longest)
        begin = n_text * int(generator.integers(spare // n_text + 1))
        yield document._replace(
            ids=document.ids[begin : begin + longest], spans=document.spans[begin : begin + longest]
        )


def write(writer: WindowWriter, encoded: Iterator[Encoded], d_vocab: int, limit: int | None, log: Log) -> int:
    """Write documents until `limit` tokens are reached; returns how many were left out because they have no token.

    Raises:
        UserError: if the tokenizer gives a token that the model has no embedding for.
    """
    n_empty = 0
    with writer:
        for document in encoded:
            if not len(document.ids):
                n_empty += 1
                continue
            if document.ids.max() >= d_vocab:
                raise UserError(
                    f"the model's tokenizer gives token {document.ids.max()} in {document.id}, but the model has only "
                    f"d_vocab = {d_vocab} of them; choose another model.name"
                )
            writer.add(document.id, document.ids, document.spans)
            log.advance(len(document.ids))
            if limit is not None and writer.n_tokens >= limit:
                break
    return n_empty


def main() -> None:
    """Write the samples, which tell whether there is enough text, then `train`."""
    own = settings()
    n_positions, d_vocab = limits()
    if n_positions is not None and own.n_ctx > n_positions:
        raise UserError(f"tokens.n_ctx is {own.n_ctx}, but the model's windows have at most {n_positions} tokens")
    tokenizer = load_tokenizer()
    bos_id, pad_id = special_ids(tokenizer)
    wanted: dict[str, tuple[str, int | None]] = {
        "fit": ("sae_train", own.n_fit),
        "validation": ("validation", own.n_validation),
        "test": ("test", own.n_test),
        "train": ("sae_train", None),
    }
    splits: dict[str, Any] = {}
    with Log("tokens", unit="token") as log:
        for split, (source, limit) in wanted.items():
            n_documents = sum(1 for _ in read_documents(source))  # every line is sound, or this says which is not
            documents = read_documents(source) if limit is None else drawn(source, n_documents, own.seed)
            writer = WindowWriter(TOKENS / f"{split}.safetensors", n_ctx=own.n_ctx, bos_id=bos_id, pad_id=pad_id)
            encoded = encode(tokenizer, documents)
            if limit is not None:
                generator = numpy_generator(own.seed, "tokens", "excerpts", split)
                encoded = excerpts(encoded, own.excerpt, own.n_ctx - 1, generator)
            n_empty = write(writer, encoded, d_vocab, limit, log)
            if limit is not None and writer.n_tokens < limit:
                raise UserError(
                    f"tokens.n_{split} is {limit}, but {CORPUS / source}.jsonl has only {writer.n_tokens} tokens in "
                    f"excerpts of {own.excerpt}; lower it, or raise tokens.excerpt or corpus.split.{source}"
                )
            dropped = {"empty": n_empty, "not_drawn": n_documents - n_empty - len(writer.document_ids)}
            counts = {"windows": writer.n_windows, "tokens": writer.n_tokens, "dropped": dropped}
            splits[split] = {**counts, "documents": writer.document_ids}
    facts: dict[str, Any] = {"n_ctx": own.n_ctx, "bos": True, "bos_id": bos_id, "pad_id": pad_id, "d_vocab": d_vocab}
    facts |= {"tokenizer": sha256(model_path() / "tokenizer.json"), "splits": splits}
    write_json(TOKENS / "tokens.json", facts)


if __name__ == "__main__":
    run(main)
