"""The results of the concept detectors of one arm as tables and as the rows of its summary.

Apart from the stage, so that another number in the summary does not touch what is computed.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Bool

from stages.lib.concepts.labels import Concept
from stages.lib.detectors.choose import Detected
from stages.lib.detectors.coverage import always_on, averages, beyond, corrected
from stages.lib.detectors.firings import N_LEVELS
from stages.lib.detectors.ngram_lookup import LOOKUPS
from stages.lib.io.summary import Row
from stages.lib.stats.intervals import percentile_interval

FAR = ("contextual", "syntactic")
"""Kinds of concepts that neither the token nor the one or two words before it tell by definition."""
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
    """Without an SAE: the lookups (`LOOKUPS`), `probe`, `residual` and `pca`."""
    aurocs: list[ProbeScores]
    concepts: list[Concept]
    prevalence: npt.NDArray[np.float64]
    """On test, [concept]."""
    at: Key
    """The level and seed under which stands what does not depend on the SAE."""

    def contextual(self) -> Bool[np.ndarray, " concept"]:
        """Concepts that need more than the words nearby, and nothing that comes after the token."""
        return np.array([one.kind in FAR and not one.needs_lookahead for one in self.concepts])

    def lookups(self) -> dict[str, npt.NDArray[np.float64]]:
        """The F1 of the n-gram lookups, [concept]."""
        return {name: self.baselines[name].score.f1 for name in LOOKUPS}

    def resampled_lookups(self) -> dict[str, npt.NDArray[np.float64]]:
        """Their F1 on resampled documents, [resample, concept]."""
        return {name: self.baselines[name].score.resampled for name in LOOKUPS}


def _concept_rows(judged: Judged, detected: Detected, basis: str, key: Key) -> pd.DataFrame:
    """One row a concept; low and high belong to f1."""
    found, f0, choice = detected
    assert choice is not None and f0 is not None, f"{basis} has no features"
    levels = beyond(f0, judged.lookups())
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
        **{f"f1_{name}": f1 for name, f1 in judged.lookups().items()},
        "f1_probe": judged.baselines["probe"].score.f1,
        "f1_chance": f0,
        "cc_f1": np.maximum(cc, 0),
        "cc_f1_unfloored": cc,
        **{f"cc_f1_beyond_{name}": corrected(found.f1, level) for name, level in levels.items()},
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
    """The averages of one set of detectors with their intervals; those of the baselines have a suffix to their name.

    A lookup is not compared with lookups, which would be with itself.
    """
    found, f0, _ = detected
    assert f0 is not None, "baselines take the chance level of an SAE"
    mask = judged.contextual()
    resampled = averages(found.resampled, f0, judged.resampled_lookups(), mask)
    for name, value in averages(found.f1, f0, judged.lookups(), mask).items():
        of_contextual = name.endswith("_contextual") or "_beyond_" in name
        if suffix[1:] in LOOKUPS and ("_beyond_" in name or name == "gain_over_token"):
            continue
        low, high = percentile_interval(resampled[name].tolist()) or (None, None)
        yield Row(*key, name + suffix, float(value), low, high, int(mask.sum()) if of_contextual else len(mask))


def _ratio(
    above: Mapping[str, npt.NDArray[np.float64]], below: Mapping[str, npt.NDArray[np.float64]], name: str
) -> list[float]:
    """The ratios of one average where there is something below."""
    some, all_ = np.atleast_1d(above[name]), np.atleast_1d(below[name])
    ratios: list[float] = (some[all_ > 0] / all_[all_ > 0]).tolist()
    return ratios


def _share_rows(judged: Judged, detected: Detected, key: Key) -> Iterator[Row]:
    """The SAE's averages as shares of the dense probe's, both corrected by the SAE's chance level."""
    (found, f0, _), probe, mask = detected, judged.baselines["probe"].score, judged.contextual()
    assert f0 is not None, "an SAE has a chance level"
    own, ceiling = (averages(one.f1, f0, judged.lookups(), mask) for one in (found, probe))
    own_resampled, ceiling_resampled = (
        averages(one.resampled, f0, judged.resampled_lookups(), mask) for one in (found, probe)
    )
    for name in ("cc_coverage", "cc_beyond_token", "cc_beyond_ngrams"):
        if name in own and (value := _ratio(own, ceiling, name)):
            low, high = percentile_interval(_ratio(own_resampled, ceiling_resampled, name)) or (None, None)
            n = int(mask.sum()) if "_beyond_" in name else len(mask)
            yield Row(*key, f"{name}_over_probe", value[0], low, high, n)


def _sae_rows(judged: Judged, detected: Detected, key: Key) -> Iterator[Row]:
    """What is measured of SAEs alone."""
    found, f0, choice = detected
    assert choice is not None and f0 is not None, "an SAE has features"
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
    yield from _share_rows(judged, detected, key)


def summary_rows(judged: Judged) -> Iterator[Row]:
    """Every number of the arm's summary."""
    for key, found in judged.saes.items():
        yield from _averages(judged, found, key)
        yield from _sae_rows(judged, found, key)
    for name, found in judged.baselines.items():
        yield from _averages(judged, found, judged.at, f"_{name}")
    yield Row(*judged.at, "always_on_f1", float(always_on(judged.prevalence).mean()), n=len(judged.concepts))
    for one in judged.aurocs:
        name = "probe_dense_auroc" if one.k is None else f"probe_k{one.k}_auroc"
        yield Row(one.level, one.seed, name, float(one.auroc.mean()), n=len(one.auroc))
