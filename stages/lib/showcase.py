"""What is shown of one SAE feature by feature: strongest contexts, a heat map of a passage, a map of directions.

Reads held-out activations, tokens and texts; the numbers of the report come from elsewhere.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from stages.lib.contexts import Stretch, one_per_document, stretch, strongest_rows
from stages.lib.directions import mean_differences
from stages.lib.documents import read_documents
from stages.lib.labels import read_concepts, read_labels
from stages.lib.page import Passage, Passages
from stages.lib.saelens import SAE
from stages.lib.store import Store
from stages.lib.windows import Windows

BATCH = 8192
"""Tokens encoded at a time."""
CANDIDATES = 20
"""Strongest tokens looked at for each context shown, because contexts come from documents of their own."""


class Shown(NamedTuple):
    """One SAE with the held-out text that it is shown on."""

    sae: SAE
    store: Store
    windows: Windows
    texts: dict[str, str]
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
    values, rows = strongest_rows(shown.store.batches("test", BATCH), shown.sae, index, n_contexts * CANDIDATES)
    windows = shown.store.positions("test") // shown.windows.n_ctx
    blocks = []
    for i, feature in enumerate(features):
        documents = shown.windows.document.numpy()[windows[rows[i].numpy()]].astype(np.int64)
        passages = []
        for row in one_per_document(values[i], rows[i], documents, n_contexts):
            found = stretch(
                row, n_tokens * 2 // 3, n_tokens // 3, store=shown.store, split="test", windows=shown.windows,
                texts=shown.texts, sae=shown.sae, features=index[i : i + 1],
            )  # fmt: skip
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
    long = np.flatnonzero(shown.windows.length.numpy() > n_tokens)
    if not len(long):
        return None
    first = int(np.searchsorted(shown.store.positions("test"), int(long[0]) * shown.windows.n_ctx))
    middle = first + int(shown.windows.length[int(long[0])]) // 2
    every = torch.arange(shown.sae.d_sae)
    found = stretch(
        middle, n_tokens // 2, n_tokens - n_tokens // 2 - 1, store=shown.store, split="test", windows=shown.windows,
        texts=shown.texts, sae=shown.sae, features=every,
    )  # fmt: skip
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

    def batches() -> Iterator[tuple[torch.Tensor, npt.NDArray[np.bool_]]]:
        start = 0
        for x in shown.store.batches("fit", BATCH):
            positions = shown.store.positions("fit", start, start + len(x))
            start += len(x)
            yield x, read_labels("fit", positions)[:, columns]

    directions = torch.nn.functional.normalize(mean_differences(batches()), dim=1)
    decoder = torch.nn.functional.normalize(shown.sae.W_dec[torch.tensor(features, dtype=torch.int64)], dim=1)
    return (directions @ decoder.T).double().numpy()
