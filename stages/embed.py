"""Do decoder directions form clusters beyond chance, and how close do they lie?

in: data/train/<arm>, data/activations    out: data/embed, reports/embed

For the first seed and the followed level of every arm, over the features that fire: spherical k-means, the number of
clusters by silhouette, and the cosine with the nearest and the most opposite direction, each against random directions
with the same covariance (`stages.lib.features.clusters`) and corrected for the number of arms; one UMAP per model
revision, whose arms share a space (McInnes 2018). All arms in one process, because the maps and the corrected p are
theirs together; side by side in threads.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeInt, PositiveInt

from stages.lib.activations.parts import draw_rows, read_rows
from stages.lib.activations.store import Store, open_store
from stages.lib.features.cluster_numbers import Described, Trials, corrected
from stages.lib.features.cluster_numbers import describe as describe_clusters
from stages.lib.features.clusters import cosines_of, silhouettes, unit_rows
from stages.lib.features.map import project
from stages.lib.io import params
from stages.lib.io.errors import UserError
from stages.lib.io.files import write_json
from stages.lib.io.tables import write_parquet
from stages.lib.run.log import Log
from stages.lib.run.parallel import side_by_side
from stages.lib.run.seeds import integer, numpy_generator
from stages.lib.run.start import run
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
    """Random dictionaries that are treated in the same way: the least corrected p is arms / (n_null + 1)."""
    pair_cosine: Annotated[float, Field(gt=0, le=1)]
    """From which two directions count as close, and from whose negative on as antipodal."""
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
    directions = unit_rows(sae.W_dec[torch.from_numpy(alive)].numpy().astype(np.float32))
    return Dictionary(member, alive, n_firings[alive] / len(x), directions, sae.d_sae)


class Arm(NamedTuple):
    """What is looked at of one arm."""

    revision: str
    """The model's; arms of one revision share a map."""
    first: Dictionary


def read_validation(store: Store, own: EmbedParams, revision: str) -> Float[torch.Tensor, "token d_in"]:
    """Raw activations of the validation tokens of a revision."""
    windows = store.positions("validation") // store.index["n_ctx"]
    rows = draw_rows(windows, own.n_tokens, numpy_generator(own.seed, "validation", revision))
    return read_rows(store, "validation", rows)


def prepare(own: EmbedParams, arms: list[str], seeds: list[int]) -> dict[str, Arm]:
    """The features that fire, of the followed level of the first seed of every arm."""
    revisions = {arm: revision_of(arm, seeds[0]) for arm in arms}
    x = {
        revision: read_validation(open_store(revision, verify=("validation",)), own, revision)
        for revision in dict.fromkeys(revisions.values())
    }

    def look(arm: str) -> Arm:
        (member,) = followed_members(arm, seeds[:1])
        return Arm(revisions[arm], firing_features(member, x[revisions[arm]], own))

    return dict(zip(arms, side_by_side(look, arms), strict=True))


def describe(own: EmbedParams, first: Dictionary) -> Described:
    """The clusters and neighbours of an arm's first dictionary, with the numbers of the file in git."""
    trials = Trials(own.n_clusters, own.n_resamples, own.subsample, own.n_null, own.pair_cosine)
    generator = numpy_generator(own.seed, "clusters", first.member.arm)
    found = describe_clusters(first.directions, trials, generator)
    facts = {
        "level": first.member.level,
        "seed": first.member.seed,
        "n_features": len(first.feature),
        "n_dead": first.d_sae - len(first.feature),
        "pair_cosine": own.pair_cosine,
    }
    return found._replace(numbers=found.numbers | facts)


def places(own: EmbedParams, arms: dict[str, Arm]) -> dict[str, Float[np.ndarray, "row 2"]]:
    """Where the features of each arm lie on the map of its revision."""
    found: dict[str, Float[np.ndarray, "row 2"]] = {}
    for revision in dict.fromkeys(arm.revision for arm in arms.values()):
        some = {name: arm.first.directions for name, arm in arms.items() if arm.revision == revision}
        seed = integer(own.seed, "umap", revision) % 2**32
        points = project(
            np.concatenate([*some.values()]), n_neighbors=own.n_neighbors, min_dist=own.min_dist, seed=seed
        )
        ends = np.cumsum([len(directions) for directions in some.values()])
        found |= zip(some, np.split(points, ends[:-1]), strict=True)
    return found


def feature_table(first: Dictionary, found: Described, place: Float[np.ndarray, "row 2"]) -> pd.DataFrame:
    """One row a feature that fires."""
    labels = found.clustering.labels
    return pd.DataFrame({
        "arm": first.member.arm, "level": first.member.level, "seed": first.member.seed, "feature": first.feature,
        "rate": first.rate, "cluster": labels,
        "silhouette": silhouettes(cosines_of(first.directions), labels),
        "nearest": found.neighbours.nearest, "nearest_null": found.null.nearest,
        "opposite": found.neighbours.opposite, "opposite_null": found.null.opposite,
        "x": place[:, 0], "y": place[:, 1],
    })  # fmt: skip


def main() -> None:
    """Describe every arm, map the arms of each revision together, write one table and one small file of numbers."""
    own, names, seeds = settings()
    with Log("embed", total=len(names), unit="arm") as log, ThreadPoolExecutor(1) as beside:
        arms = prepare(own, names, seeds)
        mapped = beside.submit(places, own, arms)

        def describe_one(name: str) -> Described:
            found = describe(own, arms[name].first)
            log.advance(n_clusters=float(found.clustering.n_clusters), silhouette=found.clustering.silhouette)
            return found

        described = dict(zip(names, side_by_side(describe_one, names), strict=True))
        place = mapped.result()
    tables = [feature_table(arms[name].first, described[name], place[name]) for name in names]
    write_parquet(DATA / "features.parquet", pd.concat(tables, ignore_index=True))
    write_json(REPORTS / "clusters.json", corrected({name: found.numbers for name, found in described.items()}))


if __name__ == "__main__":
    run(main)
