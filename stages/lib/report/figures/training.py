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
    """Firing rates over checkpoints, how directions settle, and churn of best concepts with its null."""
    with plate("trajectories", 10.0, 4.0, columns=3) as drawn:
        left, middle, right = drawn.axes
        _rates_over_training(left, results, reference_table(results, features, "step", "rate"))
        _settling(middle, results, features)
        _relabelling(right, results, checkpoints)
        drawn.legend(middle)
    return drawn.captioned(
        f"Followed level, {len(results.seeds)} seeds pooled. Middle: median and quartiles over features. Right: share "
        "of features whose best concept changes from one checkpoint to the next; dotted: between two halves of the "
        "documents at one checkpoint."
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


def _settling(axes: Axes, results: Results, features: Mapping[str, pd.DataFrame]) -> None:
    """Median and quartiles of the cosine of a feature's direction to its final one."""
    quartiles = np.array([0.25, 0.5, 0.75])
    parts = [
        table.groupby("step")["cos_final"].quantile(quartiles).unstack().reset_index().assign(arm=arm)
        for arm, table in features.items()
    ]
    if parts:
        medians = pd.concat(parts).rename(columns={0.25: "cos_low", 0.5: "cos", 0.75: "cos_high"})
        draw.curves(axes, medians, results.arms, "cos", "step", ("training step", "cosine to the final direction"))
        axes.set_title("Directions settle")


def _relabelling(axes: Axes, results: Results, checkpoints: Mapping[str, pd.DataFrame]) -> None:
    """The share of features whose best concept changes between checkpoints, and its null (dotted)."""
    for arm, table in checkpoints.items():
        style = look(arm, results.arms)
        mean = table.groupby("step")[["churn", "churn_null"]].mean().dropna()
        axes.plot(mean.index, mean["churn"], color=style.colour, ls=style.line, lw=1.4)
        axes.plot(mean.index, mean["churn_null"], color=style.colour, ls=":", lw=1)
    axes.set_xscale("log")
    axes.set_xlabel("training step")
    axes.set_ylabel("features with another best concept")
    axes.set_title("Relabelling (dotted: null)")
