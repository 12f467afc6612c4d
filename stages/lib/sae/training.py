"""The training of several SAEs over the same batches, so that a killed run goes on and ends in the same bytes.

Rates are functions of the step: warm-ups keep features from dying before the encoder has
settled, the decay takes the noise out of the last weights. Losses are added up on the device and read a hundred-odd
times in a run, so that steps do not wait for it.

Levels share the batches and nothing else. On a CPU each has a thread of its own and trains on some batches in a row,
the next of which are read meanwhile: a step of a small SAE has too little work to be shared among threads.
"""

import csv
import io
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stages.lib.io import tensors
from stages.lib.io.errors import UserError
from stages.lib.run.live import LevelRow, TrainingLog
from stages.lib.run.parallel import side_by_side
from stages.lib.run.resume import Resume
from stages.lib.sae.base import SAE

HISTORY_ROWS = 150
"""Rows of `history.csv` for each level."""
LONGEST_STRETCH = 8
"""The most batches that a level trains on in a row."""
STRETCH_NUMBERS = 2**22
"""The most numbers that the batches of a stretch hold: a signal waits for the end of a stretch."""
SAVE_SECONDS = "EXPLORING_SAES_SAVE_SECONDS"
"""Environment variable: seconds between savings of the half-finished work (60 if it is not set)."""


class Schedule(NamedTuple):
    """Rates as functions of the step, which counts from 0."""

    n_steps: int
    lr: float
    lr_warm_up: float
    """Share of the steps over which the learning rate rises from 0."""
    lr_decay: float
    """Share of the steps, at the end, over which it falls to 0."""
    sparsity_warm_up: float
    """Share of the steps over which the sparsity coefficient rises from 0."""

    def lr_at(self, step: int) -> float:
        """The learning rate: linear up, constant, linear down."""
        rise = (step + 1) / max(self.lr_warm_up * self.n_steps, 1)
        fall = (self.n_steps - step) / max(self.lr_decay * self.n_steps, 1)
        return self.lr * min(1.0, rise, fall)

    def sparsity_at(self, step: int) -> float:
        """The share of the sparsity coefficient."""
        return min(1.0, step / max(self.sparsity_warm_up * self.n_steps, 1))


def checkpoint_steps(n_steps: int, n_checkpoints: int) -> list[int]:
    """Step 0 and whole numbers up to `n_steps`, each as near as can be to a constant multiple of the one before."""
    steps = [0, 1]
    while len(steps) < min(n_checkpoints, n_steps + 1):
        left = n_checkpoints - len(steps)
        steps.append(max(steps[-1] + 1, round(steps[-1] * (n_steps / steps[-1]) ** (1 / left))))
    return steps


def history_steps(n_steps: int) -> set[int]:
    """The numbers of steps done after which a row is written: equally spaced, the last one is `n_steps`."""
    return {-(-n_steps * row // HISTORY_ROWS) for row in range(1, HISTORY_ROWS + 1)}


class Row(NamedTuple):
    """Means over the batches since the row before."""

    level: int
    step: int
    """Steps done."""
    fvu: float
    l0: float
    dead_fraction: float
    """At this step."""
    loss: float
    sparsity_loss: float
    auxiliary_loss: float
    lr: float
    """Of the last of the batches."""
    coefficient: float
    """Weight of the sparsity loss after the last of the batches; 0 where there is none."""
    n_resampled: int
    """Dead features that have got new weights since the start."""


class Interruption:
    """Turns SIGTERM and SIGINT into a flag while it is entered, so that a step is never left half done."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        """Catch the signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.signal = number


class Training:
    """The SAEs of one arm and seed, one a level, and all that changes while they train."""

    def __init__(
        self,
        saes: list[SAE],
        schedule: Schedule,
        followed: int,
        n_checkpoints: int,
        sample: Float[Tensor, "token d_in"],
        levels: list[int] | None = None,
    ) -> None:
        self.saes, self.schedule, self.followed = saes, schedule, followed
        self.levels = [*range(len(saes))] if levels is None else levels
        """The number of each SAE's level among those of the arm; `followed` is one of them."""
        for sae in saes:
            sae.look_at(sample)
        self.sample = sample
        """Validation activations, on which what inference needs is set."""
        self.checkpoints = checkpoint_steps(schedule.n_steps, n_checkpoints)
        self.done = 0
        """Steps."""
        self.history: list[Row] = []
        self._rows = history_steps(schedule.n_steps)
        self._due = self._rows | set(self.checkpoints)
        self._sums = torch.zeros(len(saes), 4, dtype=torch.float64, device=saes[0].W_dec.device)
        self._summed = 0

    def stretch(self, done: int, longest: int) -> int:
        """How many steps can be done in a row after `done` others, before a row or a checkpoint is due."""
        n = 1
        while n < longest and done + n not in self._due and done + n < self.schedule.n_steps:
            n += 1
        return n

    def run(self, batches: list[Float[Tensor, "token d_in"]]) -> None:
        """Train every level on some batches in a row."""
        side_by_side(partial(self._train_level, batches), range(len(self.saes)), self._sums.device)
        self.done += len(batches)
        self._summed += len(batches)
        if self.done in self._rows:
            self._write_rows(self.schedule.lr_at(self.done - 1))

    def _train_level(self, batches: list[Float[Tensor, "token d_in"]], level: int) -> None:
        for step, x in enumerate(batches, self.done):
            lr, warm_up = self.schedule.lr_at(step), self.schedule.sparsity_at(step)
            self.saes[level].advance(step / self.schedule.n_steps)
            losses = self.saes[level].step(x, lr, warm_up)
            self.saes[level].lead(losses, lr, warm_up)
            found = torch.stack([losses.fvu, losses.l0, losses.sparsity, losses.auxiliary])
            self._sums[level].add_(found)

    def _write_rows(self, lr: float) -> None:
        dead = torch.stack([sae.dead().double().mean() for sae in self.saes])
        means = torch.cat([self._sums / self._summed, dead[:, None]], 1).tolist()
        for level, sae, (fvu, l0, sparsity, auxiliary, dead_fraction) in zip(
            self.levels, self.saes, means, strict=True
        ):
            loss = fvu + sparsity + auxiliary
            if not loss < float("inf"):  # NaN too
                raise UserError(
                    f"training diverged at step {self.done} of level {level}: lower the learning rate {lr:g}"
                )
            losses = (loss, sparsity, auxiliary)
            row = (fvu, l0, dead_fraction, *losses, lr, float(sae.coefficient), sae.n_resampled)
            self.history.append(Row(level, self.done, *row))
        self._sums.zero_()
        self._summed = 0

    def latest(self) -> list[Row]:
        """The last row of each level."""
        return self.history[-len(self.saes) :]

    def keep_checkpoint(self, resume: Resume) -> None:
        """Put the followed SAE by, in half precision and at its wanted L0, if this is a step for it."""
        if self.done in self.checkpoints:
            weights = self.saes[self.levels.index(self.followed)].calibrated(self.sample)
            resume.save({name: weight.half().cpu() for name, weight in weights.items()}, f"step-{self.done:08d}")

    def write_checkpoints(self, directory: Path, resume: Resume, batch_size: int) -> None:
        """Write what `keep_checkpoint` put by, a file per step."""
        for step in self.checkpoints:
            weights = resume.load(f"step-{step:08d}")
            assert weights is not None, f"no checkpoint of step {step} in {resume.directory}"
            facts = {"step": step, "tokens": step * batch_size}
            tensors.save(directory / f"step-{step:08d}.safetensors", weights, facts)

    def state(self) -> dict[str, Any]:
        """All that changes; checkpoints are kept apart."""
        return {
            "done": self.done,
            "saes": [sae.state() for sae in self.saes],
            "history": [list(row) for row in self.history],
            "sums": self._sums,
            "summed": self._summed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.done, self._summed = state["done"], state["summed"]
        self.history = [Row(*row) for row in state["history"]]
        self._sums.copy_(state["sums"])
        for sae, kept in zip(self.saes, state["saes"], strict=True):
            sae.restore(kept)


def train(training: Training, batches: Iterator[Float[Tensor, "token d_in"]], resume: Resume, log: TrainingLog) -> None:
    """Train to the last step; `batches` begin with the one after the steps done.

    Raises:
        SystemExit: on SIGTERM and SIGINT, with the work kept.
    """
    interval, saved = float(os.environ.get(SAVE_SECONDS, "60")), time.monotonic()
    if training.done == 0:
        training.keep_checkpoint(resume)
    with Interruption() as interruption:
        for stretch in stretches(training, batches):
            n_rows = len(training.history)
            training.run(stretch)
            training.keep_checkpoint(resume)
            written = training.history[n_rows:]
            if written:
                show(training, written, log)
            log.advance(len(stretch), **summary(written))
            if interruption.signal or time.monotonic() - saved >= interval:
                resume.save(training.state())
                saved = time.monotonic()
            if interruption.signal:
                raise SystemExit(128 + interruption.signal)
    resume.save(training.state())


def stretches(
    training: Training, batches: Iterator[Float[Tensor, "token d_in"]]
) -> Iterator[list[Float[Tensor, "token d_in"]]]:
    """All batches, some in a row, read while those before are trained on."""

    def read(n: int) -> list[Tensor]:
        return [*islice(batches, n)]

    done, n_steps, longest = training.done, training.schedule.n_steps, 1
    with ThreadPoolExecutor(1) as reader:
        ahead: Future[list[Tensor]] = reader.submit(read, 1)
        while done < n_steps:
            found = ahead.result()
            done += len(found)
            longest = max(1, min(LONGEST_STRETCH, STRETCH_NUMBERS // found[0].numel()))
            if done < n_steps:
                ahead = reader.submit(read, training.stretch(done, longest))
            yield found


def show(training: Training, rows: list[Row], log: TrainingLog) -> None:
    """Show a row of each level at the terminal, and write them to the log."""
    names = [f"{sae.params.level_name} {sae.level:g}" for sae in training.saes]
    log.show([LevelRow(name, row._asdict()) for name, row in zip(names, rows, strict=True)])
    for row in rows:
        log.write(**row._asdict())


def summary(rows: list[Row]) -> dict[str, str]:
    """The numbers beside the progress bar, those of the levels joined by slashes; empty without rows."""
    if not rows:
        return {}
    shown = {
        "fvu": [row.fvu for row in rows],
        "l0": [row.l0 for row in rows],
        "dead": [row.dead_fraction for row in rows],
    }
    facts = {name: "/".join(f"{value:.3g}" for value in values) for name, values in shown.items()}
    return {**facts, "lr": f"{rows[0].lr:.2e}"}


def history_table(training: Training, arm: str, seed: int, batch_size: int) -> str:
    """The rows of all levels as CSV, by level and then by step."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["arm", "level", "seed", "step", "tokens", *Row._fields[2:]])
    for row in sorted(training.history):
        numbers = [f"{number:.6g}" for number in row[2:]]
        table.writerow([arm, row.level, seed, row.step, row.step * batch_size, *numbers])
    return text.getvalue()
