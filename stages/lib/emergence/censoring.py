"""Times of events that are seen at checkpoints only: an event lies between two checkpoints, not on one.

All features (or concepts) are looked at in the same checkpoints, so their intervals (t_k, t_k+1] are disjoint, and
Turnbull's estimate of the distribution (Turnbull 1976, section 3) is the share of events in each interval. It is known
at the checkpoints only: of its median it knows the interval. Where the quantity that makes the event is itself
measured, as here, its own value before and after says where in the interval it passed its level: `crossing` takes it as
linear in log(1 + t). That is an assumption, which the width of the interval bounds.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit, logit

from stages.lib.stats.intervals import Interval, t_interval


def persistent(reached: Bool[np.ndarray, "step case"]) -> Int[np.ndarray, " case"]:
    """The first checkpoint from which on a case has `reached`; as many as there are checkpoints if it never has."""
    missed = ~reached
    last = len(reached) - 1 - np.argmax(missed[::-1], axis=0)
    return np.where(missed.any(axis=0), last + 1, 0)


def crossing(
    values: Float[np.ndarray, "step case"],
    level: Float[np.ndarray, "*#case"],
    index: Int[np.ndarray, " case"],
    steps: Int[np.ndarray, " step"],
) -> Float[np.ndarray, " case"]:
    """The step at which a value that is below its level at checkpoint `index - 1` and not at `index` passes it.

    Linear in log(1 + t) between the two. An index of 0 gives the first step, by which the event had happened; one of
    the number of checkpoints gives NaN: the event is censored at the last.
    """
    n, case = len(steps), np.arange(values.shape[1])
    after = np.clip(index, 1, n - 1)
    low, high = values[after - 1, case], values[after, case]
    share = np.clip((level - low) / np.where(high > low, high - low, 1), 0, 1)
    at = np.log1p(steps.astype(np.float64))
    time = np.expm1(at[after - 1] + share * (at[after] - at[after - 1]))
    return np.where(index == 0, float(steps[0]), np.where(index >= n, np.nan, time))


class Bracket(NamedTuple):
    """What the checkpoints alone know of a median."""

    after: int
    """The last checkpoint at which less than half had the event; -1 if half had it at the first."""
    by: int
    """The first checkpoint at which at least half had it."""
    middle: float
    """Turnbull's distribution taken as uniform in log(1 + t) between the two."""


def share_by(index: Int[np.ndarray, " case"], n_steps: int) -> Float[np.ndarray, " step"]:
    """The share of cases that had their event by each checkpoint: Turnbull's estimate where it is defined."""
    return np.cumsum(np.bincount(index, minlength=n_steps)[:n_steps]) / len(index)


def median_bracket(index: Int[np.ndarray, " case"], steps: Int[np.ndarray, " step"]) -> Bracket | None:
    """The checkpoints between which half of the cases have had their event; None if less than half have by the end."""
    share = share_by(index, len(steps))
    reached = np.flatnonzero(share >= 0.5)
    if not len(reached):
        return None
    k = int(reached[0])
    if k == 0:
        return Bracket(-1, int(steps[0]), float(steps[0]))
    part = (0.5 - share[k - 1]) / (share[k] - share[k - 1])
    low, high = np.log1p(steps[k - 1]), np.log1p(steps[k])
    return Bracket(int(steps[k - 1]), int(steps[k]), float(np.expm1(low + part * (high - low))))


class Centre(NamedTuple):
    """The middle of several times, with its 95 % interval where there is one."""

    value: float
    interval: Interval | None


def over_seeds(times: list[float], last: int) -> Centre:
    """The mean of one time per seed on the scale logit(log(1 + t) / log(1 + last)), with Student's interval there.

    Taken back to steps, the interval lies between 0 and `last` whatever the spread; on the plain scale it would leave
    the training. A time of 0 or of `last` has no place on that scale: then the value is the mean, without interval.
    """
    share = np.log1p(np.array(times, dtype=np.float64)) / np.log1p(last)
    if (share <= 0).any() or (share >= 1).any():
        return Centre(float(np.mean(times)), None)

    def back(z: float) -> float:
        return float(np.expm1(expit(z) * np.log1p(last)))

    z = logit(share).tolist()
    found = t_interval(z)
    return Centre(back(float(np.mean(z))), Interval(back(found.low), back(found.high)) if found else None)
