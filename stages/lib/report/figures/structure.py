"""How close decoder directions lie, and attribution against ablation."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from stages.lib.report import draw
from stages.lib.report.answers.pooled import pooled
from stages.lib.report.draw import look
from stages.lib.report.figures.plate import plate, reference_table
from stages.lib.report.page import Figure
from stages.lib.report.results import Cell, Results

SHOWN_COSINE = 0.9
"""The histogram ends here, so that a control whose directions are all antipodal does not flatten the rest."""

SHOWN_MEAN = 0.6
"""Means beyond this are written at the edge."""


def embedding(results: Results, table: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """Cosines with the nearest and with the most opposite direction, beside those of random directions.

    `table` has the columns arm, nearest, opposite and the same with `_null`, a row a feature.
    """
    own = table[table["arm"] == results.reference]
    with plate("embedding", 9.5, 4.0, columns=2) as drawn:
        left, right = drawn.axes
        bins = np.linspace(-SHOWN_COSINE, SHOWN_COSINE, 91)
        if own.empty:
            draw.empty(left, f"{results.reference} is not on these activations")
        else:
            colour = look(results.reference, results.arms).colour
            for name in ("opposite", "nearest"):
                label = name == "nearest"
                left.hist(own[f"{name}_null"], bins=list(bins), color=draw.GREY,
                          label="random directions" if label else None)  # fmt: skip
                left.hist(own[name], bins=list(bins), histtype="step", color=colour, lw=1.6,
                          label=results.reference if label else None)  # fmt: skip
            left.set_xlabel("cosine with the most opposite (left) and the nearest (right) direction")
            left.set_ylabel("features")
            left.legend(loc="upper left")
        left.set_title(f"Neighbours in {results.reference}")
        _mean_neighbours(right, results, table, arms)
    return drawn.captioned(
        f"Each feature's nearest and most opposite decoder direction. Left: {len(own)} features of "
        f"`{results.reference}`, and the mean over random dictionaries of the feature of the same rank. Right: means "
        "of the features of each arm on the same activations (random: |), whose p is in the table. One seed per arm, "
        "features that fire. Coordinates of a map (UMAP) are in `data/embed`; no number is taken from them."
    )


def _mean_neighbours(axes: Axes, results: Results, table: pd.DataFrame, arms: Sequence[str]) -> None:
    shown = [arm for arm in arms if (table["arm"] == arm).any()]
    axes.axvline(0, color="#5c6670", lw=0.9, ls=":")
    for row, arm in enumerate(reversed(shown)):
        own, style = table[table["arm"] == arm], look(arm, results.arms)
        for name in ("opposite", "nearest"):
            value, null = float(own[name].mean()), float(own[f"{name}_null"].mean())
            axes.plot([null, value], [row, row], color=style.colour, lw=1.2, alpha=0.6)
            axes.plot(null, row, color="#5c6670", marker="|", ms=11, mew=1.6, ls="")
            axes.plot(value, row, color=style.colour, marker=style.marker, ms=5, ls="")
            if abs(value) > SHOWN_MEAN:
                axes.text(np.sign(value) * 0.97 * SHOWN_MEAN, row + 0.15, f"{value:.2f}", fontsize=7,
                          ha="left" if value < 0 else "right")  # fmt: skip
    axes.set_yticks(range(len(shown)), list(reversed(shown)))
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlim(-SHOWN_MEAN, SHOWN_MEAN)
    axes.set_xlabel("mean cosine")
    axes.set_title("Every arm")
    axes.grid(axis="y", visible=False)


def attribution(results: Results, tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Scores against exact ablation, and the rank correlation of every arm."""
    table = reference_table(results, tables, "stratum", "grad_x_act", "ig", "ablation")
    random = table[table["stratum"] == "random"]
    shown = {
        "grad_x_act": ("grad × act (nats)", f"One gradient, {results.reference}"),
        "ig": ("integrated gradients (nats)", "Path of gradients"),
    }
    with plate("attribution", 9.5, 3.9, columns=3) as drawn:
        *panels, right = drawn.axes
        for axes, (name, (label, title)) in zip(panels, shown.items(), strict=True):
            if random.empty:
                draw.empty(axes, "no scores")
                continue
            score, effect = (random[column].to_numpy(np.float64) for column in (name, "ablation"))
            colour = look(results.reference, results.arms).colour
            draw.against(axes, score, effect, (label, "exact ablation (nats)"), colour)
            axes.set_title(title)
        slopes = {arm: found["slope_pooled"] for arm, found in pooled(results, "attribution").items()
                  if "slope_pooled" in found}  # fmt: skip
        _slopes(right, results, slopes)
    return drawn.captioned(
        f"Change of the loss when one feature is removed at one token: score against exact ablation for {len(random)} "
        f"active nodes at random tokens ({len(results.seeds)} seeds pooled); dotted: equality. Right: median of "
        "ablation ÷ grad × act, with its 95 % interval over documents and seeds; all arms at the same tokens."
    )


def _slopes(axes: Axes, results: Results, cells: Mapping[str, Cell]) -> None:
    shown = [arm for arm in results.arms if arm in cells]
    axes.axvline(1, color="#5c6670", lw=0.9, ls=":")
    for row, arm in enumerate(reversed(shown)):
        cell, style = cells[arm], look(arm, results.arms)
        if "low" in cell:
            axes.plot([cell["low"], cell["high"]], [row, row], color=style.colour, lw=2)
        axes.plot(cell["mean"], row, color=style.colour, marker=style.marker, ms=4)
    axes.set_yticks(range(len(shown)), list(reversed(shown)))
    axes.set_ylim(-0.6, max(len(shown), 1) - 0.4)
    axes.set_xlabel("ablation ÷ grad × act")
    axes.set_title("Every arm")
    axes.grid(axis="y", visible=False)
