"""Training batches as a pure function of (seed, epoch, batch): nothing but the step is needed to go on.

The rows on disk are shuffled once, globally, so a batch is a run of consecutive rows, which reads fast. In each epoch
the rows, taken as a ring, are cut into batches at a place of its own and the batches come in an order of its own; the
rows that do not fill a batch are left out of that epoch. Batches are the same whether rows are read from disk or held
on a device.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.lib.activations.store import DTYPES, Scaling, Store
from stages.lib.run.seeds import numpy_generator


@runtime_checkable
class Rows(Protocol):
    """What of a store is used here."""

    def n_rows(self, split: str) -> int:
        """Rows of a split."""

    def rows(self, split: str, start: int, stop: int) -> Float[Tensor, "token d_in"]:
        """Consecutive rows."""


class Resident:
    """The training rows of a store, held on a device as they are on disk.

    A GPU trains a small SAE faster than batches can be read for it.
    """

    def __init__(self, store: Rows, on: torch.device, dtype: torch.dtype, read_rows: int = 2**16) -> None:
        n = store.n_rows("train")
        parts = (store.rows("train", start, min(start + read_rows, n)) for start in range(0, n, read_rows))
        self._rows = torch.cat([part.to(dtype).to(on) for part in parts])

    def n_rows(self, split: str) -> int:
        """Rows of the training split."""
        assert split == "train", f"no split {split} on the device"
        return len(self._rows)

    def rows(self, split: str, start: int, stop: int) -> Float[Tensor, "token d_in"]:
        """A copy of consecutive rows, in float32."""
        assert split == "train", f"no split {split} on the device"
        return self._rows[start:stop].to(torch.float32, copy=True)


def resident(store: Rows, on: torch.device, dtype: torch.dtype, d_in: int, budget: float) -> Rows:
    """The training rows on the device if they take no more than `budget` bytes there, else the store."""
    fits = store.n_rows("train") * d_in * dtype.itemsize <= budget
    return Resident(store, on, dtype) if fits else store


def nearest_rows(store: Store, on: torch.device) -> Rows:
    """Where batches come from: a GPU's own memory if the training rows fit into half of what is free there."""
    if on.type != "cuda":
        return store
    return resident(store, on, DTYPES[store.index["dtype"]][0], store.d_in, torch.cuda.mem_get_info(on)[0] / 2)


@lru_cache(maxsize=2)
def starts(seed: int, epoch: int, n_rows: int, size: int) -> Int[np.ndarray, " batch"]:
    """The first row of each batch of an epoch."""
    generator = numpy_generator(seed, "batches", epoch)
    offset = int(generator.integers(n_rows))
    return (offset + size * generator.permutation(n_rows // size)) % n_rows


def read_batch(store: Rows, seed: int, step: int, size: int) -> Float[Tensor, "token d_in"]:
    """The raw activations of the batch that comes after `step` others."""
    n_rows = store.n_rows("train")
    assert size <= n_rows, f"batches of {size} from {n_rows} rows"
    epoch, batch = divmod(step, n_rows // size)
    start = int(starts(seed, epoch, n_rows, size)[batch])
    end = start + size
    rows = store.rows("train", start, min(end, n_rows))
    return rows if end <= n_rows else torch.cat([rows, store.rows("train", 0, end - n_rows)])


def normalised_batches(
    store: Rows, scaling: Scaling, *, seed: int, size: int, steps: range
) -> Iterator[Float[Tensor, "token d_in"]]:
    """The normalised batches of some steps, `size` rows each, on the device of the scaling's mean."""
    for step in steps:
        yield scaling.normalise_(read_batch(store, seed, step, size).to(scaling.mean.device))
