"""What each method recovers of a known dictionary: one page, one figure, one table of all numbers.

in: reports/score/<arm>.json, reports/baseline.json      out: reports/recovery.{md,csv,png}

Draws and words only: every number was computed by `synthetic.score` and `synthetic.baseline`. Arms are compared at
equal L0, each seed interpolated by itself (`stages.lib.stats.equal_l0`); intervals are over seeds.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from pydantic import PositiveFloat

from stages.lib.io import params
from stages.lib.io.files import atomic, read_json, write_text
from stages.lib.io.summary import REPORTS, read_summaries
from stages.lib.io.tables import write_csv
from stages.lib.report.draw import baseline, canvas, frontier, legend, png
from stages.lib.report.page import Block, Figure, Note, Section, Table, Text, to_markdown
from stages.lib.run.log import Log
from stages.lib.run.start import run
from stages.lib.stats.equal_l0 import as_text, key, matched_values, means
from stages.lib.stats.intervals import t_interval
from synthetic.recovery import N_GROUPS

TITLE = "What sparse autoencoders recover of a known dictionary"
COLUMNS = {
    "fvu": "FVU",
    "mcc": "MCC",
    "mmcs_true": "MMCS true→learned",
    "mmcs_learned": "MMCS learned→true",
    "recovered_fraction": "recovered (cos > 0.9)",
    "unique_fraction": "unique",
    "matched_precision": "precision",
    "matched_recall": "recall",
    "matched_f1": "F1",
    "parents_found_fraction": "parents found",
    "children_found_fraction": "children found",
    "absorption_learned": "absorption",
    "absorption_sham": "absorption, sham",
    "absorbed_fraction": "children absorbed",
    "absorption": "absorption, all children",
    "dead_fraction": "dead",
}
HEADLINE = ["fvu", "mcc", "recovered_fraction", "matched_f1", "dead_fraction"]
DIRECTIONS = ["mcc", "mmcs_true", "mmcs_learned", "recovered_fraction", "unique_fraction"]
"""What random directions have too."""
DECILES = [f"recovered_decile_{number + 1}_fraction" for number in range(N_GROUPS)]


class ReportParams(params.Params):
    """The section `report`."""

    l0: PositiveFloat
    """Where arms are compared."""


class Settings(NamedTuple):
    """All that is read from `params.yaml`."""

    report: ReportParams
    arms: list[str]
    seeds: list[int]
    d_sae: int


def settings() -> Settings:
    """The settings."""
    arms, seeds = list(params.read("saes", dict[str, Any])), params.read("train.seeds", list[int])
    return Settings(params.read("report", ReportParams), arms, seeds, params.read("train.d_sae", int))


def matched_table(rows: pd.DataFrame, own: ReportParams, metrics: Sequence[str], arms: Sequence[str]) -> dict[str, Any]:
    """{metric: {arm: mean, low, high, n}} at the L0 where arms are compared."""
    values = matched_values(rows[rows["metric"].isin(["l0", *metrics])], [own.l0])
    found = means(values, metrics, [own.l0]).get(key(own.l0), {})
    return {metric: {arm: found.get(metric, {}).get(arm) for arm in arms} for metric in metrics}


def at_equal_l0(found: Settings, rows: pd.DataFrame, levels: dict[str, Any]) -> list[Block]:
    """The arms side by side, and what random directions and the true codes have there."""
    cells = matched_table(rows, found.report, HEADLINE, found.arms)
    lines = [[arm, *(as_text(cells[metric][arm]) for metric in HEADLINE)] for arm in found.arms]
    random = {name: f"{cell['mean']:.3f} (SD {cell.get('sd', 0):.3f})" for name, cell in levels["random"].items()}
    truth = {"fvu": f"{levels['truth']['fvu']:.3f}", "mcc": "1", "recovered_fraction": "1", "matched_f1": "1"}
    truth |= {"dead_fraction": "0"}
    for name, cell in (("*random directions*", random), (f"*the truth*, L0 {levels['truth']['l0']:.2f}", truth)):
        lines.append([name, *(cell.get(metric, "–") for metric in HEADLINE)])
    caption = (
        f"Held-out tokens, at L0 {found.report.l0:g}; mean over {len(found.seeds)} seeds [95 % t-interval]; a dash: no "
        "value, since the arm's levels do not reach this L0."
    )
    return [Table(["arm", *(COLUMNS[metric] for metric in HEADLINE)], lines, caption)]


def all_levels(rows: pd.DataFrame) -> Block:
    """Every arm and level, as measured."""
    lines = []
    keys: Any
    for keys, group in rows.groupby(["arm", "level"], sort=False):
        by_metric = {str(name): part["value"].tolist() for name, part in group.groupby("metric")}
        cells = [spread(by_metric.get(metric, []), 2 if metric == "l0" else 3) for metric in ("l0", *COLUMNS)]
        lines.append([str(keys[0]), f"{by_metric['sparsity'][0]:g}", *cells])
    caption = "Every level; mean over seeds ± half of the 95 % t-interval; a dash: not defined for any seed."
    return Table(["arm", "level", "L0", *COLUMNS.values()], lines, caption)


def spread(values: list[float], digits: int) -> str:
    """Mean and half-width of the interval as text; a dash without values."""
    if not values:
        return "–"
    interval, mean = t_interval(values), f"{sum(values) / len(values):.{digits}f}"
    return mean if interval is None else f"{mean} ± {(interval.high - interval.low) / 2:.{digits}f}"


def by_frequency(found: Settings, rows: pd.DataFrame) -> Block:
    """Recovery against how frequent a feature is."""
    cells = matched_table(rows, found.report, DECILES, found.arms)
    lines = [[arm, *(as_text(cells[name][arm], 2).split(" ")[0] for name in DECILES)] for arm in found.arms]
    caption = f"Share of true features recovered at L0 {found.report.l0:g}, from the rarest tenth to the most frequent."
    return Table(["arm", *(str(number + 1) for number in range(N_GROUPS))], lines, caption)


def figure(found: Settings, rows: pd.DataFrame, levels: dict[str, Any]) -> Figure:
    """MCC, and F1 of where paired features fire, against L0."""
    true_l0, random = levels["truth"]["l0"], levels["random"]["mcc"]
    l0 = rows[rows["metric"] == "l0"].set_index(["arm", "level", "seed"])["value"].rename("l0")
    with canvas(9.5, 4.4, columns=2) as (drawn, axes):
        for one, metric, label in zip(
            axes, ("mcc", "matched_f1"),
            ("MCC with the true dictionary", "F1 of where paired features fire"), strict=True,
        ):  # fmt: skip
            chosen = rows[rows["metric"] == metric].join(l0, on=["arm", "level", "seed"])
            frontier(one, chosen, found.arms, label, log=False)
            one.axvline(true_l0, color="#5c6670", lw=0.9, ls="--")
            one.annotate("true L0", (true_l0, 1), xycoords=("data", "axes fraction"), xytext=(3, -2),
                         textcoords="offset points", ha="left", va="top", fontsize=7, color="#5c6670")  # fmt: skip
        baseline(axes[0], random["mean"], "random directions")
        legend(drawn, axes[0])
        picture = png(drawn)
    return Figure("recovery", picture, "Thin lines: seeds.")


def few_pairs(rows: pd.DataFrame) -> Note:
    """On how many pairs of a parent and a child absorption rests."""
    n = rows[rows["metric"] == "absorption_learned"]["n"]
    text = "no SAE has a feature for a parent and for a child of it"
    if len(n):
        text = (
            f"it rests on {n.min():.0f} to {n.max():.0f} pairs of a parent and a child that both have a feature, "
            f"{n.median():.0f} in the median SAE"
        )
    return Note("Caveat", f"Absorption is in the table of all levels alone: {text}, too few to compare methods by.")


def hygiene(rows: pd.DataFrame, levels: dict[str, Any]) -> Note:
    """Whether SAEs began at the level of random directions."""
    random = levels["random"]["mcc"]
    started = rows[rows["metric"] == "mcc_initial"].groupby("seed")["value"].first()
    text = f"Before the first step the MCC is {', '.join(f'{value:.4f}' for value in started)} (one number a seed)"
    if random.get("sd"):
        farthest = max(abs(value - random["mean"]) / random["sd"] for value in started)
        verdict = "as chance allows" if farthest <= 3 else "so initialisation and truth may share random numbers"
        text += (
            f", that of {random['n']} random dictionaries {random['mean']:.4f}, SD {random['sd']:.4f}: the farthest "
            f"seed is {farthest:.1f} SD away, {verdict}"
        )
    return Note("Control", text + ".")


def page(found: Settings, rows: pd.DataFrame, levels: dict[str, Any]) -> tuple[str, Figure]:
    """The page as Markdown, and its figure."""
    truth, picture = levels["truth"], figure(found, rows, levels)
    most = min(1.0, found.d_sae / truth["n_features"])
    lead = (
        f"{truth['n_features']} known features in {truth['d_in']} dimensions (mean largest |cosine| with another one "
        f"{truth['mean_max_cosine']:.2f}), on with probabilities from {truth['p_min']:.4f} to {truth['p_max']:.2f}, "
        f"{truth['l0']:.2f} of them at once; {truth['n_parents']} of them are parents of others. SAEs have "
        f"{found.d_sae} features, so that at most {most:.0%} of the true ones can be recovered."
    )
    meaning = (
        "**MCC**: mean signed cosine of the best one-to-one pairs. **F1**: of where paired features fire. "
        "**Absorption**: 1 − P(a parent's feature fires | parent and child on) / P(it fires | parent on, no child on), "
        "over pairs that have a learned feature each; **sham**: the same with children of other parents, which imply "
        "nothing; **all children**: also those without a feature, for which the parent's stands in (below 0: it fires "
        "more often with them). Formulas: `synthetic/recovery.py`; how the activations are made: "
        "`synthetic/world.py`."
    )
    sections = [
        Section(
            "At equal L0",
            [*at_equal_l0(found, rows, levels), picture, Text(meaning), hygiene(rows, levels), few_pairs(rows)],
        ),
        Section("By frequency", [by_frequency(found, rows)]),
        Section("All levels", [all_levels(rows), random_row(levels)]),
    ]  # fmt: skip
    return to_markdown(TITLE, lead, sections, "."), picture


def random_row(levels: dict[str, Any]) -> Text:
    """All scores of random directions."""
    shown = (f"{COLUMNS[name]} {levels['random'][name]['mean']:.3f}" for name in DIRECTIONS)
    return Text(f"Random directions, mean of {levels['random']['mcc']['n']}: {', '.join(shown)}.")


def main() -> None:
    """Write page, figure and table."""
    found = settings()
    rows, levels = read_summaries("score", found.arms), read_json(REPORTS / "baseline.json")
    with Log("report", 1, "page"):
        text, picture = page(found, rows, levels)
        with atomic(REPORTS / "recovery.png") as temporary:
            temporary.write_bytes(picture.png)
        write_text(REPORTS / "recovery.md", text)
        write_csv(REPORTS / "recovery.csv", rows.dropna(axis=1, how="all"))


if __name__ == "__main__":
    run(main)
