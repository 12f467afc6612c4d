"""What is shown of SAE features one by one: strongest contexts, a heat map of a passage, maps of directions.

Reads detail tables and held-out activations, tokens and texts; the numbers of the report come from elsewhere.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from stages.lib.activations.store import open_store
from stages.lib.concepts.directions import mean_differences
from stages.lib.concepts.labels import read_concepts, read_labels
from stages.lib.io.tables import read_parquet
from stages.lib.language.documents import read_documents
from stages.lib.language.windows import Windows, read_windows
from stages.lib.report.contexts import Reading, Stretch, one_per_document, stretch, strongest_rows
from stages.lib.report.figures import close_up as single
from stages.lib.report.figures.plate import MAX_ROWS
from stages.lib.report.figures.structure import embedding
from stages.lib.report.page import Block, Figure, Passage, Passages, Text
from stages.lib.report.results import Results
from stages.lib.sae.members import Member, member_at, revision
from stages.lib.sae.saved import load_sae

BATCH = 8192
"""Tokens encoded at a time."""
CANDIDATES = 20
"""Strongest tokens looked at for each context shown, because contexts come from documents of their own."""


class Shown(NamedTuple):
    """One SAE with the test split, and what is known of its features."""

    reading: Reading
    features: pd.DataFrame
    """Its rows of `data/frequency/<arm>/features.parquet`, by feature."""


def read_texts(windows: Windows) -> dict[str, str]:
    """The texts of the documents that the windows of the test split come from."""
    wanted = set(windows.document_ids)
    return {document.id: document.text for document in read_documents("test") if document.id in wanted}


def chosen_features(features: pd.DataFrame, n: int) -> list[int]:
    """`n` features spread evenly over the ranks of the calibrated MCC, the best first; unresolved ones are out."""
    usable = features[features["mcc_calibrated"].notna()].sort_values(
        ["mcc_calibrated", "feature"], ascending=[False, True]
    )
    places = np.unique(np.linspace(0, len(usable) - 1, min(n, len(usable))).round().astype(int))
    return [int(feature) for feature in usable["feature"].iloc[places]]


def _label(features: pd.DataFrame, feature: int) -> str:
    row = features.set_index("feature").loc[feature]
    concept = row["best_concept"] if isinstance(row["best_concept"], str) else "no concept"
    score, rate = row["mcc_calibrated"], row["rate"]
    return f"Feature {feature}: {concept}, calibrated MCC {score:.2f}, fires on {rate:.2%} of tokens"


def contexts(shown: Shown, n_features: int, n_contexts: int, n_tokens: int) -> list[Passages]:
    """The strongest contexts of a sample of features, tokens shaded by activation relative to the feature's maximum."""
    features = chosen_features(shown.features, n_features)
    index = torch.tensor(features, dtype=torch.int64)
    sae, store, split, windows, _ = shown.reading
    values, rows = strongest_rows(store.batches(split, BATCH), sae, index, n_contexts * CANDIDATES)
    window = store.positions(split) // windows.n_ctx
    blocks = []
    for i, feature in enumerate(features):
        documents = windows.document.numpy()[window[rows[i].numpy()]].astype(np.int64)
        passages = []
        for row in one_per_document(values[i], rows[i], documents, n_contexts):
            found = stretch(shown.reading, row, n_tokens * 2 // 3, n_tokens // 3, index[i : i + 1])
            strengths = found.feature_acts[:, 0] / float(values[i, 0])
            passages.append(Passage(found.tokens, strengths.tolist()))
        if passages:
            blocks.append(Passages(_label(shown.features, feature), passages))
    return blocks


def passage(shown: Shown, n_tokens: int, n_features: int) -> tuple[Stretch, list[int]] | None:
    """A passage of the test split and the features that are most at home in it.

    The passage is the middle of the first window that holds `n_tokens`; features are ranked by their mean activation in
    it over that in the whole split, so that features that fire everywhere do not fill the map.
    """
    sae, store, split, windows, _ = shown.reading
    long = np.flatnonzero(windows.length.numpy() > n_tokens)
    if not len(long):
        return None
    first = int(np.searchsorted(store.positions(split), int(long[0]) * windows.n_ctx))
    middle = first + int(windows.length[int(long[0])]) // 2
    before = n_tokens // 2
    found = stretch(shown.reading, middle, before, n_tokens - before - 1, torch.arange(sae.d_sae))
    usual = (shown.features["rate"] * shown.features["mean_act"]).fillna(0).to_numpy(np.float64)
    here = found.feature_acts.mean(axis=0)
    score = np.where(
        (usual > 0) & (shown.features["n_firings"].to_numpy() > n_tokens), here / np.maximum(usual, 1e-12), 0
    )
    order = [int(feature) for feature in np.argsort(-score, kind="stable")[:n_features] if here[feature] > 0]
    order.sort(key=lambda feature: int(found.feature_acts[:, feature].argmax()))
    return Stretch(found.tokens, found.feature_acts[:, order], found.document), order


def concept_cosines(shown: Shown, concepts: Sequence[str], features: Sequence[int]) -> npt.NDArray[np.float64]:
    """Cosines [concept, feature] of the concepts' mean differences on fit tokens and decoder directions."""
    names = [concept.name for concept in read_concepts()]
    columns = [names.index(concept) for concept in concepts]
    sae, store = shown.reading.sae, shown.reading.store

    def batches() -> Iterator[tuple[torch.Tensor, npt.NDArray[np.bool_]]]:
        start = 0
        for x in store.batches("fit", BATCH):
            positions = store.positions("fit", start, start + len(x))
            start += len(x)
            yield x, read_labels("fit", positions)[:, columns]

    directions = torch.nn.functional.normalize(mean_differences(batches()), dim=1)
    decoder = torch.nn.functional.normalize(sae.W_dec[torch.tensor(features, dtype=torch.int64)], dim=1)
    return (directions @ decoder.T).double().numpy()


DATA = Path("data")


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
    return {
        arm: table[
            [
                results.levels.get((arm, seed)) == level
                for seed, level in zip(table["seed"], table["level"], strict=True)
            ]
        ]
        for arm, table in found.items()
    }


def single_features(results: Results, arm: str, size: Size, features: dict[str, pd.DataFrame]) -> list[Block]:
    """What is shown of the features of one SAE: heat map, feature map, contexts."""
    seed = results.seeds[0]
    level = results.levels[arm, seed]
    member = member_at(arm, seed, level)
    shown = Shown(read_along(member), of_member(features[arm], member).sort_values("feature").reset_index(drop=True))
    text = (
        f"Features of `{arm}`, seed {seed}, level {level}, spread evenly over the ranks of specialisation, from the "
        "most to the least specialised, so that the sample does not flatter. Each line is a test document; shading "
        "is the activation relative to the strongest one."
    )
    maps = [heat_map(shown, size.n_tokens), feature_map(shown, member)]
    return [
        *(figure for figure in maps if figure is not None),
        Text(text),
        *contexts(shown, size.n_features, size.n_contexts, size.n_tokens),
    ]


def read_along(member: Member) -> Reading:
    """An SAE with the test split."""
    windows, store = read_windows("test"), open_store(revision(member.arm, member.seed))
    return Reading(load_sae(member.directory), store, "test", windows, read_texts(windows))


def of_member(table: pd.DataFrame, member: Member) -> pd.DataFrame:
    """The rows of an arm's table that are about one SAE."""
    return table[(table["seed"] == member.seed) & (table["level"] == member.level)]


def heat_map(shown: Shown, n_tokens: int) -> Figure | None:
    """The activations of features along a passage, or None if no window is long enough for one."""
    most_at_home = passage(shown, n_tokens, MAX_ROWS)
    if most_at_home is None:
        return None
    best = zip(shown.features["feature"], shown.features["best_concept"], strict=True)
    labels = {int(feature): str(concept) for feature, concept in best if isinstance(concept, str)}
    largest = dict(zip(shown.features["feature"].astype(int), shown.features["max_act"].astype(float), strict=True))
    return single.heat_map(*most_at_home, labels, largest)


def feature_map(shown: Shown, member: Member) -> Figure | None:
    """The cosines of the best detected concepts with the features that detect them, or None if there are none."""
    best = of_member(read_parquet(DATA / "interpret" / member.arm / "concepts.parquet"), member)
    best = best[(best["basis"] == "sae") & best["best_feature"].notna()]
    best = best.sort_values(["cc_f1", "concept"], ascending=[False, True]).head(MAX_ROWS)
    if best.empty:
        return None
    names, chosen = [str(name) for name in best["concept"]], [int(feature) for feature in best["best_feature"]]
    cosines = concept_cosines(shown, names, chosen)
    return single.feature_map(cosines, names, [str(feature) for feature in chosen], member.arm)


def neighbours(results: Results, arm: str) -> Figure:
    """Cosines of each direction's neighbours, for the arms on the same activations as `report.arm`."""
    seed = results.seeds[0]
    arms = [other for other in results.arms if revision(other, seed) == revision(arm, seed)]
    table = read_parquet(DATA / "embed" / "features.parquet")
    return embedding(results, table[table["arm"].isin(arms)], arms)
