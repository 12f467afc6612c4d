"""What tests make a small world of: tokens, stores of activations, SAEs (no test itself).

All is written under the current directory as the stages would, by the writers that the stages use.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.lib.activations.writer import StoreWriter
from stages.lib.io.files import write_json
from stages.lib.language.windows import TOKENS, WindowWriter
from stages.lib.sae.saved import save_sae

STORE = Path("data/activations")


class Text(NamedTuple):
    """The tokens of one document."""

    id: str
    ids: Int[np.ndarray, " token"]
    spans: Int[np.ndarray, "token 2"]


class Rows(NamedTuple):
    """The activations of one split, and the place of each among all places of its windows."""

    x: Float[Tensor, "token d_in"]
    position: Int[np.ndarray, " token"]


def unit(rows: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_in"]:
    """Rows of norm 1 in the same directions."""
    return torch.nn.functional.normalize(rows, dim=-1)


def random_unit(n: int, d_in: int, seed: int) -> Float[Tensor, "row d_in"]:
    """Random directions."""
    return unit(torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed)))


def numbered(split: str, documents: Iterable[Int[np.ndarray, " token"]]) -> list[Text]:
    """Documents of a split that stand nowhere in a text."""
    return [Text(f"{split}/{i}", ids, np.zeros((len(ids), 2), np.int64)) for i, ids in enumerate(documents)]


def write_tokens(splits: Mapping[str, Iterable[Text]], *, n_ctx: int, d_vocab: int, bos_id: int, pad_id: int) -> None:
    """Write the windows of all splits, and what describes them."""
    facts = {}
    for split, documents in splits.items():
        with WindowWriter(TOKENS / f"{split}.safetensors", n_ctx=n_ctx, bos_id=bos_id, pad_id=pad_id) as writer:
            for document in documents:
                writer.add(*document)
        facts[split] = {"windows": writer.n_windows, "tokens": writer.n_tokens, "documents": writer.document_ids}
        facts[split]["dropped"] = {}
    index = {"n_ctx": n_ctx, "bos": True, "bos_id": bos_id, "pad_id": pad_id, "d_vocab": d_vocab, "splits": facts}
    write_json(TOKENS / "tokens.json", index)


def write_store(
    splits: Mapping[str, Rows], *, hook_name: str, n_ctx: int, shard_rows: int = 10**6, root: Path = STORE, **more: Any
) -> None:
    """Write a store of the revision `main`, or of that named in `more`, whose other names are more of its index.

    Mean and scale are those of the split `train`; `training_rows` makes one that has the wanted ones.
    """
    index = {"model": "toy", "commit": None, "revision": "main", "dtype": "float32", "seed": 0, "permutation": {}}
    index |= {"hook_name": hook_name, "layer": int(hook_name.split(".")[1]), "n_ctx": n_ctx}
    index |= {"d_in": splits["train"].x.shape[1], **more}
    sizes = {split: len(rows.x) for split, rows in splits.items()}
    writer = StoreWriter(root / index["revision"], index, sizes, shard_rows)
    for split, rows in splits.items():
        writer.prepare(split)
        writer.scatter(split, np.arange(len(rows.x)), rows.x.float(), rows.position)
    writer.finish()


def training_rows(mean: Float[Tensor, " d_in"], scale: float) -> Rows:
    """Two rows with this mean and this root mean squared distance from it."""
    offset = torch.zeros_like(mean)
    offset[0] = scale
    return Rows(torch.stack([mean + offset, mean - offset]), np.array([1, 2]))


def write_saes(
    arm: str,
    decoders: Mapping[int, Float[Tensor, "d_sae d_in"]],
    k: list[int],
    b_dec: Float[Tensor, " d_in"],
    hook_name: str,
) -> None:
    """Write TopK SAEs, one of each seed's decoder for each k, whose encoder is the decoder's transpose.

    Args:
        arm: what they are called.
        decoders: unit rows, by seed.
        k: the levels, of which the middle one is followed.
        b_dec: the decoder's bias.
        hook_name: where their activations come from.
    """
    for seed, W_dec in decoders.items():
        root = Path("data/train") / arm / f"seed-{seed}"
        weights = {"W_enc": W_dec.T, "W_dec": W_dec, "b_enc": torch.zeros(len(W_dec)), "b_dec": b_dec}
        for level, active in enumerate(k):
            save_sae(root / f"level-{level}", "topk", weights, k=active, metadata={"hook_name": hook_name})
        facts = {"arm": arm, "variant": "topk", "activations": "main", "seed": seed, "levels": k, "sparsity_name": "k"}
        write_json(root / "train.json", facts | {"follow_level": len(k) // 2})


class Numbered:
    """A store in memory whose row i is (i, -i)."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.reads: list[tuple[int, int]] = []

    def n_rows(self, split: str) -> int:
        assert split == "train"
        return self.n

    def rows(self, split: str, start: int, stop: int) -> torch.Tensor:
        assert split == "train" and 0 <= start <= stop <= self.n
        self.reads.append((start, stop))
        number = torch.arange(start, stop).float()
        return torch.stack([number, -number], 1)
