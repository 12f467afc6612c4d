"""How far two measurements of the same features agree.

Four answers, because they forgive different things: Spearman's correlation forgives any monotone distortion, ICC(2,1)
and Lin's coefficient forgive none, and the mean absolute difference of log10 p is in units one can use (dex).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int

from stages.lib.stats.correlation import spearman


class Agreement(NamedTuple):
    """The agreement of two measurements of log10 p."""

    spearman: float
    icc: float
    ccc: float
    dex: float
    n: int
    """How many features."""


def icc(ratings: Float[np.ndarray, "feature rater"]) -> float:
    """ICC(2,1): two-way random effects, absolute agreement, one rater (Shrout and Fleiss 1979, table 4).

    With mean squares of rows R, columns C and residual E for n rows and k columns,
    (R - E) / (R + (k - 1) E + k (C - E) / n).
    """
    n, k = ratings.shape
    mean = ratings.mean()
    rows, columns = ratings.mean(1), ratings.mean(0)
    ms_rows = k * float(((rows - mean) ** 2).sum()) / (n - 1)
    ms_columns = n * float(((columns - mean) ** 2).sum()) / (k - 1)
    residual = ratings - rows[:, None] - columns + mean
    ms_error = float((residual**2).sum()) / ((n - 1) * (k - 1))
    return float((ms_rows - ms_error) / (ms_rows + (k - 1) * ms_error + k * (ms_columns - ms_error) / n))


def ccc(x: Float[np.ndarray, " feature"], y: Float[np.ndarray, " feature"]) -> float:
    """Lin's concordance: 2 s_xy / (s_x^2 + s_y^2 + (m_x - m_y)^2), moments over n (Lin 1989, equation 1)."""
    covariance = float(((x - x.mean()) * (y - y.mean())).mean())
    return 2 * covariance / float(x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def agreement(x: Float[np.ndarray, " feature"], y: Float[np.ndarray, " feature"]) -> Agreement | None:
    """All four for two measurements of log10 p; None where they are not defined."""
    rank = spearman(x, y)
    if rank is None:
        return None
    return Agreement(rank, icc(np.stack([x, y], 1)), ccc(x, y), float(np.abs(x - y).mean()), len(x))


def rate_agreement(
    left: Int[np.ndarray, " feature"], right: Int[np.ndarray, " feature"], n: tuple[int, int], min_firings: int
) -> Agreement | None:
    """The agreement of log10 p for features with at least `min_firings` firings in both measurements.

    Args:
        left: firings of each feature.
        right: firings of the same features, measured otherwise.
        n: the tokens that each measurement looked at.
        min_firings: below it a count is mostly noise (30 firings have a Poisson error of 18 %).
    """
    both = resolved(left, min_firings) & resolved(right, min_firings)
    return agreement(np.log10(left[both] / n[0]), np.log10(right[both] / n[1]))


def resolved(n_firings: Int[np.ndarray, " feature"], min_firings: int) -> Bool[np.ndarray, " feature"]:
    """Which features fired often enough for their rate to mean something."""
    enough: npt.NDArray[np.bool_] = n_firings >= min_firings
    return enough


class Rates(NamedTuple):
    """Firing rates with their errors."""

    rate: npt.NDArray[np.float64]
    standard_error: npt.NDArray[np.float64]
    """Over resampled documents."""
    design_effect: npt.NDArray[np.float64]
    """Squared error over p (1 - p) / n, that of independent tokens (Kish 1965, section 8.2); NaN at p = 0 or 1."""


def rates(
    firings: Int[np.ndarray, "document feature"],
    n_tokens: Int[np.ndarray, " document"],
    counts: Int[np.ndarray, "resample document"],
) -> Rates:
    """Firing rates, their bootstrap error over documents and the design effect, from counts by document."""
    n = int(n_tokens.sum())
    rate = firings.sum(0) / n
    weights = counts.astype(np.float64)
    tokens = weights @ n_tokens
    error = ((weights @ firings)[tokens > 0] / tokens[tokens > 0, None]).std(0, ddof=1)
    independent = rate * (1 - rate) / n
    effect = np.divide(error**2, independent, out=np.full_like(rate, np.nan), where=independent > 0)
    return Rates(rate, error, effect)
