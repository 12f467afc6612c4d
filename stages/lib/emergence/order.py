"""What goes with an early place in the order of emergence, jointly: a rank regression with families of concepts.

The outcome is a concept's mean rank over seeds (`stages.lib.emergence.times.mean_rank`), the predictors are its
properties; all are z-scored, so a coefficient is in standard deviations of rank per standard deviation of property.
Ranks, because the order is what seeds reproduce, and because censoring at one common last step is complete information
about order: the model needs no law of the times, no proportional hazards, and leaves no concept out. (A discrete-time
cloglog model has the same information and a baseline for each interval beside it.)

Concepts of one family are not independent, so the family is the unit:

* a coefficient's standard error is that of the jackknife over families, its interval and p are Student's with
  (families - 1) degrees of freedom (CV3 of MacKinnon, Nielsen & Webb 2023, arXiv 2205.03288, section 2). Resampling
  families instead covers 0.93 to 0.95 where this covers 0.95 to 0.96 (simulated, families of unequal size);
* the joint test takes the means of families, predicts each from all others, and compares the C-index (Harrell et al.
  1982) of these predictions with the same after the families' predictors were permuted.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtr, stdtrit

from stages.lib.stats.correlation import resampled_spearman, spearman
from stages.lib.stats.intervals import CONFIDENCE, Interval


class Coefficient(NamedTuple):
    """One predictor of the joint model."""

    value: float
    interval: Interval
    p: float
    """Two-sided, not corrected for the number of predictors."""
    vif: float
    """1 / (1 - R^2) of the predictor on the others."""


class Joint(NamedTuple):
    """The joint model."""

    coefficients: list[Coefficient]
    """In the order of the predictors."""
    r2: float
    c_index: float
    """Over families, each predicted from all others: 0.5 is chance."""
    c_index_null: float
    """The 95th percentile with permuted predictors."""
    p: float
    """P(C-index at least as high) if the predictors say nothing."""
    n_families: int


class Tested(NamedTuple):
    """A number with its interval and the p of 0."""

    value: float
    interval: Interval
    p: float


def without_each(family: Int[np.ndarray, " concept"]) -> Float[np.ndarray, "family concept"]:
    """Weights that leave out one family after another; families are numbered from 0 without gaps."""
    return np.asarray(family[None, :] != np.arange(family.max() + 1)[:, None], dtype=np.float64)


def jackknifed(value: float, without: Float[np.ndarray, " family"]) -> Tested:
    """The interval and p of a number from its values without each family: `SE^2 = (G - 1) / G sum (v_g - v)^2`."""
    df = len(without) - 1
    error = float(np.sqrt(df / len(without) * ((without - value) ** 2).sum()))
    half = float(stdtrit(df, (1 + CONFIDENCE) / 2)) * error
    p = float(2 * stdtr(df, -abs(value) / error)) if error > 0 else float(value == 0)
    return Tested(value, Interval(value - half, value + half), p)


def correlation(
    x: Float[np.ndarray, " concept"], y: Float[np.ndarray, " concept"], family: Int[np.ndarray, " concept"]
) -> Tested | None:
    """Spearman's correlation, each family an observation; None with fewer than 4 families or without variation."""
    family = np.unique(family, return_inverse=True)[1].astype(np.int64)
    value = spearman(x, y)
    if value is None or family.max() < 3:
        return None
    without = resampled_spearman(x, y, without_each(family).astype(np.int64))
    if len(without) <= family.max():  # one family holds all the variation
        return None
    found = jackknifed(value, without)
    return found._replace(interval=Interval(max(found.interval.low, -1.0), min(found.interval.high, 1.0)))


def z_scores(x: Float[np.ndarray, "concept *column"]) -> Float[np.ndarray, "concept *column"]:
    """Columns with mean 0 and standard deviation 1."""
    return np.asarray((x - x.mean(axis=0)) / x.std(axis=0))


def _fit(
    x: Float[np.ndarray, "concept predictor"],
    y: Float[np.ndarray, " concept"],
    weights: Float[np.ndarray, "model concept"],
) -> Float[np.ndarray, "model coefficient"]:
    """Weighted least squares with an intercept (first), one fit for each row of weights.

    The pseudo-inverse, since the concepts without a family can lack the spread of a predictor.
    """
    design = np.hstack([np.ones((len(x), 1)), x])
    pairs = (design[:, :, None] * design[:, None, :]).reshape(len(x), -1)
    gram = (weights @ pairs).reshape(len(weights), design.shape[1], design.shape[1])
    inverse = np.linalg.pinv(gram, hermitian=True)
    return np.asarray(np.einsum("mab,mb->ma", inverse, weights @ (design * y[:, None])))


def vif(x: Float[np.ndarray, "concept predictor"]) -> Float[np.ndarray, " predictor"]:
    """Variance inflation factors: the diagonal of the inverse of the predictors' correlation matrix."""
    return np.asarray(np.diagonal(np.linalg.pinv(np.atleast_2d(np.corrcoef(x.T)))))


def c_index(predicted: Float[np.ndarray, " concept"], observed: Float[np.ndarray, " concept"]) -> float:
    """P(predicted in the right order) over pairs that are observed at different places; equal predictions are half."""
    ahead = np.sign(predicted[:, None] - predicted[None, :]) * np.sign(observed[:, None] - observed[None, :])
    comparable = observed[:, None] != observed[None, :]
    return float((1 + ahead[comparable].mean()) / 2) if comparable.any() else 0.5


def hat_matrix(x: Float[np.ndarray, "row predictor"]) -> Float[np.ndarray, "row row"]:
    """What turns observations into fitted values, with an intercept."""
    design = np.hstack([np.ones((len(x), 1)), x])
    return np.asarray(design @ np.linalg.pinv(design))


def left_out(hat: Float[np.ndarray, "row row"], y: Float[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """The prediction of each row by the least squares of all others: `y - e / (1 - h)`, h its leverage."""
    return np.asarray(y - (y - hat @ y) / np.maximum(1 - np.diagonal(hat), 1e-12))


def family_means(
    values: Float[np.ndarray, "concept *column"], family: Int[np.ndarray, " concept"]
) -> Float[np.ndarray, "family *column"]:
    """The mean of each family, numbered from 0 without gaps."""
    members = (family[None, :] == np.arange(family.max() + 1)[:, None]).astype(np.float64)
    return np.asarray((members @ values) / members.sum(axis=1).reshape(-1, *[1] * (values.ndim - 1)))


def joint_model(
    x: Float[np.ndarray, "concept predictor"],
    rank: Float[np.ndarray, " concept"],
    family: Int[np.ndarray, " concept"],
    n_permutations: int,
    generator: np.random.Generator,
) -> Joint | None:
    """Regress the places in the order on the predictors.

    Args:
        x: the properties of each concept, on the scale on which they are to act.
        rank: its mean rank.
        family: the number of its family.
        n_permutations: behind the joint p.
        generator: draws them.

    Returns:
        None with fewer than two families more than coefficients, or where ranks or a predictor do not vary.
    """
    family = np.unique(family, return_inverse=True)[1].astype(np.int64)
    n_families, n_predictors = int(family.max(initial=-1)) + 1, x.shape[1]
    if n_families < n_predictors + 3 or not np.ptp(rank) or not np.ptp(x, axis=0).all():
        return None
    x, y = z_scores(x), z_scores(rank)
    own = _fit(x, y, np.ones((1, len(y))))[0]
    without = _fit(x, y, without_each(family))
    hat, ends = hat_matrix(family_means(x, family)), family_means(y, family)
    observed = c_index(left_out(hat, ends), ends)
    orders = (generator.permutation(n_families) for _ in range(n_permutations))
    null = np.array([c_index(left_out(hat[np.ix_(order, order)], ends), ends) for order in orders])
    residual = y - own[0] - x @ own[1:]
    found = [jackknifed(float(b), column) for b, column in zip(own[1:], without[:, 1:].T, strict=True)]
    coefficients = [Coefficient(*one, float(v)) for one, v in zip(found, vif(x), strict=True)]
    p = float((1 + (null >= observed - 1e-12).sum()) / (1 + n_permutations))
    return Joint(coefficients, 1 - float(residual.var()), observed, float(np.quantile(null, 0.95)), p, n_families)
