"""What is told of the clusters of a dictionary: each number beside the same for random directions."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from stages.lib.features import clusters
from stages.lib.features.clusters import Clustering


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


class Described(NamedTuple):
    """The clusters of one dictionary."""

    clustering: Clustering
    numbers: dict[str, Any]


def refit(
    directions: Float[np.ndarray, "row d_in"],
    labels: Int[np.ndarray, " row"],
    n_clusters: int,
    trials: Trials,
    generator: np.random.Generator,
) -> list[float]:
    """How far each subsample that is clustered again agrees with the labels."""
    return clusters.stability(
        directions, labels, n_clusters, n_resamples=trials.n_resamples, share=trials.subsample, generator=generator
    )


def null_numbers(
    directions: Float[np.ndarray, "row d_in"],
    other: Float[np.ndarray, "other d_in"] | None,
    n_clusters: int,
    trials: Trials,
    generator: np.random.Generator,
) -> dict[str, float]:
    """The numbers of random dictionaries in place of both, with as many clusters as the true one has."""
    random = clusters.random_like(directions, generator)
    labels = clusters.cluster(random, n_clusters, generator)
    numbers = {"silhouette": clusters.best_clustering(random, trials.n_clusters, generator).silhouette}
    refits = refit(random, labels, n_clusters, trials, generator)
    numbers |= {"stability": float(np.mean(refits)), "mean_largest_cosine": clusters.spread(random).mean_largest}
    if other is not None:
        mate = clusters.random_like(other, generator)
        numbers["between_seeds"] = clusters.between_seeds(random, labels, mate, generator)
    return numbers


def describe(
    directions: Float[np.ndarray, "row d_in"],
    other: Float[np.ndarray, "other d_in"] | None,
    trials: Trials,
    generator: np.random.Generator,
) -> Described:
    """The best clustering of a dictionary's unit directions, and its numbers; `other` are those of another seed."""
    found = clusters.best_clustering(directions, trials.n_clusters, generator)
    refits = refit(directions, found.labels, found.n_clusters, trials, generator)
    null = [null_numbers(directions, other, found.n_clusters, trials, generator) for _ in range(trials.n_null)]

    def beside_null(name: str, value: float) -> dict[str, float]:
        return clusters.against(value, [one[name] for one in null])

    # The interval is over subsamples: it says how much refits scatter.
    low, high = np.quantile(refits, [0.025, 0.975])
    cosines = clusters.spread(directions)
    numbers: dict[str, Any] = {
        "n_clusters": found.n_clusters,
        "sizes": {f"cluster-{i:02d}": int(n) for i, n in enumerate(np.bincount(found.labels))},
        "silhouette": beside_null("silhouette", found.silhouette),
        "stability": beside_null("stability", float(np.mean(refits))) | {"low": float(low), "high": float(high)},
        "mean_largest_cosine": beside_null("mean_largest_cosine", cosines.mean_largest),
        "mean_cosine": cosines.mean,
        "coherence": cosines.mean_absolute,
        "cosine_percentiles": cosines.percentiles,
        "effective_rank": clusters.effective_rank(directions),
    }
    if other is not None:
        score = clusters.between_seeds(directions, found.labels, other, generator)
        numbers["between_seeds"] = beside_null("between_seeds", score)
    return Described(found, numbers)
