"""Means over seeds with their uncertainty; the seed is the unit of replication, never the token.

For n seeds with mean m and standard deviation s, the 95 % interval is m -+ t_{.975, n-1} s / sqrt(n) (Student 1908).
Differences between arms pair the seeds, which share initialisation streams and batch order.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr

from stages.lib import bootstrap


class Estimate(NamedTuple):
    """A mean over seeds; one seed alone has no interval."""

    mean: float
    low: float | None
    high: float | None
    n: int
    """How many seeds."""


SHARES = (
    "_fraction",
    "auroc",
    "coverage",
    "_contextual",
    "_f1",
    "sign_agreement",
    "hoyer",
    "gini",
    "churn",
    "churn_null",
)
CORRELATIONS = ("spearman", "_icc", "_ccc", "pearson", "mcc", "cosine")
COUNTS = (
    "births",
    "deaths",
    "n_emerged",
    "emerged_at_start",
    "fvu",
    "l0",
    "l0_sd",
    "median_settling_step",
    "median_tau",
)


def possible(metric: str) -> tuple[float, float]:
    """The values that a metric can have by its definition; unlimited for a name that is not known."""
    if metric.endswith("_disattenuated"):  # divided by a reliability, so that it may leave [-1, 1]
        return -np.inf, np.inf
    if metric.endswith(CORRELATIONS) or metric.startswith(("spearman", "icc_", "driver_", "spec_")):
        return -1.0, 1.0
    if metric.endswith(SHARES) or metric.startswith("auroc"):
        return 0.0, 1.0
    return (0.0 if metric in COUNTS else -np.inf), np.inf


def estimate(values: Sequence[float], metric: str = "") -> Estimate:
    """The mean of one value per seed, with its 95 % t-interval.

    The interval is cut where the metric cannot be: with few seeds a t-interval goes beyond, and says nothing there.
    """
    assert len(values) > 0, "an estimate needs a value"
    interval = bootstrap.t_interval(list(values))
    least, most = possible(metric)
    low, high = (max(interval.low, least), min(interval.high, most)) if interval is not None else (None, None)
    return Estimate(float(np.mean(values)), low, high, len(values))


def paired(values: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """`values - reference` for every seed that both have, in the order of the seeds."""
    return [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]


def p_value(differences: Sequence[float]) -> float | None:
    """The two-sided p of a one-sample t-test against 0, or None where it is not defined (one seed, or no spread)."""
    n = len(differences)
    if n < 2 or float(np.std(differences)) == 0.0:
        return None
    t = float(np.mean(differences)) / (float(np.std(differences, ddof=1)) / n**0.5)
    return float(2 * stdtr(n - 1, -abs(t)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p values adjusted for their number m (Holm 1979): max over j <= i of (m - j + 1) p_(j), at most 1."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted
