"""Which batches of windows are done, on record in the resume directory: what a killed run need not do again.

Every process records what it knows in a file of its own, `progress-<rank>`. When a run begins, the first process joins
the records of all processes of earlier runs, however many there were, and the others start from what it found.
"""

from collections.abc import Iterable
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from stages.lib.run.resume import Resume

FIRST = "progress-0"
"""The record of the first process, and of all when a run begins."""


class Batch(NamedTuple):
    """Some windows of a split."""

    split: str
    number: int


class Progress:
    """A mask of finished batches per revision of the model and split; several threads can mark batches at once."""

    def __init__(self, resume: Resume, revisions: Iterable[str], n_batches: dict[str, int]) -> None:
        self._resume, self._lock = resume, Lock()
        self._done: dict[str, dict[str, Tensor]] = {
            revision: {split: torch.zeros(n, dtype=torch.bool) for split, n in n_batches.items()}
            for revision in revisions
        }

    def join(self) -> None:
        """Take over what the processes of earlier runs recorded."""
        for path in sorted(self._resume.directory.glob("progress-*.resume")):
            kept = self._resume.load(path.stem)
            assert kept is not None, f"{path} vanished"
            for revision, splits in self._done.items():
                for split, mask in splits.items():
                    mask |= kept[revision][split]

    def forget(self, revision: str, split: str) -> None:
        """Count no batch of a split as done."""
        self._done[revision][split].fill_(False)

    def publish(self) -> None:
        """Make this the one record, from which the other processes start."""
        self._resume.save(self._done, FIRST)
        for path in self._resume.directory.glob("progress-*.resume"):
            if path.stem != FIRST:
                path.unlink()

    def load(self) -> None:
        """Take over what the first process published."""
        kept = self._resume.load(FIRST)
        assert kept is not None, f"{self._resume.directory} has no {FIRST}.resume"
        self._done = kept

    def left(self, revision: str) -> list[Batch]:
        """The batches of a revision that are not done."""
        return [
            Batch(split, number)
            for split, mask in self._done[revision].items()
            for number in torch.nonzero(~mask).flatten().tolist()
        ]

    def mark(self, revision: str, batch: Batch) -> None:
        """Count a batch as done, whose rows are written."""
        with self._lock:
            self._done[revision][batch.split][batch.number] = True

    def copy(self) -> dict[str, dict[str, Tensor]]:
        """What is done at this moment, for `record`."""
        with self._lock:
            return {
                name: {split: mask.clone() for split, mask in splits.items()} for name, splits in self._done.items()
            }

    def record(self, done: dict[str, dict[str, Tensor]], rank: int) -> None:
        """Keep what was done when `copy` was called; the rows of it must be safe on the disk by now."""
        self._resume.save(done, f"progress-{rank}")
