"""Where in the text features fire: their strongest tokens, and the activations of a stretch of tokens.

Reads held-out activations in the order of the text, a batch at a time; memory does not grow with the number of tokens.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.lib.activations.store import Store
from stages.lib.language.windows import Windows
from stages.lib.sae.saved import SAE


class Reading(NamedTuple):
    """One SAE with a split of held-out text that it reads."""

    sae: SAE
    store: Store
    split: str
    windows: Windows
    texts: Mapping[str, str]
    """The split's documents by id."""


class Stretch(NamedTuple):
    """Consecutive text tokens of one window with the activations of some features."""

    tokens: list[str]
    feature_acts: Float[np.ndarray, "token feature"]
    document: str


def strongest_rows(
    batches: Iterable[Float[Tensor, "_ d_in"]], sae: SAE, features: Int[Tensor, " feature"], n: int
) -> tuple[Float[Tensor, "feature rank"], Int[Tensor, "feature rank"]]:
    """For each feature its `n` largest activations, descending, and the rows where they are."""
    values = torch.zeros(len(features), 0)
    rows = torch.zeros(len(features), 0, dtype=torch.int64)
    start = 0
    for x in batches:
        feature_acts = sae.encode(x)[:, features].T
        here = torch.arange(start, start + len(x)).expand(len(features), -1)
        start += len(x)
        values, rows = torch.cat([values, feature_acts], dim=1), torch.cat([rows, here], dim=1)
        values, order = values.topk(min(n, values.shape[1]), dim=1)
        rows = rows.gather(1, order)
    return values, rows


def one_per_document(
    values: Float[Tensor, " rank"], rows: Int[Tensor, " rank"], documents: Int[np.ndarray, " rank"], n: int
) -> list[int]:
    """The first `n` rows with a positive activation that lie in documents of their own."""
    seen: set[int] = set()
    chosen: list[int] = []
    for value, row, document in zip(values.tolist(), rows.tolist(), documents.tolist(), strict=True):
        if value > 0 and document not in seen and len(chosen) < n:
            seen.add(document)
            chosen.append(row)
    return chosen


def stretch(reading: Reading, row: int, before: int, after: int, features: Int[Tensor, " feature"]) -> Stretch:
    """The tokens around a row, as far as they are in the same window, with the activations of `features`."""
    sae, store, split, windows, texts = reading
    first = max(0, row - before)
    last = min(store.n_rows(split), row + after + 1)
    positions = store.positions(split, first, last)
    same = positions // windows.n_ctx == positions[row - first] // windows.n_ctx
    # Rows are in text order, so that those of one window are consecutive.
    first += int(np.flatnonzero(same)[0])
    positions = positions[same]
    x = store.rows(split, first, first + len(positions))
    window = int(positions[0]) // windows.n_ctx
    document = windows.document_ids[int(windows.document[window])]
    text = texts[document]
    start, end = windows.start.flatten(), windows.end.flatten()
    tokens = [text[int(start[p]) : int(end[p])] for p in positions]
    return Stretch(tokens, sae.encode(x)[:, features].double().numpy(), document)
