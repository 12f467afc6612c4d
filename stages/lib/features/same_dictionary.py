"""Whether two arms learn the same dictionary, apart from how well their seeds agree.

Two seeds of one arm agree only in part, and two arms can't be expected to agree more than that. As the correlation of
two noisy tests is divided by their reliabilities (Spearman 1904), with M the mean over pairs of different seeds,

    D(a, b) = M(a, b) / sqrt(M(a, a) M(b, b))

D is 1 where another arm changes the directions no more than another seed does. It can pass 1 by chance, and is below 1
too where arms are unreproducible in different features. D of an arm and random directions is well above 0, because M of
random directions is: 0 is not the level of chance here.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.lib.stats.seeds import jackknife


class Agreements:
    """The agreement of all pairs of runs."""

    def __init__(self, table: pd.DataFrame) -> None:
        """`table` has the columns arm, seed, other_arm, other_seed, mcc; rows without mcc count for nothing."""
        table = table[table["mcc"].notna()]
        self.arms = list(dict.fromkeys([*table["arm"], *table["other_arm"]]))
        self.seeds = sorted({*table["seed"], *table["other_seed"]})
        at = {seed: i for i, seed in enumerate(self.seeds)}
        place = {arm: i for i, arm in enumerate(self.arms)}
        shape = (len(self.arms), len(self.seeds), len(self.arms), len(self.seeds))
        self._mcc = np.full(shape, np.nan)
        for row in table.itertuples():
            one, other = (place[row.arm], at[row.seed]), (place[row.other_arm], at[row.other_seed])
            self._mcc[(*one, *other)] = self._mcc[(*other, *one)] = row.mcc
        self._at, self._place = at, place

    def mean(self, arm: str, other: str, seeds: Sequence[int]) -> float | None:
        """M: the mean over pairs of different seeds; None without one."""
        chosen = [self._at[seed] for seed in seeds]
        block: npt.NDArray[np.float64] = self._mcc[self._place[arm]][:, self._place[other]][np.ix_(chosen, chosen)]
        found = block[~np.eye(len(chosen), dtype=np.bool_) & np.isfinite(block)]
        return float(found.mean()) if len(found) else None

    def disattenuated(self, arm: str, other: str, seeds: Sequence[int]) -> float | None:
        """D; None where an arm has no two seeds or does not agree with itself."""
        both, one, two = (self.mean(*pair, seeds) for pair in ((arm, other), (arm, arm), (other, other)))
        if both is None or one is None or two is None or one <= 0 or two <= 0:
            return None
        return both / float((one * two) ** 0.5)


def own_agreement(found: Agreements) -> dict[str, dict[str, float]]:
    """The mean agreement of each arm's seeds, with its interval over seeds."""
    cells = {}
    for arm in found.arms:
        value = found.mean(arm, arm, found.seeds)
        if value is not None:
            interval = jackknife(lambda seeds, a=arm: found.mean(a, a, seeds), found.seeds)  # type: ignore[misc]
            cells[arm] = {"mean": value} | (interval._asdict() if interval is not None else {})
    return cells


def disattenuated(found: Agreements) -> dict[str, dict[str, dict[str, float]]]:
    """{arm: {other arm: mean, low, high}} for every pair of different arms; no interval with fewer than three seeds."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for arm, other in combinations(found.arms, 2):
        value = found.disattenuated(arm, other, found.seeds)
        if value is not None:
            interval = jackknife(lambda seeds, a=arm, b=other: found.disattenuated(a, b, seeds), found.seeds)  # type: ignore[misc]
            cell = {"mean": value} | (interval._asdict() if interval is not None else {})
            table.setdefault(arm, {})[other] = cell
    return table


def cell_of(table: dict[str, dict[str, Any]], arm: str, other: str) -> dict[str, float] | None:
    """The cell of a pair, whichever of the two comes first."""
    found: dict[str, float] | None = table.get(arm, {}).get(other, table.get(other, {}).get(arm))
    return found


def share_alike(table: dict[str, dict[str, Any]], arms: Sequence[str], least: float) -> dict[str, float | int] | None:
    """The share of pairs of `arms` with D >= least, and those that are so, or may be so, by their intervals.

    `low` counts the pairs whose whole interval is at or above `least`, `high` those whose interval reaches it.
    """
    cells = [cell for pair in combinations(arms, 2) if (cell := cell_of(table, *pair)) is not None]
    if not cells:
        return None
    n = len(cells)
    share: dict[str, float | int] = {"mean": sum(cell["mean"] >= least for cell in cells) / n, "n_pairs": n}
    if all("low" in cell for cell in cells):
        share["low"] = sum(cell["low"] >= least for cell in cells) / n
        share["high"] = sum(cell["high"] >= least for cell in cells) / n
    return share


def same_group(table: dict[str, dict[str, Any]], arms: Sequence[str], least: float) -> list[str]:
    """The largest set of arms of which every pair has its whole interval at or above `least`; empty if there is none.

    Of several such sets the one that agrees best on average.
    """

    def alike(group: Sequence[str]) -> list[dict[str, float]] | None:
        cells = [cell_of(table, *pair) for pair in combinations(group, 2)]
        return [c for c in cells if c] if all(c is not None and c.get("low", -1.0) >= least for c in cells) else None

    for size in range(len(arms), 1, -1):
        groups = [(group, cells) for group in combinations(arms, size) if (cells := alike(group))]
        if groups:
            return list(max(groups, key=lambda one: float(np.mean([cell["mean"] for cell in one[1]])))[0])
    return []


def same_dictionary(table: pd.DataFrame, arms: Sequence[str], controls: Sequence[str], least: float) -> dict[str, Any]:
    """All of it for a table of pairs of runs (`Agreements`).

    `own`: each arm's agreement with itself; `disattenuated`: D of each pair of arms; `alike`: `least`; `share_alike`:
    of the pairs of `arms`, if there are some; `group`: of the arms that are no controls the largest set that is alike
    (`same_group`), with each one's mean D with the others; `n_seeds`.
    """
    found = Agreements(table)
    result: dict[str, Any] = {"own": own_agreement(found), "disattenuated": disattenuated(found), "alike": least,
              "n_seeds": len(found.seeds)}  # fmt: skip
    table_of = result["disattenuated"]
    group = same_group(table_of, [arm for arm in found.arms if arm not in controls], least)
    result["group"] = {arm: _mean_with(table_of, arm, group) for arm in group}
    share = share_alike(table_of, arms, least)
    return result | ({"share_alike": share} if share is not None else {})


def _mean_with(table: dict[str, dict[str, Any]], arm: str, group: Sequence[str]) -> float:
    cells = [cell_of(table, arm, other) for other in group if other != arm]
    return float(np.mean([cell["mean"] for cell in cells if cell is not None]))
