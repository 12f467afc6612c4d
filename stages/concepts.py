"""Which concepts hold at each token.    in: data/corpus, data/tokens, data/model    out: data/concepts.

Which concepts there are, and how they come from the characters of a document to its tokens, is in
`stages.lib.concepts.token_labels`. A concept with too few positives or negatives in a split cannot be measured and is
left out: `dropped.json` has its name and counts.

For the n-gram lookups (`stages.lib.detectors.ngram_lookup`) the documents of `sae_train` and `lm_train` are tokenised
and labelled too, but only how often contexts of validation and test occur in them, and with which concepts, is kept
(`stages.lib.concepts.ngrams`). `ngrams.json` says how much text that was, and which shares of the held-out tokens have
a context that was seen, in all of the text and in half of its documents: where these differ, more text would give the
lookups more. This text takes no part in which concepts are kept. Processes share it, as many as there are threads; on
two packages of Python source, 11 million tokens, all of this takes 70 s of processor time, and three processes 1.7 GB.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt
from scipy.sparse import csr_array

from stages.lib.concepts.counting import Counter, context_of_split, numbered_chunks, seen_shares
from stages.lib.concepts.labels import CONCEPTS, SPLITS, Concept, Spec, select_columns, write_concepts, write_labels
from stages.lib.concepts.ngrams import FACTS, Asked, write_ngrams
from stages.lib.concepts.split_labels import Labelled, label_split, used_documents
from stages.lib.concepts.token_labels import choose_specs
from stages.lib.io import params
from stages.lib.io.errors import UserError
from stages.lib.io.files import read_json, sha256, write_json
from stages.lib.language.documents import CORPUS, read_documents
from stages.lib.language.encoding import drawn
from stages.lib.language.model import load_tokenizer, model_path
from stages.lib.language.windows import TOKENS, read_windows
from stages.lib.run.log import Log
from stages.lib.run.pool import in_processes
from stages.lib.run.seeds import numpy_generator
from stages.lib.run.start import run

COUNTED = ("sae_train", "lm_train")
"""The corpus splits whose documents are counted: never those that scores are measured on."""


class MinPositives(params.Params):
    """The fewest tokens with a concept, and without it, in each split."""

    fit: PositiveInt
    validation: PositiveInt
    test: PositiveInt


class ConceptsParams(params.Params):
    """Which concepts are kept, and in how much text n-grams are counted."""

    min_positives: MinPositives
    n_counted: PositiveInt | None
    """Tokens, as whole documents that are drawn at random; null, or more than there are, means all."""
    seed: NonNegativeInt
    """Of the documents that are counted."""


class Counted(NamedTuple):
    """What was counted."""

    own: csr_array
    """Int64, as `stages.lib.concepts.tally` gives it."""
    facts: dict[str, int]
    """`n_tokens`, `n_documents`, and of these `n_unparsed`, Python without a syntax tree."""


def settings() -> ConceptsParams:
    """The stage's settings."""
    return params.read("concepts", ConceptsParams)


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


def counter(specs: Sequence[Spec], asked: Asked) -> Counter:
    """What counts some concepts in text that is tokenised and cut into windows as that of data/tokens.

    Raises:
        UserError: if the model has another tokenizer by now.
    """
    facts = read_json(TOKENS / "tokens.json")
    if sha256(model_path() / "tokenizer.json") != facts["tokenizer"]:
        raise UserError("data/tokens was made with another tokenizer than data/model has; `dvc repro tokens` renews it")
    shape = {name: facts[name] for name in ("n_ctx", "bos_id", "pad_id")}
    return Counter(load_tokenizer().backend_tokenizer, specs, asked, **shape)


def count(call: Counter, own: ConceptsParams, advance: Callable[[int], None], n_processes: int) -> Counted:
    """Count in random documents of `COUNTED`, up to the first with which there are `n_counted` tokens."""
    limit = np.inf if own.n_counted is None else own.n_counted
    total = csr_array((call.asked.first[-1], len(call.specs) + 2), dtype=np.int64)
    facts = dict.fromkeys(("n_tokens", "n_documents", "n_unparsed"), 0)
    for split in COUNTED:
        for _ in read_documents(split):  # every line is sound, or this says which is not
            pass
    documents = drawn(COUNTED, numpy_generator(own.seed, "concepts", "counted"))
    with closing(in_processes(call, numbered_chunks(documents), n_processes)) as work:
        for chunk, found in work:
            enough = int(np.searchsorted(np.cumsum(found.lengths), limit - facts["n_tokens"])) + 1
            if enough < len(chunk.documents):
                found = call(chunk._replace(documents=chunk.documents[:enough]))
            total = total + found.own
            for name, n in zip(facts, (sum(found.lengths), len(found.lengths), found.n_unparsed), strict=True):
                facts[name] += n
            advance(sum(len(document.text) for document in chunk.documents))
            if facts["n_tokens"] >= limit:
                break
    return Counted(total, facts)


def expected_characters(own: ConceptsParams) -> int:
    """About how many characters are counted, from how many there are and how long a token is in `train`."""
    corpus, tokens = read_json(CORPUS / "corpus.json")["splits"], read_json(TOKENS / "tokens.json")["splits"]
    there_are = sum(int(corpus[split]["characters"]) for split in COUNTED)
    if own.n_counted is None:
        return there_are
    return min(there_are, own.n_counted * int(corpus["sae_train"]["characters"]) // int(tokens["train"]["tokens"]))


def main() -> None:
    """Label the three splits, keep the concepts that all of them have, then count these in other text."""
    own = settings()
    windows = {split: read_windows(split) for split in SPLITS}
    documents = [document for split in SPLITS for _, document in used_documents(split, windows[split])]
    specs = choose_specs({document.language for document in documents})
    held_out = {split: context_of_split(windows[split]) for split in ("validation", "test")}
    # One number more than the model knows, for tokens that it does not.
    asked = Asked(np.concatenate([*held_out.values()]), read_json(TOKENS / "tokens.json")["d_vocab"] + 1)
    n_characters = sum(len(document.text) for document in documents) + expected_characters(own)
    with Log("concepts", n_characters, "characters") as log:
        labelled = {split: label_split(split, windows[split], specs, log.advance) for split in SPLITS}
        columns = choose_columns(labelled, own.min_positives)
        kept, dropped = describe(specs, labelled, columns.tolist())
        log.write(concepts=len(kept), dropped=len(dropped))
        call = counter([specs[column] for column in columns], asked)
        counted = count(call, own, log.advance, torch.get_num_threads())
    write_ngrams(asked, counted.own, [concept.name for concept in kept])
    write_json(FACTS, counted.facts | {"seen": seen_shares(asked, counted.own, held_out)})
    for split, part in labelled.items():
        write_labels(split, select_columns(part.packed, columns, len(specs)), kept)
    write_concepts(kept)
    unparsed = {split: part.unparsed for split, part in labelled.items()}
    write_json(CONCEPTS / "dropped.json", {"too_rare": dropped, "n_too_rare": len(dropped), "unparsed": unparsed})


if __name__ == "__main__":
    run(main)
