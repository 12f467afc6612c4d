"""Fixed parts of a held-out split, in the order of the text.

For analyses these are whole windows drawn at random: windows and not tokens, so that what is near in the text stays
near (nulls that shift labels need it); at random and not the first ones, because the documents of one package stand
together. Training looks at short runs of rows spread evenly over the split.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.lib.activations.store import Store

N_BLOCKS, BLOCK_ROWS = 64, 256
"""How many runs of rows `spread_rows` takes, and how long they are."""


def draw_rows(
    windows: Int[np.ndarray, " row"], n_tokens: int, generator: np.random.Generator
) -> Int[np.ndarray, " chosen"]:
    """Sorted rows of randomly chosen whole windows, as few as hold `n_tokens` (all rows if there are fewer).

    `windows` says which window each row of the split belongs to.
    """
    order = generator.permutation(np.unique(windows))
    sizes = np.bincount(windows)[order]
    n_windows = int(np.searchsorted(np.cumsum(sizes), n_tokens)) + 1
    return np.flatnonzero(np.isin(windows, order[:n_windows]))


def read_rows(store: Store, split: str, rows: Int[np.ndarray, " chosen"]) -> Float[Tensor, "chosen d_in"]:
    """Raw activations of the given sorted rows, each run of consecutive rows in one read."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    runs = np.split(rows, breaks)
    return torch.cat([store.rows(split, int(run[0]), int(run[-1]) + 1) for run in runs])


def spread_rows(store: Store, split: str) -> Float[Tensor, "token d_in"]:
    """Raw activations from all over a split, in blocks that are spread evenly."""
    n_rows = store.n_rows(split)
    n_blocks = min(N_BLOCKS, -(-n_rows // BLOCK_ROWS))
    starts = [n_rows * block // n_blocks for block in range(n_blocks)]
    return torch.cat([store.rows(split, start, min(start + BLOCK_ROWS, n_rows)) for start in starts])
