"""k-means on cosines is k-means on directions: the same choices and labels as the plain formulas."""

import numpy as np
import pytest

from stages.lib.features import clusters as c
from stages.lib.features.k_means import RESTARTS, cluster


def spread_centres(directions: np.ndarray, n_clusters: int, generator: np.random.Generator) -> np.ndarray:
    """k-means++ with NumPy's own draws."""
    chosen = [int(generator.integers(len(directions)))]
    distance = np.full(len(directions), np.inf)
    for _ in range(n_clusters - 1):
        distance = np.minimum(distance, np.maximum(1 - directions @ directions[chosen[-1]], 0))
        distance[chosen] = 0
        chosen.append(int(generator.choice(len(directions), p=distance / distance.sum())))
    return directions[chosen]


def lloyd(directions: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Assignment and centres in turn, on the directions themselves."""
    labels = np.full(len(directions), -1)
    for _ in range(100):
        cosines = directions @ centres.T
        if (cosines.argmax(axis=1) == labels).all():
            break
        labels = cosines.argmax(axis=1)
        sums = np.eye(len(centres))[labels].T @ directions
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1), centres)
    return labels, float(cosines.max(axis=1).sum())


def plain(directions: np.ndarray, n_clusters: int, generator: np.random.Generator) -> np.ndarray:
    runs = [lloyd(directions, spread_centres(directions, n_clusters, generator)) for _ in range(RESTARTS)]
    labels = max(runs, key=lambda run: run[1])[0]
    order = np.argsort(-np.bincount(labels, minlength=n_clusters), kind="stable")
    return np.argsort(order)[labels]


@pytest.mark.parametrize("n_clusters", [2, 3, 8, 39])
@pytest.mark.parametrize("seed", range(8))
def test_labels_and_draws_are_those_of_the_plain_formulas(n_clusters: int, seed: int) -> None:
    directions = c.unit_rows(np.random.default_rng(seed).normal(size=(40, 12)))
    one, other = np.random.default_rng(99 + seed), np.random.default_rng(99 + seed)
    got = cluster(c.cosines_of(directions), n_clusters, one)
    assert got.tolist() == plain(directions, n_clusters, other).tolist()
    assert one.random() == other.random()


def test_labels_do_not_depend_on_the_precision_of_the_directions() -> None:
    directions = c.unit_rows(np.random.default_rng(0).normal(size=(300, 32)))
    labels = [
        cluster(c.cosines_of(directions.astype(kind)), 4, np.random.default_rng(1)) for kind in (np.float32, np.float64)
    ]
    np.testing.assert_array_equal(*labels)


def test_equal_rows_leave_clusters_empty() -> None:
    # Two different directions cannot fill three clusters: the third centre keeps the direction that it began with.
    directions = np.array([[1.0, 0]] * 3 + [[0, 1.0]] * 2)
    labels = cluster(c.cosines_of(directions), 3, np.random.default_rng(0))
    assert labels.tolist() == [0, 0, 0, 1, 1]


def test_members_that_cancel_keep_their_centre() -> None:
    # One cluster of opposite directions: their sum has no direction, and dividing by its length would make labels NaN.
    directions = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert cluster(c.cosines_of(directions), 1, np.random.default_rng(0)).tolist() == [0, 0, 0, 0]
