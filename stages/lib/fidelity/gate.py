"""What a results table must not contain: SAEs that explain nothing, are not sparse, or lose to a table of tokens."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stages.lib.io.errors import UserError

MAX_FVU = 0.95
MAX_DENSITY = 0.5
GATE = ("fvu", "density", "fvu_unigram", "fvu_pca")
NO_BASELINE = {"fvu_unigram": math.inf, "fvu_pca": math.inf}


def sanity_failures(name: str, metrics: Mapping[str, float]) -> list[str]:
    """Why the SAE called `name` is no result, a sentence each; empty if nothing is wrong.

    `metrics` are its summary's `fvu`, `density` (L0 / d_sae), `fvu_unigram` (mean activation by token id) and `fvu_pca`
    (as many principal components as it has active features).
    """
    fvu, density = metrics["fvu"], metrics["density"]
    failures = []
    if fvu >= MAX_FVU:
        failures.append(f"{name}: test FVU {fvu:.3f} is not below {MAX_FVU}")
    if density > MAX_DENSITY:
        failures.append(f"{name}: {density:.0%} of the features are active at a token, more than {MAX_DENSITY:.0%}")
    for key, label in (("fvu_unigram", "the mean activation by token"), ("fvu_pca", "PCA of the rank of its L0")):
        if fvu >= metrics[key]:
            failures.append(f"{name}: test FVU {fvu:.3f} does not beat {label}, {metrics[key]:.3f}")
    return failures


def gate(rows: pd.DataFrame, controls: Sequence[str]) -> None:
    """Refuse to go on if an SAE of an arm that is no control fails the sanity gate.

    Every SAE must be sparse and explain something; the baselines need be beaten at one level of each seed, because a
    frontier may well begin below them.

    Raises:
        UserError: naming the arm, level and seed, and the numbers.
    """
    chosen = rows[rows["metric"].isin(GATE) & ~rows["arm"].isin(list(controls))]
    wide = chosen.pivot_table(index=["arm", "seed", "level"], columns="metric", values="value", sort=False)
    for (arm, seed), group in wide.groupby(level=["arm", "seed"], sort=False):
        table: dict[Any, dict[Any, float]] = group.to_dict("index")
        levels = {int(place[2]): NO_BASELINE | row for place, row in table.items()}
        names = {level: f"{arm} level {level} seed {seed}" for level in levels}
        alone = [one for level, row in levels.items() for one in sanity_failures(names[level], row | NO_BASELINE)]
        beside = [sanity_failures(names[level], row) for level, row in levels.items()]
        failures = alone or ([one for level in beside for one in level] if all(beside) else [])
        if failures:
            raise UserError(
                f"no results table: {'; '.join(failures)}; change saes.{arm} or list it in compare.controls"
            )
