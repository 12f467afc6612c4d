"""How the firing rate of features relates to how specialised they are (`stages.lib.features.specialisation`).

Sign and size depend on the measure, so all of `MEASURES` are computed and which one decides is declared in
`params.yaml` (`frequency.endpoint`). Each is Spearman's correlation with log10 p over the resolved features of one SAE;
against a random decoder it is read in `stages.lib.features.indicator`. Corrected for unreliability,

    rho_true = rho / sqrt(rel_p rel_S)                                                              (Spearman 1904)

with the rank correlations between validation and test as reliabilities, for the calibrated MCC.

A relation that turns (rare and frequent features both unspecialised, say) has a correlation near 0, so those of
`SHAPED` are also measured on either side of the median rate; opposite signs, both established, make a turn (the
two-lines test, Simonsohn 2018, doi 10.1177/2515245918805755, with a breakpoint fixed in advance and ranks for values).
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
    "spec_spearman_stability_matched": "stability_matched",
    "spec_spearman_chance": "mcc_chance",
}
"""What is correlated with log10 p; the last shows how much the level of chance varies with frequency."""
SHAPED = ("spec_spearman", "spec_spearman_purity", "spec_spearman_entropy")
"""Those that are also measured below and above the median rate, `_below` and `_above`."""
COVARIATES = ["mean_act", "max_act", "encoder_norm", "encoder_decoder_cosine"]
"""Held constant in `spec_partial_spearman`; the number of firings is not among them, since it is the rate."""
CHANCE = 0.05
"""The p with shifted labels up to which a feature's concept is one; it takes 19 shifts to reach it."""
N_FOLDS = 5
"""Folds of features for the cross-validated optimum of `frequency_auroc`."""
N_CANDIDATES = 21
"""Quantiles of log10 p that are tried as the optimum."""
MIN_SPECIALISED = 100
"""Specialised features from which there is an `auroc_frequency`. With labels at random among 512 features it has a
standard deviation of 0.045 at 100, 0.07 at 36 and 0.14 at 10, by simulation: with fewer, 0.6 looks like chance."""


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


def halves(
    x: Float[np.ndarray, " feature"], y: Float[np.ndarray, " feature"], n_resamples: int, generator: np.random.Generator
) -> dict[str, Relation]:
    """`correlation` over the features with x up to the median (`below`) and over the others (`above`)."""
    lower = x <= np.median(x) if len(x) else np.zeros(0, np.bool_)
    found = {
        name: correlation(x[part], y[part], n_resamples, generator)
        for name, part in (("below", lower), ("above", ~lower))
    }
    return {name: value for name, value in found.items() if value is not None}


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

    `auroc_frequency` tells features with a calibrated MCC of at least `specialised_from` by frequency alone, if there
    are `MIN_SPECIALISED`; `beyond_chance_fraction` is the share whose MCC has a p of at most `CHANCE` with shifted
    labels; `log_rate_sd` the spread of log10 p, in dex, which a correlation depends on.
    """
    log_rate = np.log10(table["rate"].to_numpy())
    values = {name: table[column].to_numpy(np.float64) for name, column in MEASURES.items()}
    found = {name: correlation(log_rate, value, n_resamples, generator) for name, value in values.items()}
    shapes = {
        f"{name}_{side}": one
        for name in SHAPED
        for side, one in halves(log_rate, values[name], n_resamples, generator).items()
    }
    measured = {
        name: Relation(value, None, len(table))
        for name, value in _singles(table, log_rate, found["spec_spearman"], specialised_from).items()
        if value is not None
    }
    return {name: value for name, value in found.items() if value is not None} | shapes | measured


def _singles(
    table: pd.DataFrame, log_rate: Float[np.ndarray, " feature"], rho: Relation | None, specialised_from: float
) -> dict[str, float | None]:
    """The numbers without an interval over features; `rho` is that of the calibrated MCC."""
    if table.empty:
        return {}
    score = table["mcc_calibrated"].to_numpy()
    specialised = score >= specialised_from
    reliability = spearman(table["mcc_validation"].to_numpy(), table["mcc"].to_numpy())
    rate_reliability = spearman(table["rate_validation"].to_numpy(), table["rate"].to_numpy())
    singles = {
        "spec_partial_spearman": partial_spearman(log_rate, score, table[COVARIATES].to_numpy(np.float64)),
        "spec_reliability": reliability,
        "specialised_fraction": float(specialised.mean()),
        "n_specialised": float(specialised.sum()),
        "beyond_chance_fraction": float((table["mcc_p"] <= CHANCE).mean()),
        "log_rate_sd": float(log_rate.std()),
        "design_effect_median": float(table["design_effect"].median()),
    }
    if specialised.sum() >= MIN_SPECIALISED:
        singles["auroc_frequency"] = frequency_auroc(log_rate, specialised)
    if rho and reliability and rate_reliability and min(reliability, rate_reliability) > 0:
        corrected = rho.value / (reliability * rate_reliability) ** 0.5
        singles["spec_spearman_disattenuated"] = float(np.clip(corrected, -1, 1))
    return singles
