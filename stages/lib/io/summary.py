"""The numbers of one analysis of one arm, small enough for git: `reports/<stage>/<arm>.json`.

Nested objects of numbers (metric, level, seed), because DVC draws lists of records as plots nobody asked for.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from stages.lib.io.files import read_json, write_json

REPORTS = Path("reports")
COLUMNS = ["arm", "level", "seed", "metric", "value", "low", "high", "n"]


class Row(NamedTuple):
    """One number, with its 95 % interval and the count it rests on where there are such."""

    level: int
    seed: int
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


def write_summary(stage: str, arm: str, rows: Iterable[Row]) -> None:
    """Write the rows; a number that could not be measured is left out by the caller, never NaN."""
    content: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for row in rows:
        cell = {name: getattr(row, name) for name in ("value", "low", "high", "n") if getattr(row, name) is not None}
        # Eight digits: more are noise, and fewer bytes change when nothing did.
        cell = {name: value if isinstance(value, int) else float(f"{value:.8g}") for name, value in cell.items()}
        level = content.setdefault(row.metric, {}).setdefault(f"level-{row.level}", {})
        assert f"seed-{row.seed}" not in level, f"{stage} {arm}: {row.metric} level {row.level} seed {row.seed} twice"
        level[f"seed-{row.seed}"] = cell
    write_json(REPORTS / stage / f"{arm}.json", content)


def read_summaries(stage: str, arms: Iterable[str]) -> pd.DataFrame:
    """The rows of several arms as a tidy table with the columns `COLUMNS`; what a row lacks is NaN there."""
    records = [
        {"arm": arm, "level": int(level[6:]), "seed": int(seed[5:]), "metric": metric, **cell}
        for arm in arms
        for metric, levels in read_json(REPORTS / stage / f"{arm}.json").items()
        for level, seeds in levels.items()
        for seed, cell in seeds.items()
    ]
    return pd.DataFrame(records, columns=COLUMNS)
