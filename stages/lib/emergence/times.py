"""When concepts emerge over training, how sharply, and whether several seeds agree on the order.

A concept's curve is its chance-corrected F1 at each checkpoint. Times are indices into the list of checkpoints, in
float arrays; a concept that never emerges is censored and has NaN there.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from stages.lib.emergence.censoring import persistent
from stages.lib.stats.correlation import mean_ranks


def half_rise(curves: Float[np.ndarray, "step concept"], minimum: float) -> Float[np.ndarray, " concept"]:
    """The first checkpoint from which on a curve stays at or above half of its final value.

    Persistent: a curve that rises, falls back and rises again is dated at the second rise. NaN, that is censored at
    the last checkpoint, if the final value is below `minimum`: half of noise is noise.
    """
    index = persistent(curves >= curves[-1] / 2).astype(np.float64)
    return np.where(curves[-1] >= minimum, index, np.nan)


def first_passage(curves: Float[np.ndarray, "step concept"], minimum: float) -> Float[np.ndarray, " concept"]:
    """As `half_rise`, but the first checkpoint that reaches half of the final value, whatever comes after it."""
    index = np.argmax(curves >= curves[-1] / 2, axis=0).astype(np.float64)
    return np.where(curves[-1] >= minimum, index, np.nan)


def mean_rank(times: Float[np.ndarray, "seed concept"]) -> Float[np.ndarray, " concept"]:
    """Each concept's rank in the order of emergence, on average over seeds; NaN is a time beyond the end.

    Every concept is observed to the same last step, so one that is censored comes after all that emerged and shares
    the last place with the other censored ones: no concept is left out, and nothing is assumed about when it would
    have emerged.
    """
    return np.asarray(mean_ranks(np.where(np.isnan(times), np.inf, times)).mean(axis=0))


class Sharpness(NamedTuple):
    """A logistic rise in log time that was fitted to one curve."""

    width: float
    """`log10(t_90 / t_10)`, in decades of steps."""
    delta_bic: float
    """BIC of the straight line in log time minus BIC of the logistic: above 10 the logistic is far better."""


def sharpness(log_step: Float[np.ndarray, " step"], curve: Float[np.ndarray, " step"]) -> Sharpness | None:
    """The width of the rise `offset + A / (1 + (tau / t)^beta)` by least squares, or None for a flat curve.

    For each (tau, beta) on a grid the best offset and A are a regression in closed form, so the fit has no starting
    point to depend on. `width = 2 log10(9) / beta`; both models have Gaussian errors:
    `BIC = n ln(SSE / n) + k ln n`, k = 4 and 2. `log_step` is the natural logarithm of the steps.
    """
    n = len(curve)
    if n < 6 or np.ptp(curve) == 0:
        return None
    tau, beta = np.meshgrid(np.linspace(log_step[0], log_step[-1], 81), np.geomspace(0.3, 30, 41), indexing="ij")
    exponent = np.clip(beta[..., None] * (tau[..., None] - log_step), -500, 500)
    shapes = (1 / (1 + np.exp(exponent))).reshape(-1, n)
    errors = _residual(shapes, curve)
    best = int(np.argmin(errors))
    line = float(_residual(log_step[None], curve)[0])
    # A floor below which both fit perfectly: the resolution of an F1 that is stored with float32 accuracy.
    floor = n * 1e-12
    delta = n * np.log(max(line, floor) / max(errors[best], floor)) - 2 * np.log(n)
    return Sharpness(float(2 * np.log10(9) / beta.ravel()[best]), float(delta))


def _residual(
    shapes: Float[np.ndarray, "shape step"], curve: Float[np.ndarray, " step"]
) -> Float[np.ndarray, " shape"]:
    """The squared error of the best `offset + A x shape` for each shape."""
    shapes = shapes - shapes.mean(axis=1, keepdims=True)
    centred = curve - curve.mean()
    power = (shapes**2).sum(axis=1)
    explained = np.where(power > 1e-12, (shapes @ centred) ** 2 / np.where(power > 1e-12, power, 1), 0)
    residual: Float[np.ndarray, " shape"] = np.maximum((centred**2).sum() - explained, 0)
    return residual


class Concordance(NamedTuple):
    """How far several rankings of the same things agree."""

    w: float
    """Kendall's W: 0 is chance-like or opposed, 1 is the same order."""
    p: float
    """The probability of at least this W if every ranking were in random order."""


def kendall_w(
    times: Float[np.ndarray, "seed concept"], n_permutations: int, generator: np.random.Generator
) -> Concordance | None:
    """Kendall's coefficient of concordance of the order of `times` (no NaN), corrected for ties.

    `W = 12 S / (m^2 (n^3 - n) - m sum_j T_j)` with S the sum of squares of the rank sums about their mean and
    `T = sum (t^3 - t)` over the ties of one ranking (Kendall and Gibbons 1990, section 6.4). The p value is
    `(1 + #{W* >= W}) / (1 + n_permutations)` over permutations within each seed. None with fewer than 2 seeds or 3
    concepts, or if all times are equal.
    """
    m, n = times.shape
    if m < 2 or n < 3:
        return None
    ranks = mean_ranks(times)
    ties = sum(float((counts**3 - counts).sum()) for counts in (np.unique(row, return_counts=True)[1] for row in ranks))
    below = m**2 * (n**3 - n) - m * ties
    if below <= 0:
        return None
    shuffled = generator.permuted(np.broadcast_to(ranks, (n_permutations, m, n)), axis=2).sum(axis=1)
    mean = m * (n + 1) / 2
    observed = 12 * float(((ranks.sum(axis=0) - mean) ** 2).sum()) / below
    null = 12 * ((shuffled - mean) ** 2).sum(axis=1) / below
    return Concordance(observed, float((1 + (null >= observed - 1e-12).sum()) / (1 + n_permutations)))


class Survival(NamedTuple):
    """A survival curve: the share that has not had its event by each time (a step function, from 1)."""

    time: Float[np.ndarray, " event"]
    surviving: Float[np.ndarray, " event"]

    def median(self) -> float | None:
        """The first time at which at most half survive, or None if more do at the end."""
        reached = np.flatnonzero(self.surviving <= 0.5 + 1e-12)
        return float(self.time[reached[0]]) if len(reached) else None


def kaplan_meier(times: Float[np.ndarray, " case"], observed: Bool[np.ndarray, " case"]) -> Survival:
    """The product-limit estimate `S(t) = prod_{t_i <= t} (1 - d_i / n_i)` (Kaplan and Meier 1958, section 2).

    `times` are the times of the event, or of the end of observation where `observed` is false; a case censored at t is
    still at risk at t.
    """
    at = np.unique(times[observed])
    events = np.array([(observed & (times == t)).sum() for t in at], dtype=np.float64)
    at_risk = np.array([(times >= t).sum() for t in at], dtype=np.float64)
    return Survival(at.astype(np.float64), np.cumprod(1 - events / np.maximum(at_risk, 1)))
