"""What was found out: one page a person reads, its figures, and a few headline metrics.

in: reports/*/<arm>.json, reports/{compare,embed}, data/{compare,frequency,emergence,attribution,interpret,embed},
    and for what is shown of single features data/{train,activations,tokens,concepts,corpus,model}
out: reports/report.html (self-contained), reports/report.md, reports/figures/*.png, reports/metrics.json

Draws and words only: every number was computed by an analysis. Text is in `stages.lib.report.answers`, drawing in
`stages.lib.report.figures` and `stages.lib.report.draw`, layout in `stages.lib.report.page`.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from pydantic import PositiveInt

from stages.lib.io.errors import UserError, nearest
from stages.lib.io.files import atomic, read_json, write_json, write_text
from stages.lib.io.params import Params, read, value
from stages.lib.io.summary import read_summaries
from stages.lib.io.tables import read_parquet
from stages.lib.report.answers import (
    activation_functions,
    emergence,
    frequency,
    interpretability,
    setting,
    structure,
    training,
)
from stages.lib.report.close_up import Size, map_of_features, nearest_features, single_features, tables
from stages.lib.report.figures import activation_functions as first_figures
from stages.lib.report.figures import emergence as second_figures
from stages.lib.report.figures import frequency as third_figures
from stages.lib.report.figures import interpretability as fifth_figures
from stages.lib.report.figures import structure as structure_figures
from stages.lib.report.figures import training as fourth_figures
from stages.lib.report.page import Block, Figure, Section, to_html, to_markdown
from stages.lib.report.results import Results
from stages.lib.run.log import Log
from stages.lib.run.start import run
from stages.lib.stats.equal_l0 import middle

DATA, REPORTS = Path("data"), Path("reports")
ANALYSES = ("evaluate", "frequency", "emergence", "attribution", "interpret")
TABLES = ("matched", "differences", "missing", "variance", "agreement")
TITLE = "What sparse autoencoders learn, and why"


class ReportParams(Params):
    """The section `report`."""

    arm: str
    """Whose features are shown one by one."""
    n_features: PositiveInt
    """Features shown with their strongest contexts."""
    n_contexts: PositiveInt
    """Contexts of each."""
    n_tokens: PositiveInt
    """Tokens of a context, and of the passage of the heat map."""
    headline: list[str]
    """Metrics at the middle L0 that go to `reports/metrics.json`, for `dvc exp show`."""


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`."""

    report: ReportParams
    arms: list[str]
    seeds: list[int]
    controls: list[str]
    reference: str
    targets: list[float]
    metrics: list[str]


def settings() -> Settings:
    """The stage's settings, checked.

    Raises:
        UserError: if an arm or a metric is unknown.
    """
    own = read("report", ReportParams)
    arms, metrics = [str(arm) for arm in value("saes")], read("compare.metrics", list[str])
    if own.arm not in arms:
        raise UserError(f"params.yaml: report.arm is {own.arm!r}, which is no arm of saes{nearest(own.arm, arms)}")
    for name in own.headline:
        if name not in metrics:
            raise UserError(
                f"params.yaml: report.headline has {name!r}, which is not in compare.metrics{nearest(name, metrics)}"
            )
    return Settings(own, arms, read("train.seeds", list[int]), read("compare.controls", list[str]),
                    read("compare.reference", str), read("compare.l0", list[float]), metrics)  # fmt: skip


def read_results(found: Settings) -> Results:
    """All numbers that the text is made from."""
    return Results(
        arms=found.arms, controls=found.controls, reference=found.reference, seeds=found.seeds,
        targets=sorted(found.targets), l0=middle(found.targets),
        compare={name: read_json(REPORTS / "compare" / f"{name}.json") for name in TABLES},
        rows={name: (rows := read_summaries(name, found.arms))[rows["seed"].isin(found.seeds)] for name in ANALYSES},
    )  # fmt: skip


def sections(results: Results, own: ReportParams) -> list[Section]:
    """The page: what it rests on, the five questions, single features."""
    compared = {name: pd.read_csv(REPORTS / "compare" / f"{name}.csv") for name in ("frontier", "curves")}
    features = nearest_features(results, tables(results, "frequency", "features"))
    evolving, checkpoints = (tables(results, "emergence", name) for name in ("trajectories", "checkpoints"))
    facts = (read_json(DATA / name / f"{file}.json") for name, file in
             (("model", "model"), ("corpus", "corpus"), ("tokens", "tokens")))  # fmt: skip
    coverage = fifth_figures.coverage(
        results, [(name, interpretability.METRICS[name]) for name in ("cc_coverage", "cc_coverage_contextual")]
    )
    size = Size(own.n_features, own.n_contexts, own.n_tokens)
    question_5: list[Block] = [
        *illustrated(interpretability.interpretability(results), coverage),
        *illustrated(
            structure.clusters(results, read_json(REPORTS / "embed" / "clusters.json")),
            map_of_features(results, own.arm),
        ),
        *illustrated(
            structure.attribution(results),
            structure_figures.attribution(results, tables(results, "attribution", "nodes")),
        ),
    ]
    return [
        Section("1. How do activation functions affect feature learning?", [
            *illustrated(activation_functions.fidelity(results), first_figures.frontiers(results, compared["frontier"])),
            first_figures.agreement(results, read_parquet(DATA / "compare" / "shared.parquet")),
            first_figures.training_curves(results, compared["curves"]),
        ]),
        Section("2. What drives the emergence of concepts?", illustrated(
            emergence.drivers(results), second_figures.emergence(results, tables(results, "emergence", "concepts")),
        )),
        Section("3. Is the firing frequency a reliable sign of specialisation?", illustrated(
            frequency.frequency(results), third_figures.rates(results, features),
        )),
        Section("4. Can the behaviour of features during training be quantified and seen?", illustrated(
            training.training(results), fourth_figures.trajectories(results, evolving, checkpoints),
        )),
        Section("5. How do sparsity mechanisms affect interpretability?", question_5),
        Section("Features up close", single_features(results, own.arm, size, features)),
        Section("What the results rest on", setting.setting(*facts)),
    ]  # fmt: skip


def illustrated(blocks: list[Block], figure: Figure) -> list[Block]:
    """The blocks with the figure after the first, which is the answer."""
    return [*blocks[:1], figure, *blocks[1:]]


def headline(results: Results, metrics: list[str]) -> dict[str, dict[str, float]]:
    """{metric: {arm: mean at the middle L0}}: grouped by metric, so that `dvc exp show` puts arms side by side."""
    return {name: {arm: cell["mean"] for arm, cell in results.matched(name).items()} for name in metrics}


def summary_box(results: Results) -> list[str]:
    """The lines that end a run on the terminal: FVU, L0 and dead features of every arm."""
    names = {"FVU": "fvu", "L0": "l0", "dead": "dead_fraction"}
    cells = {label: results.near("evaluate", metric) for label, metric in names.items()}
    width = max(len(arm) for arm in results.arms)
    rows = [
        f"{arm:{width}}  {cells['FVU'][arm]['mean']:6.3f}  {cells['L0'][arm]['mean']:6.1f}  "
        f"{cells['dead'][arm]['mean']:6.1%}"
        for arm in results.arms
        if all(arm in found for found in cells.values())
    ]
    lines = [f"{'arm':{width}}  {'FVU':>6}  {'L0':>6}  {'dead':>6}", *rows]
    side = "─" * (max(map(len, lines)) + 2)
    title = f"level nearest L0 {results.l0:g}, test documents, mean of {len(results.seeds)} seeds; reports/report.html"
    return [f"┌{side}┐", *(f"│ {line:{len(side) - 2}} │" for line in lines), f"└{side}┘ {title}"]


def write_page(results: Results, found: list[Section]) -> None:
    """Write the page, its Markdown twin and the figures."""
    lead = (
        f"{len(results.arms)} arms ({', '.join(f'`{arm}`' for arm in results.arms)}), of which "
        f"{len(results.controls)} are controls; {len(results.seeds)} SAE seeds; one language model. Arms are compared "
        f"at equal L0 (active features per token). Intervals: {results.over}, unless said otherwise."
    )
    kept = {
        f"{block.name}.png": block.png for section in found for block in section.blocks if isinstance(block, Figure)
    }
    for name, png in kept.items():
        with atomic(REPORTS / "figures" / name) as temporary:
            temporary.write_bytes(png)
    write_text(REPORTS / "report.html", to_html(TITLE, lead, found))
    write_text(REPORTS / "report.md", to_markdown(TITLE, lead, found, "figures"))


def main() -> None:
    """Write the report."""
    found = settings()
    results = read_results(found)
    with Log("report", unit="figure") as log:
        write_page(results, sections(results, found.report))
        write_json(REPORTS / "metrics.json", headline(results, found.report.headline))
        log.say("\n".join(summary_box(results)))
        if os.environ.get("WANDB_MODE", "disabled") in ("online", "offline"):
            # A process of its own, after everything is written: it can neither change a result nor fail the stage.
            done = subprocess.run([sys.executable, "-m", "stages.lib.run.tracking", "report"], check=False)
            if done.returncode:
                log.say("report: Weights & Biases did not take the report; it is complete in reports/")


if __name__ == "__main__":
    run(main)
