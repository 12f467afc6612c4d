"""Tokens, labels, activations and SAEs of a small world in which it is known what is where.

Activations are a direction for each token id, one for each concept that is present, and noise. Concept 0 is a token id
(lexical), the others come in runs (contextual). The dictionary holds the concepts' directions first.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.lib.concepts.counting import context_of_split
from stages.lib.concepts.labels import CONCEPTS, Concept, pack, write_concepts, write_labels
from stages.lib.concepts.ngrams import Asked, write_ngrams
from stages.lib.concepts.tally import tally
from stages.lib.language.windows import read_windows
from tests import worlds
from tests.worlds import Rows, numbered, training_rows, unit, write_store, write_tokens

SPLITS = ("fit", "validation", "test")
N_CTX, D_VOCAB, D_IN, N_CONCEPTS, DOCUMENT, HOOK = 32, 20, 24, 6, 60, "blocks.0.hook_resid_post"


def write_world(n_tokens: int) -> Float[Tensor, "concept d_in"]:
    """Write tokens, concepts and activations under the current directory; returns the concepts' directions."""
    generator = np.random.default_rng(0)
    directions = unit(torch.randn(D_VOCAB + N_CONCEPTS, D_IN, generator=torch.Generator().manual_seed(0)))
    texts = {split: numbered(split, documents(n_tokens, generator)) for split in SPLITS}
    texts["train"] = numbered("train", documents(n_tokens, np.random.default_rng(1)))
    write_tokens(texts, n_ctx=N_CTX, d_vocab=D_VOCAB, bos_id=0, pad_id=0)
    labels, splits = {}, {"train": training_rows(torch.zeros(D_IN), 1.0)}
    for split in SPLITS:
        windows = read_windows(split)
        valid, tokens = windows.valid().flatten().numpy(), windows.tokens.flatten().numpy()
        contextual = [runs(len(tokens), 0.3 / c, 6, generator) for c in range(1, N_CONCEPTS)]
        labels[split] = np.stack([tokens == 1, *contextual], 1) & valid[:, None]
        on = torch.from_numpy(labels[split][valid]).float()
        x = directions[torch.from_numpy(tokens[valid]).long()] + 2 * on @ directions[D_VOCAB:]
        x += 0.1 * torch.from_numpy(generator.standard_normal(x.shape).astype(np.float32))
        splits[split] = Rows(x, np.flatnonzero(valid))
    write_store(splits, hook_name=HOOK, n_ctx=N_CTX)
    write_concept_files(labels)
    count_ngrams()
    return directions[D_VOCAB:]


def count_ngrams() -> None:
    """Count n-grams in the split `train`, whose contextual labels are as unrelated to the tokens as elsewhere."""
    held_out = np.concatenate([context_of_split(read_windows(split)) for split in ("validation", "test")])
    asked, generator, context = (
        Asked(held_out, D_VOCAB),
        np.random.default_rng(2),
        context_of_split(read_windows("train")),
    )
    contextual = [runs(len(context), 0.3 / c, 6, generator) for c in range(1, N_CONCEPTS)]
    labels = np.stack([context[:, -1] == 1, *contextual], 1)
    counts = tally(asked, context, labels, np.ones(len(labels), np.bool_))
    write_ngrams(asked, counts, [f"concept_{c}" for c in range(N_CONCEPTS)])


def documents(n_tokens: int, generator: np.random.Generator) -> Iterator[Int[np.ndarray, " token"]]:
    """Documents of random tokens, up to the first with which there are so many."""
    while n_tokens > 0:
        ids = generator.integers(1, D_VOCAB, generator.integers(DOCUMENT // 2, 2 * DOCUMENT))
        n_tokens -= len(ids)
        yield ids


def runs(n: int, share: float, length: int, generator: np.random.Generator) -> Bool[np.ndarray, " token"]:
    """A track that is on for a share of the time, in runs of geometric length."""
    leave = 1 / length
    enter = leave * share / (1 - share)
    u, on, track = generator.random(n), False, np.zeros(n, bool)
    for i in range(n):
        on = u[i] >= leave if on else u[i] < enter
        track[i] = on
    return track


def write_concept_files(labels: dict[str, Bool[np.ndarray, "token concept"]]) -> None:
    """Write the concepts, and their labels in every split."""
    concepts = [
        Concept(
            f"concept_{c}",
            "lexical" if c == 0 else "contextual",
            prevalence={split: float(found[:, c].mean()) for split, found in labels.items()},
            positives={split: int(found[:, c].sum()) for split, found in labels.items()},
            mean_run=1.0 if c == 0 else 6.0,
        )
        for c in range(N_CONCEPTS)
    ]
    CONCEPTS.mkdir(parents=True, exist_ok=True)
    write_concepts(concepts)
    for split, found in labels.items():
        write_labels(split, pack(found), concepts)


def write_saes(arm: str, concepts: Float[Tensor, "concept d_in"], d_sae: int, seeds: list[int], k: list[int]) -> None:
    """TopK SAEs whose first features are the concepts, the others random; encoder and decoder are the same."""
    decoders = {}
    for seed in seeds:
        random = torch.randn(d_sae - len(concepts), D_IN, generator=torch.Generator().manual_seed(100 + seed))
        decoders[seed] = unit(torch.cat([concepts, random]))
    worlds.write_saes(arm, decoders, k, torch.zeros(D_IN), HOOK)
