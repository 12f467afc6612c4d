"""Intervals: the block bootstrap for numbers over tokens, Student's t for numbers over seeds.

Tokens of one document are alike, so a document (a source file) is what is resampled, with everything it holds. All
functions take *counts* [resample, block], how often each block is drawn in each resample: two statistics that get the
same counts are compared on the same resamples.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit

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
