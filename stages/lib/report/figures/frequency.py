"""The figure of question 3: what frequency tells beyond a random decoder, rates, and two measures against them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes

from stages.lib.report import draw
from stages.lib.report.draw import look
from stages.lib.report.figures.plate import plate, reference_table
from stages.lib.report.page import Figure
from stages.lib.report.results import Cell, Results

LABELS = {
    "entropy_rarefied": "token entropy, rarefied",
    "purity": "purity beyond base rate",
    "mcc_calibrated": "calibrated MCC",
    "mcc": "MCC, not calibrated",
    "f1": "best F1 (warning)",
    "stability": "largest cosine, other seeds",
    "stability_matched": "matched cosine, other seeds",
    "effect": "effect of a firing",
    "kurtosis": "kurtosis of f > 0",
}
"""Measures in the order in which they are drawn, by their columns."""
SCATTERS = {
    "entropy_rarefied": "token entropy, rarefied (nats)",
    "mcc_calibrated": "calibrated MCC of the best concept",
}
LEAST = 10
"""Features of a bin of which a median is drawn."""


def rates(results: Results, features: Mapping[str, pd.DataFrame]) -> Figure:
    """Differences to the random decoder, histograms of rates, and two measures against the rate."""
    found: Mapping[str, Any] = results.compare.get("frequency", {})
    random = found.get("verdict", {}).get("random_decoder", "")
    with plate("frequency", 11.0, 9.6, columns=2, rows=2, height_ratios=[1.25, 1]) as drawn:
        forest_axes, ridges, *scatters = drawn.axes
        forest(forest_axes, found.get("differences", {}), results)
        if found:
            least, row = (
                found["verdict"]["least_difference"],
                _rows(found["differences"]).get(found["verdict"]["endpoint"]),
            )
            if row is not None:
                forest_axes.plot(
                    [[-least, least]] * 2, [[row - 0.45] * 2, [row + 0.45] * 2], color="#1b1f24", lw=1, ls=":"
                )
        draw.densities(
            ridges, {arm: table["rate"].to_numpy(np.float64) for arm, table in features.items()}, results.arms
        )
        ridges.set_title("How often features fire")
        for axes, (column, label) in zip(scatters, SCATTERS.items(), strict=True):
            _against_rate(axes, results, features, random, (column, label))
        drawn.legend(forest_axes)
    return drawn.captioned(
        f"Level nearest L0 {results.l0:g}, {len(results.seeds)} seeds. Top left: Spearman's ρ of log₁₀ rate and each "
        f"measure, minus the same in the random decoder (`{random}`), paired by seed; 95 % over seeds and features; "
        "dotted: the declared least difference of the measure that decides; faint: controls. Top right: features that "
        "fired on test, each histogram scaled to its own maximum; black: median; dotted: the limit from which a "
        f"feature counts as dense. Bottom: one point per feature of `{results.reference}`, line and band: median and "
        f"quartiles in thirds of a decade with {LEAST} features or more, dashed the random decoder's median."
    )


def _rows(cells: Mapping[str, Any]) -> dict[str, int]:
    """The height of each measure's row, the first on top."""
    shown = [name for name in LABELS if name in cells]
    return {name: len(shown) - 1 - place for place, name in enumerate(shown)}


def forest(axes: Axes, cells: Mapping[str, Mapping[str, Cell]], results: Results) -> None:
    """A row per measure with the difference and interval of every arm, tested arms above controls."""
    rows = _rows(cells)
    if not rows:
        draw.empty(axes, "differences to a random decoder were not measured")
        return
    arms = [arm for arm in results.arms if any(arm in own for own in cells.values())]
    arms = [arm for arm in arms if arm not in results.controls] + [arm for arm in arms if arm in results.controls]
    offsets = np.linspace(0.36, -0.36, len(arms)) if len(arms) > 1 else [0.0]
    for arm, offset in zip(arms, offsets, strict=True):
        style, control = look(arm, results.arms), arm in results.controls
        shown = [name for name in rows if arm in cells[name]]
        mean, low, high = (np.array([cells[name][arm][part] for name in shown]) for part in ("mean", "low", "high"))
        axes.errorbar(
            mean, [rows[name] + offset for name in shown], xerr=np.maximum([mean - low, high - mean], 0),
            color=style.colour, marker=style.marker, ms=4, lw=1, ls="none", alpha=0.6 if control else 1.0, label=arm,
        )  # fmt: skip
    for row in range(len(rows) - 1):
        axes.axhline(row + 0.5, color="#e6e9ec", lw=0.8)
    axes.axvline(0, color="#5c6670", lw=1)
    axes.set_yticks(list(rows.values()), [LABELS[name] for name in rows])
    axes.set_ylim(-0.55, len(rows) - 0.45)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("ρ with log₁₀ rate, minus the random decoder's")
    axes.set_title("What frequency tells beyond a random decoder")


def medians(
    x: Float[np.ndarray, " feature"], y: Float[np.ndarray, " feature"]
) -> tuple[Float[np.ndarray, " bin"], Float[np.ndarray, " bin"]]:
    """The middles of the bins of a third of a unit of x with enough features, and the median of y in each."""
    bins = np.floor(x * 3).astype(int)
    kept = [int(one) for one in np.unique(bins) if (bins == one).sum() >= LEAST]
    return (np.array(kept) + 0.5) / 3, np.array([np.median(y[bins == one]) for one in kept], np.float64)


def _known(table: pd.DataFrame, column: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """log10 rate and the measure of the features that have both."""
    rate, value = (table[name].to_numpy(np.float64) for name in ("rate", column))
    both = (rate > 0) & np.isfinite(value)
    return np.log10(rate[both]), value[both]


def _against_rate(
    axes: Axes, results: Results, features: Mapping[str, pd.DataFrame], random: str, measure: Sequence[str]
) -> None:
    """A measure of the reference arm's features against the rate, with the random decoder's median."""
    column, label = measure
    x, y = _known(reference_table(results, features, "rate", column), column)
    if not len(x):
        draw.empty(axes, f"{column.replace('_', ' ')} was not measured")
        return
    labels = ("log₁₀ firing rate (per token)", label)
    draw.binned(axes, x, y, labels, look(results.reference, results.arms).colour)
    if random in features and column in features[random]:
        middles, values = medians(*_known(features[random], column))
        axes.plot(middles, values, color="#1b1f24", marker="x", ms=4, lw=1.5, ls="--", label=f"median, {random}")
    axes.legend(loc="best")
    axes.set_title(f"{results.reference}: {LABELS[column]}")
