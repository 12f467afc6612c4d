"""Tokens, labels, activations and SAEs of a small world in which it is known what is where.

Activations are a direction for each token id, one for each concept that is present, and noise. Concept 0 is a token id
(lexical), the others come in runs (contextual). The dictionary holds the concepts' directions first.
"""

from pathlib import Path

import numpy as np
import torch

from stages.lib.activations.store import FORMAT, shard_header
from stages.lib.concepts.labels import CONCEPTS, Concept, pack, write_concepts, write_labels
from stages.lib.io.files import sha256, write_json
from stages.lib.language.windows import WindowWriter, read_windows
from stages.lib.sae.saved import save_sae

SPLITS = ("fit", "validation", "test")


def write_world(
    n_tokens: int, *, n_ctx: int = 32, d_vocab: int = 20, d_in: int = 24, n_concepts: int = 6, document: int = 60
) -> torch.Tensor:
    """Write tokens, concepts and activations under the current directory; returns the concepts' directions."""
    generator = np.random.default_rng(0)
    directions = torch.randn(d_vocab + n_concepts, d_in, generator=torch.Generator().manual_seed(0))
    directions = torch.nn.functional.normalize(directions, dim=1)
    facts = {"n_ctx": n_ctx, "bos": True, "bos_id": 0, "pad_id": 0, "d_vocab": d_vocab, "splits": {}}
    index = {
        "format": FORMAT,
        "model": "world",
        "commit": None,
        "revision": "main",
        "hook_name": "blocks.0.hook_resid_post",
    }
    index |= {
        "layer": 0,
        "d_in": d_in,
        "dtype": "float32",
        "n_ctx": n_ctx,
        "seed": 0,
        "mean": [0.0] * d_in,
        "scale": 1.0,
    }
    index["splits"] = {}
    labels = {}
    for split in SPLITS:
        with WindowWriter(Path(f"data/tokens/{split}.safetensors"), n_ctx=n_ctx, bos_id=0, pad_id=0) as writer:
            while writer.n_tokens < n_tokens:
                ids = generator.integers(1, d_vocab, generator.integers(document // 2, 2 * document))
                writer.add(f"{split}/{writer.n_windows}", ids, np.zeros((len(ids), 2), np.int64))
        facts["splits"][split] = {"windows": writer.n_windows, "documents": writer.document_ids}
        write_json(Path("data/tokens/tokens.json"), facts)
        windows = read_windows(split)
        valid = windows.valid().flatten().numpy()
        tokens = windows.tokens.flatten().numpy()
        present = np.stack([tokens == 1, *(runs(len(tokens), 0.3 / c, 6, generator) for c in range(1, n_concepts))], 1)
        labels[split] = present & valid[:, None]
        on = torch.from_numpy(labels[split][valid]).float()
        x = directions[torch.from_numpy(tokens[valid]).long()] + 2 * on @ directions[d_vocab:]
        x += 0.1 * torch.from_numpy(generator.standard_normal(x.shape).astype(np.float32))
        write_shard(index, split, x, np.flatnonzero(valid))
    write_json(Path("data/activations/main/index.json"), index)
    write_concept_files(labels, n_concepts)
    return directions[d_vocab:]


def runs(n: int, share: float, length: int, generator: np.random.Generator) -> np.ndarray:
    """A track that is on for a share of the time, in runs of geometric length."""
    leave = 1 / length
    enter = leave * share / (1 - share)
    u, on, track = generator.random(n), False, np.zeros(n, bool)
    for i in range(n):
        on = u[i] >= leave if on else u[i] < enter
        track[i] = on
    return track


def write_shard(index: dict, split: str, x: torch.Tensor, positions: np.ndarray) -> None:
    path = Path("data/activations/main") / f"{split}-0.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = shard_header(index, split, 0, len(x))
    path.write_bytes(header + positions.astype(np.int64).tobytes() + x.numpy().tobytes())
    shard = {"file": path.name, "rows": len(x), "sha256": sha256(path)}
    index["splits"][split] = {"rows": len(x), "shards": [shard]}


def write_concept_files(labels: dict[str, np.ndarray], n_concepts: int) -> None:
    concepts = [
        Concept(
            f"concept_{c}",
            "lexical" if c == 0 else "contextual",
            prevalence={split: float(found[:, c].mean()) for split, found in labels.items()},
            positives={split: int(found[:, c].sum()) for split, found in labels.items()},
            mean_run=1.0 if c == 0 else 6.0,
        )
        for c in range(n_concepts)
    ]
    CONCEPTS.mkdir(parents=True, exist_ok=True)
    write_concepts(concepts)
    for split, found in labels.items():
        write_labels(split, pack(found), concepts)


def write_saes(arm: str, concepts: torch.Tensor, d_sae: int, seeds: list[int], k: list[int]) -> None:
    """TopK SAEs whose first features are the concepts, the others random; encoder and decoder are the same."""
    d_in = concepts.shape[1]
    for seed in seeds:
        random = torch.randn(d_sae - len(concepts), d_in, generator=torch.Generator().manual_seed(100 + seed))
        directions = torch.nn.functional.normalize(torch.cat([concepts, random]), dim=1)
        weights = {"W_enc": directions.T, "W_dec": directions, "b_enc": torch.zeros(d_sae), "b_dec": torch.zeros(d_in)}
        root = Path("data/train") / arm / f"seed-{seed}"
        for level, active in enumerate(k):
            save_sae(root / f"level-{level}", "topk", weights, k=active)
        facts = {"arm": arm, "activations": "main", "seed": seed, "levels": k, "follow_level": len(k) // 2}
        write_json(root / "train.json", facts)
