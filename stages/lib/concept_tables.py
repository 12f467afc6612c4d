"""The results of the concept detectors of one arm as tables and as the rows of its summary.

Apart from the stage, so that another number in the summary does not touch what is computed.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Bool, Float

from stages.lib.bootstrap import percentile_interval
from stages.lib.confusion import N_LEVELS
from stages.lib.coverage import Features, Score, always_on, averages, chance_level, corrected
from stages.lib.labelled import Batch
from stages.lib.labels import Concept
from stages.lib.summary import Row

BEYOND_TOKEN = ("contextual", "syntactic")
"""Kinds of concepts that the token alone does not tell."""


class Key(NamedTuple):
    """A set of detectors, one a concept."""

    kind: str
    """`sae`, `residual`, `pca`, `token` or `probe`."""
    level: int
    seed: int


@runtime_checkable
class Detector(Protocol):
    """What is chosen on validation and predicts on test."""

    def observe(self, batch: Batch) -> None:
        """Count a validation batch."""

    def choose(self) -> None:
        """Fix the detectors."""

    def predict(self, batch: Batch) -> Bool[np.ndarray, "token concept"]:
        """Where they fire."""


class ProbeScores(NamedTuple):
    """Test AUROC of the probed concepts."""

    level: int
    seed: int
    k: int | None
    """Features of the probe; None for all coordinates of the activation."""
    auroc: npt.NDArray[np.float64]


class Prepared(NamedTuple):
    """Detectors before they are chosen, and what was learnt on the samples."""

    detectors: dict[Key, Detector]
    null: dict[tuple[str, int], npt.NDArray[np.float64]]
    """F1 on shifted labels [shift, concept], by kind and level."""
    aurocs: list[ProbeScores]


class Judged(NamedTuple):
    """All results of an arm."""

    prepared: Prepared
    scores: dict[Key, Score]
    concepts: list[Concept]
    prevalence: npt.NDArray[np.float64]
    """On test, [concept]."""
    control: Key
    """The seed and level that stand for what does not depend on the SAE."""

    def chance(self, key: Key) -> Float[np.ndarray, " concept"]:
        """F0 without the token lookup; the fitted baselines select nothing, so only firing always counts for them."""
        null = self.prepared.null.get((key.kind, key.level))
        return always_on(self.prevalence) if null is None else chance_level(self.prevalence, null)

    def of(self, kind: str) -> Score:
        """The scores of a baseline."""
        return self.scores[self.control._replace(kind=kind)]

    def contextual(self) -> Bool[np.ndarray, " concept"]:
        """Concepts that need more than the token, and nothing that comes after it."""
        return np.array([one.kind in BEYOND_TOKEN and not one.needs_lookahead for one in self.concepts])


def concept_table(judged: Judged, kinds: tuple[str, ...]) -> pd.DataFrame:
    """One row a concept for each set of features of the given kinds; low and high belong to f1."""
    tables = []
    token, probe = judged.of("token").f1, judged.of("probe").f1
    for key, found in judged.scores.items():
        features = judged.prepared.detectors[key]
        if key.kind not in kinds or not isinstance(features, Features):
            continue
        assert features.choice is not None
        f0 = judged.chance(key)
        cc = corrected(found.f1, f0)
        low, high = np.quantile(found.resampled, [0.025, 0.975], axis=0)
        table = {
            "concept": [one.name for one in judged.concepts],
            "kind": [one.kind for one in judged.concepts],
            "needs_lookahead": [one.needs_lookahead for one in judged.concepts],
            "prevalence": judged.prevalence,
            "best_feature": features.choice.feature,
            "threshold": features.choice.level / N_LEVELS,
            "f1_validation": features.choice.score,
            "f1": found.f1,
            "f1_low": low,
            "f1_high": high,
            "f1_token": token,
            "f1_probe": probe,
            "f1_chance": f0,
            "cc_f1": np.maximum(cc, 0),
            "cc_f1_unfloored": cc,
            "cc_f1_contextual": np.maximum(corrected(found.f1, np.maximum(f0, token)), 0),
            "mcc": found.mcc,
        }
        tables.append(pd.DataFrame(table).assign(basis=key.kind, level=key.level, seed=key.seed))
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


def _averages(judged: Judged, key: Key) -> Iterator[Row]:
    """The averages of one set of detectors with their intervals; all but the SAEs' have the kind in the name."""
    found, token, mask, f0 = judged.scores[key], judged.of("token"), judged.contextual(), judged.chance(key)
    resampled = averages(found.resampled, token.resampled, f0, mask)
    suffix = "" if key.kind == "sae" else f"_{key.kind}"
    for name, value in averages(found.f1, token.f1, f0, mask).items():
        low, high = percentile_interval(resampled[name].tolist()) or (None, None)
        n = int(mask.sum()) if name.endswith("_contextual") else len(mask)
        yield Row(key.level, key.seed, name + suffix, float(value), low, high, n)


def _sae_rows(judged: Judged, key: Key) -> Iterator[Row]:
    found, features, probe = judged.scores[key], judged.prepared.detectors[key], judged.of("probe")
    assert isinstance(features, Features) and features.choice is not None
    f0, ahead = judged.chance(key), np.array([one.needs_lookahead for one in judged.concepts])
    values = {
        "coverage_validation": float(features.choice.score.mean()),
        "chance_f1": float(f0.mean()),
        "mcc": float(found.mcc.mean()),
    }
    for name, value in values.items():
        yield Row(key.level, key.seed, name, value, n=len(ahead))
    if ahead.any():
        cc = np.maximum(corrected(found.f1, f0)[ahead], 0)
        yield Row(key.level, key.seed, "cc_coverage_lookahead", float(cc.mean()), n=int(ahead.sum()))
    if probe.f1.any():
        below = probe.resampled.mean(1)
        ratios = found.resampled.mean(1)[below > 0] / below[below > 0]
        low, high = percentile_interval(ratios.tolist()) or (None, None)
        ratio = float(found.f1.mean() / probe.f1.mean())
        yield Row(key.level, key.seed, "f1_over_probe", ratio, low, high, len(ahead))


def summary_rows(judged: Judged) -> Iterator[Row]:
    """Every number of the arm's summary."""
    level, seed, mask = judged.control.level, judged.control.seed, judged.contextual()
    for key in judged.scores:
        if key.kind != "token":
            yield from _averages(judged, key)
        if key.kind == "sae":
            yield from _sae_rows(judged, key)
    lookup = judged.of("token")
    low, high = percentile_interval(lookup.resampled.mean(1).tolist()) or (None, None)
    yield Row(level, seed, "token_lookup_f1", float(lookup.f1.mean()), low, high, len(mask))
    if mask.any():
        low, high = percentile_interval(lookup.resampled[:, mask].mean(1).tolist()) or (None, None)
        value = float(lookup.f1[mask].mean())
        yield Row(level, seed, "token_lookup_f1_contextual", value, low, high, int(mask.sum()))
    yield Row(level, seed, "always_on_f1", float(always_on(judged.prevalence).mean()), n=len(mask))
    for one in judged.prepared.aurocs:
        name = "probe_dense_auroc" if one.k is None else f"probe_k{one.k}_auroc"
        yield Row(one.level, one.seed, name, float(one.auroc.mean()), n=len(one.auroc))
