"""Whether firing frequency tells more about a trained dictionary than about one whose directions are random.

For a measure of specialisation S, an arm and a seed s, rho_s is Spearman's correlation of log10 p and S over the
resolved features. A random decoder has such correlations too, since bounds between the two are arithmetic (a feature
that fires more often than any token does must fire on several), so what counts is

    Delta = mean over seeds of (rho_s of the arm - rho_s of the random decoder, same seed)

Its interval is for other seeds and for other features at once. With s^2 the variance of the seeds' differences, v the
mean of their variances when features are resampled within each SAE, and n seeds,

    Delta -+ t_{.975, nu} sqrt((s^2 + v) / n),        nu = (s^2 + v)^2 / (s^4 / (n - 1))       (Satterthwaite 1946)

s^2 already holds v, which makes up for its few degrees of freedom. By simulation with three seeds it covers 99, 96, 95
and 93 % where the seeds' own variance is 0, 1, 3 and 10 times v, resampling seeds and then features 97, 92, 89 and
79 %. With one seed it is that of the features alone. It says nothing about other texts or language models.

The verdict is declared in `params.yaml`: frequency is a sign of specialisation if, by the measure
`endpoint`, |Delta| is at least `least_difference`, with the same sign and an interval without 0, in `least_arms` arms.
It is about features in the range of rates that the dictionary and the random decoder have in common: a wider range
raises a correlation by itself, and rates of trained dictionaries are spread more widely.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveInt
from scipy.special import stdtrit

from stages.lib.io import params
from stages.lib.io.errors import UserError, nearest
from stages.lib.io.tables import read_parquet
from stages.lib.run.seeds import numpy_generator
from stages.lib.stats.correlation import resampled_spearman, spearman
from stages.lib.stats.intervals import CONFIDENCE, Interval, resample_counts

FREQUENCY, ATTRIBUTION = Path("data/frequency"), Path("data/attribution")
ESTIMATORS = ("mcc_calibrated", "mcc", "f1", "purity", "entropy_rarefied", "stability", "stability_matched", "effect",
              "kurtosis")  # fmt: skip
"""The measures that are set against the random decoder; `effect` is there where the attribution has it."""
MIN_EFFECTS = 5
"""Firings in the windows of the attribution from which a feature's mean effect counts."""
COMMON_RANGE = (0.05, 0.95)
"""Quantiles of log10 p that bound the range of rates in which two SAEs are compared again."""


class IndicatorParams(params.Params):
    """What of the section `frequency` was declared before the results, and what the intervals take."""

    random_decoder: str
    """The arm whose decoder is random."""
    endpoint: str
    """The measure that decides, a column of `data/frequency/<arm>/features.parquet`."""
    least_difference: Annotated[float, Field(gt=0, le=2)]
    """Difference of Spearman's correlation to the random decoder's from which frequency counts as a sign."""
    least_arms: PositiveInt
    """Arms, controls apart, in which it must be so."""
    n_resamples: Annotated[int, Field(ge=2)]
    """Resamples of documents behind each rate's error, and of features behind each interval."""
    seed: NonNegativeInt
    """Of the windows, shifts and resamples."""


def read_indicator_params(arms: Sequence[str]) -> IndicatorParams:
    """The declared part of the section `frequency`.

    Raises:
        UserError: if the random decoder is no arm or the endpoint no measure.
    """
    raw = {name: params.value(f"frequency.{name}") for name in IndicatorParams.model_fields}
    own = params.check("frequency", raw, IndicatorParams)
    for name, value, known, what in (
        ("random_decoder", own.random_decoder, arms, "no arm of saes"),
        ("endpoint", own.endpoint, ESTIMATORS, "no measure"),
    ):
        if value not in known:
            raise UserError(f"{params.PARAMS_FILE}: frequency.{name} is {value!r}, {what}{nearest(value, [*known])}")
    return own


def feature_tables(arms: Sequence[str], levels: Mapping[tuple[str, int], int]) -> dict[str, pd.DataFrame]:
    """The resolved features of each arm at the level that `levels` names for each seed.

    With `effect`, the mean |effect on the loss| of a firing in nats, if the attribution of the arm has it: the table
    `data/attribution/<arm>/features.parquet` with the columns seed, level, feature, effect, n_firings.
    """
    found = {}
    for arm in arms:
        table = read_parquet(FREQUENCY / arm / "features.parquet")
        wanted = [levels.get((arm, seed)) == level for seed, level in zip(table["seed"], table["level"], strict=True)]
        table = table[table["resolved"] & np.array(wanted, np.bool_)]
        path = ATTRIBUTION / arm / "features.parquet"
        if path.exists():
            effects = read_parquet(path)
            effects = effects[effects["n_firings"] >= MIN_EFFECTS]
            keys = ["seed", "level", "feature"]
            table = table.merge(effects[[*keys, "effect"]], on=keys, how="left")
        found[arm] = table
    return found


class Sample(NamedTuple):
    """The features of one SAE that have a score."""

    log_rate: npt.NDArray[np.float64]
    score: npt.NDArray[np.float64]

    def within(self, low: float, high: float) -> "Sample":
        """Those with a rate in a range."""
        inside = (self.log_rate >= low) & (self.log_rate <= high)
        return Sample(self.log_rate[inside], self.score[inside])


def samples(table: pd.DataFrame, column: str) -> dict[int, Sample]:
    """The features of each seed; no seed if the table lacks the column."""
    if column not in table:
        return {}
    found = {}
    for seed, own in table.groupby("seed"):
        log_rate, score = np.log10(own["rate"].to_numpy(np.float64)), own[column].to_numpy(np.float64)
        defined = np.isfinite(log_rate) & np.isfinite(score)
        found[int(str(seed))] = Sample(log_rate[defined], score[defined])
    return found


class Seed(NamedTuple):
    """One seed's correlations and the variance of their difference over resampled features."""

    own: float
    random: float
    variance: float
    n: int
    """Features of the arm."""


def seed_difference(own: Sample, random: Sample, n_resamples: int, generator: np.random.Generator) -> Seed | None:
    """The correlations of an SAE and of a random decoder; None where one is not defined."""
    values, variance = [], 0.0
    for sample in (own, random):
        value = spearman(*sample)
        if value is None:
            return None
        resampled = resampled_spearman(*sample, resample_counts(len(sample.score), n_resamples, generator))
        values.append(value)
        variance += float(resampled.var(ddof=1))
    return Seed(values[0], values[1], variance, len(own.score))


def interval(differences: Float[np.ndarray, " seed"], variances: Float[np.ndarray, " seed"]) -> Interval:
    """The 95 % interval of the mean of the seeds' differences, by the formula above; cut at -2 and 2."""
    n, v = len(differences), float(variances.mean())
    spread = float(differences.var(ddof=1)) if n > 1 else 0.0
    # Without spread the seeds bring no uncertainty of their own, and Student's t is the normal.
    freedom = min((spread + v) ** 2 / (spread**2 / (n - 1)), 1e9) if spread > 0 else 1e9
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * float(np.sqrt((spread + v) / n))
    mean = float(differences.mean())
    return Interval(max(mean - half, -2.0), min(mean + half, 2.0))


def contrast(
    own: Mapping[int, Sample], random: Mapping[int, Sample], n_resamples: int, generator: np.random.Generator
) -> dict[str, float]:
    """Delta over the seeds that both have, with its interval and the two mean correlations; nothing without a seed."""
    pairs = (seed_difference(own[seed], random[seed], n_resamples, generator) for seed in sorted(own.keys() & random))
    seeds = [pair for pair in pairs if pair is not None]
    if not seeds:
        return {}
    rho, rho_random = (np.array([getattr(pair, name) for pair in seeds]) for name in ("own", "random"))
    low, high = interval(rho - rho_random, np.array([pair.variance for pair in seeds]))
    return {
        "mean": float((rho - rho_random).mean()),
        "low": low,
        "high": high,
        "n": len(seeds),
        "rho": float(rho.mean()),
        "rho_random": float(rho_random.mean()),
        "features": float(np.mean([pair.n for pair in seeds])),
    }


def common_range(
    own: Mapping[int, Sample], random: Mapping[int, Sample]
) -> tuple[dict[int, Sample], dict[int, Sample]]:
    """Both with the features in the range of rates that both have, seed by seed: a narrow one lowers a correlation."""
    found: tuple[dict[int, Sample], dict[int, Sample]] = ({}, {})
    for seed in sorted(own.keys() & random.keys()):
        pair = own[seed], random[seed]
        if min(len(sample.log_rate) for sample in pair):
            edges = np.array([np.quantile(sample.log_rate, COMMON_RANGE) for sample in pair])
            for part, sample in zip(found, pair, strict=True):
                part[seed] = sample.within(float(edges[:, 0].max()), float(edges[:, 1].min()))
    return found


def direction(cell: Mapping[str, float], least_difference: float) -> int:
    """1 or -1 if Delta is at least so large and its interval is all on that side of 0, else 0."""
    if not cell or abs(cell["mean"]) < least_difference or cell["low"] <= 0 <= cell["high"]:
        return 0
    return 1 if cell["mean"] > 0 else -1


def verdict(own: IndicatorParams, cells: Mapping[str, Mapping[str, float]], tested: Sequence[str]) -> dict[str, Any]:
    """What was declared, in how many of the tested arms each sign was found, and the sign that is, 0 for none."""
    found = [direction(cells.get(arm, {}), own.least_difference) for arm in tested]
    up, down = found.count(1), found.count(-1)
    sign = int(up >= own.least_arms) - int(down >= own.least_arms)
    declared = {name: getattr(own, name) for name in ("endpoint", "random_decoder", "least_difference", "least_arms")}
    return declared | {"n_tested": len(tested), "n_up": up, "n_down": down, "sign": sign}


def against_random(own: IndicatorParams, tables: Mapping[str, pd.DataFrame], tested: Sequence[str]) -> dict[str, Any]:
    """Every measure of every arm against the random decoder, the endpoint in the common range of rates, the verdict.

    `tables` are those of `feature_tables`; `tested` are the arms that the verdict is about.
    """
    random = tables[own.random_decoder]
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {"differences": {}, "common_range": {}}
    for measure in ESTIMATORS:
        for arm in tables:
            pair = samples(tables[arm], measure), samples(random, measure)
            pairs = {"differences": pair} | ({"common_range": common_range(*pair)} if measure == own.endpoint else {})
            for name, both in pairs.items() if arm != own.random_decoder else ():
                cell = contrast(*both, own.n_resamples, numpy_generator(own.seed, "frequency", name, measure, arm))
                if cell:
                    found[name].setdefault(measure, {})[arm] = cell
    return {**found, "verdict": verdict(own, found["common_range"].get(own.endpoint, {}), tested)}


def against_random_decoder(
    own: IndicatorParams, arms: Sequence[str], controls: Sequence[str], levels: Mapping[tuple[str, int], int]
) -> dict[str, Any]:
    """`against_random` of what `frequency` and `attribution` wrote of each arm at the level of each seed."""
    return against_random(own, feature_tables(arms, levels), [arm for arm in arms if arm not in controls])
