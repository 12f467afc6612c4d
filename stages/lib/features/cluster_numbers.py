"""What is told of the directions of a dictionary: each number beside the same for random directions."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from stages.lib.features import clusters
from stages.lib.features.clusters import Clustering, Moments, Neighbours
from stages.lib.features.k_means import cluster
from stages.lib.stats.intervals import holm

TESTED = ("silhouette", "nearest", "opposite")
"""The numbers that have a p: large in a dictionary whose directions lie more closely together than chance."""
N_REFITTED = 20
"""How many of the random dictionaries are clustered again and again, for the stability that chance alone gives."""


class Trials(NamedTuple):
    """How much is tried."""

    n_clusters: list[int]
    """Numbers of clusters to choose from."""
    n_resamples: int
    """Subsamples that are clustered again."""
    subsample: float
    """The share of the directions in each."""
    n_null: int
    """Random dictionaries that are treated in the same way."""
    pair_cosine: float
    """From which two directions count as close, and from whose negative on as antipodal."""


class Described(NamedTuple):
    """The clusters and the neighbours in one dictionary."""

    clustering: Clustering
    neighbours: Neighbours
    null: Neighbours
    """Of random dictionaries: the mean cosine of the feature of the same rank, and the mean numbers of pairs."""
    numbers: dict[str, Any]


class Null(NamedTuple):
    """The numbers of one random dictionary."""

    silhouette: float
    neighbours: Neighbours
    stability: float | None


def refit(
    cosines: Float[np.ndarray, "row row"],
    labels: Int[np.ndarray, " row"],
    n_clusters: int,
    trials: Trials,
    generator: np.random.Generator,
) -> list[float]:
    """How far each subsample that is clustered again agrees with the labels."""
    return clusters.stability(
        cosines, labels, n_clusters, n_resamples=trials.n_resamples, share=trials.subsample, generator=generator
    )


def null_numbers(
    like: Moments,
    n_clusters: int | None,
    trials: Trials,
    generator: np.random.Generator,
) -> Null:
    """The numbers of a random dictionary; its stability with `n_clusters` clusters, if a number is given."""
    random = clusters.cosines_of(clusters.random_like(like, generator))
    silhouette = clusters.best_clustering(random, trials.n_clusters, generator).silhouette
    stability = None
    if n_clusters is not None:
        labels = cluster(random, n_clusters, generator)
        stability = float(np.mean(refit(random, labels, n_clusters, trials, generator)))
    return Null(silhouette, clusters.neighbours(random, trials.pair_cosine), stability)


def at_rank(own: Float[np.ndarray, " row"], null: list[Float[np.ndarray, " row"]]) -> Float[np.ndarray, " row"]:
    """For each row the mean over the random dictionaries of the value that has the row's rank there."""
    found = np.empty(len(own))
    found[np.argsort(own, kind="stable")] = np.mean([np.sort(one) for one in null], axis=0, dtype=np.float64)
    return found


def describe(directions: Float[np.ndarray, "row d_in"], trials: Trials, generator: np.random.Generator) -> Described:
    """The best clustering of a dictionary's unit directions, their neighbours, and the numbers of both."""
    cosines, like = clusters.cosines_of(directions), clusters.moments(directions)
    found = clusters.best_clustering(cosines, trials.n_clusters, generator)
    refits = refit(cosines, found.labels, found.n_clusters, trials, generator)
    null = [
        null_numbers(like, found.n_clusters if index < N_REFITTED else None, trials, generator)
        for index in range(trials.n_null)
    ]
    own, others = clusters.neighbours(cosines, trials.pair_cosine), [one.neighbours for one in null]
    expected = Neighbours(
        at_rank(own.nearest, [one.nearest for one in others]),
        at_rank(own.opposite, [one.opposite for one in others]),
        float(np.mean([one.n_close for one in others])),
        float(np.mean([one.n_antipodal for one in others])),
    )
    stability = [one.stability for one in null if one.stability is not None]
    # The interval is over subsamples: it says how much refits scatter.
    low, high = np.quantile(refits, [0.025, 0.975])
    numbers: dict[str, Any] = {
        "n_clusters": found.n_clusters,
        "edge": edge(found.n_clusters, [n for n in trials.n_clusters if n < len(directions)]),
        "n_null": trials.n_null,
        "sizes": {f"cluster-{i:02d}": int(n) for i, n in enumerate(np.bincount(found.labels))},
        "silhouette": clusters.against(found.silhouette, [one.silhouette for one in null]),
        "nearest": clusters.against(_mean(own.nearest), [_mean(one.nearest) for one in others]),
        "opposite": clusters.against(-_mean(own.opposite), [-_mean(one.opposite) for one in others]),
        "close_pairs": {"value": own.n_close, "null": expected.n_close},
        "antipodal_pairs": {"value": own.n_antipodal, "null": expected.n_antipodal},
        "stability": {"value": float(np.mean(refits)), "low": float(low), "high": float(high),
                      "null": float(np.mean(stability)), "null_high": float(np.quantile(stability, 0.975))},
        **spread_numbers(directions),
    }  # fmt: skip
    return Described(found, own, expected, numbers)


def _mean(values: Float[np.ndarray, " row"]) -> float:
    return float(values.mean(dtype=np.float64))


def edge(n_clusters: int, candidates: list[int]) -> str:
    """Whether the best number of clusters is the `lowest` or the `highest` that was tried, or `inside` them.

    At an edge, numbers beyond it could have been better: the data do not prefer a number.
    """
    return {min(candidates): "lowest", max(candidates): "highest"}.get(n_clusters, "inside")


def spread_numbers(directions: Float[np.ndarray, "row d_in"]) -> dict[str, Any]:
    """How the cosines of all pairs are distributed, and how many directions the rows span about evenly."""
    cosines = clusters.spread(directions)
    return {
        "mean_cosine": cosines.mean,
        "coherence": cosines.mean_absolute,
        "cosine_percentiles": cosines.percentiles,
        "effective_rank": clusters.effective_rank(directions),
    }


def corrected(numbers: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The numbers of all arms with `p_holm` beside each p: corrected over the arms (Holm 1979), number by number."""
    found = {arm: dict(facts) for arm, facts in numbers.items()}
    for name in TESTED:
        adjusted = holm({arm: facts[name]["p"] for arm, facts in numbers.items()})
        for arm, p in adjusted.items():
            found[arm][name] = {**numbers[arm][name], "p_holm": p}
    return found
