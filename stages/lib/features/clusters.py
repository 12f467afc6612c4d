"""Whether the directions of a dictionary fall into clusters, and whether the clusters are more than chance.

Rows are unit vectors x_i; spherical k-means (Dhillon and Modha 2001, section 3) maximises sum_i x_i . m_c(i) over
assignments c and unit centres m. Signed: features are non-negative, so opposite directions are different features.
k-means divides any cloud, so nothing here is reported without the same number for random directions that have the
dictionary's own second moments.

Whether the clusters of two seeds agree is not asked: any smooth partition of two dictionaries whose features match
agrees, so the answer is how well the features match, which `stages.lib.features.agreement` measures.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import adjusted_rand_score

MAX_ITERATIONS = 100
RESTARTS = 2
MAX_ROUNDS = 50
CLOSE = 0.01
"""How far a covariance of random directions may be from the dictionary's, relative to the largest entries."""
PERCENTILES = (1, 25, 50, 75, 99)


def unit_rows(rows: Float[np.ndarray, "row d_in"]) -> Float[np.ndarray, "row d_in"]:
    """The rows at length 1; no row may be 0."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _triangle(
    rows: Float[np.ndarray, "row d_in"],
) -> tuple[Float[np.ndarray, "row rank"], Float[np.ndarray, "rank d_in"]]:
    """QR factors with a diagonal of R above 0, which makes them unique and so continuous in the rows."""
    basis, shape = np.linalg.qr(rows)
    sign = np.where(np.diagonal(shape) < 0, -1, 1).astype(rows.dtype)
    return basis * sign, shape * sign[:, None]


def random_like(
    directions: Float[np.ndarray, "row d_in"], generator: np.random.Generator
) -> Float[np.ndarray, "row d_in"]:
    """As many random directions of unit length with the same mean and covariance.

    With X - m = Q R (columns of Q orthonormal), Q is replaced by a random one of the same kind: the sample is turned in
    the space of its rows, which keeps its moments exactly (Langsrud 2005, Statistics and Computing 15, section 2). The
    rows then have unlike lengths, so lengths and moments are restored in turn until they hold together. What is left
    has the same preferred subspace (which alone makes silhouettes larger and neighbours closer than on the sphere) and
    neither clusters nor pairs. Gaussian draws with the covariance of X would not do: their own scatter
    comes on top of the scatter that X has by chance, and their neighbours are closer even if X is random.
    """
    mean = directions.mean(axis=0)
    shape = _triangle(directions - mean)[1]
    wanted = shape.T @ shape
    rows = generator.standard_normal(directions.shape).astype(directions.dtype)
    for _ in range(MAX_ROUNDS):
        rows = unit_rows(mean + _triangle(rows - rows.mean(axis=0))[0] @ shape)
        centred = rows - rows.mean(axis=0)
        if np.abs(centred.T @ centred - wanted).max() <= CLOSE * np.abs(wanted).max():
            break
    return rows


def _spread_centres(
    directions: Float[np.ndarray, "row d_in"], n_clusters: int, generator: np.random.Generator
) -> Float[np.ndarray, "cluster d_in"]:
    """Rows as first centres, each drawn in proportion to its distance from those before (Arthur 2007, section 2.2)."""
    chosen = [int(generator.integers(len(directions)))]
    distance = np.full(len(directions), np.inf)
    for _ in range(n_clusters - 1):
        # 1 - cosine is half the squared distance of unit vectors, which is what k-means++ draws by.
        distance = np.minimum(distance, np.maximum(1 - directions @ directions[chosen[-1]], 0))
        distance[chosen] = 0
        total = float(distance.sum())
        weights = distance / total if total > 0 else np.full(len(distance), 1 / len(distance))
        chosen.append(int(generator.choice(len(directions), p=weights)))
    return directions[chosen]


def _lloyd(
    directions: Float[np.ndarray, "row d_in"], centres: Float[np.ndarray, "cluster d_in"]
) -> tuple[Int[np.ndarray, " row"], float]:
    """Labels and objective after alternating assignment and centres until nothing changes."""
    labels = np.full(len(directions), -1)
    for _ in range(MAX_ITERATIONS):
        cosines = directions @ centres.T
        assigned = cosines.argmax(axis=1)
        if (assigned == labels).all():
            break
        labels = assigned
        sums = np.eye(len(centres), dtype=directions.dtype)[labels].T @ directions
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1), centres)  # an empty one stays
    return labels, float(cosines.max(axis=1).sum())


def cluster(
    directions: Float[np.ndarray, "row d_in"], n_clusters: int, generator: np.random.Generator
) -> Int[np.ndarray, " row"]:
    """The best of `RESTARTS` runs of spherical k-means, labels ordered by size (0 is the largest)."""
    runs = [_lloyd(directions, _spread_centres(directions, n_clusters, generator)) for _ in range(RESTARTS)]
    labels = max(runs, key=lambda run: run[1])[0]
    order = np.argsort(-np.bincount(labels, minlength=n_clusters), kind="stable")
    rank = np.empty(n_clusters, dtype=np.int64)
    rank[order] = np.arange(n_clusters)
    return np.asarray(rank[labels])


def silhouettes(cosines: Float[np.ndarray, "row row"], labels: Int[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """`(b - a) / max(a, b)` per row with the distance 1 - cosine (Rousseeuw 1987, section 2).

    a is the mean distance to the row's own cluster without itself, b the smallest mean distance to another cluster;
    0 for a row that is alone.
    """
    members = np.eye(labels.max() + 1)[labels]
    sizes = members.sum(axis=0)
    sums = (1 - cosines) @ members
    rows = np.arange(len(labels))
    own = sizes[labels]
    within = sums[rows, labels] / np.maximum(own - 1, 1)
    others = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.inf)
    others[rows, labels] = np.inf
    nearest = others.min(axis=1)
    scores = (nearest - within) / np.maximum(np.maximum(nearest, within), 1e-12)
    return np.where((own > 1) & np.isfinite(nearest), scores, 0)


class Clustering(NamedTuple):
    """Labels with the number of clusters that has the largest mean silhouette."""

    n_clusters: int
    labels: Int[np.ndarray, " row"]
    silhouette: float


def best_clustering(
    directions: Float[np.ndarray, "row d_in"], candidates: Sequence[int], generator: np.random.Generator
) -> Clustering:
    """The clustering whose number of clusters, among `candidates` below the number of rows, has the best silhouette."""
    cosines = directions @ directions.T
    tried = []
    for n_clusters in candidates:
        if n_clusters < len(directions):
            labels = cluster(directions, n_clusters, generator)
            tried.append(Clustering(n_clusters, labels, float(silhouettes(cosines, labels).mean())))
    return max(tried, key=lambda one: one.silhouette)


def stability(
    directions: Float[np.ndarray, "row d_in"],
    reference: Int[np.ndarray, " row"],
    n_clusters: int,
    *,
    n_resamples: int,
    share: float,
    generator: np.random.Generator,
) -> list[float]:
    """The adjusted Rand index of `reference` with a new clustering of each random part (a `share` of the rows).

    It is 1 for the same partition and 0 on average for unrelated ones (Hubert and Arabie 1985, equation 5). Without
    replacement: a bootstrap's copies of a row would cluster with themselves (Hennig 2007, section 2).
    """
    scores = []
    for _ in range(n_resamples):
        rows = np.sort(generator.choice(len(directions), size=max(2, round(share * len(directions))), replace=False))
        n = min(n_clusters, len(rows) - 1)
        again = cluster(directions[rows], n, generator)
        scores.append(float(adjusted_rand_score(reference[rows], again)))
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


def neighbours(directions: Float[np.ndarray, "row d_in"], cosine: float) -> Neighbours:
    """How near and how opposite the rows lie; pairs count from `cosine` on."""
    cosines = directions @ directions.T
    own = np.arange(len(directions))
    cosines[own, own] = -np.inf
    nearest, n_close = cosines.max(axis=1), int((cosines >= cosine).sum()) // 2
    cosines[own, own] = np.inf
    return Neighbours(nearest, cosines.min(axis=1), n_close, int((cosines <= -cosine).sum()) // 2)


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
