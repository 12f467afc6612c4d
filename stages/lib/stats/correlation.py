"""Agreement of two series of numbers: correlations, ranks, slopes, and how well scores rank.

None where a number is not defined, such as a correlation with a constant.
"""

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int, Shaped

MIN_ROWS = 3
"""With two rows every rank correlation is 1 or -1."""


def mean_ranks(values: Shaped[np.ndarray, "*group value"]) -> Float[np.ndarray, "*group value"]:
    """The ranks 1 .. n of each group's values, equal ones all with the mean of theirs."""
    order = np.argsort(values, axis=-1, kind="stable")
    ascending = np.take_along_axis(values, order, -1)
    n = values.shape[-1]
    place = np.arange(n)
    differs = ascending[..., 1:] != ascending[..., :-1]
    edge = np.ones((*values.shape[:-1], 1), np.bool_)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, differs], -1), place, 0), axis=-1)
    last = np.minimum.accumulate(np.where(np.concatenate([differs, edge], -1), place, n)[..., ::-1], axis=-1)[..., ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, -1)
    return ranks


def pearson(x: Float[np.ndarray, " row"], y: Float[np.ndarray, " row"]) -> float | None:
    """Pearson's correlation, or None if one of the two does not vary, as one value alone does not."""
    if len(x) < 2:
        return None
    a, b = x - x.mean(), y - y.mean()
    spread = float(np.sqrt((a @ a) * (b @ b)))
    # A constant has a spread too, of rounding errors, which grow with the values themselves.
    if spread <= 1e-12 * float(np.abs(x).max() * np.abs(y).max()) * len(x):
        return None
    return float(a @ b) / spread


def resampled_pearson(
    a: Float[np.ndarray, " row"], b: Float[np.ndarray, " row"], counts: Int[np.ndarray, "resample row"]
) -> Float[np.ndarray, " defined"]:
    """Pearson's correlation with row i taken `counts[r, i]` times, for each resample in which it is defined."""
    varied = _varies(a, counts) & _varies(b, counts)
    weight, centred_a, centred_b = _centred(a, b, counts[varied])
    spread = np.sqrt((weight * centred_a**2).sum(1) * (weight * centred_b**2).sum(1))
    return np.asarray((weight * centred_a * centred_b).sum(1) / spread)


def _varies(
    values: Float[np.ndarray, " row"], counts: Int[np.ndarray, "resample row"]
) -> Bool[np.ndarray, " resample"]:
    drawn = counts > 0
    return np.asarray(np.where(drawn, values, -np.inf).max(1) > np.where(drawn, values, np.inf).min(1))


def _centred(
    a: Float[np.ndarray, " row"], b: Float[np.ndarray, " row"], counts: Int[np.ndarray, "resample row"]
) -> tuple[Float[np.ndarray, "resample row"], ...]:
    """How often each row is taken, and the two series about their means, by resample."""
    weight = counts.astype(np.float64)
    n = weight.sum(1)
    return weight, a - (weight @ a / n)[:, None], b - (weight @ b / n)[:, None]


def spearman(x: Float[np.ndarray, " row"], y: Float[np.ndarray, " row"]) -> float | None:
    """Spearman's rank correlation, ties with their mean rank; None without spread or with fewer than three values."""
    return pearson(mean_ranks(x), mean_ranks(y)) if len(x) >= MIN_ROWS else None


def resampled_spearman(
    x: Float[np.ndarray, " row"], y: Float[np.ndarray, " row"], counts: Int[np.ndarray, "resample row"]
) -> Float[np.ndarray, " defined"]:
    """Spearman's correlation when row i is taken `counts[r, i]` times, for each resample in which it is defined.

    All resamples at once, since ranking each takes longer than all the rest: a value's mean rank is the number of
    values drawn below it plus half of one more than the number of equal ones.
    """
    weight = counts.astype(np.float64)
    n = weight.sum(1, keepdims=True)
    a, b = (_drawn_mean_ranks(values, weight) - (n + 1) / 2 for values in (x, y))  # mean ranks average to (n + 1) / 2
    spread = np.sqrt((weight * a * a).sum(1) * (weight * b * b).sum(1))
    value: npt.NDArray[np.float64] = (weight * a * b).sum(1)[spread > 0] / spread[spread > 0]
    return value


def _drawn_mean_ranks(values: npt.NDArray[np.float64], weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, first, inverse = np.unique(np.sort(values), return_index=True, return_inverse=True)
    order = np.argsort(values, kind="stable")
    equal = np.add.reduceat(weight[:, order], first, axis=1)
    ranks = np.empty_like(weight)
    ranks[:, order] = (equal.cumsum(1) - (equal - 1) / 2)[:, inverse]
    return ranks


def sign_agreement(a: Float[np.ndarray, " row"], b: Float[np.ndarray, " row"]) -> float | None:
    """The share of rows in which both have the same sign, among those in which neither is 0."""
    signed = (a != 0) & (b != 0)
    return float((np.sign(a) == np.sign(b))[signed].mean()) if signed.any() else None


def resampled_sign_agreement(
    a: Float[np.ndarray, " row"], b: Float[np.ndarray, " row"], counts: Int[np.ndarray, "resample row"]
) -> Float[np.ndarray, " defined"]:
    """`sign_agreement` with row i taken `counts[r, i]` times, for each resample in which it is defined."""
    signed = (a != 0) & (b != 0)
    n = counts @ signed
    return np.asarray((counts @ (signed & (np.sign(a) == np.sign(b))))[n > 0] / n[n > 0])


def slope(x: Float[np.ndarray, " row"], y: Float[np.ndarray, " row"]) -> float | None:
    """The slope of the least-squares line of y on x."""
    if len(x) < 2 or np.ptp(x) == 0:
        return None
    centred = x - x.mean()
    return float(centred @ (y - y.mean()) / (centred @ centred))


def resampled_slope(
    x: Float[np.ndarray, " row"], y: Float[np.ndarray, " row"], counts: Int[np.ndarray, "resample row"]
) -> Float[np.ndarray, " defined"]:
    """`slope` with row i taken `counts[r, i]` times, for each resample in which it is defined."""
    weight, centred_x, centred_y = _centred(x, y, counts[_varies(x, counts)])
    return np.asarray((weight * centred_x * centred_y).sum(1) / (weight * centred_x**2).sum(1))


def top_recall(score: Float[np.ndarray, " row"], truth: Float[np.ndarray, " row"], k: int) -> float | None:
    """The share of the `k` largest of `truth` that are among the `k` largest of `score`; None with fewer rows than 2 k.

    Chance is `k / len(truth)`, hence the condition.
    """
    if len(truth) < 2 * k:
        return None
    best_score = np.argsort(-score, kind="stable")[:k]
    best_truth = np.argsort(-truth, kind="stable")[:k]
    return len(np.intersect1d(best_score, best_truth)) / k


def auroc(
    scores: Float[np.ndarray, "*group example"], positive: Bool[np.ndarray, "*group example"]
) -> Float[np.ndarray, "*group"]:
    """P(score of a positive > score of a negative) + P(equal) / 2, by the rank sum (Hanley and McNeil 1982).

    Over the last axis; each group needs an example of both kinds.
    """
    n_positive = positive.sum(-1)
    rank_sum = np.where(positive, mean_ranks(scores), 0).sum(-1)
    wins = rank_sum - n_positive * (n_positive + 1) / 2
    return np.asarray(wins / (n_positive * (positive.shape[-1] - n_positive)))
