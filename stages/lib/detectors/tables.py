"""The results of the concept detectors of one arm as tables and as the rows of its summary.

Apart from the stage, so that another number in the summary does not touch what is computed.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Bool

from stages.lib.concepts.labels import Concept
from stages.lib.detectors.choose import Detected
from stages.lib.detectors.coverage import always_on, averages, corrected
from stages.lib.detectors.firings import N_LEVELS
from stages.lib.io.summary import Row
from stages.lib.stats.intervals import percentile_interval

BEYOND_TOKEN = ("contextual", "syntactic")
"""Kinds of concepts that the token alone does not tell."""
BASES = ("residual", "pca")
"""The baselines whose detectors are features of another basis."""


class Key(NamedTuple):
    """An SAE of an arm."""

    level: int
    seed: int


class ProbeScores(NamedTuple):
    """Test AUROC of the probed concepts."""

    level: int
    seed: int
    k: int | None
    """Features of the probe; None for all coordinates of the activation."""
    auroc: npt.NDArray[np.float64]


class Judged(NamedTuple):
    """All results of an arm."""

    saes: dict[Key, Detected]
    baselines: dict[str, Detected]
    """Without an SAE: `token`, `probe`, `residual` and `pca`."""
    aurocs: list[ProbeScores]
    concepts: list[Concept]
    prevalence: npt.NDArray[np.float64]
    """On test, [concept]."""
    at: Key
    """The level and seed under which stands what does not depend on the SAE."""

    def contextual(self) -> Bool[np.ndarray, " concept"]:
        """Concepts that need more than the token, and nothing that comes after it."""
        return np.array([one.kind in BEYOND_TOKEN and not one.needs_lookahead for one in self.concepts])


def _concept_rows(judged: Judged, detected: Detected, basis: str, key: Key) -> pd.DataFrame:
    """One row a concept; low and high belong to f1."""
    found, f0, choice = detected
    assert choice is not None, f"{basis} has no features"
    token = judged.baselines["token"].score.f1
    cc = corrected(found.f1, f0)
    low, high = np.quantile(found.resampled, [0.025, 0.975], axis=0)
    table = {
        "concept": [one.name for one in judged.concepts],
        "kind": [one.kind for one in judged.concepts],
        "needs_lookahead": [one.needs_lookahead for one in judged.concepts],
        "prevalence": judged.prevalence,
        "best_feature": choice.feature,
        "threshold": choice.level / N_LEVELS,
        "f1_validation": choice.score,
        "f1": found.f1,
        "f1_low": low,
        "f1_high": high,
        "f1_token": token,
        "f1_probe": judged.baselines["probe"].score.f1,
        "f1_chance": f0,
        "cc_f1": np.maximum(cc, 0),
        "cc_f1_unfloored": cc,
        "cc_f1_contextual": np.maximum(corrected(found.f1, np.maximum(f0, token)), 0),
        "mcc": found.mcc,
    }
    return pd.DataFrame(table).assign(basis=basis, level=key.level, seed=key.seed)


def concept_table(judged: Judged) -> pd.DataFrame:
    """One row a concept for each SAE."""
    tables = [_concept_rows(judged, found, "sae", key) for key, found in judged.saes.items()]
    return pd.concat(tables, ignore_index=True)


def basis_table(judged: Judged) -> pd.DataFrame:
    """One row a concept for each other basis, with the columns of `concept_table`."""
    tables = [_concept_rows(judged, judged.baselines[name], name, judged.at) for name in BASES]
    return pd.concat(tables, ignore_index=True)


def probe_table(aurocs: list[ProbeScores], concepts: list[str]) -> pd.DataFrame:
    """One row a concept and probe; `k` is missing for the dense probe."""
    tables = [
        pd.DataFrame({"concept": concepts, "auroc": one.auroc}).assign(
            k=pd.array([one.k] * len(concepts), "Int64"), level=one.level, seed=one.seed
        )
        for one in aurocs
    ]
    if not tables:  # no concept has enough examples
        return pd.DataFrame(columns=["concept", "auroc", "k", "level", "seed"])
    return pd.concat(tables, ignore_index=True)


def _averages(judged: Judged, detected: Detected, key: Key, suffix: str = "") -> Iterator[Row]:
    """The averages of one set of detectors with their intervals; those of the baselines have a suffix to their name."""
    found, f0, _ = detected
    token, mask = judged.baselines["token"].score, judged.contextual()
    resampled = averages(found.resampled, token.resampled, f0, mask)
    for name, value in averages(found.f1, token.f1, f0, mask).items():
        low, high = percentile_interval(resampled[name].tolist()) or (None, None)
        n = int(mask.sum()) if name.endswith("_contextual") else len(mask)
        yield Row(*key, name + suffix, float(value), low, high, n)


def _sae_rows(judged: Judged, detected: Detected, key: Key) -> Iterator[Row]:
    """What is measured of SAEs alone."""
    (found, f0, choice), probe = detected, judged.baselines["probe"].score
    assert choice is not None, "an SAE has features"
    ahead = np.array([one.needs_lookahead for one in judged.concepts])
    values = {
        "coverage_validation": float(choice.score.mean()),
        "chance_f1": float(f0.mean()),
        "mcc": float(found.mcc.mean()),
    }
    for name, value in values.items():
        yield Row(*key, name, value, n=len(ahead))
    if ahead.any():
        cc = np.maximum(corrected(found.f1, f0)[ahead], 0)
        yield Row(*key, "cc_coverage_lookahead", float(cc.mean()), n=int(ahead.sum()))
    if probe.f1.any():
        below = probe.resampled.mean(1)
        ratios = found.resampled.mean(1)[below > 0] / below[below > 0]
        low, high = percentile_interval(ratios.tolist()) or (None, None)
        ratio = float(found.f1.mean() / probe.f1.mean())
        yield Row(*key, "f1_over_probe", ratio, low, high, len(ahead))


def _lookup_rows(judged: Judged) -> Iterator[Row]:
    """What the token alone tells."""
    lookup, mask = judged.baselines["token"].score, judged.contextual()
    low, high = percentile_interval(lookup.resampled.mean(1).tolist()) or (None, None)
    yield Row(*judged.at, "token_lookup_f1", float(lookup.f1.mean()), low, high, len(mask))
    if mask.any():
        low, high = percentile_interval(lookup.resampled[:, mask].mean(1).tolist()) or (None, None)
        value = float(lookup.f1[mask].mean())
        yield Row(*judged.at, "token_lookup_f1_contextual", value, low, high, int(mask.sum()))
    yield Row(*judged.at, "always_on_f1", float(always_on(judged.prevalence).mean()), n=len(mask))


def summary_rows(judged: Judged) -> Iterator[Row]:
    """Every number of the arm's summary."""
    for key, found in judged.saes.items():
        yield from _averages(judged, found, key)
        yield from _sae_rows(judged, found, key)
    for name, found in judged.baselines.items():
        if name != "token":
            yield from _averages(judged, found, judged.at, f"_{name}")
    yield from _lookup_rows(judged)
    for one in judged.aurocs:
        name = "probe_dense_auroc" if one.k is None else f"probe_k{one.k}_auroc"
        yield Row(one.level, one.seed, name, float(one.auroc.mean()), n=len(one.auroc))
