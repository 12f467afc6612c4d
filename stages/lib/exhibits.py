"""Exhibits of the report that need detail tables and held-out text: single features, and the map of all of them."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from stages.lib import plates, showcase
from stages.lib.arms import cell, members
from stages.lib.files import read_json
from stages.lib.findings import Results
from stages.lib.labels import read_concepts
from stages.lib.matched import nearest_levels
from stages.lib.page import Block, Figure, Text
from stages.lib.saelens import load_sae
from stages.lib.store import open_store
from stages.lib.tables import read_parquet
from stages.lib.windows import read_windows

DATA = Path("data")
KNOWN_MCC = 0.1
"""Calibrated MCC from which the map of features shows a feature's concept."""


class Size(NamedTuple):
    """How much is shown."""

    n_features: int
    n_contexts: int
    n_tokens: int


def tables(results: Results, stage: str, name: str) -> dict[str, pd.DataFrame]:
    """One detail table of every arm."""
    found = {arm: read_parquet(DATA / stage / arm / f"{name}.parquet") for arm in results.arms}
    return {arm: table[table["seed"].isin(results.seeds)] for arm, table in found.items()}


def nearest_features(results: Results, found: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The features of each arm at the level nearest the middle L0."""
    levels = nearest_levels(results.rows["evaluate"], results.l0)
    return {
        arm: table[
            [levels.get((arm, seed)) == level for seed, level in zip(table["seed"], table["level"], strict=True)]
        ]
        for arm, table in found.items()
    }


def single_features(results: Results, arm: str, size: Size, features: dict[str, pd.DataFrame]) -> list[Block]:
    """What is shown of the features of one SAE: heat map, feature map, contexts."""
    seed = results.seeds[0]
    level = nearest_levels(results.rows["evaluate"], results.l0)[arm, seed]
    member = next(one for one in members(arm, [seed]) if one.level == level)
    windows, table = read_windows("test"), features[arm]
    table = table[(table["seed"] == seed) & (table["level"] == level)].sort_values("feature").reset_index(drop=True)
    store = open_store(read_json(cell(arm, seed) / "train.json")["activations"])
    shown = showcase.Shown(load_sae(member.directory), store, windows, showcase.read_texts(windows), table)
    blocks: list[Block] = []
    labels = {
        int(f): str(c) for f, c in zip(table["feature"], table["best_concept"], strict=True) if isinstance(c, str)
    }
    passage = showcase.passage(shown, size.n_tokens, plates.MAX_ROWS)
    if passage is not None:
        blocks.append(plates.heat_map(passage[0], passage[1], labels))
    best = read_parquet(DATA / "interpret" / arm / "concepts.parquet")
    best = best[
        (best["basis"] == "sae") & (best["seed"] == seed) & (best["level"] == level) & best["best_feature"].notna()
    ]
    best = best.sort_values(["cc_f1", "concept"], ascending=[False, True]).head(plates.MAX_ROWS)
    if len(best):
        names, chosen = [str(name) for name in best["concept"]], [int(feature) for feature in best["best_feature"]]
        cosines = showcase.concept_cosines(shown, names, chosen)
        blocks.append(plates.feature_map(cosines, names, [str(feature) for feature in chosen], arm))
    text = (
        f"Features of `{arm}`, seed {seed}, level {level}, spread evenly over the ranks of specialisation, from the "
        "most to the least specialised, so that the sample does not flatter. Each line is a test document; shading "
        "is the activation relative to the strongest one."
    )
    return [*blocks, Text(text), *showcase.contexts(shown, size.n_features, size.n_contexts, size.n_tokens)]


def map_of_features(results: Results, arm: str) -> Figure:
    """The UMAP of the arms on the same activations as `report.arm`."""
    revision = {one: read_json(cell(one, results.seeds[0]) / "train.json")["activations"] for one in results.arms}
    arms = [other for other in results.arms if revision[other] == revision[arm]]
    table = read_parquet(DATA / "embed" / "features.parquet")
    table = table[table["arm"].isin(arms)]
    features = tables(results, "frequency", "features")
    everything = pd.concat([features[other].assign(arm=other) for other in arms])
    columns = ["arm", "level", "seed", "feature", "best_concept", "mcc_calibrated"]
    table = table.merge(everything[columns], on=columns[:4], how="left")
    kind = {concept.name: concept.kind for concept in read_concepts()}
    return plates.embedding(results, table.assign(kind=plates.kinds(table, kind, KNOWN_MCC)), arms)
