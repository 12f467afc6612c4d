"""All numbers that the report's sentences are made from, and what can be read off an interval."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from stages.lib.stats.best import Pair, as_good_as_best
from stages.lib.stats.equal_l0 import key, nearest_levels
from stages.lib.stats.intervals import estimate

Cell = Mapping[str, Any]
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Results:
    """All numbers that the text is made from."""

    arms: list[str]
    controls: list[str]
    reference: str
    seeds: list[int]
    targets: list[float]
    l0: float
    """The middle target."""
    compare: dict[str, dict[str, Any]]
    """`reports/compare/<name>.json` by name."""
    rows: dict[str, pd.DataFrame]
    """The summaries of all arms by stage."""
    more_seeds: Sequence[int] = ()
    """Seeds that were trained at the followed level alone."""
    endpoints: Mapping[str, float] = field(default_factory=dict)
    """Declared metrics, with the share of the reference's mean within which an arm counts as equal to it."""

    @property
    def tested(self) -> list[str]:
        """The arms that are no controls."""
        return [arm for arm in self.arms if arm not in self.controls]

    @property
    def over(self) -> str:
        """What an interval over the seeds that have all levels means; `over_cells` counts those that a number has."""
        return _over(str(len(self.seeds))) if len(self.seeds) > 1 else "one SAE seed, one LM: no interval"

    def over_cells(self, *columns: Mapping[str, Cell]) -> str:
        """What the intervals of these cells mean, by the seeds that they rest on."""
        counts = {int(cell["n"]) for column in columns for cell in column.values() if "low" in cell and "n" in cell}
        if not counts:
            return "one SAE seed, one LM: no interval"
        return _over(f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(max(counts)))

    def matched(self, metric: str, target: float | None = None) -> dict[str, Cell]:
        """The cells of a metric at a target L0 (the middle one if none is named), by arm."""
        found: dict[str, Cell] = self.compare["matched"].get(key(target or self.l0), {}).get(metric, {})
        return {arm: found[arm] for arm in self.arms if arm in found}

    def difference(self, metric: str) -> dict[str, Cell]:
        """The differences to the reference arm at the middle L0 (`stages.lib.stats.arms.differences`)."""
        found: dict[str, Cell] = self.compare["differences"].get(key(self.l0), {}).get(metric, {})
        return {arm: found[arm] for arm in self.arms if arm in found}

    def best(self, metric: str, *, lower: bool) -> list[str]:
        """The tested arm with the best mean at the middle L0 and those that are not told from it, the best first.

        Empty where nothing was tested. `lower` says that a lower number is the better one.
        """
        found = self.compare["contrasts"].get(key(self.l0), {}).get(metric, {}).get("pairs", {})
        pairs = {(one, two): Pair(cell["mean"], cell["p"]) for one, row in found.items() for two, cell in row.items()}
        cells = {arm: cell["mean"] for arm, cell in self.matched(metric).items() if arm in self.tested}
        return as_good_as_best(cells, pairs, lower) if pairs and cells else []

    def near(self, stage: str, metric: str) -> dict[str, Cell]:
        """Means over seeds at each arm's level nearest the middle L0, or at the one level that was measured."""
        cells: dict[str, Cell] = {}
        found = self._values.get((stage, metric), {})
        for arm in self.arms:
            own = found.get(arm, [])
            chosen = [value for seed, level, value in own if self.levels.get((arm, seed)) == level]
            if not chosen:
                seeds: dict[int, float] = {}
                for seed, _, value in own:
                    seeds.setdefault(seed, value)
                chosen = [*seeds.values()]
            if chosen:
                cell = estimate(chosen, metric)._asdict()
                cells[arm] = {name: value for name, value in cell.items() if value is not None}
        return cells

    @cached_property
    def levels(self) -> dict[tuple[str, int], int]:
        """The level nearest the middle L0 of each (arm, seed)."""
        return nearest_levels(self.rows["evaluate"], self.l0)

    @cached_property
    def _values(self) -> dict[tuple[str, str], dict[str, list[tuple[int, int, float]]]]:
        """Seed, level and value of each row, by (stage, metric) and arm."""
        found: dict[tuple[str, str], dict[str, list[tuple[int, int, float]]]] = {}
        for stage, rows in self.rows.items():
            columns = (rows[name].tolist() for name in ("metric", "arm", "seed", "level", "value"))
            for metric, arm, seed, level, value in zip(*columns, strict=True):
                found.setdefault((stage, metric), {}).setdefault(arm, []).append((seed, level, value))
        return found


def _over(n: str) -> str:
    return f"95 % over {n} SAE seeds, one LM"


def most_seeds(cells: Iterable[Cell]) -> int:
    """The number of seeds that the best-founded of the cells rests on."""
    return max((int(cell.get("n", 0)) for cell in cells), default=0)


def sign(cell: Cell) -> int:
    """1 or -1 if the interval is all above or all below 0, else 0 (also without an interval)."""
    if "low" not in cell:
        return 0
    return int(cell["low"] > 0) - int(cell["high"] < 0)
