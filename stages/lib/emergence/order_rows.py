"""The numbers about the order of emergence: do seeds agree on it, and which properties of concepts go with it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.lib.emergence.drivers import PROPERTIES, predictors
from stages.lib.emergence.order import Tested, correlation, joint_model
from stages.lib.emergence.times import kendall_w
from stages.lib.io.summary import Row
from stages.lib.sae.members import Member


class Numbers(NamedTuple):
    """Settings of the tests."""

    drivers: Sequence[str]
    """The predictors of the joint model."""
    n_permutations: int


def order_rows(
    first: Member,
    times: pd.DataFrame,
    by_concept: pd.DataFrame,
    own: Numbers,
    generator: np.random.Generator,
) -> list[Row]:
    """The numbers over all seeds, in the row of the first.

    `kendall_w` is over the concepts that emerged in every seed. `driver_<property>` is Spearman's correlation of one
    property with the place in the order, over all concepts, those that never emerge last. `joint_<driver>` are the
    coefficients of the joint model over the same concepts, `joint_emerged_<driver>` over those that emerged in every
    seed: the first says what goes with emerging soon or at all, the second what with emerging soon. A metric with `_p`
    at its end is the p of the one without, not corrected for how many there are.
    """
    common = by_concept[by_concept["tau"].notna()]
    by_seed = times[times["concept"].isin(common["concept"])].pivot(
        index="seed", columns="concept", values="tau_interpolated"
    )
    rows = [Row(first.level, first.seed, "n_emerged_all_seeds", float(len(common)), n=len(by_concept))]
    rows.append(Row(first.level, first.seed, "n_families", float(by_concept["family"].nunique()), n=len(by_concept)))
    agreement = kendall_w(by_seed.to_numpy(dtype=np.float64), own.n_permutations, generator)
    if agreement is not None:
        rows += [Row(first.level, first.seed, name, value, n=len(common))
                 for name, value in (("kendall_w", agreement.w), ("kendall_w_p", agreement.p))]  # fmt: skip
    family, rank = by_concept["family"].to_numpy(), by_concept["rank"].to_numpy(dtype=np.float64)
    for name in PROPERTIES:
        found = correlation(by_concept[name].to_numpy(dtype=np.float64), rank, family)
        if found is not None:
            rows += _tested(first, f"driver_{name}", found, len(by_concept))
    rows += _joint_rows(first, "joint", by_concept, own, generator)
    return rows + _joint_rows(first, "joint_emerged", common, own, generator)


def _tested(first: Member, name: str, found: Tested, n: int) -> list[Row]:
    return [
        Row(first.level, first.seed, name, found.value, *found.interval, n),
        Row(first.level, first.seed, f"{name}_p", found.p, n=n),
    ]


def _joint_rows(
    first: Member, prefix: str, concepts: pd.DataFrame, own: Numbers, generator: np.random.Generator
) -> list[Row]:
    if concepts.empty:
        return []
    x, rank = predictors(concepts, own.drivers), concepts["rank"].to_numpy(dtype=np.float64)
    model = joint_model(x, rank, concepts["family"].to_numpy(), own.n_permutations, generator)
    if model is None:
        return []
    n, rows = len(concepts), []
    for name, one in zip(own.drivers, model.coefficients, strict=True):
        rows += _tested(first, f"{prefix}_{name}", Tested(one.value, one.interval, one.p), n)
        rows.append(Row(first.level, first.seed, f"{prefix}_vif_{name}", one.vif, n=n))
    numbers = {"r2": model.r2, "c_index": model.c_index, "c_index_null": model.c_index_null, "p": model.p}
    return rows + [Row(first.level, first.seed, f"{prefix}_{name}", value, n=model.n_families)
                   for name, value in numbers.items()]  # fmt: skip
