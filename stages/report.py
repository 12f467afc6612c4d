"""What was found out: one page a person reads, its figures, and a few headline metrics.

in: reports/*/<arm>.json, reports/{compare,embed}, data/{compare,frequency,emergence,attribution,interpret,embed},
    and for what is shown of single features data/{train,activations,tokens,concepts,corpus,model}
out: reports/report.html (self-contained), reports/report.md, reports/figures/*.png, reports/metrics.json

Draws and words only: every number was computed by an analysis. What stands on the page is in
`stages.lib.report.sections`, text in `stages.lib.report.answers`, drawing in `stages.lib.report.figures` and
`stages.lib.report.draw`, layout in `stages.lib.report.page`.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from pydantic import PositiveInt

from stages.lib.io.errors import UserError, nearest
from stages.lib.io.files import atomic, read_json, write_json, write_text
from stages.lib.io.params import Params, read, value
from stages.lib.io.summary import read_summaries
from stages.lib.report.close_up import Size
from stages.lib.report.page import Figure, Section, to_html, to_markdown
from stages.lib.report.results import Results
from stages.lib.report.sections import sections
from stages.lib.run.log import Log
from stages.lib.run.start import run
from stages.lib.stats.equal_l0 import middle

REPORTS = Path("reports")
ANALYSES = ("evaluate", "frequency", "emergence", "attribution", "interpret")
TABLES = ("matched", "differences", "contrasts", "missing", "variance", "agreement", "frequency")
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
    more_seeds: list[int]
    endpoints: dict[str, float]
    ends: dict[str, float]
    """What ends or begins in training, as shares of the steps."""


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
                    read("compare.reference", str), read("compare.l0", list[float]), metrics,
                    read("train.more_seeds", list[int]), read("compare.endpoints", dict[str, float]),
                    ends())  # fmt: skip


def read_results(found: Settings) -> Results:
    """All numbers that the text is made from."""
    seeds = [*found.seeds, *found.more_seeds]
    return Results(
        arms=found.arms, controls=found.controls, reference=found.reference, seeds=found.seeds,
        targets=sorted(found.targets), l0=middle(found.targets),
        compare={name: read_json(REPORTS / "compare" / f"{name}.json") for name in TABLES},
        rows={name: (rows := read_summaries(name, found.arms))[rows["seed"].isin(seeds)] for name in ANALYSES},
        more_seeds=found.more_seeds, endpoints=found.endpoints,
    )  # fmt: skip


def ends() -> dict[str, float]:
    """What ends or begins in training, as shares of the steps."""
    warm_up, sparsity, decay = (read(f"train.{name}", float) for name in ("lr_warm_up", "sparsity_warm_up", "lr_decay"))
    return {"lr warm-up ends": warm_up, "sparsity warm-up ends": sparsity, "lr decay begins": 1 - decay}


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
    title = f"level nearest L0 {results.l0:g}, test documents, mean over seeds; reports/report.html"
    return [f"┌{side}┐", *(f"│ {line:{len(side) - 2}} │" for line in lines), f"└{side}┘ {title}"]


def write_page(results: Results, found: list[Section]) -> None:
    """Write the page, its Markdown twin and the figures."""
    more = f" and {len(results.more_seeds)} more at its headline level" if results.more_seeds else ""
    lead = (
        f"{len(results.arms)} arms ({', '.join(f'`{arm}`' for arm in results.arms)}), of which "
        f"{len(results.controls)} are controls; {len(results.seeds)} SAE seeds of each{more}; one language model. Arms "
        f"are compared at equal L0 (active features per token), {results.l0:g} if no other is named. What each answer "
        f"rests on was declared in `params.yaml` before the run. Intervals: {results.over}, unless said otherwise."
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
        own = found.report
        shown = sections(results, own.arm, Size(own.n_features, own.n_contexts, own.n_tokens), found.ends)
        write_page(results, shown)
        write_json(REPORTS / "metrics.json", headline(results, found.report.headline))
        log.say("\n".join(summary_box(results)))
        if os.environ.get("WANDB_MODE", "disabled") in ("online", "offline"):
            # A process of its own, after everything is written: it can neither change a result nor fail the stage.
            done = subprocess.run([sys.executable, "-m", "stages.lib.run.tracking", "report"], check=False)
            if done.returncode:
                log.say("report: Weights & Biases did not take the report; it is complete in reports/")


if __name__ == "__main__":
    run(main)
