"""Agreement of two series of numbers; None where a number is not defined, such as a correlation with a constant."""

import numpy as np
from jaxtyping import Bool, Float, Int


def pearson(a: Float[np.ndarray, " row"], b: Float[np.ndarray, " row"]) -> float | None:
    """Pearson's correlation."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    centred_a, centred_b = a - a.mean(), b - b.mean()
    return float(centred_a @ centred_b / np.sqrt(centred_a @ centred_a * (centred_b @ centred_b)))


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


def ranks(values: Float[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def spearman(a: Float[np.ndarray, " row"], b: Float[np.ndarray, " row"]) -> float | None:
    """Spearman's correlation: Pearson's of the ranks."""
    return pearson(ranks(a), ranks(b))


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
