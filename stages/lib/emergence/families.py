"""Which concepts are variants of one another: families of concepts whose labels go together.

`opening`, `opening_parenthesis` and `call_parenthesis` are on at nearly the same tokens, so their times are one
observation rather than three. Families are the clusters of average linkage (Sokal & Michener 1958) on the distance
1 - |phi|, where phi is the correlation of two labels.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform


def label_correlation(labels: Bool[np.ndarray, "token concept"]) -> Float[np.ndarray, "concept concept"]:
    """The correlation of every pair of concepts, each of which is on at some tokens and off at others."""
    on = labels.astype(np.float32)
    together = on.T @ on  # counts below 2 ** 24, exact
    n, p = len(labels), labels.mean(axis=0)
    spread = np.sqrt(p * (1 - p))
    return np.asarray((together.astype(np.float64) / n - np.outer(p, p)) / np.outer(spread, spread))


def families(phi: Float[np.ndarray, "concept concept"], least: float) -> Int[np.ndarray, " concept"]:
    """The family of each concept, numbered from 0: clusters that are joined at a mean |phi| of at least `least`."""
    if len(phi) < 2:
        return np.zeros(len(phi), dtype=np.int64)
    distance = 1 - np.minimum(np.abs(phi + phi.T) / 2, 1)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    return np.unique(fcluster(tree, 1 - least, "distance"), return_inverse=True)[1].astype(np.int64)


def participation_ratio(phi: Float[np.ndarray, "concept concept"]) -> float:
    """`(sum lambda)^2 / sum lambda^2` of the eigenvalues: how many uncorrelated labels have as much spread."""
    return float(np.trace(phi) ** 2 / (phi**2).sum())
