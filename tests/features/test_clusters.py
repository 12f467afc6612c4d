"""Known clusters are found and called stable, random directions are not."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics

from stages.lib.features import clusters as c
from stages.lib.features.cluster_numbers import Trials, at_rank, corrected, describe, edge
from stages.lib.features.k_means import cluster


def blobs(n_clusters: int, per: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    centres = np.linalg.qr(generator.normal(size=(24, n_clusters)))[0].T
    truth = np.repeat(np.arange(n_clusters), per)
    return c.unit_rows(centres[truth] + noise * generator.normal(size=(len(truth), 24))), truth


def cloud(n: int = 60, seed: int = 1) -> np.ndarray:
    return c.unit_rows(np.random.default_rng(seed).normal(size=(n, 24)))


def test_two_pairs_by_hand() -> None:
    directions = c.unit_rows(np.array([[1.0, 0.1], [1, -0.1], [-0.1, 1], [0.1, 1]]))
    labels = cluster(c.cosines_of(directions), 2, np.random.default_rng(0))
    assert labels[0] == labels[1] != labels[2] == labels[3]


def test_opposite_directions_are_different_features() -> None:
    directions = c.unit_rows(np.array([[1.0, 0.1], [1, -0.1], [-1, 0.1], [-1, -0.1]]))
    assert cluster(c.cosines_of(directions), 2, np.random.default_rng(0))[[0, 2]].tolist() in ([0, 1], [1, 0])


def test_labels_are_ordered_by_size() -> None:
    directions = np.concatenate([blobs(1, 3, 0.01)[0], -blobs(1, 9, 0.01)[0]])
    labels = cluster(c.cosines_of(directions), 2, np.random.default_rng(0))
    assert np.bincount(labels).tolist() == [9, 3]


def test_number_and_members_of_known_clusters_are_recovered() -> None:
    directions, truth = blobs(5, 12, 0.05)
    found = c.best_clustering(c.cosines_of(directions), [2, 3, 5, 8, 500], np.random.default_rng(0))
    assert found.n_clusters == 5
    assert metrics.adjusted_rand_score(found.labels, truth) == 1.0
    assert found.silhouette > 0.8


def test_known_clusters_are_stable_and_random_directions_are_not() -> None:
    def mean_stability(directions: np.ndarray) -> float:
        generator = np.random.default_rng(0)
        labels = cluster(c.cosines_of(directions), 5, generator)
        return float(
            np.mean(c.stability(c.cosines_of(directions), labels, 5, n_resamples=5, share=0.8, generator=generator))
        )

    assert mean_stability(blobs(5, 12, 0.05)[0]) > 0.95
    assert mean_stability(cloud()) < 0.5
    assert mean_stability(c.random_like(c.moments(blobs(5, 12, 0.05)[0]), np.random.default_rng(2))) < 0.95


@pytest.mark.parametrize("n", [90, 30])  # also with fewer rows than dimensions
def test_random_like_keeps_lengths_mean_and_covariance(n: int) -> None:
    generator = np.random.default_rng(0)
    directions = c.unit_rows(generator.normal(size=(n, 40)) * np.linspace(2, 0.5, 40) + 0.3)
    random = c.random_like(c.moments(directions), generator)
    assert np.linalg.norm(random, axis=1) == pytest.approx(np.ones(n))
    covariance = np.cov(directions.T)
    assert np.abs(np.cov(random.T) - covariance).max() < 0.02 * np.abs(covariance).max()
    assert random.mean(axis=0) == pytest.approx(directions.mean(axis=0), abs=0.005)
    # None of the rows is one of the dictionary's.
    assert (random @ directions.T).max() < 0.99


def dictionary(kind: str, seed: int) -> np.ndarray:
    """60 directions in 24 dimensions: `sphere`; `subspace`, with a preferred one; `pairs`, four of them close."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(60, 24))
    if kind != "sphere":
        rows *= np.linspace(1.5, 0.5, 24)
    if kind == "pairs":
        rows[:4] = rows[4:8] + 0.4 * rows[:4]
    return c.unit_rows(rows)


def rejected(kind: str, n_repeats: int, statistic: Callable[[np.ndarray], float]) -> float:
    """How often p < .05 with 39 random dictionaries."""
    n = 0
    for seed in range(n_repeats):
        directions, generator = dictionary(kind, seed), np.random.default_rng((7, seed))
        null = [statistic(c.random_like(c.moments(directions), generator)) for _ in range(39)]
        n += c.against(statistic(directions), null)["p"] < 0.05
    return n / n_repeats


def mean_nearest(directions: np.ndarray) -> float:
    return float(c.neighbours(c.cosines_of(directions), 0.5).nearest.mean())


def silhouette(directions: np.ndarray) -> float:
    return c.best_clustering(c.cosines_of(directions), [4], np.random.default_rng(0)).silhouette


@pytest.mark.parametrize("kind", ["sphere", "subspace"])
def test_random_directions_are_seldom_called_close_or_clustered(kind: str) -> None:
    # p < .05 is p = .025 here: 1.5 of 60 on average, and more than 5 with a chance below 1 %.
    assert rejected(kind, 60, mean_nearest) <= 5 / 60
    assert rejected(kind, 30, silhouette) <= 4 / 30


def test_the_old_null_of_gaussian_draws_would_hide_pairs() -> None:
    # Draws with the sample's covariance lie closer than the sample does, though it is random itself.
    directions, generator = dictionary("sphere", 0), np.random.default_rng(0)
    centred = directions - directions.mean(0)
    draws = [
        mean_nearest(c.unit_rows(directions.mean(0) + generator.normal(size=(60, 60)) @ centred / 60**0.5))
        for _ in range(30)
    ]
    kept = [mean_nearest(c.random_like(c.moments(directions), generator)) for _ in range(30)]
    assert np.mean(draws) > np.mean(kept) + 3 * np.std(kept)
    assert abs(np.mean(kept) - mean_nearest(directions)) < 3 * np.std(kept)


def test_four_close_pairs_among_sixty_are_found() -> None:
    assert rejected("pairs", 30, mean_nearest) > 0.8


def test_clusters_are_found_where_there_are_some() -> None:
    generator = np.random.default_rng(0)
    directions = blobs(4, 15, 0.15)[0]
    null = [silhouette(c.random_like(c.moments(directions), generator)) for _ in range(39)]
    assert c.against(silhouette(directions), null)["p"] == 1 / 40


def test_neighbours_by_hand() -> None:
    # Cosines: 0-1 .6, 0-2 -1, 1-2 -.6.
    got = c.neighbours(c.cosines_of(np.array([[1.0, 0], [0.6, 0.8], [-1, 0]])), 0.6)
    assert got.nearest.tolist() == [0.6, 0.6, -0.6]
    assert got.opposite.tolist() == [-1, -0.6, -1]
    assert (got.n_close, got.n_antipodal) == (1, 2)


def test_silhouettes_agree_with_sklearn() -> None:
    directions = cloud(30)
    labels = np.array([0] * 10 + [1] * 12 + [2] * 7 + [3])
    ours = c.silhouettes(directions @ directions.T, labels)
    assert ours == pytest.approx(metrics.silhouette_samples(directions, labels, metric="cosine"))
    assert ours[-1] == 0


def test_the_adjusted_rand_index_agrees_with_sklearn() -> None:
    generator = np.random.default_rng(0)
    for n_clusters in (1, 2, 5):
        one, other = generator.integers(n_clusters, size=(2, 40))
        other[:20] = one[:20]
        assert c.adjusted_rand(one, other) == pytest.approx(metrics.adjusted_rand_score(one, other), abs=1e-12)
    assert c.adjusted_rand(one, (one + 1) % 5) == 1.0


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
    one, two = (c.best_clustering(c.cosines_of(cloud()), [2, 4], np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(one.labels, two.labels)


NUMBERS = {"silhouette": 0.01, "nearest": 0.02, "opposite": 0.9}


def test_the_correction_is_over_the_arms_number_by_number() -> None:
    arms = {arm: {name: {"value": 1.0, "p": p * k} for name, p in NUMBERS.items()} for k, arm in ((1, "a"), (3, "b"))}
    got = corrected(arms)
    assert got["a"]["silhouette"] == {"value": 1.0, "p": 0.01, "p_holm": 0.02}
    assert got["b"]["silhouette"]["p_holm"] == pytest.approx(0.03)
    assert got["b"]["nearest"]["p_holm"] == pytest.approx(0.06)
    assert got["a"]["opposite"]["p_holm"] == 1.0


def test_the_edge_of_the_candidates_is_said() -> None:
    assert [edge(n, [4, 8, 16]) for n in (4, 8, 16)] == ["lowest", "inside", "highest"]


def test_the_null_of_a_row_has_its_rank() -> None:
    got = at_rank(np.array([3.0, 1.0, 2.0]), [np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.4, 0.3])])
    assert got.tolist() == pytest.approx([0.4, 0.2, 0.3])


def test_a_description_stands_beside_its_null() -> None:
    trials = Trials([2, 4], 4, 0.8, 9, 0.5)
    got = describe(blobs(4, 15, 0.15)[0], trials, np.random.default_rng(0))
    assert got.numbers["n_clusters"] == 4
    assert got.numbers["edge"] == "highest"
    assert got.numbers["silhouette"]["p"] == 1 / 10
    assert got.numbers["nearest"]["value"] == pytest.approx(got.neighbours.nearest.mean())
    assert got.numbers["nearest"]["null"] == pytest.approx(got.null.nearest.mean())
    assert got.numbers["close_pairs"]["value"] > got.numbers["close_pairs"]["null"]
    assert got.numbers["stability"]["value"] > got.numbers["stability"]["null_high"]
