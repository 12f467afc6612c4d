"""Spherical k-means on the cosines of all pairs, so that runs on the same directions share one product.

Rows are unit vectors x_i; spherical k-means (Dhillon and Modha 2001, section 3) maximises sum_i x_i . m_c(i) over
assignments c and unit centres m. Centres are never formed: with G_ij = x_i . x_j and s_c the sum of the members of c,

    x_i . s_c = sum of G_ij over members j        |s_c|^2 = sum of x_j . s_c over members j        m_c = s_c / |s_c|

An iteration then adds the rows of G that changed their cluster, few after the first, where centres would be compared
with all rows again.
"""

import numpy as np
from jaxtyping import Float, Int

from stages.lib.run.parallel import compiled

MAX_ITERATIONS = 100
RESTARTS = 2
SHORTEST = 1e-6
"""|s_c|^2 per squared number of members below which the members cancel, up to rounding, and give no direction."""


@compiled
def _spread_centres(cosines: np.ndarray, first: int, uniforms: np.ndarray, chosen: np.ndarray) -> None:
    """Put into `chosen` the rows that are the first centres: `first`, and one more for each number from [0, 1).

    Each is drawn in proportion to its distance from those before (Arthur 2007, section 2.2): 1 - cosine is half the
    squared distance of unit vectors, which is what k-means++ draws by.
    """
    n = len(cosines)
    distance, cumulated = np.full(n, np.inf), np.empty(n)
    chosen[0] = first
    for drawn in range(1, len(chosen)):
        last = chosen[drawn - 1]
        for i in range(n):
            distance[i] = min(distance[i], max(1.0 - cosines[last, i], 0.0))
        for i in range(drawn):
            distance[chosen[i]] = 0.0
        total = 0.0
        for i in range(n):
            total += distance[i]
            cumulated[i] = total
        uniform = uniforms[drawn - 1]
        found = int(uniform * n) if total == 0 else np.searchsorted(cumulated, uniform * total, side="right")
        chosen[drawn] = min(found, n - 1)


@compiled
def add_rows(cosines: np.ndarray, labels: np.ndarray, sums: np.ndarray) -> None:
    """Add the cosines with each row to those of its cluster: x_i . s_c in `sums` [cluster, row]."""
    for j in range(len(labels)):
        own = sums[labels[j]]
        for i in range(len(own)):
            own[i] += cosines[j, i]


@compiled
def _assign(centred: np.ndarray, best: np.ndarray, assigned: np.ndarray) -> None:
    """The cluster whose centre has the largest cosine with each row, and that cosine; the first of equal ones."""
    best[:] = centred[0]
    assigned[:] = 0
    for c in range(1, len(centred)):
        own = centred[c]
        for i in range(len(best)):
            larger = own[i] > best[i]
            best[i] = own[i] if larger else best[i]
            assigned[i] = c if larger else assigned[i]


@compiled
def _move(cosines: np.ndarray, labels: np.ndarray, assigned: np.ndarray, sums: np.ndarray) -> None:
    """Take the rows that are assigned anew out of the sum of their cluster, and into that of the other."""
    for j in range(len(labels)):
        if labels[j] != assigned[j]:
            old, new = sums[labels[j]], sums[assigned[j]]
            for i in range(len(old)):
                old[i] -= cosines[j, i]
                new[i] += cosines[j, i]
            labels[j] = assigned[j]


@compiled
def _centre(labels: np.ndarray, sums: np.ndarray, centred: np.ndarray) -> None:
    """Cosines of all rows with each centre; that of a cluster without members, or whose members cancel, stays."""
    square, size = np.zeros(len(sums)), np.zeros(len(sums))
    for j in range(len(labels)):
        square[labels[j]] += sums[labels[j], j]
        size[labels[j]] += 1
    for c in range(len(sums)):
        if size[c] == 0:
            sums[c, :] = 0.0  # what rounding left
        elif square[c] > SHORTEST * size[c] ** 2:
            centred[c, :] = sums[c] / np.sqrt(square[c])


@compiled
def _lloyd(cosines: np.ndarray, chosen: np.ndarray, labels: np.ndarray) -> float:
    """Put into `labels` what is left after alternating assignment and centres until nothing changes; the objective."""
    n, n_clusters = len(cosines), len(chosen)
    centred, sums = np.empty((n_clusters, n)), np.zeros((n_clusters, n))
    for c in range(n_clusters):
        centred[c, :] = cosines[chosen[c]]
    best, assigned = np.empty(n), np.empty(n, np.int64)
    for iteration in range(MAX_ITERATIONS):
        _assign(centred, best, assigned)
        if iteration == 0:
            labels[:] = assigned
            add_rows(cosines, labels, sums)
        elif (labels == assigned).all():
            break
        else:
            _move(cosines, labels, assigned, sums)
        _centre(labels, sums, centred)
    objective: float = best.sum()
    return objective


def cluster(
    cosines: Float[np.ndarray, "row row"], n_clusters: int, generator: np.random.Generator
) -> Int[np.ndarray, " row"]:
    """The best of `RESTARTS` runs of spherical k-means, labels ordered by size (0 is the largest)."""
    runs = []
    for _ in range(RESTARTS):
        labels, chosen = np.empty((2, len(cosines)), np.int64)
        chosen = chosen[:n_clusters]
        first = int(generator.integers(len(cosines)))
        _spread_centres(cosines, first, generator.random(n_clusters - 1), chosen)
        runs.append((_lloyd(cosines, chosen, labels), labels))
    labels = max(runs, key=lambda run: run[0])[1]
    order = np.argsort(-np.bincount(labels, minlength=n_clusters), kind="stable")
    rank = np.empty(n_clusters, dtype=np.int64)
    rank[order] = np.arange(n_clusters)
    return np.asarray(rank[labels])
