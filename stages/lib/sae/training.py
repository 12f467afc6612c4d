"""The training of several SAEs over the same batches, so that a killed run goes on and ends in the same bytes.

Losses are added up on the device and read a hundred-odd
times in a run, so that steps do not wait for it.

Levels share the batches and nothing else, and trainings of other seeds not even these. On a CPU they train side by side
on some batches in a row, the next of which are read meanwhile: a step of a small SAE has too little work to be shared
among threads.
"""

import csv
import io
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stages.lib.io import tensors
from stages.lib.io.errors import UserError
from stages.lib.run.interruption import Interruption
from stages.lib.run.live import LevelRow, TrainingLog
from stages.lib.run.parallel import in_turns, use_threads
from stages.lib.run.resume import Resume
from stages.lib.sae.base import SAE
from stages.lib.sae.schedule import Schedule, checkpoint_steps, history_steps

LONGEST_STRETCH = 16
"""The most batches that levels train on in a row, before they wait for one another."""
STRETCH_NUMBERS = 2**22
"""The most numbers that the batches of a stretch hold: a signal waits for the end of a stretch."""
SAVE_SECONDS = "EXPLORING_SAES_SAVE_SECONDS"
"""Environment variable: seconds between savings of the half-finished work (60 if it is not set)."""


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
        """By step, and of one step by level."""
        self._rows = history_steps(schedule.n_steps)
        self._sums = torch.zeros(len(saes), 4, dtype=torch.float64, device=saes[0].W_dec.device)
        self._summed = [0] * len(saes)
        self._kept: dict[int, dict[str, Tensor]] = {}
        """Checkpoints that are not put by yet."""

    def run(self, batches: list[Float[Tensor, "token d_in"]]) -> None:
        """Train every level on some batches in a row."""
        run_together([(self, batches)])

    def steps(self, level: int, batches: list[Float[Tensor, "token d_in"]], rows: list[Row]) -> Iterator[None]:
        """Train one of the SAEs, a batch before each item; rows that are due are added to `rows`."""
        sae = self.saes[level]
        for step, x in enumerate(batches, self.done):
            lr, warm_up = self.schedule.lr_at(step), self.schedule.sparsity_at(step)
            sae.advance(step / self.schedule.n_steps)
            losses = sae.step(x, lr, warm_up)
            sae.lead(losses, lr, warm_up)
            self._sums[level].add_(torch.stack([losses.fvu, losses.l0, losses.sparsity, losses.auxiliary]))
            self._summed[level] += 1
            if step + 1 in self._rows:
                rows.append(self._row(level, step + 1, lr))
            if self.levels[level] == self.followed and step + 1 in self.checkpoints:
                self._keep(step + 1)
            yield

    def _row(self, level: int, step: int, lr: float) -> Row:
        sae, number = self.saes[level], self.levels[level]
        dead = sae.dead().double().mean()[None]
        means = torch.cat([self._sums[level] / self._summed[level], dead]).tolist()
        fvu, l0, sparsity, auxiliary, dead_fraction = means
        loss = fvu + sparsity + auxiliary
        if not loss < float("inf"):  # NaN too
            raise UserError(f"training diverged at step {step} of level {number}: lower the learning rate {lr:g}")
        self._sums[level].zero_()
        self._summed[level] = 0
        losses = (loss, sparsity, auxiliary)
        return Row(number, step, fvu, l0, dead_fraction, *losses, lr, float(sae.coefficient), sae.n_resampled)

    def _keep(self, step: int) -> None:
        """Keep the followed SAE in half precision, at its wanted L0."""
        weights = self.saes[self.levels.index(self.followed)].calibrated(self.sample)
        self._kept[step] = {name: weight.half().cpu() for name, weight in weights.items()}

    def latest(self) -> list[Row]:
        """The last row of each level."""
        return self.history[-len(self.saes) :]

    def keep_checkpoints(self, resume: Resume) -> None:
        """Put the checkpoints by that have come up."""
        if self.done == 0:
            self._keep(0)
        while self._kept:
            step = min(self._kept)
            resume.save(self._kept.pop(step), f"step-{step:08d}")

    def write_checkpoints(self, directory: Path, resume: Resume, batch_size: int) -> None:
        """Write what `keep_checkpoints` put by, a file per step."""
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
            "summed": [*self._summed],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.done, self._summed = state["done"], [*state["summed"]]
        self.history = [Row(*row) for row in state["history"]]
        self._sums.copy_(state["sums"])
        for sae, kept in zip(self.saes, state["saes"], strict=True):
            sae.restore(kept)


class Run(NamedTuple):
    """One training with all it needs."""

    training: Training
    batches: Iterator[Float[Tensor, "token d_in"]]
    """They begin with the one after the steps done."""
    resume: Resume
    log: TrainingLog


def run_together(work: list[tuple[Training, list[Float[Tensor, "token d_in"]]]]) -> None:
    """Train every level of some trainings, each on its own batches in a row."""
    rows: list[list[Row]] = [[] for _ in work]
    levels = [
        training.steps(level, batches, found)
        for (training, batches), found in zip(work, rows, strict=True)
        for level in range(len(training.saes))
    ]
    in_turns(levels, work[0][0].sample.device)
    for (training, batches), found in zip(work, rows, strict=True):
        training.done += len(batches)
        training.history += sorted(found, key=lambda row: (row.step, row.level))


def train(runs: list[Run]) -> None:
    """Train to the last step, side by side.

    Raises:
        SystemExit: on SIGTERM and SIGINT, with the work kept.
    """
    interval, saved = float(os.environ.get(SAVE_SECONDS, "60")), time.monotonic()
    for run in runs:
        if run.training.done == 0:
            run.training.keep_checkpoints(run.resume)
    ahead = [(run, stretches(run.training, run.batches)) for run in runs]
    with Interruption() as interruption:
        while stretch := [(run, batches) for run, more in ahead if (batches := next(more, None)) is not None]:
            known = [len(run.training.history) for run, _ in stretch]
            run_together([(run.training, batches) for run, batches in stretch])
            for (run, batches), n_rows in zip(stretch, known, strict=True):
                run.training.keep_checkpoints(run.resume)
                written = run.training.history[n_rows:]
                show(run.training, written, run.log)
                run.log.advance(len(batches), **summary(written[-len(run.training.saes) :]))
            if interruption.signal or time.monotonic() - saved >= interval:
                save(runs)
                saved = time.monotonic()
            if interruption.signal:
                raise SystemExit(128 + interruption.signal)
    save(runs)


def save(runs: list[Run]) -> None:
    """Keep the half-finished work."""
    for run in runs:
        run.resume.save(run.training.state())


def stretches(
    training: Training, batches: Iterator[Float[Tensor, "token d_in"]]
) -> Iterator[list[Float[Tensor, "token d_in"]]]:
    """All batches, some in a row, read while those before are trained on."""

    def read(n: int) -> list[Tensor]:
        return [*islice(batches, n)]

    done, n_steps, longest = training.done, training.schedule.n_steps, 1
    # One thread normalises a batch; more would take turns with those that train.
    with ThreadPoolExecutor(1, initializer=use_threads, initargs=(1,)) as reader:
        ahead: Future[list[Tensor]] = reader.submit(read, 1)
        while done < n_steps:
            found = ahead.result()
            done += len(found)
            longest = max(1, min(LONGEST_STRETCH, STRETCH_NUMBERS // found[0].numel()))
            if done < n_steps:
                ahead = reader.submit(read, min(longest, n_steps - done))
            yield found


def show(training: Training, rows: list[Row], log: TrainingLog) -> None:
    """Show the last row of each level at the terminal, and write all to the log."""
    names = [f"{sae.params.level_name} {sae.level:g}" for sae in training.saes]
    for _, of_step in groupby(rows, attrgetter("step")):
        log.show([LevelRow(name, row._asdict()) for name, row in zip(names, of_step, strict=True)])
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
