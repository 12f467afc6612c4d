"""Reads the activations on disk: one directory per model revision, shards of rows and an `index.json` that says it all.

A row is one token. Rows of `train` are globally shuffled; those of the other splits are in the order of the text. A
shard is a safetensors file of `position` int64 [row] and `activations` [row, d_in]; its header is a function of the
index, so opening a store compares every shard's header and size with it, and verifying it every byte.

It stands apart from the writer because training and every analysis import it. DVC keeps activations and settings in
step, unless a stage is run by itself or files are moved by hand; `check_settings` refuses activations of other
settings.
"""

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from stages.lib.io import params
from stages.lib.io.errors import UserError, nearest
from stages.lib.io.files import read_json, sha256

ACTIVATIONS = Path("data/activations")
SPLITS = ("train", "fit", "validation", "test")
FORMAT = 1
DTYPES = {"float32": (torch.float32, "F32"), "bfloat16": (torch.bfloat16, "BF16"), "float16": (torch.float16, "F16")}
"""The dtypes a store can have: PyTorch's and safetensors' name."""
IDENTITY = ("model", "commit", "revision", "hook_name", "layer", "seed")
"""What of the index every shard repeats, so that a shard of another run does not pass for one of this."""
PAGE = 4096
"""Bytes that file systems read and write at once."""
VERIFY = "EXPLORING_SAES_VERIFY"
"""Environment variable: 0 if checksums need not be compared, of stores so large that it takes long."""
REMEDY = "`dvc checkout --force activations` restores it, `dvc repro -f activations` makes it again"
BRINGS_BACK = "`dvc pull activations` or `dvc repro activations` brings it back"


def damaged(path: Path) -> str:
    """How to get a good file for a bad one.

    The file and DVC's copy of it are as a rule two names of the same bytes, so that DVC alone would not mend either.
    """
    return f"`find .dvc/cache data -samefile {path} -delete` removes it and DVC's copy of it, then {BRINGS_BACK}"


def shard_header(index: dict[str, Any], split: str, number: int, rows: int) -> bytes:
    """The bytes before the data of one safetensors shard: 8 of length, then JSON.

    It is padded so that the activations begin at a multiple of 4096: rows of whole pages are then written without
    reading what else is in a page, which at 10^9 rows in random order halves the traffic of the disk.
    """
    dtype, code = DTYPES[index["dtype"]]
    middle = 8 * rows
    end = middle + rows * index["d_in"] * dtype.itemsize
    description = {**{name: index[name] for name in IDENTITY}, "split": split, "shard": number}
    fields = {
        "__metadata__": {"description": json.dumps(description, sort_keys=True)},
        "position": {"dtype": "I64", "shape": [rows], "data_offsets": [0, middle]},
        "activations": {"dtype": code, "shape": [rows, index["d_in"]], "data_offsets": [middle, end]},
    }
    text = json.dumps(fields).encode()
    text += b" " * (-(8 + len(text) + middle) % PAGE)
    return len(text).to_bytes(8, "little") + text


class Scaling(NamedTuple):
    """What training does to raw activations: (x - mean) / scale has mean 0 and a mean squared norm of 1."""

    mean: Tensor
    """The mean of the training rows, [d_in]."""
    scale: float
    """The root of their mean ||x - mean||^2."""

    def normalise_(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_in"]:
        """Normalise raw activations in place, and return them."""
        return x.sub_(self.mean).div_(self.scale)

    def raw(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_in"]:
        """Raw activations from normalised ones."""
        return x * self.scale + self.mean


class Store:
    """The activations of one revision.

    Memory does not grow with the number of rows: every call reads just the rows asked for, in the order of the file.
    Nothing is kept open, so a store can be used from several threads and processes.
    """

    def __init__(self, directory: Path, verify: Iterable[str] = ()) -> None:
        self.directory = directory
        self.index: dict[str, Any] = read_json(directory / "index.json")
        """`index.json` as it stands: model, commit, revision, n_ctx, permutation, norm percentiles, ..."""
        if self.index.get("format") != FORMAT:
            raise UserError(
                f"{directory}/index.json is of format {self.index.get('format')}, this code reads {FORMAT}: {REMEDY}"
            )
        self.d_in: int = self.index["d_in"]
        self.layer: int = self.index["layer"]
        self.hook_name: str = self.index["hook_name"]
        self.mean: Tensor = torch.tensor(self.index["mean"], dtype=torch.float32)
        self.scale: float = self.index["scale"]
        self._dtype = DTYPES[self.index["dtype"]][0]
        self._shards: dict[str, list[tuple[Path, int, int]]] = {}  # path, length of the header, rows
        for split, content in self.index["splits"].items():
            self._shards[split] = [self._check(split, number) for number in range(len(content["shards"]))]
        self._starts = {
            split: np.cumsum([0, *(rows for _, _, rows in shards)]) for split, shards in self._shards.items()
        }
        self._verify(verify)

    def _verify(self, splits: Iterable[str]) -> None:
        shards = [
            (path, shard["sha256"])
            for split in splits
            for (path, _, _), shard in zip(self._shards[split], self.index["splits"][split]["shards"], strict=True)
        ]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # the hash function runs beside other threads
            for (path, expected), found in zip(shards, pool.map(sha256, [path for path, _ in shards]), strict=True):
                if found != expected:
                    raise UserError(f"{path} is damaged (its SHA-256 is not the one in index.json): {damaged(path)}")

    def _check(self, split: str, number: int) -> tuple[Path, int, int]:
        shard = self.index["splits"][split]["shards"][number]
        path = self.directory / shard["file"]
        header = shard_header(self.index, split, number, shard["rows"])
        size = len(header) + shard["rows"] * (8 + self.d_in * self._dtype.itemsize)
        if not path.is_file():
            raise UserError(f"{path} is missing: {BRINGS_BACK}")
        if path.stat().st_size != size:
            found = path.stat().st_size
            what = f"{path} has {found:,} bytes instead of {size:,}, so it is cut off or foreign"
            raise UserError(f"{what}: {damaged(path)}")
        with path.open("rb") as handle:
            if handle.read(len(header)) != header:
                raise UserError(f"{path} belongs to other activations than {self.directory}/index.json says: {REMEDY}")
        return path, len(header), shard["rows"]

    def scaling(self, on: torch.device | str = "cpu") -> Scaling:
        """The normalisation of these activations, for rows on a device."""
        return Scaling(self.mean.to(on), self.scale)

    def n_rows(self, split: str) -> int:
        """How many rows the split has."""
        if split not in self._shards:
            raise UserError(f"{self.directory} has no split {split!r}{nearest(split, list(self._shards))}")
        return int(self._starts[split][-1])

    def rows(self, split: str, start: int, stop: int) -> Float[Tensor, "token d_in"]:
        """Raw activations of the rows from `start` up to `stop`, in float32 whatever the files hold."""
        kept = torch.empty(self._length(split, start, stop), self.d_in, dtype=self._dtype)
        self._read(split, start, stop, kept.view(torch.uint8).numpy(), True)
        return kept.float()

    def positions(self, split: str, start: int = 0, stop: int | None = None) -> Int64[np.ndarray, " row"]:
        """Flat token position of each row: window * n_ctx + position in the window, in `data/tokens/<split>`."""
        stop = self.n_rows(split) if stop is None else stop
        found = np.empty(self._length(split, start, stop), np.int64)
        self._read(split, start, stop, found.view(np.uint8).reshape(-1, 8), False)
        return found

    def batches(self, split: str, size: int) -> Iterator[Float[Tensor, "token d_in"]]:
        """All rows of a split in order, `size` at a time; the last batch may be smaller."""
        n_rows = self.n_rows(split)
        for start in range(0, n_rows, size):
            yield self.rows(split, start, min(start + size, n_rows))

    def _length(self, split: str, start: int, stop: int) -> int:
        assert 0 <= start <= stop <= self.n_rows(split), (
            f"rows {start}:{stop} of {split}, which has {self.n_rows(split)}"
        )
        return stop - start

    def _read(
        self, split: str, start: int, stop: int, target: UInt8[np.ndarray, "row byte"], after_positions: bool
    ) -> None:
        """Fill `target` with the bytes of rows of the first or second tensor of the shards."""
        starts, width, done = self._starts[split], target.shape[1], 0
        first = int(np.searchsorted(starts, start, side="right")) - 1
        for number in range(first, len(self._shards[split])):
            if done == stop - start:
                break
            path, header, rows = self._shards[split][number]
            inside = start + done - int(starts[number])
            part = target[done : done + min(rows - inside, stop - start - done)]
            with path.open("rb") as handle:
                handle.seek(header + (8 * rows if after_positions else 0) + inside * width)
                if handle.readinto(part.data.cast("B")) != part.size:
                    raise UserError(f"{path} was cut off while it was in use: {damaged(path)}")
            done += len(part)


def open_store(name: str, verify: Iterable[str] = (), root: Path = ACTIVATIONS) -> Store:
    """The activations of a model revision, checked: every shard there, of the right size and of this run.

    Args:
        name: an entry of `activations.revisions`.
        verify: splits of which the SHA-256 of every shard is compared too, which reads all of them once; where
            `EXPLORING_SAES_VERIFY` is 0 that is left out.
        root: the directory of the stores.

    Raises:
        UserError: naming the file that is missing, cut off, damaged or foreign, and what brings it back.
    """
    known = sorted(path.parent.name for path in root.glob("*/index.json"))
    if name not in known:
        raise UserError(
            f"{root} has no activations of revision {name!r}{nearest(name, known)}; "
            "`dvc checkout activations` restores them, or add it to activations.revisions and `dvc repro activations`"
        )
    return Store(root / name, verify if os.environ.get(VERIFY) != "0" else ())


SETTINGS = ("layer", "site", "n_tokens", "compute", "dtype", "seed")
"""What the index of a store repeats of the section `activations`."""


def activation_settings() -> dict[str, Any]:
    """Those settings as they are now; none in a pipeline that makes its activations otherwise."""
    if "activations" not in params.document():
        return {}
    return {name: params.value(f"activations.{name}") for name in SETTINGS}


def check_settings(store: Store, now: dict[str, Any]) -> None:
    """Refuse activations that were made with other settings than `now`.

    Raises:
        UserError: naming the index, the setting and both values.
    """
    for name, made in store.index.get("settings", {}).items():
        if now.get(name, made) != made:
            raise UserError(
                f"{store.directory}/index.json was made with activations.{name} = {made!r}, params.yaml has "
                f"{now[name]!r}: `dvc repro activations` makes what it asks for"
            )
