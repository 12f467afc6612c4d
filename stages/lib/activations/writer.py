"""Writes the activation store: rows scattered into preallocated shards, so that where it stopped it can go on.

Row i of a split goes to place perm(i), which is row perm(i) % shard_rows of shard perm(i) // shard_rows. The files have
their final size and their safetensors header before the first row is written, and writing a row twice changes nothing:
a run that was killed goes on from the last recorded batch and ends with the same bytes. Several threads or processes
can write at once, since rows have places of their own. `index.json` is written last, so a directory that has one is
complete.
"""

import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from stages.lib.activations.store import DTYPES, FORMAT, shard_header
from stages.lib.io.errors import UserError
from stages.lib.io.files import write_json

BLOCK_NUMBERS = 2**18
"""Numbers read at once for the checksums and moments, in whole rows: as many as stay in a core's cache. Part of the
result's definition (rounding)."""
MAPPED_BYTES = 2**30
"""Size of a store up to which rows are written through a memory map: a copy each instead of two system calls.

Of larger stores the pages that are written to would push each other out of memory, and be read again for every row.
"""
MANTISSA = 10
"""Bits of a norm that the histogram keeps after the leading one: percentiles are good to 2^-10 = .1 %."""


def _bin(norm: Float64[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
    """The exponent and first bits of a non-negative float32: as integers they sort as the numbers do."""
    return (norm.astype(np.float32).view(np.uint32) >> np.uint32(23 - MANTISSA)).astype(np.int64)


class Moments:
    """Mean, total variance and norm percentiles of a stream of rows, in float64 and in one pass.

    Blocks, and then shards, are merged by equations 2.1 of Chan, Golub & LeVeque 1983 (The American Statistician 37:3),
    which do not lose digits when the mean is large against the spread, as in a residual stream. numpy adds in one order
    whatever the number of threads, so equal rows give equal bits.
    """

    def __init__(self, d_in: int) -> None:
        self.n = 0
        self.mean = np.zeros(d_in)
        self.squares = 0.0
        """Sum over rows of ||x - mean||^2."""
        self.largest = 0.0
        self.histogram = np.zeros(256 << MANTISSA, np.int64)

    def update(self, rows: Float64[np.ndarray, "token d_in"]) -> None:
        """Take up a block of rows."""
        mean = rows.mean(0)
        centred = rows - mean
        self._merge(len(rows), mean, float(np.einsum("ij,ij->", centred, centred)))
        norm = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        self.largest = max(self.largest, float(norm.max()))
        bins, counts = np.unique(_bin(norm), return_counts=True)
        self.histogram[bins] += counts

    def _merge(self, n: int, mean: Float64[np.ndarray, " d_in"], squares: float) -> None:
        shift, total = mean - self.mean, self.n + n
        self.squares += squares + float(np.square(shift).sum() * (self.n * n / total))
        self.mean = self.mean + shift * (n / total)
        self.n = total

    def scale(self) -> float:
        """The root of mean ||x - mean||^2: divided by it, x - mean has a mean squared norm of 1."""
        return float(np.sqrt(self.squares / self.n))

    def norms(self) -> dict[str, float]:
        """Percentiles of ||x||: upper edges of the histogram's bins (to .1 %), and the exact largest norm."""
        cumulative = np.cumsum(self.histogram)
        found = {}
        for name, share in (("p1", 0.01), ("p50", 0.5), ("p99", 0.99)):
            place = int(np.searchsorted(cumulative, share * self.n)) + 1
            found[name] = min(float(np.uint32(place << (23 - MANTISSA)).view(np.float32)), self.largest)
        return {**found, "max": self.largest}

    def state(self) -> dict[str, Any]:
        """All of it, for a resume file; of the histogram only the bins in use."""
        used = np.flatnonzero(self.histogram)
        tensors = {"mean": self.mean, "bins": used, "counts": self.histogram[used]}
        numbers = {"n": self.n, "squares": self.squares, "largest": self.largest}
        return {**{name: torch.from_numpy(array) for name, array in tensors.items()}, **numbers}

    def add(self, state: dict[str, Any]) -> None:
        """Take up the rows that others gave their `state` of."""
        self._merge(state["n"], state["mean"].numpy(), state["squares"])
        self.largest = max(self.largest, state["largest"])
        self.histogram[state["bins"].numpy()] += state["counts"].numpy()


class StoreWriter:
    """One store under construction.

    Args:
        directory: where the shards are built; the same one when resuming.
        identity: the index without format, mean, scale and splits: all that is known before the model runs.
        rows: how many rows each split will have.
        shard_rows: rows of every shard but the last of a split.
    """

    def __init__(self, directory: Path, identity: dict[str, Any], rows: dict[str, int], shard_rows: int) -> None:
        self.directory, self.identity, self.shard_rows = directory, identity, shard_rows
        self._dtype = DTYPES[identity["dtype"]][0]
        self._width = identity["d_in"] * self._dtype.itemsize
        self.shards = {
            split: [min(shard_rows, n - first) for first in range(0, n, shard_rows)] for split, n in rows.items()
        }
        self._maps: dict[Path, npt.NDArray[np.uint8]] | None = (
            {} if sum(rows.values()) * (8 + self._width) <= MAPPED_BYTES else None
        )
        self._unflushed: set[Path] = set()
        self._lock = Lock()

    def path(self, split: str, number: int) -> Path:
        """The file of a shard."""
        return self.directory / f"{split}-{number:05d}.safetensors"

    def prepare(self, split: str) -> bool:
        """Give every shard its size and header; returns whether all of them were there, so that work can go on.

        Raises:
            UserError: if the disk is too small.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        intact = True
        for number, rows in enumerate(self.shards[split]):
            path, header = self.path(split, number), shard_header(self.identity, split, number, rows)
            size = len(header) + rows * (8 + self._width)
            if path.is_file() and path.stat().st_size == size:
                continue
            intact = False
            with path.open("wb") as handle:
                handle.write(header)
                try:  # the size is set last, so that a file that has it has its header too
                    handle.flush()
                    os.posix_fallocate(handle.fileno(), 0, size)
                except OSError as error:
                    raise UserError(
                        f"cannot reserve {size:,} bytes for shard {number + 1} of {len(self.shards[split])} of {split} "
                        f"in {self.directory} ({error.strerror}); free space or lower activations.n_tokens"
                    ) from None
        return intact

    def scatter(
        self,
        split: str,
        place: Int64[np.ndarray, " row"],
        activations: Float[Tensor, "row d_in"],
        positions: Int64[np.ndarray, " row"],
    ) -> None:
        """Write rows to their places.

        In a large store row by row: with thousands of shards a batch has a row or two for each, and mapping them would
        take longer.
        """
        data = activations.to(self._dtype).contiguous().view(torch.uint8).numpy()
        numbers = positions.astype("<i8")
        order = np.argsort(place)
        shard = place[order] // self.shard_rows
        for group in np.split(order, np.flatnonzero(np.diff(shard)) + 1):
            if not len(group):
                continue
            number = int(place[group[0]]) // self.shard_rows
            rows, path = self.shards[split][number], self.path(split, number)
            inside = place[group] - number * self.shard_rows
            if self._maps is not None:
                content = self._map(path)[-rows * (8 + self._width) :]
                content[: 8 * rows].view("<i8")[inside] = numbers[group]
                content[8 * rows :].reshape(rows, self._width)[inside] = data[group]
            else:
                write_rows(path, rows, inside, data[group], numbers[group])
            with self._lock:
                self._unflushed.add(path)

    def _map(self, path: Path) -> npt.NDArray[np.uint8]:
        """A shard as memory, until the next flush."""
        with self._lock:
            assert self._maps is not None
            if path not in self._maps:
                self._maps[path] = np.memmap(path, np.uint8, "r+")
            return self._maps[path]

    def flush(self) -> None:
        """Have everything written so far on the disk, so that progress may be recorded."""
        with self._lock:
            paths, self._unflushed = sorted(self._unflushed), set()
            if self._maps is not None:
                self._maps.clear()
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def finish(self) -> None:
        """Read every shard once, then write `index.json`.

        Raises:
            UserError: if all training rows are equal, so that there is no scale.
        """
        self.write_index(self.digest)

    def digest(self, split: str, number: int) -> dict[str, Any]:
        """The SHA-256 of a shard and the state of its rows' `Moments`."""
        rows, digest, moments = self.shards[split][number], sha256(), Moments(self.identity["d_in"])
        with self.path(split, number).open("rb") as handle:
            head = handle.read(self.path(split, number).stat().st_size - rows * self._width)
            digest.update(head)
            # Position 0 is the first of a window and has no row, so a 0 is a place that was never written.
            assert np.frombuffer(head, np.int64, rows, len(head) - 8 * rows).all(), f"{split} has unwritten rows"
            block_rows = max(1, BLOCK_NUMBERS // self.identity["d_in"])
            room = memoryview(bytearray(block_rows * self._width))
            for first in range(0, rows, block_rows):
                data = room[: min(block_rows, rows - first) * self._width]
                assert handle.readinto(data) == len(data), f"{split} was cut off"
                digest.update(data)
                block = torch.frombuffer(data, dtype=self._dtype).reshape(-1, self.identity["d_in"])
                moments.update(block.double().numpy())
        return {"sha256": digest.hexdigest(), **moments.state()}

    def write_index(self, found: Callable[[str, int], dict[str, Any]]) -> None:
        """Write `index.json` from the `digest` of every shard, merged in the order of the shards.

        Args:
            found: gives the digest of a shard of a split.

        Raises:
            UserError: if all training rows are equal, so that there is no scale.
        """
        moments = {split: Moments(self.identity["d_in"]) for split in self.shards}
        sums: dict[str, list[str]] = {split: [] for split in self.shards}
        for split, shards in self.shards.items():
            for number in range(len(shards)):
                digest = found(split, number)
                moments[split].add(digest)
                sums[split].append(digest["sha256"])
        write_json(self.directory / "index.json", self._index(sums, moments))

    def _index(self, sums: dict[str, list[str]], moments: dict[str, Moments]) -> dict[str, Any]:
        scale = moments["train"].scale()
        if not scale > 0:
            hook_name = self.identity["hook_name"]
            raise UserError(f"all training activations at {hook_name} are equal: choose another activations.layer")
        splits = {
            split: {
                "rows": sum(shards),
                "norm": moments[split].norms(),
                "shards": [
                    {"file": self.path(split, number).name, "rows": rows, "sha256": sums[split][number]}
                    for number, rows in enumerate(shards)
                ],
            }
            for split, shards in self.shards.items()
        }
        mean = moments["train"].mean.tolist()
        return {**self.identity, "format": FORMAT, "mean": mean, "scale": scale, "splits": splits}


def write_rows(
    path: Path,
    rows: int,
    inside: Int64[np.ndarray, " row"],
    data: UInt8[np.ndarray, "row byte"],
    numbers: Int64[np.ndarray, " row"],
) -> None:
    """Write some rows of a shard of `rows`, and their positions, to their places."""
    width = data.shape[1]
    descriptor = os.open(path, os.O_WRONLY)
    try:
        header = os.fstat(descriptor).st_size - rows * (8 + width)
        for row, at in enumerate(inside.tolist()):
            write_at(descriptor, numbers[row : row + 1], header + 8 * at)
            write_at(descriptor, data[row], header + 8 * rows + width * at)
    finally:
        os.close(descriptor)


def write_at(descriptor: int, data: npt.NDArray[Any], offset: int) -> None:
    """Write all of an array at a place of a file; the system may take it in parts."""
    left = data.data.cast("B")
    while left:
        n = os.pwrite(descriptor, left, offset)
        left, offset = left[n:], offset + n


def place(stores: list[Path], root: Path) -> None:
    """Have finished stores under `root`, and nothing else: by hard links, or by copies if that is another file system.

    The originals stay until their resume directory is cleared: DVC deletes outputs before it runs a stage again.
    """
    shutil.rmtree(root, ignore_errors=True)
    for store in stores:
        (root / store.name).mkdir(parents=True)
        for path in sorted(store.iterdir(), key=lambda path: path.name == "index.json"):  # the index last
            try:
                os.link(path, root / store.name / path.name)
            except OSError:
                shutil.copyfile(path, root / store.name / path.name)
