"""Whether the directions of a dictionary fall into clusters, and whether the clusters are more than chance.

Rows are unit vectors, and all is told from the cosines of all pairs, which are multiplied once: spherical k-means
(`stages.lib.features.k_means`), silhouettes, neighbours. Signed: features are non-negative, so opposite directions are
different features. k-means divides any cloud, so nothing here is reported without the same number for random directions
that have the dictionary's own second moments.

Whether the clusters of two seeds agree is not asked: any smooth partition of two dictionaries whose features match
agrees, so the answer is how well the features match, which `stages.lib.features.agreement` measures.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from stages.lib.features.k_means import add_rows, cluster
from stages.lib.run.parallel import compiled

MAX_ROUNDS = 50
CLOSE = 0.01
"""How far a covariance of random directions may be from the dictionary's, relative to the largest entries."""
PERCENTILES = (1, 25, 50, 75, 99)


def unit_rows(rows: Float[np.ndarray, "row d_in"]) -> Float[np.ndarray, "row d_in"]:
    """The rows at length 1; no row may be 0."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def cosines_of(directions: Float[np.ndarray, "row d_in"]) -> Float[np.ndarray, "row row"]:
    """The cosine of every pair of unit rows."""
    x = torch.from_numpy(directions)
    return np.asarray((x @ x.T).numpy())


def _triangle(
    rows: Float[np.ndarray, "row d_in"],
) -> tuple[Float[np.ndarray, "row rank"], Float[np.ndarray, "rank d_in"]]:
    """QR factors with a diagonal of R above 0, which makes them unique and so continuous in the rows.

    By PyTorch, which takes a third of NumPy's time and leaves other threads to other dictionaries.
    """
    basis, shape = (factor.numpy() for factor in torch.linalg.qr(torch.from_numpy(rows)))
    sign = np.where(np.diagonal(shape) < 0, -1, 1).astype(rows.dtype)
    return basis * sign, shape * sign[:, None]


class Moments(NamedTuple):
    """What random directions share with a dictionary."""

    n: int
    mean: Float[np.ndarray, " d_in"]
    shape: Float[np.ndarray, "rank d_in"]
    """R of the QR factors of the rows less their mean."""


def moments(directions: Float[np.ndarray, "row d_in"]) -> Moments:
    """The moments of unit rows, for `random_like`."""
    mean = directions.mean(axis=0)
    return Moments(len(directions), mean, _triangle(directions - mean)[1])


def random_like(like: Moments, generator: np.random.Generator) -> Float[np.ndarray, "row d_in"]:
    """As many random directions of unit length with the mean and covariance of a dictionary.

    With X - m = Q R (columns of Q orthonormal), Q is replaced by a random one of the same kind: the sample is turned in
    the space of its rows, which keeps its moments exactly (Langsrud 2005, Statistics and Computing 15, section 2). The
    rows then have unlike lengths, so lengths and moments are restored in turn until they hold together. What is left
    has the same preferred subspace (which alone makes silhouettes larger and neighbours closer than on the sphere) and
    neither clusters nor pairs. Gaussian draws with the covariance of X would not do: their own scatter
    comes on top of the scatter that X has by chance, and their neighbours are closer even if X is random.
    """
    wanted = _products(like.shape, like.shape)
    rows = generator.standard_normal((like.n, len(like.mean))).astype(like.mean.dtype)
    centred = rows - rows.mean(axis=0)
    for _ in range(MAX_ROUNDS):
        rows = unit_rows(like.mean + _products(_triangle(centred)[0].T, like.shape))
        centred = rows - rows.mean(axis=0)
        if np.abs(_products(centred, centred) - wanted).max() <= CLOSE * np.abs(wanted).max():
            break
    return rows


def _products(left: Float[np.ndarray, "row a"], right: Float[np.ndarray, "row b"]) -> Float[np.ndarray, "a b"]:
    return np.asarray((torch.from_numpy(left).T @ torch.from_numpy(right)).numpy())


def silhouettes(cosines: Float[np.ndarray, "row row"], labels: Int[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """`(b - a) / max(a, b)` per row with the distance 1 - cosine (Rousseeuw 1987, section 2).

    a is the mean distance to the row's own cluster without itself, b the smallest mean distance to another cluster;
    0 for a row that is alone.
    """
    sizes = np.bincount(labels).astype(np.float64)
    sums = np.zeros((len(sizes), len(labels)))
    add_rows(cosines, labels, sums)
    sums = sizes[:, None] - sums
    rows = np.arange(len(labels))
    own = sizes[labels]
    within = sums[labels, rows] / np.maximum(own - 1, 1)
    others = np.where(sizes > 0, sums.T / np.maximum(sizes, 1), np.inf).T
    others[labels, rows] = np.inf
    nearest = others.min(axis=0)
    scores = (nearest - within) / np.maximum(np.maximum(nearest, within), 1e-12)
    return np.where((own > 1) & np.isfinite(nearest), scores, 0)


class Clustering(NamedTuple):
    """Labels with the number of clusters that has the largest mean silhouette."""

    n_clusters: int
    labels: Int[np.ndarray, " row"]
    silhouette: float


def best_clustering(
    cosines: Float[np.ndarray, "row row"], candidates: Sequence[int], generator: np.random.Generator
) -> Clustering:
    """The clustering whose number of clusters, among `candidates` below the number of rows, has the best silhouette."""
    tried = []
    for n_clusters in candidates:
        if n_clusters < len(cosines):
            labels = cluster(cosines, n_clusters, generator)
            tried.append(Clustering(n_clusters, labels, float(silhouettes(cosines, labels).mean())))
    return max(tried, key=lambda one: one.silhouette)


def adjusted_rand(one: Int[np.ndarray, " row"], other: Int[np.ndarray, " row"]) -> float:
    """The adjusted Rand index of two partitions (Hubert and Arabie 1985, equation 5), from counts of pairs of rows."""
    shape = (int(one.max()) + 1, int(other.max()) + 1)
    both = np.bincount(one * shape[1] + other, minlength=shape[0] * shape[1]).reshape(shape)
    # Ordered pairs that are together in both, in the first, in the second.
    together, in_one, in_other = (int((n**2).sum()) - len(one) for n in (both, both.sum(axis=1), both.sum(axis=0)))
    only_one, only_other = in_one - together, in_other - together
    apart = len(one) * (len(one) - 1) - together - only_one - only_other
    if only_one == only_other == 0:
        return 1.0
    above = 2.0 * (together * apart - only_one * only_other)
    return above / (in_one * (only_one + apart) + in_other * (only_other + apart))


def stability(
    cosines: Float[np.ndarray, "row row"],
    reference: Int[np.ndarray, " row"],
    n_clusters: int,
    *,
    n_resamples: int,
    share: float,
    generator: np.random.Generator,
) -> list[float]:
    """The adjusted Rand index of `reference` with a new clustering of each random part (a `share` of the rows).

    It is 1 for the same partition and 0 on average for unrelated ones. Without replacement: a bootstrap's copies of a
    row would cluster with themselves (Hennig 2007, section 2).
    """
    scores = []
    for _ in range(n_resamples):
        rows = np.sort(generator.choice(len(cosines), size=max(2, round(share * len(cosines))), replace=False))
        n = min(n_clusters, len(rows) - 1)
        again = cluster(cosines.take(rows, axis=0).take(rows, axis=1), n, generator)
        scores.append(adjusted_rand(reference[rows], again))
    return scores


def against(value: float, null: list[float]) -> dict[str, float]:
    """A statistic beside the same for random directions, `p = (1 + #{null >= value}) / (1 + n)` (Phipson 2010)."""
    p = (1 + sum(one >= value for one in null)) / (1 + len(null))
    return {"value": value, "null": float(np.mean(null)), "null_high": float(np.quantile(null, 0.975)), "p": p}


class Neighbours(NamedTuple):
    """The directions next to each direction, and those most opposite to it."""

    nearest: Float[np.ndarray, " row"]
    """The largest cosine with another row."""
    opposite: Float[np.ndarray, " row"]
    """The smallest."""
    n_close: float
    """Pairs of rows with at least a given cosine."""
    n_antipodal: float
    """Pairs of rows with at most its negative."""


@compiled
def _neighbours(cosines: np.ndarray, cosine: float, nearest: np.ndarray, opposite: np.ndarray) -> tuple[int, int]:
    """Put the largest and the smallest of each row's cosines with others into arrays of -inf and inf; count pairs."""
    n_close = n_antipodal = 0
    for i in range(len(cosines)):
        for j in range(i):
            value = cosines[i, j]
            n_close += value >= cosine
            n_antipodal += value <= -cosine
            nearest[j] = max(nearest[j], value)
            opposite[j] = min(opposite[j], value)
        for j in range(i + 1, len(cosines)):
            nearest[j] = max(nearest[j], cosines[i, j])
            opposite[j] = min(opposite[j], cosines[i, j])
    return n_close, n_antipodal


def neighbours(cosines: Float[np.ndarray, "row row"], cosine: float) -> Neighbours:
    """How near and how opposite the rows lie; pairs count from `cosine` on."""
    nearest, opposite = (np.full(len(cosines), value, cosines.dtype) for value in (-np.inf, np.inf))
    n_close, n_antipodal = _neighbours(cosines, cosines.dtype.type(cosine), nearest, opposite)
    return Neighbours(nearest, opposite, n_close, n_antipodal)


class Spread(NamedTuple):
    """How the off-diagonal cosines of a dictionary are distributed."""

    mean: float
    mean_absolute: float
    """The coherence of the decoder, `c_dec` (Chanin 2025)."""
    mean_largest: float
    """Mean over rows of the largest cosine with another row."""
    percentiles: dict[str, float]


def spread(directions: Float[np.ndarray, "row d_in"]) -> Spread:
    """The distribution of the signed cosines of all pairs of different rows."""
    cosines = directions @ directions.T
    off_diagonal = cosines[~np.eye(len(directions), dtype=bool)].reshape(len(directions), -1)
    # All at once: one partial sort instead of one for each.
    cuts = np.percentile(off_diagonal, PERCENTILES).tolist()
    percentiles = {f"p{q}": float(cut) for q, cut in zip(PERCENTILES, cuts, strict=True)}
    return Spread(
        float(off_diagonal.mean()),
        float(np.abs(off_diagonal).mean()),
        float(off_diagonal.max(axis=1).mean()),
        percentiles,
    )


def effective_rank(rows: Float[np.ndarray, "row d_in"]) -> float:
    """`exp(H(s^2 / sum s^2))` of the singular values s: how many directions the rows span about evenly.

    From the eigenvalues of the smaller Gram matrix, which are s^2 (Roy and Vetterli 2007, section 2, with squares).
    """
    gram = rows.astype(np.float64)
    gram = gram.T @ gram if len(rows) >= rows.shape[1] else gram @ gram.T
    power = np.clip(np.linalg.eigvalsh(gram), 0, None)
    power = power[power > 0] / power.sum()
    return float(np.exp(-(power * np.log(power)).sum()))
