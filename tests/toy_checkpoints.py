"""Held-out activations with planted concepts, and SAEs whose features turn to them at known steps, as files.

Concept c is a direction; its labels come in runs. Feature c of an SAE points at random up to step `rise[c]` and at the
concept from then on, so the concept emerges at that step; features beyond the concepts stay random.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float

from stages.lib.concepts.labels import Concept, pack, write_concepts, write_labels
from stages.lib.io import tensors
from stages.lib.io.files import write_json
from stages.lib.language.windows import read_windows
from stages.lib.sae.saved import save_sae
from tests.worlds import Rows, numbered, training_rows, unit, write_store, write_tokens

N_CTX, D_VOCAB, HOOK = 33, 40, "blocks.1.hook_resid_post"
STEPS = [0, 1, 2, 4, 8, 16, 32, 64]


def concept_directions(d_in: int, n_concepts: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return unit(torch.randn(n_concepts, d_in, generator=generator))


def write_held_out(d_in: int, n_concepts: int, n_documents: int, revisions: list[str], length: int = 60) -> None:
    """Tokens, concepts and activations of fit, validation and test."""
    generator = np.random.default_rng(1)
    texts = {
        split: numbered(split, generator.integers(3, D_VOCAB, (n_documents, length)))
        for split in ("fit", "validation", "test")
    }
    write_tokens(texts, n_ctx=N_CTX, d_vocab=D_VOCAB, bos_id=1, pad_id=2)
    concepts = [
        Concept(f"concept-{c}", "syntactic", prevalence={}, positives={}, mean_run=3.0) for c in range(n_concepts)
    ]
    write_concepts(concepts)
    labels = {}
    for split in texts:
        n_places = len(read_windows(split).length) * N_CTX
        labels[split] = runs_of_three(n_places, np.linspace(0.02, 0.06, n_concepts), generator)
        write_labels(split, pack(labels[split]), concepts)
    for revision in revisions:
        _write_store(revision, d_in, labels)


def runs_of_three(
    n: int, rate: Float[np.ndarray, " concept"], generator: np.random.Generator
) -> Bool[np.ndarray, "place concept"]:
    """Labels that begin at random, as often as the rates say, and hold at three places."""
    starts = generator.random((n, len(rate))) < rate
    on = starts.copy()
    for lag in (1, 2):
        on[lag:] |= starts[:-lag]
    return on


def _write_store(revision: str, d_in: int, labels: dict[str, Bool[np.ndarray, "place concept"]]) -> None:
    generator = torch.Generator().manual_seed(7)
    mean = torch.randn(d_in, generator=generator)
    splits = {"train": training_rows(mean, 4.0)}
    for split, on in labels.items():
        position = np.array([p for p in range(len(on)) if 0 < p % N_CTX < N_CTX - 2], dtype=np.int64)
        noise = torch.randn(len(position), d_in, generator=generator) * 0.05
        directions = concept_directions(d_in, on.shape[1])
        x = mean + 4.0 * (torch.from_numpy(on[position]).float() @ directions + noise)
        splits[split] = Rows(x, position)
    write_store(splits, hook_name=HOOK, n_ctx=N_CTX, revision=revision)


def write_arm(
    arm: str,
    *,
    d_in: int,
    d_sae: int,
    rise: list[int],
    seeds: list[int],
    k: int = 4,
    steps: list[int] = STEPS,
    revision: str = "main",
    architecture: str = "topk",
) -> None:
    """One level of SAEs per seed with checkpoints at `steps`; feature c emerges at step `rise[c]`."""
    truth = concept_directions(d_in, len(rise))
    for seed in seeds:
        root = Path("data/train") / arm / f"seed-{seed}"
        generator = torch.Generator().manual_seed(100 + seed)
        random = unit(torch.randn(d_sae, d_in, generator=generator))
        for step in steps:
            W_dec = random.clone()
            risen = torch.tensor([step >= at for at in rise])
            W_dec[: len(rise)][risen] = truth[risen]
            weights = {
                "W_enc": W_dec.T,
                "W_dec": W_dec,
                "b_dec": torch.zeros(d_in),
                "b_enc": torch.full((d_sae,), -0.45),
            }
            if architecture == "jumprelu":
                weights["threshold"] = torch.full((d_sae,), 0.2)
            path = root / "level-1" / "checkpoints" / f"step-{step:08d}.safetensors"
            tensors.save(path, {name: w.half() for name, w in weights.items()}, {"step": step, "tokens": 10 * step})
        for level in (0, 1):
            save_sae(root / f"level-{level}", architecture, weights, k=k if architecture == "topk" else None)
        facts = {"arm": arm, "variant": architecture, "activations": revision, "seed": seed, "levels": [8, k]}
        write_json(root / "train.json", facts | {"sparsity_name": "k", "follow_level": 1})
