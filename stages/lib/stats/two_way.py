"""The additive model of arms and seeds: value = arm + seed + error.

Runs of one seed share the initialisation stream and the order of the batches, so a seed is a block: least squares takes
its effect out of the contrasts between arms, also where some cells are missing.

The error's variance differs between arms (of the FVU at equal L0 by more than tenfold), and then a pooled variance
makes contrasts of noisy arms look certain. So a contrast sum_i w_i y_i of the cells y_i has the variance estimate HC2

    V = sum_i w_i^2 e_i^2 / (1 - h_i)                      e: residuals, h: leverages (MacKinnon and White 1985)

with the degrees of freedom of Satterthwaite's approximation for equal variances, tr(G)^2 / tr(G G) for the G with
V = y' G y (Bell and McCaffrey 2002, Survey Methodology 28:169). With two arms this is the paired t-test.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import fdtrc

LEAST = 1e-9
"""Of 1 - h: below it the model passes through the cell, which then has no residual."""

Values = Mapping[str, Mapping[int, float]]
"""The value of each arm and seed."""


class Contrast(NamedTuple):
    """A contrast between arms."""

    value: float
    error: float
    """Its standard error."""
    df: float


class Fit(NamedTuple):
    """The model, fitted."""

    arms: list[str]
    weights: npt.NDArray[np.float64]
    """[arm, cell]: the estimate of each arm, less a constant that is common to all, is this times `cells`."""
    cells: npt.NDArray[np.float64]
    residual: npt.NDArray[np.float64]
    to_residual: npt.NDArray[np.float64]
    """[cell, cell]: the matrix I - H."""
    n_seeds: int

    def contrast(self, coefficients: Mapping[str, float]) -> Contrast | None:
        """The sum of arms times their coefficients (which sum to 0); None if it rests on a cell without a residual."""
        weights = self._weights(coefficients)
        left = np.diag(self.to_residual)
        used = np.abs(weights) > LEAST
        if (left[used] < LEAST).any():
            return None
        share = np.divide(weights**2, left, out=np.zeros_like(left), where=used)
        half = self.to_residual * share
        variance = float(share @ self.residual**2)
        # The trace of a product is the sum over the elementwise product with the transpose.
        form = half @ self.to_residual
        df = round(float(np.trace(form)) ** 2 / float((form * form.T).sum()), 9)
        return Contrast(float(weights @ self.cells), variance**0.5, df) if variance > 0 else None

    def correlations(self, contrasts: Sequence[Mapping[str, float]]) -> npt.NDArray[np.float64]:
        """The correlations [contrast, contrast] of contrasts under equal variances, as degrees of freedom have them.

        Estimated ones would be no better: they would follow the noise of the few residuals that variances rest on.
        """
        weights = np.stack([self._weights(one) for one in contrasts])
        size = np.sqrt((weights**2).sum(1))
        return np.asarray(weights @ weights.T / np.outer(size, size))

    def omnibus(self) -> tuple[float, int, int, float] | None:
        """F of the arms with its degrees of freedom and p, with a pooled variance; None without residuals.

        Equal variances are assumed, so that it is a summary: what arms differ is said by contrasts.
        """
        df, between = round(float(np.trace(self.to_residual))), len(self.arms) - 1
        error = float(self.residual @ self.residual)
        if df < 1 or between < 1 or error <= 0:
            return None
        explained = max(self._only_seeds() - error, 0.0)
        f = explained / between / (error / df)
        return f, between, df, float(fdtrc(between, df, f))

    def _weights(self, coefficients: Mapping[str, float]) -> npt.NDArray[np.float64]:
        return np.asarray([coefficients.get(arm, 0.0) for arm in self.arms]) @ self.weights

    def _only_seeds(self) -> float:
        """The squared residuals when arms are all alike."""
        gram = self.weights @ self.weights.T  # of the arms' effects, with one direction (all alike) that seeds take up
        centred = np.eye(len(self.arms)) - 1 / len(self.arms)
        effects = centred @ self.weights @ self.cells
        quadratic = float(effects @ np.linalg.pinv(centred @ gram @ centred) @ effects)
        return float(self.residual @ self.residual) + quadratic


def fit(values: Values) -> Fit | None:
    """The model, fitted by least squares; None if fewer than two arms share a seed.

    Seeds that one arm alone has say nothing about differences and are left out, and so are arms that share no seed.
    """
    table = {arm: dict(own) for arm, own in values.items() if own}
    shared = [seed for seed in sorted({s for own in table.values() for s in own}) if _count(table, seed) > 1]
    table = {arm: {seed: own[seed] for seed in shared if seed in own} for arm, own in table.items()}
    arms = [arm for arm, own in table.items() if own]
    if len(arms) < 2:
        return None
    cells = [(i, shared.index(seed), value) for i, arm in enumerate(arms) for seed, value in table[arm].items()]
    of_arm, of_seed = np.array([i for i, _, _ in cells]), np.array([s for _, s, _ in cells])
    y = np.array([value for _, _, value in cells], dtype=np.float64)
    design = np.hstack([of_arm[:, None] == np.arange(len(arms)), of_seed[:, None] == np.arange(1, len(shared))])
    inverse = np.linalg.pinv(design.astype(np.float64))
    to_residual = np.eye(len(y)) - design @ inverse
    residual = to_residual @ y
    residual[np.abs(residual) < 1e-12 * np.abs(y).max(initial=0.0)] = 0.0  # rounding errors are no residuals
    return Fit(arms, inverse[: len(arms)], y, residual, to_residual, len(shared))


def _count(table: Mapping[str, Mapping[int, float]], seed: int) -> int:
    return sum(seed in own for own in table.values())
