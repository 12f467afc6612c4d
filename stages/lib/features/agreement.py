"""Whether runs learned the same directions: every pair of dictionaries matched, with the levels that mean nothing.

Pairs of different seeds count, because arms of one seed share their initialisation (Brzozowski & Chung 2026,
arXiv:2606.02061: a shared start passes for stability). Two levels stand beside them: random directions in as many
dimensions, and the same seeds before the first step. Features that never fired keep their initial direction, so they
are left out on both sides, and `alive` says how many were left.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stages.lib.features.matching import best_cosines, contrast, match, random_directions, shared_fraction
from stages.lib.run.parallel import side_by_side

PAIR_COLUMNS = ["arm", "seed", "other_arm", "other_seed", "alive", "other_alive", "mcc", "mcc_all", "initial"]
THRESHOLDS = [round(0.1 + 0.05 * i, 2) for i in range(18)]


class Dictionary(NamedTuple):
    """The decoder of one run."""

    arm: str
    seed: int
    decoder: Float[Tensor, "d_sae d_in"]
    alive: Bool[Tensor, " d_sae"]
    """Which features fired on held-out text."""
    initial: Float[Tensor, "d_sae d_in"] | None
    """The decoder before the first step, where it was kept."""


def pairs(dictionaries: Sequence[Dictionary]) -> Iterator[dict[str, Any]]:
    """One row for each pair of runs, with the columns `PAIR_COLUMNS`.

    `mcc` is over features that are alive, `mcc_all` over all (those without a partner count as 0). `initial` is the
    agreement of the two runs before training, only where the arm is the same.
    """
    alive = [one.decoder[one.alive] for one in dictionaries]

    def compared(places: tuple[int, int]) -> dict[str, Any]:
        left, right = (dictionaries[place] for place in places)
        a, b = (alive[place] for place in places)
        row: dict[str, Any] = {"arm": left.arm, "seed": left.seed, "other_arm": right.arm, "other_seed": right.seed}
        row |= {"alive": len(a), "other_alive": len(b)}
        if len(a) and len(b):
            mcc = match(a, b).mcc
            row |= {"mcc": mcc, "mcc_all": mcc * min(len(a), len(b)) / min(len(left.decoder), len(right.decoder))}
        if left.arm == right.arm and left.initial is not None and right.initial is not None:
            row["initial"] = match(left.initial, right.initial).mcc
        return row

    for left in range(len(dictionaries)):
        yield from side_by_side(compared, [(left, right) for right in range(left + 1, len(dictionaries))])


def random_level(d_sae: int, d_in: int, n: int, generator: torch.Generator) -> dict[str, float | int]:
    """Agreement of `n` pairs of random dictionaries: mean and, with two pairs or more, standard deviation."""
    values = [
        match(random_directions(d_sae, d_in, generator), random_directions(d_sae, d_in, generator)).mcc
        for _ in range(n)
    ]
    level: dict[str, float | int] = {"mean": float(np.mean(values)), "n": n}
    return level | ({"sd": float(np.std(values, ddof=1))} if n > 1 else {})


def summarise(
    table: pd.DataFrame, controls: Sequence[str], n_permutations: int, generator: np.random.Generator
) -> dict[str, Any]:
    """Mean agreement of each pair of arms, and the contrast within against between arms that are no controls."""
    table = table[(table["seed"] != table["other_seed"]) & table["mcc"].notna()]
    arms: dict[str, dict[str, float]] = {}
    for (arm, other), group in table.groupby(["arm", "other_arm"], sort=False):
        arms.setdefault(str(arm), {})[str(other)] = float(group["mcc"].mean())
    result: dict[str, Any] = {"arms": arms}
    tested = table[~table["arm"].isin(list(controls)) & ~table["other_arm"].isin(list(controls))]
    initial = tested["initial"].dropna()  # a control may begin with directions that are not random
    if len(initial):
        result["initial"] = {"mean": float(initial.mean()), "high": float(initial.max()), "n": len(initial)}
    found = _contrast(tested, n_permutations, generator)
    return result | ({"contrast": found} if found is not None else {})


def _contrast(
    table: pd.DataFrame, n_permutations: int, generator: np.random.Generator
) -> dict[str, float | int] | None:
    runs = sorted(
        {*zip(table["arm"], table["seed"], strict=True), *zip(table["other_arm"], table["other_seed"], strict=True)}
    )
    names = sorted({arm for arm, _ in runs})
    index = {run: i for i, run in enumerate(runs)}
    matrix = np.full((len(runs), len(runs)), np.nan)
    for row in table.itertuples():
        i, j = index[row.arm, row.seed], index[row.other_arm, row.other_seed]
        matrix[i, j] = matrix[j, i] = row.mcc
    labels = np.array([names.index(arm) for arm, _ in runs], dtype=np.int64)
    seeds = np.array([seed for _, seed in runs], dtype=np.int64)
    found = contrast(matrix, labels, seeds, n_permutations, generator) if runs else None
    if found is None:
        return None
    return {
        "within": found.within,
        "between": found.between,
        "difference": found.within - found.between,
        "p": found.p,
        "n_runs": len(runs),
    }


def shared_curves(dictionaries: Sequence[Dictionary], generator: torch.Generator) -> pd.DataFrame:
    """P(best cosine in another dictionary > threshold): columns kind, arm, threshold, fraction.

    kind is `same` (other seeds of the arm), `other` (other arms' other seeds, among `dictionaries`, which should hold
    no controls) or `random` (random directions).
    """
    lefts = [one for one in dictionaries if one.alive.any()]
    random = [random_directions(len(left.decoder), left.decoder.shape[1], generator) for left in lefts]
    curves: dict[tuple[str, str], list[list[float]]] = {}
    for found in side_by_side(lambda one: _curves(*one, lefts), zip(lefts, random, strict=True)):
        for name, curve in found:
            curves.setdefault(name, []).append(curve)
    records = [
        {"kind": kind, "arm": arm, "threshold": threshold, "fraction": fraction}
        for (kind, arm), found in curves.items()
        for threshold, fraction in zip(THRESHOLDS, np.mean(found, axis=0).tolist(), strict=True)
    ]
    return pd.DataFrame(records, columns=["kind", "arm", "threshold", "fraction"])


def _curves(
    left: Dictionary, random: Float[Tensor, "random d_in"], others: Sequence[Dictionary]
) -> list[tuple[tuple[str, str], list[float]]]:
    """(kind, arm) and the fractions of one dictionary beside each that `shared_curves` compares it with."""
    own = left.decoder[left.alive]
    compared = [
        ("same" if right.arm == left.arm else "other", right.decoder[right.alive])
        for right in others
        if right.seed != left.seed
    ]
    return [
        ((kind, left.arm), shared_fraction(best_cosines(own, right), THRESHOLDS))
        for kind, right in [*compared, ("random", random)]
    ]
