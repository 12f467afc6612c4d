"""Arms at equal L0: a metric read off the targets that one seed's SAEs measured, and tables of arms made of that.

The levels of an arm land near a target, not on it, so the value there is interpolated in log L0 by PCHIP (Fritsch and
Carlson 1980), which keeps monotone data monotone; FVU is interpolated as log FVU, since frontiers are close to straight
lines there. A target outside the measured range has no value.

Tables are made from tidy rows with the columns arm, level, seed, metric, value. Each seed is interpolated by itself,
then seeds are averaged with a t-interval; differences to the reference arm are paired by seed. A cell that no seed
reaches is absent, and `missing` says why.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from stages.lib.stats.intervals import estimate, holm, p_value, paired


def at_l0(l0: Sequence[float], values: Sequence[float], target: float, tolerance: float, log: bool) -> float | None:
    """The value at L0 = `target`, or None outside the measured range.

    Args:
        l0: the measured L0 of each level, in any order; levels with an L0 of 0 are left out.
        values: the metric at each level.
        target: the L0 wanted.
        tolerance: a target beyond the last level by at most this fraction takes that level's value, because a TopK of
            k = 32 measures an L0 a little under 32.
        log: whether the logarithm of the values is interpolated.
    """
    merged: dict[float, list[float]] = {}
    for x, y in zip(l0, values, strict=True):
        if x > 0 and math.isfinite(y) and (y > 0 or not log):
            merged.setdefault(float(x), []).append(float(y))
    points = sorted((x, float(np.mean(ys))) for x, ys in merged.items())
    if not points or not points[0][0] / (1 + tolerance) <= target <= points[-1][0] * (1 + tolerance):
        return None
    inside = min(max(target, points[0][0]), points[-1][0])
    if len(points) == 1:
        return points[0][1]
    at, measured = np.log([point[0] for point in points]), np.array([point[1] for point in points])
    result = float(PchipInterpolator(at, np.log(measured) if log else measured)(np.log(inside)))
    return math.exp(result) if log else result


Nested = dict[str, dict[str, dict[str, Any]]]


def key(target: float) -> str:
    """The name of a target in tables, such as `l0-16`."""
    return f"l0-{target:g}"


def middle(targets: Sequence[float]) -> float:
    """The target in the middle of the sorted list (the upper one of two)."""
    return sorted(targets)[len(targets) // 2]


def nearest_levels(rows: pd.DataFrame, target: float) -> dict[tuple[str, int], int]:
    """For each (arm, seed) the level whose L0 is nearest to the target on a log scale."""
    chosen: dict[tuple[str, int], int] = {}
    measured = rows[(rows["metric"] == "l0") & (rows["value"] > 0)]
    keys: Any
    for keys, group in measured.groupby(["arm", "seed"]):
        distance = np.abs(np.log(group["value"].to_numpy(float)) - np.log(target))
        chosen[str(keys[0]), int(keys[1])] = int(group["level"].to_numpy()[int(distance.argmin())])
    return chosen


def matched_values(rows: pd.DataFrame, targets: Sequence[float], tolerance: float) -> pd.DataFrame:
    """One row per arm, seed, metric and target that can be interpolated: arm, seed, metric, l0, value."""
    l0 = rows[rows["metric"] == "l0"].set_index(["arm", "seed", "level"])["value"].to_dict()
    records = []
    for (arm, seed, metric), group in rows.groupby(["arm", "seed", "metric"], sort=False):
        points = [
            (l0[arm, seed, level], value)
            for level, value in zip(group["level"], group["value"], strict=True)
            if (arm, seed, level) in l0
        ]
        for target in targets:
            value = at_l0(
                [x for x, _ in points], [y for _, y in points], target, tolerance, log=str(metric).startswith("fvu")
            )
            if value is not None:
                records.append({"arm": arm, "seed": seed, "metric": metric, "l0": float(target), "value": value})
    return pd.DataFrame(records, columns=["arm", "seed", "metric", "l0", "value"])


def _per_seed(values: pd.DataFrame, metric: str, target: float) -> dict[str, dict[int, float]]:
    chosen = values[(values["metric"] == metric) & (values["l0"] == target)]
    return {str(arm): dict(zip(g["seed"], g["value"], strict=True)) for arm, g in chosen.groupby("arm", sort=False)}


def _cell(values: Sequence[float], metric: str = "") -> dict[str, float | int]:
    return {name: value for name, value in estimate(values, metric)._asdict().items() if value is not None}


def means(values: pd.DataFrame, metrics: Sequence[str], targets: Sequence[float]) -> Nested:
    """{target: {metric: {arm: mean, low, high, n}}} for every cell that has a value."""
    table: Nested = {}
    for target in targets:
        for metric in metrics:
            for arm, seeds in _per_seed(values, metric, target).items():
                table.setdefault(key(target), {}).setdefault(metric, {})[arm] = _cell(list(seeds.values()), metric)
    return table


def differences(
    values: pd.DataFrame, metrics: Sequence[str], targets: Sequence[float], reference: str, exempt: Sequence[str]
) -> Nested:
    """Paired differences to the reference arm, as `means`, with p and p_holm where they are defined.

    Holm's family is one metric at one target over the arms that are compared, but not those `exempt` (controls).
    """
    table: Nested = {}
    for target in targets:
        for metric in metrics:
            seeds = _per_seed(values, metric, target)
            p_values = {}
            for arm in seeds.keys() - {reference}:
                difference = paired(seeds[arm], seeds.get(reference, {}))
                if not difference:
                    continue
                table.setdefault(key(target), {}).setdefault(metric, {})[arm] = _cell(difference)
                p = p_value(difference)
                if p is not None and arm not in exempt:
                    p_values[arm] = p
            for arm, adjusted in holm(p_values).items():
                table[key(target)][metric][arm] |= {"p": p_values[arm], "p_holm": adjusted}
    return table


def missing(rows: pd.DataFrame, values: pd.DataFrame, metrics: Sequence[str], targets: Sequence[float]) -> Nested:
    """{target: {metric: {arm: why}}} for the cells of `means` that are absent or rest on fewer seeds than others."""
    ranges = rows[rows["metric"] == "l0"].groupby("arm", sort=False)["value"].agg(["min", "max"])
    table: Nested = {}
    for target in targets:
        for metric in metrics:
            measured = rows[rows["metric"] == metric]
            found = _per_seed(values, metric, target)
            for arm in ranges.index:
                seeds = sorted(set(rows[rows["arm"] == arm]["seed"]) - found.get(arm, {}).keys())
                if not seeds:
                    continue
                low, high = ranges.loc[arm, "min"], ranges.loc[arm, "max"]
                why = f"seeds {', '.join(map(str, seeds))} do not reach it: L0 {low:.1f} to {high:.1f}"
                if not (measured["arm"] == arm).any():
                    why = "not measured"
                table.setdefault(key(target), {}).setdefault(metric, {})[arm] = why
    return table


def variance_shares(rows: pd.DataFrame, metric: str, arms: Sequence[str]) -> dict[str, dict[str, float | int]]:
    """How much of a metric's variance only L0, and only the arm, can explain: {"l0": estimate, "arm": estimate}.

    Least squares of the metric on an intercept, log L0, its square, and indicators of the arm, per seed; the share of a
    factor is the drop in R^2 when it is left out (partial sums of squares). Means over seeds, with t-intervals.
    Empty where a seed has no more points than the model has coefficients.
    """
    shares: dict[str, list[float]] = {"l0": [], "arm": []}
    for _, group in rows[rows["arm"].isin(list(arms)) & rows["metric"].isin(["l0", metric])].groupby("seed"):
        wide = group.pivot_table(index=["arm", "level"], columns="metric", values="value")
        if metric not in wide or "l0" not in wide:
            continue
        wide = wide[wide["l0"] > 0].dropna()
        names = sorted(set(wide.index.get_level_values("arm")))
        if len(names) < 2 or len(wide) <= len(names) + 2:
            continue
        log_l0 = np.log(wide["l0"].to_numpy(float))
        curve = np.stack([log_l0, log_l0**2], axis=1)
        indicators = np.stack([wide.index.get_level_values("arm") == name for name in names], axis=1).astype(float)
        y = wide[metric].to_numpy(float)
        full = _r2(y, np.hstack([indicators, curve]))
        shares["l0"].append(full - _r2(y, indicators))
        shares["arm"].append(full - _r2(y, np.hstack([np.ones((len(y), 1)), curve])))
    return {name: _cell(values) for name, values in shares.items() if values}


def _r2(y: np.ndarray[Any, np.dtype[np.float64]], design: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """R^2 of the least-squares fit of `y` on the columns of `design`, which span the intercept."""
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    total = float(((y - y.mean()) ** 2).sum())
    return 1 - float((residual**2).sum()) / total if total > 0 else 0.0


def as_text(cell: Mapping[str, Any] | None, digits: int = 3) -> str:
    """A cell of `means` as text, such as `0.123 [0.120, 0.126]`; a dash where it is absent."""
    if cell is None:
        return "–"
    mean = f"{cell['mean']:.{digits}f}"
    return f"{mean} [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]" if "low" in cell else mean
