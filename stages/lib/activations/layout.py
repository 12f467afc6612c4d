"""What is asked for of activations, and where each token's row goes.

Training windows come in a seeded order and their rows go where a seeded permutation sends them; the other splits stay
in the order of the text. All entries share one layout, so that a token has the same place in every store.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from stages.lib.activations.permutation import Permutation
from stages.lib.activations.progress import Batch
from stages.lib.activations.store import SPLITS
from stages.lib.io.errors import UserError
from stages.lib.language.extraction import Work, plan
from stages.lib.language.model import Place
from stages.lib.language.windows import TOKENS, Windows, read_windows
from stages.lib.run import seeds


class Request(NamedTuple):
    """What is asked for."""

    places: dict[str, Place]
    """Revision and hook of each entry, which is the name of a store."""
    n_tokens: int
    """Training rows of each store."""
    compute: torch.dtype
    """The number format in which the model runs."""
    dtype: str
    """The number format of the stores, one of `store.DTYPES`."""
    shard_rows: int
    batch_windows: int
    seed: int
    settings: dict[str, Any]
    """The settings that each index repeats."""


class Layout(NamedTuple):
    """Which windows of each split are run, in which batches, and where their rows go."""

    windows: dict[str, Windows]
    work: dict[str, Work]
    permutation: Permutation
    """The place of each training row."""
    batch_windows: int

    def split_rows(self) -> dict[str, int]:
        """How many rows each split gives at each hook."""
        return {split: int(work.rows.sum()) for split, work in self.work.items()}

    def n_batches(self) -> dict[str, int]:
        """How many batches the windows of each split make."""
        return {split: -(-len(work.window) // self.batch_windows) for split, work in self.work.items()}

    def slice(self, batch: Batch) -> slice:
        """The windows of a batch among those of its split's work."""
        return slice(batch.number * self.batch_windows, (batch.number + 1) * self.batch_windows)

    def batch_rows(self, batch: Batch) -> int:
        """How many rows a batch gives at each hook."""
        return int(self.work[batch.split].rows[self.slice(batch)].sum())

    def target(self, split: str, row: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
        """Where rows go: training rows where the permutation says, the others stay in the order of the text."""
        return self.permutation(row) if split == "train" else row


def plan_split(split: str, windows: Windows, n_tokens: int, seed: int) -> Work:
    """The work of one split: `n_tokens` tokens of windows in seeded order for training, else everything in order.

    Raises:
        UserError: if the split has no tokens, or fewer than are asked for.
    """
    rows = (windows.length.numpy().astype(np.int64) - 1).clip(0)
    total, in_order = int(rows.sum()), np.arange(len(rows))
    if total == 0:
        raise UserError(f"{TOKENS}/{split}.safetensors has no tokens of text: give the corpus stage more documents")
    if split != "train":
        return plan(rows, in_order, total)
    if total < n_tokens:
        raise UserError(
            f"params.yaml: activations.n_tokens is {n_tokens:,}, but {TOKENS}/train.safetensors has {total:,} "
            "tokens: lower activations.n_tokens, or raise corpus.split.sae_train or the amount of text"
        )
    order = Permutation.from_seed(len(rows), seeds.sequence(seed, "activations", "windows"))
    return plan(rows, order(in_order), n_tokens)


def lay_out(request: Request) -> Layout:
    """The layout that all entries share, so that a token has the same place in every store."""
    windows = {split: read_windows(split) for split in SPLITS}
    work = {split: plan_split(split, found, request.n_tokens, request.seed) for split, found in windows.items()}
    stream = seeds.sequence(request.seed, "activations", "rows")
    permutation = Permutation.from_seed(int(work["train"].rows.sum()), stream)
    return Layout(windows, work, permutation, request.batch_windows)
