"""How the arms differ at equal L0, and whether they learn the same features.

in: reports/{evaluate,frequency,emergence,attribution,interpret}/<arm>.json, data/{evaluate,frequency}/<arm>,
    data/train/<arm>
out: data/compare, reports/compare

Tables at matched L0 (`stages.lib.stats.equal_l0`), tests of differences and of equality (`stages.lib.stats.contrasts`);
agreement of the decoders of all runs at the level nearest the middle L0 (`stages.lib.features.agreement`,
`stages.lib.features.same_dictionary`); firing frequency against that of a random decoder
(`stages.lib.features.indicator`). Nothing is written when an SAE fails the sanity gate, unless its arm is a
control: those are there to fail.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from stages.lib.features.agreement import PAIR_COLUMNS, Dictionary, pairs, random_level, shared_curves, summarise
from stages.lib.features.dictionaries import dictionary
from stages.lib.features.indicator import IndicatorParams, against_random_decoder, read_indicator_params
from stages.lib.features.same_dictionary import same_dictionary
from stages.lib.fidelity.frontier import curves, frontier
from stages.lib.fidelity.gate import gate
from stages.lib.io import params
from stages.lib.io.errors import UserError, nearest
from stages.lib.io.files import read_json
from stages.lib.io.params import Params
from stages.lib.io.summary import read_summaries
from stages.lib.io.tables import write_csv, write_parquet, write_rounded
from stages.lib.run.log import Log
from stages.lib.run.seeds import integer, numpy_generator
from stages.lib.run.start import run
from stages.lib.sae.members import cell, members, more_members
from stages.lib.stats.arms import contrasts, differences
from stages.lib.stats.equal_l0 import add_document_widths, matched_values, means, middle, missing, nearest_levels
from stages.lib.stats.variance import variance_shares

STAGES = ("evaluate", "frequency", "emergence", "attribution", "interpret")
DATA, REPORTS = Path("data/compare"), Path("reports/compare")


class CompareParams(Params):
    """The section `compare`."""

    l0: Annotated[list[PositiveFloat], Field(min_length=1)]
    """The L0 at which arms are compared; the middle one is the headline and the one of the agreement matrix."""
    reference: str
    """The arm that the others are compared with."""
    controls: list[str]
    """Arms that are there to fail: exempt from the sanity gate, kept out of tests and variance shares."""
    metrics: Annotated[list[str], Field(min_length=1)]
    """The metrics of the tables in git; `data/compare` holds all of them."""
    endpoints: dict[str, Annotated[float, Field(gt=0, lt=1)]]
    """What was declared beforehand: metrics, and the margin within which an arm counts as equal to the reference, as a
    share of the reference's mean."""
    l0_type: list[str]
    """Arms that are expected to learn the same dictionary: they limit how many features are active, not how much."""
    alike: Annotated[float, Field(gt=0, lt=1)]
    """The agreement, divided by that of seeds, from which two arms count as learning the same dictionary."""
    n_permutations: PositiveInt
    n_random: PositiveInt
    """Pairs of random dictionaries behind the chance level of agreement."""
    seed: NonNegativeInt


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`."""

    compare: CompareParams
    arms: list[str]
    seeds: list[int]
    more_seeds: list[int]
    """Those of the followed level alone."""
    rates: dict[str, float]
    """The learning rate of each arm."""
    indicator: IndicatorParams
    """What of the section `frequency` is about all arms."""


def settings() -> Settings:
    """The stage's settings, checked.

    Raises:
        UserError: if the reference, a control or an arm of `l0_type` is no arm, or an endpoint is not in the tables.
    """
    compare = params.read("compare", CompareParams)
    arms = [str(arm) for arm in params.value("saes")]
    named = [("reference", compare.reference), *(("controls", arm) for arm in compare.controls)]
    for name, value in [*named, *(("l0_type", arm) for arm in compare.l0_type)]:
        if value not in arms:
            raise UserError(f"params.yaml: compare.{name} has {value!r}, which is no arm of saes{nearest(value, arms)}")
    for metric in compare.endpoints:
        if metric not in compare.metrics:
            hint = nearest(metric, compare.metrics)
            raise UserError(f"params.yaml: compare.endpoints has {metric!r}, which is not in compare.metrics{hint}")
    rate = params.read("train.lr", float)
    rates = {arm: float(params.value("saes")[arm].get("lr", rate)) for arm in arms}
    seeds, more = (params.read(f"train.{name}", list[int]) for name in ("seeds", "more_seeds"))
    return Settings(compare, arms, seeds, more, rates, read_indicator_params(arms))


def dictionaries(found: Settings, levels: dict[tuple[str, int], int]) -> list[Dictionary]:
    """The dictionaries of all runs on the reference arm's activations (elsewhere directions mean something else)."""
    train = {arm: read_json(cell(arm, found.seeds[0]) / "train.json") for arm in found.arms}
    space = train[found.compare.reference]["activations"]
    return [
        dictionary(member, train[arm]["follow_level"])
        for arm in found.arms
        for member in [*members(arm, found.seeds), *more_members(arm, found.more_seeds)]
        if train[arm]["activations"] == space and levels.get((arm, member.seed)) == member.level
    ]


def compare_dictionaries(found: Settings, runs: list[Dictionary]) -> None:
    """Write the agreement of every pair of dictionaries, and the levels beside which it is read."""
    own, records = found.compare, []
    with Log("compare", total=len(runs) * (len(runs) - 1) // 2, unit="pairs") as log:
        for row in pairs(runs):
            records.append(row)
            log.advance()
    table = pd.DataFrame(records, columns=PAIR_COLUMNS)
    generator = torch.Generator().manual_seed(integer(own.seed, "compare", "random directions"))
    summary = summarise(table, own.controls, own.n_permutations, numpy_generator(own.seed, "compare", "permutations"))
    summary |= same_dictionary(table, own.l0_type, own.controls, own.alike)
    summary |= {"rates": {arm: found.rates[arm] for arm in summary["own"]}, "l0": middle(own.l0)}
    write_parquet(DATA / "pairs.parquet", table)
    write_parquet(
        DATA / "shared.parquet", shared_curves([one for one in runs if one.arm not in own.controls], generator)
    )
    summary["random"] = random_level(len(runs[0].decoder), runs[0].decoder.shape[1], own.n_random, generator)
    write_rounded(REPORTS / "agreement.json", summary)


def tables(own: CompareParams, arms: list[str], rows: pd.DataFrame, values: pd.DataFrame) -> dict[str, Any]:
    """The tables of arms at equal L0, from all rows and from the values at equal L0."""
    rows, values = rows[rows["metric"].isin(["l0", *own.metrics])], values[values["metric"].isin(own.metrics)]
    tested = [arm for arm in arms if arm not in own.controls]
    matched = means(values, own.metrics, own.l0)
    add_document_widths(matched, rows, own.l0)
    generator = numpy_generator(own.seed, "compare", "variance shares")
    shares = {metric: variance_shares(rows, metric, tested, own.n_permutations, generator) for metric in own.metrics}
    return {
        "matched": matched,
        "differences": differences(values, own.metrics, own.l0, own.reference, own.controls, own.endpoints),
        "contrasts": contrasts(values, own.metrics, own.l0, tested),
        "missing": missing(rows, values, own.metrics, own.l0),
        "variance": {metric: share for metric, share in shares.items() if share},
    }


def main() -> None:
    """Compare all arms of `params.yaml`."""
    found = settings()
    own, arms = found.compare, found.arms
    rows = pd.concat([read_summaries(stage, arms) for stage in STAGES], ignore_index=True)
    rows = rows[rows["seed"].isin([*found.seeds, *found.more_seeds])]
    gate(rows, own.controls)
    values = matched_values(rows, own.l0)
    write_parquet(DATA / "matched.parquet", values)
    levels = nearest_levels(rows, middle(own.l0))
    with ThreadPoolExecutor(1) as beside:  # matching takes one thread, tables take the other
        matched = beside.submit(compare_dictionaries, found, dictionaries(found, levels))
        indicator = against_random_decoder(found.indicator, arms, own.controls, levels)
        for name, table in (tables(own, arms, rows, values) | {"frequency": indicator}).items():
            write_rounded(REPORTS / f"{name}.json", table)
        write_csv(REPORTS / "frontier.csv", frontier(rows))
        write_csv(REPORTS / "curves.csv", curves(arms, found.seeds))
        matched.result()


if __name__ == "__main__":
    run(main)
