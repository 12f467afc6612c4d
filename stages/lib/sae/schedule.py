"""What a training does at which of its steps: rates, rows of the history and checkpoints, all functions of the step.

Warm-ups keep features from dying before the encoder has settled, the decay takes the noise out of the last weights.
"""

from typing import NamedTuple

HISTORY_ROWS = 150
"""Rows of `history.csv` for each level."""


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
