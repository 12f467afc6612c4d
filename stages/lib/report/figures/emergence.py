"""The figure of question 2: coverage and concepts over training."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from stages.lib.report import draw
from stages.lib.report.draw import Matrix
from stages.lib.report.figures.plate import MAX_ROWS, plate, reference_table
from stages.lib.report.page import Figure
from stages.lib.report.results import Results


def emergence(results: Results, tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Chance-corrected F1 over training: the mean per arm, and concept by concept for the reference arm."""
    frames = [pd.DataFrame(columns=["step", "cc", "cc_low", "cc_high", "arm"])]
    for arm, table in tables.items():
        by_seed = table.groupby(["step", "seed"])["cc_f1"].mean().groupby("step")
        frames.append(by_seed.agg(cc="mean", cc_low="min", cc_high="max").reset_index().assign(arm=arm))
    means = pd.concat(frames[1:] or frames, ignore_index=True)
    with plate("emergence", 10.0, 5.6, columns=2, width_ratios=[1, 1.25]) as drawn:
        left, right = drawn.axes
        labels = ("training step", "mean chance-corrected F1 of the concepts")
        draw.curves(left, means, results.arms, "cc", "step", labels)
        left.set_title("All concepts")
        _concepts_over_training(right, results, reference_table(results, tables, "concept", "step", "cc_f1"))
        drawn.legend(left)
    return drawn.captioned(
        f"Left: mean over concepts, line and range over {len(results.seeds)} seeds. Right: the concepts of "
        f"`{results.reference}` with the highest final score, ordered by when they pass half of it (mean over seeds). "
        "Detectors are chosen anew on validation at every checkpoint and scored on test."
    )


def _concepts_over_training(axes: Axes, results: Results, table: pd.DataFrame) -> None:
    """The concepts with the highest final score, by the step at which they pass half of it."""
    if table.empty:
        draw.empty(axes, f"no curves of {results.reference}")
        return
    wide = table.pivot_table(index="concept", columns="step", values="cc_f1")
    last = wide[wide.columns[-1]].sort_values(ascending=False).index[:MAX_ROWS]
    wide = wide.loc[last]
    half = (wide.to_numpy() >= 0.5 * wide.iloc[:, -1:].to_numpy()).argmax(axis=1)
    wide = wide.iloc[np.lexsort((-wide.iloc[:, -1].to_numpy(), half))]
    steps = [f"{step:g}" for step in wide.columns]
    draw.heat_map(axes, Matrix(wide.to_numpy(np.float64), list(wide.index), steps, "chance-corrected F1"))
    axes.set_xlabel("training step")
    axes.set_title(f"Concepts of {results.reference}")
