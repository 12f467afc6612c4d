"""The figure of question 4: trajectories of features."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from stages.lib.report import draw
from stages.lib.report.draw import look
from stages.lib.report.figures.plate import plate, reference_table
from stages.lib.report.page import Figure
from stages.lib.report.results import Results


def trajectories(
    results: Results, features: Mapping[str, pd.DataFrame], checkpoints: Mapping[str, pd.DataFrame]
) -> Figure:
    """Firing rates, directions against those of another seed, settling, and excess churn over checkpoints."""
    with plate("trajectories", 10.0, 7.6, columns=2, rows=2) as drawn:
        rates, other, settled, churn = drawn.axes
        _rates_over_training(rates, results, reference_table(results, features, "step", "rate"))
        _other_seed(other, results, features)
        _settling(settled, results, checkpoints)
        _relabelling(churn, results, checkpoints)
        drawn.legend(settled)
    n = len(results.seeds)
    return drawn.captioned(
        f"Followed level, {n} seeds. Top left: firing rates, seeds pooled. Top right: cosine of a feature's direction "
        "with the last one of the feature it is matched with in the next seed; median and quartiles over features. "
        "Bottom left: share of features that have settled near their last direction by each checkpoint (Turnbull's "
        "estimate, known at the marks only: a line joins them); line and range over seeds; the last mark is 1 by "
        "definition. Bottom right: share of features whose best concept changes from one checkpoint to the next, less "
        "that between two halves of the documents; mean and range over seeds; shaded: the last decade of steps, over "
        "which the declared number is a mean."
    )


def _rates_over_training(axes: Axes, results: Results, table: pd.DataFrame) -> None:
    """Histograms of firing rates at eight checkpoints from the first to the last."""
    if table.empty:
        draw.empty(axes, "no trajectories")
        return
    steps = sorted(table["step"].unique())
    steps = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, 8).round().astype(int))]
    groups = [
        (f"step {s:g}", np.log10(table["rate"][(table["step"] == s) & (table["rate"] > 0)].to_numpy(np.float64)))
        for s in steps
    ]
    draw.ridgeline(axes, groups, np.linspace(-5, 0, 41), "log₁₀ firing rate (per token)")
    axes.set_title(f"Rates in {results.reference}")


def _other_seed(axes: Axes, results: Results, features: Mapping[str, pd.DataFrame]) -> None:
    """Median and quartiles of the cosine with the matched feature of another seed."""
    quartiles = np.array([0.25, 0.5, 0.75])
    parts = [
        table.groupby("step")["cos_other_seed"].quantile(quartiles).unstack().reset_index().assign(arm=arm)
        for arm, table in features.items()
        if "cos_other_seed" in table and table["cos_other_seed"].notna().any()
    ]
    if not parts:
        draw.empty(axes, "one seed: nothing to match with")
        return
    medians = pd.concat(parts).rename(columns={0.25: "cos_low", 0.5: "cos", 0.75: "cos_high"})
    draw.curves(axes, medians, results.arms, "cos", "step", ("training step", "cosine to the other seed's feature"))
    axes.set_title("Seeds come together")


def over_seeds(checkpoints: Mapping[str, pd.DataFrame], column: str) -> pd.DataFrame:
    """Mean and range over seeds of a column at each step, with the columns arm, step, value, value_low, value_high."""
    frames = [pd.DataFrame(columns=["arm", "step", "value", "value_low", "value_high"])]
    for arm, table in checkpoints.items():
        if column in table:
            grouped = table.dropna(subset=[column]).groupby("step")[column]
            found = grouped.agg(value="mean", value_low="min", value_high="max").reset_index()
            frames.append(found.assign(arm=arm))
    return pd.concat(frames[1:] or frames, ignore_index=True)


def _settling(axes: Axes, results: Results, checkpoints: Mapping[str, pd.DataFrame]) -> None:
    """The share of features that have settled by each checkpoint."""
    table = over_seeds(checkpoints, "settled_fraction")
    draw.curves(axes, table, results.arms, "value", "step", ("training step", "features that have settled"))
    for arm in results.arms:
        own = table[(table["arm"] == arm) & (table["step"] > 0)]
        axes.plot(own["step"], own["value"], ls="", marker=".", ms=4, color=look(arm, results.arms).colour)
    axes.set_ylim(-0.02, 1.02)
    axes.set_title("Directions settle")


def _relabelling(axes: Axes, results: Results, checkpoints: Mapping[str, pd.DataFrame]) -> None:
    """Excess churn of best concepts, with the last decade of steps shaded."""
    table = over_seeds(checkpoints, "churn_excess")
    draw.curves(axes, table, results.arms, "value", "step", ("training step", "excess churn of best concepts"))
    axes.axhline(0, color="#5c6670", lw=0.9, ls=":")
    if len(table):
        last = float(table["step"].max())
        axes.axvspan(last / 10, last, color="#b5bcc4", alpha=0.2, lw=0)
    axes.set_title("Relabelling beyond noise")
