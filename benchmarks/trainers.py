"""What a benchmark asks of a way to train one SAE: ours (`benchmarks.ours`) or a library's (`benchmarks/libraries/`).

A file in `benchmarks/libraries/` is the adapter of one library. It imports the library, so that it cannot be loaded
without it, and holds

    PACKAGE     the library's name on PyPI
    METHODS     which of our methods it has
    precisions  (method, kind of device) -> those in which it can train
    trainer     (recipe) -> Trainer

Adapters run the library's own training step, with its own defaults; what differs from them is said in the adapter.
"""

import contextlib
import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import NormalDist
from types import ModuleType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

LIBRARIES = Path(__file__).resolve().parent / "libraries"
WEAK = 1e-3
"""Norm of the encoder rows of features that are made dead."""
POSITIVE = 0.5
"""Share of the tokens on which one's pre-activation is above 0."""
RARELY = 0.002
"""The same of features that have died in a training: 0.0013 in the default one with 9 % dead features, `untrained`, and
0.01 to 0.03 in those with less than 1 %."""
Inference = Callable[[Tensor], tuple[Tensor, Tensor]]
"""The feature activations and the reconstructions of some activations."""


class Recipe(NamedTuple):
    """How an SAE is trained, in words that all libraries understand."""

    method: str
    """A file in `stages/saes/`."""
    d_in: int
    d_sae: int
    level: float
    """k, the weight of the sparsity loss, or the wanted L0 where the method is led to one."""
    batch: int
    n_steps: int
    lr: float | None
    """None for the library's default."""
    dead_tokens: int
    """A feature that has not fired on this many tokens is dead."""
    seed: int
    device: torch.device
    precision: str
    """fp32, or bf16: autocast, or our search for the active features."""


class Shares(NamedTuple):
    """Shares of the steps, the same for every library: defaults count in steps of far longer trainings."""

    lr_warm_up: float = 0.02
    lr_decay: float = 0.2
    sparsity_warm_up: float = 0.1


SHARES = Shares()


class Trainer(Protocol):
    """One SAE in training."""

    def step(self, x: Tensor) -> None:
        """Train on one batch: forward, loss, backward, clipping, optimiser, and whatever else belongs to a step."""

    def kill(self, dead: Tensor) -> None:
        """Make these features dead, so that the loss that revives them is at work in the next step."""

    def inference(self, validation: Tensor) -> Inference:
        """The trained SAE as it is used; what it needs for that may be set on validation activations."""


class Library(NamedTuple):
    """An adapter and what it stands for."""

    name: str
    version: str
    methods: frozenset[str]
    precisions: Callable[[str, str], tuple[str, ...]]
    trainer: Callable[[Recipe], Trainer]


def library(name: str) -> Library | None:
    """The library with this adapter, or None, visibly, where it is not installed."""
    try:
        # Some print when they are imported.
        with contextlib.redirect_stdout(sys.stderr):
            module = importlib.import_module(f"benchmarks.libraries.{name}")
    except ModuleNotFoundError as error:
        sys.stderr.write(f"skipped {name}: {error}; benchmarks/environment.sh installs it\n")
        return None
    return Library(name, metadata.version(module.PACKAGE), frozenset(module.METHODS), module.precisions, module.trainer)


def libraries(names: list[str]) -> list[Library]:
    """Those of the libraries that are installed."""
    return [found for name in names if (found := library(name)) is not None]


def adapters() -> list[str]:
    """The libraries for which there is an adapter."""
    return sorted(path.stem for path in LIBRARIES.glob("*.py"))


def leave_out_init(package: str) -> None:
    """Let modules of a package be imported without its `__init__`, which asks for more than a training step needs.

    Raises:
        ModuleNotFoundError: if the package is not installed.
    """
    if package in sys.modules:
        return
    found = importlib.util.find_spec(package)
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    bare = ModuleType(package)
    bare.__path__ = [*found.submodule_search_locations]
    sys.modules[package] = bare


def weaken(rows: Tensor, biases: Tensor, dead: Tensor, positive: float = POSITIVE) -> None:
    """Make pre-activations of features small, in place.

    Args:
        rows: of the encoder, [d_sae, d_in].
        biases: of the encoder.
        dead: the features.
        positive: the share of the tokens on which one's pre-activation is above 0, if it is normal.
    """
    below = NormalDist(sigma=WEAK / rows.shape[1] ** 0.5).inv_cdf(positive)
    with torch.no_grad():
        rows[dead] *= WEAK / rows[dead].norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        biases[dead] = below


def use_threads() -> int:
    """Use as many threads as OMP_NUM_THREADS says, one without it; the number."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return torch.get_num_threads()


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds: the process's where one thread of a CPU computes, which other work disturbs least; else the wall's."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def processor(device: torch.device) -> str:
    """The model of the device, for the heading of a table."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    found = dict(line.split("\t: ", 1) for line in reversed(lines) if "\t: " in line)
    names = [found.get(key, "").strip() for key in ("model name", "flags")]
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in names[1].split()]
    return " ".join([names[0] or "unknown processor", *wide])
