"""Known clusters are found and called stable, random directions are not."""

import numpy as np
import pytest
from sklearn import metrics

from stages.lib.features import clusters as c


def blobs(n_clusters: int, per: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    centres = np.linalg.qr(generator.normal(size=(24, n_clusters)))[0].T
    truth = np.repeat(np.arange(n_clusters), per)
    return c.unit_rows(centres[truth] + noise * generator.normal(size=(len(truth), 24))), truth


def cloud(n: int = 60, seed: int = 1) -> np.ndarray:
    return c.unit_rows(np.random.default_rng(seed).normal(size=(n, 24)))


def test_two_pairs_by_hand() -> None:
    directions = c.unit_rows(np.array([[1.0, 0.1], [1, -0.1], [-0.1, 1], [0.1, 1]]))
    labels = c.cluster(directions, 2, np.random.default_rng(0))
    assert labels[0] == labels[1] != labels[2] == labels[3]


def test_opposite_directions_are_different_features() -> None:
    directions = c.unit_rows(np.array([[1.0, 0.1], [1, -0.1], [-1, 0.1], [-1, -0.1]]))
    assert c.cluster(directions, 2, np.random.default_rng(0))[[0, 2]].tolist() in ([0, 1], [1, 0])


def test_labels_are_ordered_by_size() -> None:
    directions = np.concatenate([blobs(1, 3, 0.01)[0], -blobs(1, 9, 0.01)[0]])
    labels = c.cluster(directions, 2, np.random.default_rng(0))
    assert np.bincount(labels).tolist() == [9, 3]


def test_number_and_members_of_known_clusters_are_recovered() -> None:
    directions, truth = blobs(5, 12, 0.05)
    found = c.best_clustering(directions, [2, 3, 5, 8, 500], np.random.default_rng(0))
    assert found.n_clusters == 5
    assert c.adjusted_rand(found.labels, truth) == 1.0
    assert found.silhouette > 0.8


def test_known_clusters_are_stable_and_random_directions_are_not() -> None:
    def mean_stability(directions: np.ndarray) -> float:
        generator = np.random.default_rng(0)
        labels = c.cluster(directions, 5, generator)
        return float(np.mean(c.stability(directions, labels, 5, n_resamples=5, share=0.8, generator=generator)))

    assert mean_stability(blobs(5, 12, 0.05)[0]) > 0.95
    assert mean_stability(cloud()) < 0.5
    assert mean_stability(c.random_like(blobs(5, 12, 0.05)[0], np.random.default_rng(2))) < 0.95


def test_random_like_keeps_the_covariance() -> None:
    generator = np.random.default_rng(0)
    directions = c.unit_rows(generator.normal(size=(1500, 40)) * np.linspace(2, 0.5, 40))
    random = c.random_like(directions, generator)
    assert np.linalg.norm(random, axis=1) == pytest.approx(np.ones(1500))
    ours, theirs = (np.linalg.eigvalsh(np.cov(one.T)) for one in (random, directions))
    assert ours == pytest.approx(theirs, rel=0.15)


def test_silhouettes_agree_with_sklearn() -> None:
    directions = cloud(30)
    labels = np.array([0] * 10 + [1] * 12 + [2] * 7 + [3])
    ours = c.silhouettes(directions @ directions.T, labels)
    assert ours == pytest.approx(metrics.silhouette_samples(directions, labels, metric="cosine"))
    assert ours[-1] == 0


def test_adjusted_rand_by_hand_and_against_sklearn() -> None:
    a, b = np.array([0, 0, 1, 1, 2, 2]), np.array([5, 5, 0, 0, 1, 1])
    assert c.adjusted_rand(a, b) == 1.0
    # The table [[2, 0], [1, 1]]: 1 pair together in both, 2 in a, 3 in b, of 6: expected 2 x 3 / 6 = 1.
    assert c.adjusted_rand(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])) == 0.0
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 4, 50), generator.integers(0, 3, 50)
    assert c.adjusted_rand(x, y) == pytest.approx(metrics.adjusted_rand_score(x, y))
    assert c.adjusted_rand(np.zeros(4, int), np.zeros(4, int)) == 1.0


def test_between_seeds_undoes_the_order_of_the_features() -> None:
    directions, truth = blobs(4, 10, 0.05)
    order = np.random.default_rng(3).permutation(len(truth))
    assert c.between_seeds(directions, truth, directions[order], np.random.default_rng(0)) == 1.0


def test_against_counts_the_null() -> None:
    got = c.against(0.5, [0.1, 0.2, 0.6])
    assert got["p"] == pytest.approx(2 / 4)
    assert got["null"] == pytest.approx(0.3)
    assert got["value"] == 0.5


def test_spread_by_hand() -> None:
    got = c.spread(np.array([[1.0, 0], [0, 1], [-1, 0]]))  # cosines 0, -1, 0, each twice
    assert got.mean == pytest.approx(-1 / 3)
    assert got.mean_absolute == pytest.approx(1 / 3)
    assert got.mean_largest == pytest.approx(0)
    assert got.percentiles["p50"] == 0


def test_effective_rank_by_hand() -> None:
    assert c.effective_rank(np.eye(5)) == pytest.approx(5)
    assert c.effective_rank(np.array([[1.0, 0, 0], [1, 0, 0]])) == pytest.approx(1)
    # Squared singular values 4 and 1: H = -(.8 ln .8 + .2 ln .2).
    expected = np.exp(-(0.8 * np.log(0.8) + 0.2 * np.log(0.2)))
    assert c.effective_rank(np.array([[2.0, 0], [0, 1], [0, 0]])) == pytest.approx(expected)


def test_the_same_generator_gives_the_same_clusters() -> None:
    one, two = (c.best_clustering(cloud(), [2, 4], np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(one.labels, two.labels)
