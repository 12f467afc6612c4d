"""Arms at equal L0: a metric read off the targets that one seed's SAEs measured, and tables of arms made of that.

The levels of an arm land near a target, not on it, so the value there is interpolated in log L0 by PCHIP (Fritsch and
Carlson 1980), which keeps monotone data monotone; FVU is interpolated as log FVU, since frontiers are close to straight
lines there. A target outside the measured range has no value.

A seed that was trained at one level alone has no curve of its own. Its value is moved from its L0 to a target near by
as the arm's other seeds move, on average: by the mean over them of f(target) - f(own L0), f a seed's curve.

Tables are made from tidy rows with the columns arm, level, seed, metric, value. Each seed is read off by itself, then
seeds are averaged with a t-interval; differences between arms are tested by `stages.lib.stats.contrasts`. A cell that
no seed reaches is absent, and `missing` says why.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages.lib.stats.intervals import estimate
from stages.lib.stats.pchip import interpolate, slopes

NEAR = 0.1
"""How far, as a share of the target, a single level's L0 may be off, so that moving it there changes little."""
Nested = dict[str, dict[str, dict[str, Any]]]
Points = Sequence[tuple[float, float]]
"""L0 and value of each level of one seed."""
Curve = Callable[[float], float | None]
"""The value at an L0, in logarithms if they are interpolated; None outside the measured range."""


def at_l0(l0: Sequence[float], values: Sequence[float], target: float, *, log: bool) -> float | None:
    """The value at L0 = `target`, or None outside the measured range.

    Args:
        l0: the measured L0 of each level, in any order; levels with an L0 of 0 are left out.
        values: the metric at each level.
        target: the L0 wanted.
        log: whether the logarithm of the values is interpolated.
    """
    return _value(_curve(list(zip(l0, values, strict=True)), log=log), target, log=log)


def _value(read: Curve | None, target: float, *, log: bool) -> float | None:
    found = read(target) if read is not None else None
    return math.exp(found) if found is not None and log else found


def _curve(points: Points, *, log: bool) -> Curve | None:
    """The interpolated values (their logarithms if `log`) as a function of L0; None without a usable point."""
    merged: dict[float, list[float]] = {}
    for x, y in points:
        if x > 0 and math.isfinite(y) and (y > 0 or not log):
            merged.setdefault(float(x), []).append(float(y))
    if not merged:
        return None
    at = sorted(merged)
    values = [float(np.mean(merged[x])) for x in at]
    places, heights = np.log(at).tolist(), np.log(values).tolist() if log else values
    slope = slopes(places, heights) if len(at) > 1 else []

    def read(target: float) -> float | None:
        if not at[0] <= target <= at[-1]:
            return None
        return interpolate(places, heights, slope, math.log(target)) if slope else heights[0]

    return read


def moved(point: tuple[float, float], target: float, others: Sequence[Points], *, log: bool) -> float | None:
    """The value of a seed with a single level, moved to the target along the mean curve of the arm's other seeds.

    Args:
        point: L0 and value of the level.
        target: the L0 wanted.
        others: the levels of the arm's seeds that have several.
        log: whether curves are followed in the logarithm of the values.

    None if the L0 is farther than `NEAR` from the target, or no other seed's levels hold both between them.
    """
    return _moved(point, target, [_curve(points, log=log) for points in others], log=log)


def _moved(point: tuple[float, float], target: float, others: Sequence[Curve | None], *, log: bool) -> float | None:
    own_l0, value = point
    if not abs(own_l0 / target - 1) <= NEAR or (log and value <= 0) or not math.isfinite(value):
        return None
    ends = [(read(own_l0), read(target)) for read in others if read is not None]
    steps = [there - here for here, there in ends if here is not None and there is not None]
    if not steps:
        return None
    step = float(np.mean(steps))
    return value * math.exp(step) if log else value + step


def key(target: float) -> str:
    """The name of a target in tables, such as `l0-16`."""
    return f"l0-{target:g}"


def middle(targets: Sequence[float]) -> float:
    """The target in the middle of the sorted list (the upper one of two)."""
    return sorted(targets)[len(targets) // 2]


def nearest_levels(rows: pd.DataFrame, target: float) -> dict[tuple[str, int], int]:
    """For each (arm, seed) the level whose L0 is nearest to the target on a log scale.

    A seed with a single level counts only if that is the level of the arm's other seeds: it may be far from the target.
    """
    chosen: dict[tuple[str, int], int] = {}
    several: dict[str, set[int]] = {}
    single = []
    measured = rows[(rows["metric"] == "l0") & (rows["value"] > 0)]
    distance = np.abs(np.log(measured["value"].to_numpy(float)) - np.log(target)).tolist()
    runs: dict[tuple[str, int], list[tuple[float, int]]] = {}
    columns = (measured[name] for name in ("arm", "seed", "level"))
    for arm, seed, level, far in zip(*columns, distance, strict=True):
        runs.setdefault((str(arm), int(seed)), []).append((far, int(level)))
    for (arm, seed), levels in sorted(runs.items()):
        chosen[arm, seed] = min(levels, key=lambda one: one[0])[1]
        if len(levels) > 1:
            several.setdefault(arm, set()).add(chosen[arm, seed])
        else:
            single.append((arm, seed))
    for arm, seed in single:
        if arm in several and chosen[arm, seed] not in several[arm]:
            del chosen[arm, seed]
    return chosen


def _points(rows: pd.DataFrame) -> dict[tuple[str, str], dict[int, list[tuple[float, float]]]]:
    """L0 and value of each level, by (arm, metric) and seed."""
    l0 = rows[rows["metric"] == "l0"].set_index(["arm", "seed", "level"])["value"].to_dict()
    found: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = {}
    columns = (rows[name] for name in ("arm", "metric", "seed", "level", "value"))
    for arm, metric, seed, level, value in zip(*columns, strict=True):
        if (arm, seed, level) in l0:
            found.setdefault((arm, metric), {}).setdefault(int(seed), []).append((l0[arm, seed, level], value))
    return found


def matched_values(rows: pd.DataFrame, targets: Sequence[float]) -> pd.DataFrame:
    """One row per arm, seed, metric and target that has a value: arm, seed, metric, l0, value."""
    records = []
    for (arm, metric), seeds in _points(rows).items():
        log = metric.startswith("fvu")
        read = {seed: _curve(points, log=log) for seed, points in seeds.items()}
        several = [read[seed] for seed, points in seeds.items() if len(points) > 1]
        for seed, points in seeds.items():
            for target in targets:
                value = _value(read[seed], target, log=log)
                if value is None and len(points) == 1:
                    value = _moved(points[0], target, several, log=log)
                if value is not None:
                    records.append({"arm": arm, "seed": seed, "metric": metric, "l0": float(target), "value": value})
    return pd.DataFrame(records, columns=["arm", "seed", "metric", "l0", "value"])


def per_seed(values: pd.DataFrame, metric: str, target: float) -> dict[str, dict[int, float]]:
    """{arm: {seed: value}} of one metric at one target."""
    chosen = values[(values["metric"] == metric) & (values["l0"] == target)]
    return {str(arm): dict(zip(g["seed"], g["value"], strict=True)) for arm, g in chosen.groupby("arm", sort=False)}


def means(values: pd.DataFrame, metrics: Sequence[str], targets: Sequence[float]) -> Nested:
    """{target: {metric: {arm: mean, low, high, n}}} for every cell that has a value."""
    table: Nested = {}
    for target in targets:
        for metric in metrics:
            for arm, seeds in per_seed(values, metric, target).items():
                found = estimate(list(seeds.values()), metric)._asdict()
                cell = {name: value for name, value in found.items() if value is not None}
                table.setdefault(key(target), {}).setdefault(metric, {})[arm] = cell
    return table


def add_document_widths(table: Nested, rows: pd.DataFrame, targets: Sequence[float]) -> None:
    """Put into the cells of `means`, as `documents`, half of the width of the metric's interval over documents.

    It is that of the level nearest to the target, averaged over seeds; a metric whose rows have no interval gets none.
    Intervals over seeds say nothing of it: all seeds are scored on the same documents.
    """
    measured = rows[rows["low"].notna() & rows["high"].notna()]
    half = measured.assign(half=(measured["high"] - measured["low"]) / 2)
    for target in targets:
        levels = nearest_levels(rows, target)
        columns = (half[name] for name in ("arm", "seed", "level"))
        chosen = [levels.get((arm, seed)) == level for arm, seed, level in zip(*columns, strict=True)]
        widths = half[np.array(chosen, dtype=np.bool_)].groupby(["arm", "metric"])["half"].mean().to_dict()
        for metric, cells in table.get(key(target), {}).items():
            for arm, cell in cells.items():
                if (arm, metric) in widths:
                    cell["documents"] = float(widths[arm, metric])


def missing(rows: pd.DataFrame, values: pd.DataFrame, metrics: Sequence[str], targets: Sequence[float]) -> Nested:
    """{target: {metric: {arm: why}}} for the cells of `means` that are absent or rest on fewer seeds than they could.

    A seed with a single level is missed only at the target nearest to it.
    """
    ranges = rows[rows["metric"] == "l0"].groupby("arm", sort=False)["value"].agg(["min", "max"])
    points = _points(rows)
    table: Nested = {}
    for target in targets:
        for metric in metrics:
            found = per_seed(values, metric, target)
            for arm in ranges.index:
                own = points.get((arm, metric), {})
                wanted = {s for s, p in own.items() if len(p) > 1 or _nearest(targets, p[0][0]) == target}
                seeds = sorted(wanted - found.get(arm, {}).keys())
                why = "not measured"
                if own:
                    low, high = ranges.loc[arm, "min"], ranges.loc[arm, "max"]
                    why = f"seeds {', '.join(map(str, seeds))} do not reach it: L0 {low:.1f} to {high:.1f}"
                if seeds or not own:
                    table.setdefault(key(target), {}).setdefault(metric, {})[arm] = why
    return table


def _nearest(targets: Sequence[float], l0: float) -> float:
    return min(targets, key=lambda target: abs(math.log(max(l0, 1e-12) / target)))


def as_text(cell: Mapping[str, Any] | None, digits: int = 3) -> str:
    """A cell of `means` as text, such as `0.123 [0.120, 0.126]`; a dash where it is absent."""
    if cell is None:
        return "–"
    mean = f"{cell['mean']:.{digits}f}"
    return f"{mean} [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]" if "low" in cell else mean
