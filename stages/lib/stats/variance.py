"""How much of a metric's variance over all levels only L0, and only the arm, can explain.

Least squares per seed, over the SAEs of all arms and levels, of the metric on indicators of the arm, log L0 and its
square. The share of a factor is omega squared (Hays 1963; Olejnik and Algina 2003),

    omega^2 = (SS - df MSE) / (SS_total + MSE)

where SS is what its df columns explain beyond the rest and MSE the mean squared residual with all columns: unlike a
drop in R^2 it does not grow with the number of columns (five indicators explain a third of eighteen points by chance
alone). Shares are averaged over seeds.

Chance is measured too: for the arm, each level's values are dealt out anew among the arms; for L0, each arm's values
among its levels. All seeds are dealt alike, since the runs of an arm are no independent witnesses of it. And because
one arm can make a share, the shares are computed again without each arm in turn. A factor is said to explain something
only where its share beats chance with all arms and without any one of them.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.lib.stats.intervals import estimate

SIGNIFICANT = 0.05
FACTORS = ("arm", "l0")
_Array = npt.NDArray[np.float64]


class Grid(NamedTuple):
    """One metric of all arms and levels."""

    log_l0: _Array
    """[seed, arm, level]"""
    value: _Array
    """[seed, arm, level]"""


class Share(NamedTuple):
    """What one factor explains."""

    seeds: list[float]
    null: _Array
    """The same, averaged over seeds, by chance alone."""

    @property
    def p(self) -> float:
        """The share of chance draws that explain as much (Phipson and Smyth 2010)."""
        reached = int((self.null >= np.mean(self.seeds) - 1e-12).sum())
        return (1 + reached) / (1 + len(self.null))


def grid(rows: pd.DataFrame, metric: str, arms: Sequence[str]) -> tuple[list[str], Grid]:
    """The arms that have the metric at the most levels, in the seeds that have all of these; maybe none."""
    chosen = rows[rows["arm"].isin(list(arms)) & rows["metric"].isin(["l0", metric])]
    wide = chosen.pivot_table(index=["arm", "level", "seed"], columns="metric", values="value")
    if metric not in wide or "l0" not in wide:
        return [], Grid(np.empty((0, 0, 0)), np.empty((0, 0, 0)))
    wide = wide[wide["l0"] > 0].dropna()
    by_arm = {str(arm): group.unstack("level") for arm, group in wide.groupby(level="arm")}
    levels = max((len(table[metric].columns) for table in by_arm.values()), default=0)
    whole = {
        arm: table.dropna().droplevel("arm") for arm, table in by_arm.items() if len(table[metric].columns) == levels
    }
    names = [arm for arm in arms if arm in whole and len(whole[arm])]
    seeds = sorted(set.intersection(*(set(whole[arm].index) for arm in names))) if names else []
    if not seeds:
        return [], Grid(np.empty((0, 0, 0)), np.empty((0, 0, 0)))
    l0, value = (
        np.stack([whole[arm].loc[seeds, name].to_numpy(float) for arm in names], axis=1) for name in ("l0", metric)
    )
    return names, Grid(np.log(l0), value)


def shares(found: Grid, n_permutations: int, generator: np.random.Generator) -> dict[str, Share]:
    """What each factor explains; empty where points are no more than coefficients, or nothing varies."""
    n_seeds, n_arms, n_levels = found.value.shape if found.value.size else (0, 0, 0)
    if n_arms < 2 or n_arms * n_levels <= n_arms + 2 or (np.ptp(found.value.reshape(n_seeds, -1), axis=1) == 0).any():
        return {}
    arms = _dealt(n_arms, (n_permutations, n_levels), generator).transpose(0, 2, 1)
    levels = _dealt(n_levels, (n_permutations, n_arms), generator)
    own_arms, own_levels = np.indices((n_arms, n_levels))
    arms, levels = np.concatenate([own_arms[None], arms]), np.concatenate([own_levels[None], levels])
    seeds = list(zip(*found, strict=True))
    drawn = {"arm": [_arm_share(*one, arms) for one in seeds], "l0": [_l0_share(*one, levels) for one in seeds]}
    return {name: Share([float(one[0]) for one in each], np.mean(each, axis=0)[1:]) for name, each in drawn.items()}


def _dealt(n: int, shape: tuple[int, int], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """The numbers below `n` in random orders [draw, row, n], each row of each draw by itself."""
    orders = generator.permuted(np.tile(np.arange(n), (shape[0] * shape[1], 1)), axis=1)
    return np.asarray(orders.reshape(*shape, n))


def _arm_share(log_l0: _Array, value: _Array, labels: npt.NDArray[np.int64]) -> _Array:
    """What the arms explain, for each labelling [draw, arm, level] of the points with arms."""
    n_arms = len(value)
    x, y = log_l0.ravel(), value.ravel()
    curve = np.stack([np.ones_like(x), x, x**2], axis=1)
    flat = labels.reshape(len(labels), -1)
    # The last arm is the one that the intercept stands for.
    added = (flat[:, :, None] == np.arange(n_arms - 1)).astype(np.float64)
    return _omega(y, curve, added)


def _l0_share(log_l0: _Array, value: _Array, places: npt.NDArray[np.int64]) -> _Array:
    """What L0 explains, for each way [draw, arm, level] to deal an arm's L0 out to its points."""
    n_arms, n_levels = value.shape
    x: _Array = np.take_along_axis(np.broadcast_to(log_l0, places.shape), places, axis=2).reshape(len(places), -1)
    indicators = np.repeat(np.eye(n_arms), n_levels, axis=0)
    return _omega(value.ravel(), indicators, np.stack([x, x**2], axis=2))


def _omega(y: _Array, base: _Array, added: _Array) -> _Array:
    """The omega squared, by draw, of the columns `added` [draw, point, a] beyond `base` [point, b] with the constant.

    What `base` explains is taken out of both sides first (Frisch and Waugh 1933).
    """
    n = len(y)
    rest = np.eye(n) - base @ np.linalg.pinv(base)
    residual, columns = rest @ y, rest @ added
    gram, cross = columns.transpose(0, 2, 1) @ columns, columns.transpose(0, 2, 1) @ residual
    explained = np.einsum("da,dab,db->d", cross, np.linalg.pinv(gram, hermitian=True), cross)
    error = (residual @ residual - explained) / (n - base.shape[1] - added.shape[2])
    return np.asarray((explained - added.shape[2] * error) / (((y - y.mean()) ** 2).sum() + error))


def variance_shares(
    rows: pd.DataFrame, metric: str, arms: Sequence[str], n_permutations: int, generator: np.random.Generator
) -> dict[str, dict[str, float | int]]:
    """{"l0" or "arm": estimate, chance and what is left without any one arm}; empty where it is not defined.

    Of each factor: mean, low, high and n over the seeds; `null` and `null_high`, the mean and the 95th percentile by
    chance; `p`; `least` and `most`, the range without each arm in turn; `worst_p`, the largest p without an arm.
    """
    names, found = grid(rows, metric, arms)
    whole = shares(found, n_permutations, generator)
    if not whole:
        return {}
    without = [
        shares(Grid(*(np.take(one, kept, axis=1) for one in found)), n_permutations, generator)
        for kept in combinations(range(len(names)), len(names) - 1)
    ]
    return {name: _cell(whole[name], [one[name] for one in without if one]) for name in FACTORS}


def _cell(share: Share, without: list[Share]) -> dict[str, float | int]:
    cell = {name: value for name, value in estimate(share.seeds)._asdict().items() if value is not None}
    cell |= {"null": float(share.null.mean()), "null_high": float(np.quantile(share.null, 0.95)), "p": share.p}
    if without:
        left = [float(np.mean(one.seeds)) for one in without]
        cell |= {"least": min(left), "most": max(left), "worst_p": max(one.p for one in without)}
    return cell


def established(cell: Mapping[str, Any]) -> bool:
    """Whether a factor explains more than chance, with all arms and without any one of them."""
    return bool(cell["p"] < SIGNIFICANT and cell.get("worst_p", 1.0) < SIGNIFICANT)
