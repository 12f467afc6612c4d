"""How the firing rate of features relates to how specialised they are (`stages.lib.features.specialisation`).

The primary measure is fixed in advance, since sign and size depend on it: Spearman's correlation of log10 p with the
shift-calibrated MCC of the feature's concept. The others are for sensitivity. Corrected for unreliability,

    rho_true = rho / sqrt(rel_p rel_S)                                                              (Spearman 1904)

with the rank correlations between validation and test as reliabilities.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from stages.lib.stats.correlation import auroc, mean_ranks, pearson, resampled_spearman, spearman
from stages.lib.stats.intervals import Interval, percentile_interval, resample_counts

MEASURES = {
    "spec_spearman": "mcc_calibrated",
    "spec_spearman_mcc": "mcc",
    "spec_spearman_f1": "f1",
    "spec_spearman_cc": "cc_f1",
    "spec_spearman_purity": "purity",
    "spec_spearman_entropy": "entropy_rarefied",
    "spec_spearman_entropy_plugin": "entropy",
    "spec_spearman_kurtosis": "kurtosis",
    "spec_spearman_stability": "stability",
    "spec_spearman_chance": "mcc_chance",
}
"""The primary estimator, then the sensitivity rows; the last shows how much chance alone varies with frequency."""
COVARIATES = ["mean_act", "max_act", "encoder_norm", "encoder_decoder_cosine"]
"""Held constant in `spec_partial_spearman`; the number of firings is not among them, since it is the rate."""
N_FOLDS = 5
"""Folds of features for the cross-validated optimum of `frequency_auroc`."""
N_CANDIDATES = 21
"""Quantiles of log10 p that are tried as the optimum."""


class Relation(NamedTuple):
    """A number over features, with a bootstrap interval where it has one."""

    value: float
    interval: Interval | None
    n: int
    """How many features."""


def correlation(
    x: Float[np.ndarray, " feature"], y: Float[np.ndarray, " feature"], n_resamples: int, generator: np.random.Generator
) -> Relation | None:
    """Spearman's correlation over the features that have both numbers; the interval resamples features."""
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    value = spearman(x, y)
    if value is None:
        return None
    counts = resample_counts(len(x), n_resamples, generator)
    return Relation(value, percentile_interval(resampled_spearman(x, y, counts).tolist()), len(x))


def partial_spearman(
    x: Float[np.ndarray, " feature"], y: Float[np.ndarray, " feature"], given: Float[np.ndarray, "feature covariate"]
) -> float | None:
    """Pearson's correlation of what linear regression on the covariates' ranks leaves of the ranks of x and y."""
    if len(x) < given.shape[1] + 4:  # with fewer, the regression leaves no more than a line to correlate
        return None
    design = np.column_stack([np.ones(len(x)), mean_ranks(given.T).T])
    ranks = np.column_stack([mean_ranks(x), mean_ranks(y)])
    left = ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
    return pearson(left[:, 0], left[:, 1])


def frequency_auroc(log_rate: Float[np.ndarray, " feature"], specialised: Bool[np.ndarray, " feature"]) -> float | None:
    """How well frequency alone tells specialised features: the AUROC of -|log10 p - m|, cross-validated.

    The optimum m is the quantile of log10 p with the highest AUROC on the other folds (feature i is in fold i mod 5;
    features have no order). The mean over the folds with features of both kinds on both sides, None if there is none.
    An optimum at an end of the range makes it the AUROC of frequency itself.
    """
    fold = np.arange(len(log_rate)) % N_FOLDS
    areas = []
    for held_out in range(N_FOLDS):
        train, test = fold != held_out, fold == held_out
        if not all(0 < specialised[part].sum() < part.sum() for part in (train, test)):
            continue
        candidates = np.quantile(log_rate[train], np.linspace(0, 1, N_CANDIDATES))
        closeness = -np.abs(log_rate[None, train] - candidates[:, None])
        optimum = candidates[auroc(closeness, np.broadcast_to(specialised[train], closeness.shape)).argmax()]
        areas.append(float(auroc(-np.abs(log_rate[test] - optimum), specialised[test])))
    return float(np.mean(areas)) if areas else None


def decades(
    log_rate: Float[np.ndarray, " feature"],
    score: Float[np.ndarray, " feature"],
    n_resamples: int,
    generator: np.random.Generator,
) -> list[dict[str, Any]]:
    """The median score of the features of each decade of p, with a bootstrap interval over features."""
    rows: list[dict[str, Any]] = []
    decade = np.floor(log_rate).astype(int)
    for edge in np.unique(decade):
        values = score[decade == edge]
        drawn = values[generator.integers(len(values), size=(n_resamples, len(values)))]
        interval = percentile_interval(np.median(drawn, axis=1).tolist())
        assert interval is not None
        rows.append({"decade": int(edge), "median": float(np.median(values)), **interval._asdict(), "n": len(values)})
    return rows


def relation(
    table: pd.DataFrame, specialised_from: float, n_resamples: int, generator: np.random.Generator
) -> dict[str, Relation]:
    """All numbers about the resolved features of one SAE; those that are not defined are left out.

    `auroc_frequency` tells features with a calibrated MCC of at least `specialised_from` by frequency alone.
    """
    log_rate = np.log10(table["rate"].to_numpy())
    score = table["mcc_calibrated"].to_numpy()
    found = {
        name: correlation(log_rate, table[column].to_numpy(np.float64), n_resamples, generator)
        for name, column in MEASURES.items()
    }
    reliability = spearman(table["mcc_validation"].to_numpy(), table["mcc"].to_numpy())
    specialised = score >= specialised_from
    singles = {
        "spec_partial_spearman": partial_spearman(log_rate, score, table[COVARIATES].to_numpy(np.float64)),
        "spec_reliability": reliability,
        "auroc_frequency": frequency_auroc(log_rate, specialised),
        "specialised_fraction": float(specialised.mean()) if len(table) else None,
        "design_effect_median": float(table["design_effect"].median()) if len(table) else None,
    }
    rate_reliability = spearman(table["rate_validation"].to_numpy(), table["rate"].to_numpy())
    rho = found["spec_spearman"]
    if rho and reliability and rate_reliability and min(reliability, rate_reliability) > 0:
        corrected = rho.value / (reliability * rate_reliability) ** 0.5
        singles["spec_spearman_disattenuated"] = float(np.clip(corrected, -1, 1))
    measured = {name: Relation(value, None, len(table)) for name, value in singles.items() if value is not None}
    return {name: value for name, value in found.items() if value is not None} | measured
