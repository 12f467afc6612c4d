"""How the arms differ at equal L0, and whether they learn the same features.

in: reports/{evaluate,frequency,emergence,attribution,interpret}/<arm>.json, data/frequency/<arm>, data/train/<arm>
out: data/compare, reports/compare

Tables at matched L0 and paired differences (`stages.lib.stats.equal_l0`); agreement of the decoders of all runs at the
level nearest the middle L0 (`stages.lib.features.agreement`). Nothing is written when an SAE fails the sanity gate,
unless its arm is a control: those are there to fail.
"""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from stages.lib.features.agreement import PAIR_COLUMNS, Dictionary, pairs, random_level, shared_curves, summarise
from stages.lib.fidelity.gate import gate
from stages.lib.io import params
from stages.lib.io.errors import UserError, nearest
from stages.lib.io.files import read_json
from stages.lib.io.params import Params
from stages.lib.io.summary import read_summaries
from stages.lib.io.tables import read_parquet, write_csv, write_parquet, write_rounded
from stages.lib.io.tensors import load
from stages.lib.run.log import Log
from stages.lib.run.seeds import integer, numpy_generator
from stages.lib.run.start import run
from stages.lib.sae.members import Member, cell, members
from stages.lib.sae.saved import load_sae
from stages.lib.stats.equal_l0 import (
    differences,
    matched_values,
    means,
    middle,
    missing,
    nearest_levels,
    variance_shares,
)

STAGES = ("evaluate", "frequency", "emergence", "attribution", "interpret")
FREQUENCY, DATA, REPORTS = Path("data/frequency"), Path("data/compare"), Path("reports/compare")
CURVE_POINTS = 40
"""Rows of `curves.csv` per arm: enough for a smooth line, few enough for git."""


class CompareParams(Params):
    """The section `compare`."""

    l0: Annotated[list[PositiveFloat], Field(min_length=1)]
    """The L0 at which arms are compared; the middle one is the headline and the one of the agreement matrix."""
    l0_tolerance: Annotated[float, Field(ge=0, le=0.2)]
    """How far, as a fraction, a target may lie beyond an arm's last level and still take its value."""
    reference: str
    """The arm that the others are compared with."""
    controls: list[str]
    """Arms that are there to fail: exempt from the sanity gate, kept out of tests and variance shares."""
    metrics: Annotated[list[str], Field(min_length=1)]
    """The metrics of the tables in git; `data/compare` holds all of them."""
    n_permutations: PositiveInt
    n_random: PositiveInt
    """Pairs of random dictionaries behind the chance level of agreement."""
    seed: NonNegativeInt


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`."""

    compare: CompareParams
    arms: list[str]
    seeds: list[int]


def settings() -> Settings:
    """The stage's settings, checked.

    Raises:
        UserError: if the reference or a control is no arm.
    """
    compare = params.read("compare", CompareParams)
    arms = [str(arm) for arm in params.value("saes")]
    for name, value in [("reference", compare.reference), *(("controls", control) for control in compare.controls)]:
        if value not in arms:
            raise UserError(f"params.yaml: compare.{name} has {value!r}, which is no arm of saes{nearest(value, arms)}")
    return Settings(compare, arms, params.read("train.seeds", list[int]))


def dictionary(member: Member, follow_level: int) -> Dictionary:
    """The decoder of a member, which of its features fired, and the decoder it began with."""
    rates = read_parquet(FREQUENCY / member.arm / "features.parquet")
    rates = rates[(rates["seed"] == member.seed) & (rates["level"] == member.level)].sort_values("feature")
    decoder = load_sae(member.directory).W_dec
    assert len(rates) == len(decoder), f"{member.directory} has {len(decoder)} features, data/frequency {len(rates)}"
    # Levels of one seed start from the same weights, and only the followed one keeps its checkpoints.
    start = member.directory.parent / f"level-{follow_level}" / "checkpoints" / "step-00000000.safetensors"
    initial = load(start, ["W_dec"])["W_dec"].float()
    return Dictionary(member.arm, member.seed, decoder, torch.tensor(rates["rate"].to_numpy() > 0), initial)


def dictionaries(
    arms: list[str], seeds: list[int], reference: str, levels: dict[tuple[str, int], int]
) -> list[Dictionary]:
    """The dictionaries of all runs on the reference arm's activations (elsewhere directions mean something else)."""
    train = {(arm, seed): read_json(cell(arm, seed) / "train.json") for arm in arms for seed in seeds}
    space = train[reference, seeds[0]]["activations"]
    return [
        dictionary(member, train[member.arm, member.seed]["follow_level"])
        for arm in arms
        for member in members(arm, seeds)
        if train[arm, member.seed]["activations"] == space and levels.get((arm, member.seed)) == member.level
    ]


def curves(arms: list[str], seeds: list[int]) -> pd.DataFrame:
    """Training curves of the followed levels, thinned, mean over seeds, with the range of the FVU."""
    tables = []
    for arm in arms:
        for seed in seeds:
            directory = cell(arm, seed)
            table = pd.read_csv(directory / "history.csv")
            tables.append(table[table["level"] == read_json(directory / "train.json")["follow_level"]])
    table = pd.concat(tables)
    table = table.groupby(["arm", "step", "tokens"], sort=False).agg(
        fvu=("fvu", "mean"), fvu_low=("fvu", "min"), fvu_high=("fvu", "max"), l0=("l0", "mean"),
        dead_fraction=("dead_fraction", "mean"),
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


class Agreement(NamedTuple):
    """Whether runs learned the same directions."""

    pairs: pd.DataFrame
    shared: pd.DataFrame
    summary: dict[str, Any]


def compare_dictionaries(own: CompareParams, found: list[Dictionary]) -> Agreement:
    """The agreement of every pair of dictionaries, and the levels beside which it is read."""
    records = []
    with Log("compare", total=len(found) * (len(found) - 1) // 2, unit="pairs") as log:
        for row in pairs(found):
            records.append(row)
            log.advance()
    table = pd.DataFrame(records, columns=PAIR_COLUMNS)
    generator = torch.Generator().manual_seed(integer(own.seed, "compare", "random directions"))
    shared = shared_curves(found, generator)
    shuffles = numpy_generator(own.seed, "compare", "permutations")
    summary = summarise(table, own.controls, own.n_permutations, shuffles)
    summary["random"] = random_level(len(found[0].decoder), found[0].decoder.shape[1], own.n_random, generator)
    return Agreement(table, shared, summary | {"l0": middle(own.l0)})


def tables(own: CompareParams, arms: list[str], rows: pd.DataFrame, values: pd.DataFrame) -> dict[str, Any]:
    """The tables of arms at equal L0, from all rows and from the values at equal L0."""
    tested = [arm for arm in arms if arm not in own.controls]
    shares = {metric: variance_shares(rows, metric, tested) for metric in own.metrics}
    return {
        "matched": means(values, own.metrics, own.l0),
        "differences": differences(values, own.metrics, own.l0, own.reference, own.controls),
        "missing": missing(rows, values, own.metrics, own.l0),
        "variance": {metric: share for metric, share in shares.items() if share},
    }


def main() -> None:
    """Compare all arms of `params.yaml`."""
    own, arms, seeds = settings()
    rows = pd.concat([read_summaries(stage, arms) for stage in STAGES], ignore_index=True)
    rows = rows[rows["seed"].isin(seeds)]
    gate(rows, own.controls)
    values = matched_values(rows, own.l0, own.l0_tolerance)
    write_parquet(DATA / "matched.parquet", values)
    for name, table in tables(own, arms, rows, values).items():
        write_rounded(REPORTS / f"{name}.json", table)
    write_csv(REPORTS / "frontier.csv", frontier(rows))
    write_csv(REPORTS / "curves.csv", curves(arms, seeds))
    levels = nearest_levels(rows, middle(own.l0))
    agreement = compare_dictionaries(own, dictionaries(arms, seeds, own.reference, levels))
    write_parquet(DATA / "pairs.parquet", agreement.pairs)
    write_parquet(DATA / "shared.parquet", agreement.shared)
    write_rounded(REPORTS / "agreement.json", agreement.summary)


if __name__ == "__main__":
    run(main)
