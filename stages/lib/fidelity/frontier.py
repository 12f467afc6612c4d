"""Tables of all SAEs of a run: FVU and added loss against L0, and the course of training."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stages.lib.io.files import read_json
from stages.lib.sae.members import cell

CURVE_POINTS = 40
"""Rows of `curves.csv` per arm: enough for a smooth line, few enough for git."""


def curves(arms: Sequence[str], seeds: Sequence[int]) -> pd.DataFrame:
    """Training curves of the followed levels, thinned, mean over seeds, with the range of the FVU."""
    tables = []
    for arm in arms:
        for seed in seeds:
            directory = cell(arm, seed)
            table, facts = pd.read_csv(directory / "history.csv"), read_json(directory / "train.json")
            level = facts["follow_level"]
            wanted = facts["levels"][level] if facts["sparsity_name"] in ("l0", "k") else np.nan
            tables.append(table[table["level"] == level].assign(wanted_l0=wanted))
    table = pd.concat(tables)
    table = table.groupby(["arm", "step", "tokens"], sort=False).agg(
        fvu=("fvu", "mean"), fvu_low=("fvu", "min"), fvu_high=("fvu", "max"), l0=("l0", "mean"),
        dead_fraction=("dead_fraction", "mean"), wanted_l0=("wanted_l0", "mean"),
    )  # fmt: skip
    return pd.concat([_thin(group) for _, group in table.reset_index().groupby("arm", sort=False)])


def _thin(table: pd.DataFrame) -> pd.DataFrame:
    table = table.sort_values("step")
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, CURVE_POINTS).round().astype(int))]


def frontier(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per SAE: arm, level, seed, l0, fvu, delta_ce."""
    chosen = rows[rows["metric"].isin(["l0", "fvu", "delta_ce"])]
    wide = chosen.pivot_table(index=["arm", "level", "seed"], columns="metric", values="value", sort=False)
    return wide.reindex(columns=["l0", "fvu", "delta_ce"]).reset_index()
