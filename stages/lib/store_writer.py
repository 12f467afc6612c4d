"""Writes the activation store: rows scattered into preallocated shards, so that where it stopped it can go on.

Row i of a split goes to place perm(i), which is row perm(i) % shard_rows of shard perm(i) // shard_rows. The files have
their final size and their safetensors header before the first row is written, and writing a row twice changes nothing:
a run that was killed goes on from the last recorded batch and ends with the same bytes. `index.json` is written last,
so a directory that has one is complete.
"""

import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from stages.lib.errors import UserError
from stages.lib.files import write_json
from stages.lib.store import DTYPES, FORMAT, shard_header

BLOCK = 4096
"""Rows read at once for the checksums and moments, and merged as one; part of the result's definition (rounding)."""
MANTISSA = 10
"""Bits of a norm that the histogram keeps after the leading one: percentiles are good to 2^-10 = .1 %."""


def _bin(norm: Float64[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
    """The exponent and first bits of a non-negative float32: as integers they sort as the numbers do."""
    return (norm.astype(np.float32).view(np.uint32) >> np.uint32(23 - MANTISSA)).astype(np.int64)


class Moments:
    """Mean, total variance and norm percentiles of a stream of rows, in float64 and in one pass.

    Blocks are merged by equations 2.1 of Chan, Golub & LeVeque 1983 (The American Statistician 37:3), which do not
    lose digits when the mean is large against the spread, as in a residual stream. numpy adds in one order whatever the
    number of threads, so equal rows give equal bits.
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
        shift = mean - self.mean
        n = self.n + len(rows)
        self.squares += float(np.square(rows - mean).sum() + np.square(shift).sum() * (self.n * len(rows) / n))
        self.mean = self.mean + shift * (len(rows) / n)
        self.n = n
        norm = np.sqrt(np.square(rows).sum(1))
        self.largest = max(self.largest, float(norm.max()))
        self.histogram += np.bincount(_bin(norm), minlength=len(self.histogram))

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

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.n, self.squares, self.largest = state["n"], state["squares"], state["largest"]
        self.mean = state["mean"].numpy()
        self.histogram[:] = 0
        self.histogram[state["bins"].numpy()] = state["counts"].numpy()


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
        self._unflushed: set[Path] = set()

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
        """Write rows to their places. One shard is mapped at a time, so memory does not grow with the store."""
        data = activations.to(self._dtype).contiguous().view(torch.uint8).numpy()
        order = np.argsort(place)
        shard = place[order] // self.shard_rows
        for group in np.split(order, np.flatnonzero(np.diff(shard)) + 1):
            if not len(group):
                continue
            number = int(place[group[0]]) // self.shard_rows
            rows, path = self.shards[split][number], self.path(split, number)
            header = path.stat().st_size - rows * (8 + self._width)
            inside = place[group] - number * self.shard_rows
            file = np.memmap(path, np.uint8, "r+")
            file[header : header + 8 * rows].view(np.int64)[inside] = positions[group]
            file[header + 8 * rows :].reshape(rows, self._width)[inside] = data[group]
            del file
            self._unflushed.add(path)

    def flush(self) -> None:
        """Have everything written so far on the disk, so that progress may be recorded."""
        for path in sorted(self._unflushed):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._unflushed.clear()

    def finish(self, state: dict[str, Any], keep: Callable[[dict[str, Any]], None]) -> None:
        """Read every shard once for its SHA-256 and the moments, then write `index.json`.

        Args:
            state: what `keep` was given last, or {} at first.
            keep: called after every shard with the state from which this can go on.

        Raises:
            UserError: if all training rows are equal, so that there is no scale.
        """
        sums: dict[str, list[str]] = dict(state.get("sums", {}))
        moments = {split: Moments(self.identity["d_in"]) for split in self.shards}
        for split, kept in state.get("moments", {}).items():
            moments[split].restore(kept)
        for split, shards in self.shards.items():
            sums.setdefault(split, [])
            for number in range(len(sums[split]), len(shards)):
                sums[split].append(self._digest(split, number, moments[split]))
                keep({"sums": sums, "moments": {name: moments[name].state() for name in sums}})
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

    def _digest(self, split: str, number: int, moments: Moments) -> str:
        """The SHA-256 of a shard, whose rows are added to the moments in the order of the file."""
        rows, digest = self.shards[split][number], sha256()
        with self.path(split, number).open("rb") as handle:
            head = handle.read(self.path(split, number).stat().st_size - rows * self._width)
            digest.update(head)
            # Position 0 is the first of a window and has no row, so a 0 is a place that was never written.
            assert np.frombuffer(head, np.int64, rows, len(head) - 8 * rows).all(), f"{split} has unwritten rows"
            for first in range(0, rows, BLOCK):
                data = bytearray(handle.read(min(BLOCK, rows - first) * self._width))
                digest.update(data)
                block = torch.frombuffer(data, dtype=self._dtype).reshape(-1, self.identity["d_in"])
                moments.update(block.double().numpy())
        return digest.hexdigest()


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
