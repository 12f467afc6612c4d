"""Intervals: the block bootstrap for numbers over tokens, Student's t for numbers over seeds.

Tokens of one document are alike, so a document (a source file) is what is resampled, with everything it holds. All
functions of resamples take *counts* [resample, block], how often each block is drawn in each resample: two statistics
that get the same counts are compared on the same resamples.

Between SAEs the seed is the unit of replication, never the token. For n seeds with mean m and standard deviation s, the
95 % interval is m -+ t_{.975, n-1} s / sqrt(n) (Student 1908). Differences between arms are tested with seeds as
blocks, which share initialisation streams and batch order (`stages.lib.stats.contrasts`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit

from stages.lib.stats import intervals

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A two-sided interval."""

    low: float
    high: float


def resample_counts(
    n_blocks: int, n_resamples: int, generator: np.random.Generator
) -> Int[np.ndarray, "resample block"]:
    """How often each block occurs in each resample of `n_blocks` blocks drawn with replacement.

    The counts of a resample are multinomial and sum to `n_blocks` (Efron and Tibshirani 1993, section 6.2).
    """
    return generator.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n_resamples)


def block_sums(
    values: Float[np.ndarray, " token"], blocks: Int[np.ndarray, " token"], n_blocks: int
) -> Float[np.ndarray, " block"]:
    """The sum of the values in each block, in float64; `blocks` says which block each value belongs to."""
    return np.bincount(blocks, weights=values, minlength=n_blocks)


def ratio_interval(
    numerators: Float[np.ndarray, " block"],
    denominators: Float[np.ndarray, " block"],
    counts: Int[np.ndarray, "resample block"],
    confidence: float = CONFIDENCE,
) -> Interval | None:
    """The percentile interval of a ratio of sums, such as the FVU or, with token counts below, a mean over tokens.

    Resample r has the ratio `sum_b c_rb n_b / sum_b c_rb d_b`. Resamples whose denominator is 0 have no ratio and are
    left out; without a single ratio there is no interval.
    """
    below = counts @ denominators.astype(np.float64)
    above = counts @ numerators.astype(np.float64)
    return percentile_interval((above[below != 0] / below[below != 0]).tolist(), confidence)


def percentile_interval(values: list[float], confidence: float = CONFIDENCE) -> Interval | None:
    """The interval between the outer percentiles of a statistic's resamples (Efron and Tibshirani 1993, section 13.3).

    Quantiles are interpolated linearly; without values there is no interval.
    """
    if not values:
        return None
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def t_interval(values: list[float], confidence: float = CONFIDENCE) -> Interval | None:
    """The interval of a mean over independent repeats (seeds): `m ± t(n-1) sd / sqrt(n)`; None for fewer than two.

    `sd` has n - 1 below it; with `values` the differences of paired seeds, this is the paired t-interval.
    """
    n = len(values)
    if n < 2:
        return None
    mean = float(np.mean(values))
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * float(np.std(values, ddof=1)) / n**0.5
    return Interval(mean - half, mean + half)


class Estimate(NamedTuple):
    """A mean over seeds; one seed alone has no interval."""

    mean: float
    low: float | None
    high: float | None
    n: int
    """How many seeds."""


SHARES = ("_fraction", "auroc", "coverage", "_contextual", "_f1", "sign_agreement", "hoyer", "gini")
BEYOND = ("cc_beyond_token", "cc_beyond_ngrams", "cc_coverage")
"""Means of what is cut at 0; with an ending such as `_probe` those of a baseline, with `_unfloored` not cut."""
CORRELATIONS = ("spearman", "_icc", "_ccc", "pearson", "mcc", "cosine")
NOT_NEGATIVE = ("births", "deaths", "emerged_at_start", "fvu", "l0", "l0_sd", "settling_step", "emergence_step",
                "median_settling_step", "median_tau", "log_rate_sd")  # fmt: skip


def possible(metric: str) -> tuple[float, float]:
    """The values that a metric can have by its definition; unlimited for a name that is not known."""
    if metric.endswith("_disattenuated"):  # divided by a reliability, so that it may leave [-1, 1]
        return -np.inf, np.inf
    if metric.endswith(CORRELATIONS) or metric.startswith(("spearman", "icc_", "driver_", "spec_")):
        return -1.0, 1.0
    if metric.endswith(SHARES) or (metric.startswith(("auroc", *BEYOND)) and not metric.endswith("_unfloored")):
        return 0.0, 1.0
    limited = metric in NOT_NEGATIVE or metric.startswith("n_") or metric.endswith(("_sem", "_dex", "_over_probe"))
    return (0.0 if limited else -np.inf), np.inf


def estimate(values: Sequence[float], metric: str = "") -> Estimate:
    """The mean of one value per seed, with its 95 % t-interval.

    The interval is cut where the metric cannot be: with few seeds a t-interval goes beyond, and says nothing there.
    """
    assert len(values) > 0, "an estimate needs a value"
    interval = intervals.t_interval(list(values))
    least, most = possible(metric)
    low, high = (max(interval.low, least), min(interval.high, most)) if interval is not None else (None, None)
    return Estimate(float(np.mean(values)), low, high, len(values))


def paired(values: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """`values - reference` for every seed that both have, in the order of the seeds."""
    return [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p values adjusted for their number m (Holm 1979): max over j <= i of (m - j + 1) p_(j), at most 1."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted
