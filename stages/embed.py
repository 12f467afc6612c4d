"""Do decoder directions form clusters beyond chance, and what do they look like side by side?

in: data/train/<arm>, data/activations    out: data/embed, reports/embed

For the first seed and the followed level of every arm: spherical k-means of the directions of the features that fire,
the number of clusters by silhouette, stability under subsampling and between seeds, each against random directions with
the same covariance (`stages.lib.features.clusters`); one UMAP per model revision, whose arms share a space (McInnes
2018). All arms in one process, because UMAP compiles for ten seconds in each.
"""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeInt, PositiveInt

from stages.lib.activations.parts import draw_rows, read_rows
from stages.lib.activations.store import Store, open_store
from stages.lib.features import clusters
from stages.lib.features.map import project
from stages.lib.io import params
from stages.lib.io.errors import UserError, run
from stages.lib.io.files import atomic, write_json
from stages.lib.run.log import Log
from stages.lib.run.seeds import integer, numpy_generator
from stages.lib.sae.members import Member, followed_members
from stages.lib.sae.members import revision as revision_of
from stages.lib.sae.saved import load_sae

DATA, REPORTS = Path("data/embed"), Path("reports/embed")
BLOCK = 4096
"""Tokens encoded at a time."""
MIN_FEATURES = 8
"""Below this many features there is nothing to cluster or to map."""


class EmbedParams(params.Params):
    """The section `embed`."""

    n_tokens: PositiveInt
    """Validation tokens on which a feature must fire to be looked at."""
    min_firings: PositiveInt
    n_clusters: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)]
    """Numbers of clusters to choose from."""
    n_resamples: PositiveInt
    """Subsamples that are clustered again."""
    subsample: Annotated[float, Field(gt=0, lt=1)]
    n_null: PositiveInt
    """Random dictionaries that are treated in the same way."""
    n_neighbors: Annotated[int, Field(ge=2)]
    """UMAP: neighbours per feature."""
    min_dist: Annotated[float, Field(ge=0, le=1)]
    """UMAP: how close points may lie."""
    seed: NonNegativeInt


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`."""

    embed: EmbedParams
    arms: list[str]
    seeds: list[int]


class Dictionary(NamedTuple):
    """The features of one SAE that fire."""

    member: Member
    feature: Int[np.ndarray, " row"]
    rate: Float[np.ndarray, " row"]
    directions: Float[np.ndarray, "row d_in"]
    d_sae: int


def settings() -> Settings:
    """The stage's settings, checked."""
    own = params.read("embed", EmbedParams)
    return Settings(own, [str(arm) for arm in params.value("saes")], params.read("train.seeds", list[int]))


def firing_features(member: Member, x: Float[torch.Tensor, "token d_in"], own: EmbedParams) -> Dictionary:
    """The features of an SAE that fire at least `min_firings` times on the raw activations `x`."""
    sae = load_sae(member.directory)
    n_firings = np.zeros(sae.d_sae, np.int64)
    for start in range(0, len(x), BLOCK):
        n_firings += (sae.encode(x[start : start + BLOCK]) > 0).sum(dim=0).numpy()
    alive = np.flatnonzero(n_firings >= own.min_firings)
    if len(alive) < MIN_FEATURES:
        raise UserError(
            f"{member.directory}: {len(alive)} features fire {own.min_firings} times on {len(x)} tokens, fewer than "
            f"{MIN_FEATURES}: lower embed.min_firings, raise embed.n_tokens or train {member.arm} longer"
        )
    directions = clusters.unit_rows(sae.W_dec[torch.from_numpy(alive)].numpy().astype(np.float32))
    return Dictionary(member, alive, n_firings[alive] / len(x), directions, sae.d_sae)


def describe(
    own: EmbedParams, main: Dictionary, other: Dictionary | None
) -> tuple[clusters.Clustering, dict[str, Any]]:
    """The clusters of one dictionary, and every number about them beside its null."""
    generator = numpy_generator(own.seed, "clusters", main.member.arm)
    found = clusters.best_clustering(main.directions, own.n_clusters, generator)

    def stability(directions: Float[np.ndarray, "row d_in"], labels: Int[np.ndarray, " row"]) -> list[float]:
        return clusters.stability(
            directions, labels, found.n_clusters, n_resamples=own.n_resamples, share=own.subsample, generator=generator
        )

    refits = stability(main.directions, found.labels)
    null: dict[str, list[float]] = {"silhouette": [], "stability": [], "between_seeds": [], "mean_largest_cosine": []}
    for _ in range(own.n_null):
        random = clusters.random_like(main.directions, generator)
        labels = clusters.cluster(random, found.n_clusters, generator)
        null["silhouette"].append(clusters.best_clustering(random, own.n_clusters, generator).silhouette)
        null["stability"].append(float(np.mean(stability(random, labels))))
        null["mean_largest_cosine"].append(clusters.spread(random).mean_largest)
        if other is not None:
            mate = clusters.random_like(other.directions, generator)
            null["between_seeds"].append(clusters.between_seeds(random, labels, mate, generator))
    cosines = clusters.spread(main.directions)
    low, high = np.quantile(refits, [0.025, 0.975])
    numbers: dict[str, Any] = {
        "level": main.member.level,
        "seed": main.member.seed,
        "n_features": len(main.feature),
        "n_dead": main.d_sae - len(main.feature),
        "n_clusters": found.n_clusters,
        "sizes": {f"cluster-{i:02d}": int(n) for i, n in enumerate(np.bincount(found.labels))},
        "silhouette": clusters.against(found.silhouette, null["silhouette"]),
        # The interval is over subsamples: it says how much refits scatter.
        "stability": {
            **clusters.against(float(np.mean(refits)), null["stability"]),
            "low": float(low),
            "high": float(high),
        },
        "mean_largest_cosine": clusters.against(cosines.mean_largest, null["mean_largest_cosine"]),
        "mean_cosine": cosines.mean,
        "coherence": cosines.mean_absolute,
        "cosine_percentiles": cosines.percentiles,
        "effective_rank": clusters.effective_rank(main.directions),
    }
    if other is not None:
        score = clusters.between_seeds(main.directions, found.labels, other.directions, generator)
        numbers["between_seeds"] = clusters.against(score, null["between_seeds"])
    return found, numbers


def _validation(store: Store, own: EmbedParams, revision: str) -> Float[torch.Tensor, "token d_in"]:
    windows = store.positions("validation") // store.index["n_ctx"]
    rows = draw_rows(windows, own.n_tokens, numpy_generator(own.seed, "validation", revision))
    return read_rows(store, "validation", rows)


def main() -> None:
    """Describe every arm, map the arms of each revision together, write one table and one small file of numbers."""
    own, arms, seeds = settings()
    tables: dict[str, list[tuple[Dictionary, pd.DataFrame]]] = {}
    summary: dict[str, Any] = {}
    x: dict[str, Float[torch.Tensor, "token d_in"]] = {}
    with Log("embed", total=len(arms), unit="arm") as log:
        for arm in arms:
            followed = followed_members(arm, seeds[:2])
            revision = revision_of(arm, seeds[0])
            if revision not in x:
                x[revision] = _validation(open_store(revision, verify=("validation",)), own, revision)
            first, *others = [firing_features(member, x[revision], own) for member in followed]
            found, summary[arm] = describe(own, first, others[0] if others else None)
            cosines = first.directions @ first.directions.T
            table = pd.DataFrame({"arm": arm, "level": first.member.level, "seed": first.member.seed,
                                  "feature": first.feature, "rate": first.rate, "cluster": found.labels,
                                  "silhouette": clusters.silhouettes(cosines, found.labels)})  # fmt: skip
            tables.setdefault(revision, []).append((first, table))
            log.advance(n_clusters=float(found.n_clusters), silhouette=found.silhouette)
        for revision, parts in tables.items():
            points = project(
                np.concatenate([part.directions for part, _ in parts]),
                n_neighbors=own.n_neighbors,
                min_dist=own.min_dist,
                seed=integer(own.seed, "umap", revision) % 2**32,
            )
            for (_, table), place in zip(
                parts, np.split(points, np.cumsum([len(t) for _, t in parts])[:-1]), strict=True
            ):
                table["x"], table["y"] = place[:, 0], place[:, 1]
    order = {arm: number for number, arm in enumerate(arms)}
    frames = sorted((table for parts in tables.values() for _, table in parts), key=lambda t: order[t["arm"].iloc[0]])
    with atomic(DATA / "features.parquet") as temporary:
        pd.concat(frames, ignore_index=True).to_parquet(temporary, index=False)
    write_json(REPORTS / "clusters.json", summary)


if __name__ == "__main__":
    run(main)
