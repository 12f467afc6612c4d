"""A two-dimensional map of directions, the same bytes on every run.

UMAP (McInnes, Healy and Melville 2018) on exact neighbours by cosine. Apart from the clusters, because importing it
takes seconds. Distances between far groups mean nothing; no number is taken from a map.
"""

import warnings
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int

BLOCK = 4096
"""Rows compared with all others at a time."""


def nearest(
    directions: Float[np.ndarray, "row d_in"], n_neighbors: int
) -> tuple[Int[np.ndarray, "row neighbor"], Float[np.ndarray, "row neighbor"]]:
    """Exact nearest neighbours by cosine distance, each row its own first; one matmul a block instead of NN-descent."""
    x = torch.from_numpy(directions)
    indices, distances = [], []
    for start in range(0, len(x), BLOCK):
        block = 1 - x[start : start + BLOCK] @ x.T
        rows = torch.arange(len(block))
        block[rows, rows + start] = -1.0  # before any other, even an equal direction
        found = block.topk(n_neighbors, largest=False)
        indices.append(found.indices.numpy().astype(np.int64))
        distances.append(found.values.clamp(min=0).numpy())
    return np.concatenate(indices), np.concatenate(distances)


@cache
def _keep_compiled() -> None:
    """Have UMAP's loops kept on disk once they are compiled, which takes ten seconds and is done anew in every process.

    The one that moves the points leaves Python's lock, too, so that other threads work meanwhile.
    """
    from umap import layouts, umap_

    loop = layouts._nb_optimize_layout_euclidean_single_epoch
    loop.targetoptions["nogil"] = True
    for kept in (umap_.smooth_knn_dist, umap_.compute_membership_strengths, loop):
        kept.enable_caching()


def project(
    directions: Float[np.ndarray, "row d_in"], *, n_neighbors: int, min_dist: float, seed: int
) -> Float[np.ndarray, "row 2"]:
    """A two-dimensional UMAP of unit directions, the same on every run.

    It starts from the first two principal components, with the sign of each fixed, and runs in one thread: UMAP's own
    threads write to the same points in any order.
    """
    n_neighbors = min(n_neighbors, len(directions) - 1)
    left, power, _ = np.linalg.svd(directions - directions.mean(axis=0), full_matrices=False)
    start = left[:, :2] * power[:2]
    start = start * np.sign(start[np.abs(start).argmax(axis=0), [0, 1]])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tensorflow not installed", category=ImportWarning)
        from umap import UMAP

        _keep_compiled()
        # It tells that new points cannot be added to the map, which nobody does.
        warnings.filterwarnings("ignore", message=".*knn_search_index.*")
        model = UMAP(
            n_neighbors=n_neighbors,
            min_dist=min_dist,
            metric="cosine",
            precomputed_knn=nearest(directions, n_neighbors),
            init=(10 * start / np.abs(start).max()).astype(np.float32),
            random_state=seed,
            n_jobs=1,
        )
        return np.asarray(model.fit_transform(directions), dtype=np.float32)
