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

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from stages.lib.io import params
from stages.lib.io.errors import UserError
from stages.lib.io.files import sha256, write_json
from stages.lib.language.documents import CORPUS, read_documents
from stages.lib.language.encoding import Encoded, drawn, encode, special_ids
from stages.lib.language.model import limits, load_tokenizer, model_path
from stages.lib.language.windows import TOKENS, WindowWriter
from stages.lib.run.log import Log
from stages.lib.run.seeds import numpy_generator
from stages.lib.run.start import run


class TokensParams(params.Params):
    """Size of the windows and of the samples, in tokens of text."""

    n_ctx: int = Field(ge=2)
    excerpt: PositiveInt
    n_fit: PositiveInt
    n_validation: PositiveInt
    n_test: PositiveInt
    seed: NonNegativeInt


def settings() -> TokensParams:
    """The stage's settings."""
    return params.read("tokens", TokensParams)


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
            order = numpy_generator(own.seed, "tokens", source)
            documents = read_documents(source) if limit is None else drawn([source], order)
            writer = WindowWriter(TOKENS / f"{split}.safetensors", n_ctx=own.n_ctx, bos_id=bos_id, pad_id=pad_id)
            encoded = encode(tokenizer.backend_tokenizer, documents)
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
