"""All drawing: functions that take data and an `Axes`, one style, one table of colours and markers.

Only the report imports this, so that a change of looks never repeats an analysis. The same arm has the same colour and
marker in every figure; colours are those of Okabe & Ito (2008), which readers with any common colour vision can tell
apart, and shades of grey for controls. PNG files carry no date and no version: equal data gives equal bytes.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

matplotlib.use("Agg")

DPI = 150
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e9ec",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.edgecolor": "#5c6670",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "image.interpolation": "nearest",
}


class Look(NamedTuple):
    """How an arm is drawn."""

    colour: str
    marker: str
    line: str


LOOKS = {
    "relu": Look("#0072B2", "o", "-"),
    "jump_relu": Look("#D55E00", "s", "-"),
    "topk": Look("#009E73", "^", "-"),
    "batch_topk": Look("#CC79A7", "v", "-"),
    "gated": Look("#E69F00", "D", "-"),
    "matryoshka": Look("#56B4E9", "P", "-"),
    "p_anneal": Look("#8C6D1F", "X", "-"),
    "frozen_decoder": Look("#7F7F7F", "x", "--"),
    "untrained": Look("#2B2B2B", "+", "--"),
    "pca_topk": Look("#7B3294", "<", "--"),
}
SPARE = [
    Look(c, m, "-.") for c, m in zip(("#A6611A", "#01665E", "#B2182B", "#4D4D9F", "#1B7837"), ">hp*d", strict=True)
]
KINDS = {
    "lexical": "#0072B2", "local": "#56B4E9", "syntactic": "#009E73", "contextual": "#D55E00", "positional": "#CC79A7",
}  # fmt: skip
GREY = "#b5bcc4"


def look(arm: str, arms: Sequence[str]) -> Look:
    """The colour and marker of an arm; arms without an entry take the spare ones in the order of `arms`."""
    if arm in LOOKS:
        return LOOKS[arm]
    return SPARE[[name for name in arms if name not in LOOKS].index(arm) % len(SPARE)]


@contextmanager
def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure in the common style, `width` x `height` inches, and its axes row by row; closed when the block ends."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **options)
        try:
            yield figure, list(axes.flat)
        finally:
            plt.close(figure)


def png(figure: Figure) -> bytes:
    """The figure as a PNG without metadata.

    Printed by the canvas, which arranges the axes as it draws: `savefig` draws everything once more for that.
    """
    with plt.rc_context(STYLE):
        buffer = io.BytesIO()
        figure.set_dpi(DPI)
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def legend(figure: Figure, axes: Axes, columns: int = 5) -> None:
    """One legend for the whole figure, below it."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def empty(axes: Axes, reason: str) -> None:
    """Say in the axes that there is nothing to draw, and why."""
    axes.text(0.5, 0.5, reason, ha="center", va="center", transform=axes.transAxes, color="#5c6670", wrap=True)
    axes.set_xticks([])
    axes.set_yticks([])


def frontier(
    axes: Axes, table: pd.DataFrame, arms: Sequence[str], label: str, log: bool, *, framed: Sequence[str] = ()
) -> None:
    """A metric against L0: a line per seed, a marker at the mean of each level.

    `table` has the columns arm, level, seed, l0, value. If arms are `framed`, the vertical axis is theirs, and what
    lies beyond it is named at the edge with its range.
    """
    for arm in arms:
        rows = table[table["arm"] == arm]
        if rows.empty:
            continue
        style = look(arm, arms)
        for _, seed in rows.groupby("seed"):
            seed = seed.sort_values("l0")
            axes.plot(seed["l0"], seed["value"], color=style.colour, ls=style.line, lw=0.8, marker=".", ms=2)
        means = rows.groupby("level")[["l0", "value"]].mean().sort_values("l0")
        edge = style.colour if style.marker in "x+" else "white"  # of markers without a face the edge is all there is
        axes.plot(means["l0"], means["value"], color=style.colour, marker=style.marker, ls="", ms=6, mec=edge, mew=0.7,
                  label=arm)  # fmt: skip
    log_ticks(axes, "x")
    if log:
        log_ticks(axes, "y")
    axes.set_xlabel("L0 (active features per token)")
    axes.set_ylabel(label)
    _frame(axes, table, [arm for arm in arms if arm in framed], arms)


def _frame(axes: Axes, table: pd.DataFrame, framed: Sequence[str], arms: Sequence[str]) -> None:
    inside = table[table["arm"].isin(list(framed))]["value"]
    if inside.empty:
        return
    low, high = min(0.0, float(inside.min())), float(inside.max()) * 1.12
    axes.set_ylim(low, high)
    outside = table[(table["value"] > high) & ~table["arm"].isin(list(framed))]
    texts = [f"{arm}: {own.min():.2g} to {own.max():.2g}" for arm in arms
             if len(own := outside[outside["arm"] == arm]["value"])]  # fmt: skip
    if texts:
        axes.text(0.98, 0.98, "\n".join(["above:", *texts]), transform=axes.transAxes, ha="right", va="top",
                  fontsize=7, color="#5c6670", bbox={"fc": "white", "ec": "none", "alpha": 0.85})  # fmt: skip


def forest(
    axes: Axes, cells: Mapping[str, Mapping[str, Any]], arms: Sequence[str], label: str, margin: float | None = None
) -> None:
    """A row per arm: a difference with its interval, the line of no difference, and the margin of equality as a band.

    `cells` holds mean and, where known, low and high.
    """
    shown = [arm for arm in arms if arm in cells]
    if margin is not None:
        axes.axvspan(-margin, margin, color=GREY, alpha=0.35, lw=0, label="equal within the margin")
    axes.axvline(0, color="#5c6670", lw=0.9, ls=":")
    for row, arm in enumerate(reversed(shown)):
        cell, style = cells[arm], look(arm, arms)
        if "low" in cell:
            axes.plot([cell["low"], cell["high"]], [row, row], color=style.colour, lw=2)
        axes.plot(cell["mean"], row, color=style.colour, marker=style.marker, ms=4)
    axes.set_yticks(range(len(shown)), list(reversed(shown)))
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)


def marks(axes: Axes, places: Mapping[str, float]) -> None:
    """Vertical lines with a name each above the axes, where something begins or ends."""
    for name, place in places.items():
        axes.axvline(place, color="#5c6670", lw=0.8, ls=":")
        axes.annotate(name, (place, 1.01), xycoords=("data", "axes fraction"), ha="left", va="bottom", rotation=30,
                      fontsize=6, color="#5c6670")  # fmt: skip


def log_ticks(axes: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers: powers of 2 along x (L0), 1, 2, 3 and 5 of every decade along y."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    locator = (
        matplotlib.ticker.LogLocator(base=2)
        if which == "x"
        else matplotlib.ticker.LogLocator(base=10, subs=(1, 2, 3, 5))
    )
    axis.set_major_locator(locator)
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def baseline(axes: Axes, value: float, label: str) -> None:
    """A horizontal line at a level that a result must pass."""
    axes.axhline(value, color="#5c6670", lw=0.9, ls=":")
    axes.annotate(
        label, (0.99, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7, color="#5c6670"
    )


def curves(axes: Axes, table: pd.DataFrame, arms: Sequence[str], value: str, x: str, labels: tuple[str, str]) -> None:
    """A line per arm of `value` over `x`, with a band where the table has `<value>_low` and `<value>_high`."""
    for arm in arms:
        rows = table[table["arm"] == arm].sort_values(x)
        rows = rows[rows[x] > 0].dropna(subset=[value])
        if rows.empty:
            continue
        style = look(arm, arms)
        axes.plot(rows[x], rows[value], color=style.colour, ls=style.line, lw=1.5, label=arm)
        if f"{value}_low" in rows:
            axes.fill_between(
                rows[x], rows[f"{value}_low"], rows[f"{value}_high"], color=style.colour, alpha=0.15, lw=0
            )
    axes.set_xscale("log")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])


def densities(axes: Axes, rates: Mapping[str, npt.NDArray[np.float64]], arms: Sequence[str]) -> None:
    """A row per arm: the histogram of log10 firing rate over features that fired, each scaled to its own maximum."""
    shown = [arm for arm in arms if arm in rates]
    lowest = min((np.log10(rates[arm][rates[arm] > 0]).min(initial=-2) for arm in shown), default=-2)
    edges = np.linspace(np.floor(lowest), 0, 49)
    for row, arm in enumerate(reversed(shown)):
        positive = rates[arm][rates[arm] > 0]
        counts, _ = np.histogram(np.log10(positive), bins=edges)
        height = 0.85 * counts / max(counts.max(), 1)
        style = look(arm, arms)
        axes.stairs(height + row, edges, baseline=row, color=style.colour, fill=True, alpha=0.75)
        if len(positive):
            axes.plot([np.log10(np.median(positive))] * 2, [row, row + 0.85], color="#1b1f24", lw=1)
    axes.axvline(-1, color="#5c6670", lw=0.9, ls=":")
    axes.set_yticks(range(len(shown)), list(reversed(shown)))
    axes.set_xlabel("log₁₀ firing rate (per token)")
    axes.grid(axis="y", visible=False)


class Matrix(NamedTuple):
    """A matrix of one quantity with named rows and columns."""

    values: npt.NDArray[np.float64]
    rows: Sequence[str]
    columns: Sequence[str]
    label: str
    """What the values are, with their unit."""


def heat_map(axes: Axes, matrix: Matrix, *, diverging: bool = False, limits: tuple[float, float] | None = None) -> None:
    """A matrix as colours, with a colour bar; absent (NaN) cells are grey."""
    values, rows, columns, label = matrix
    colours = matplotlib.colormaps["RdBu_r" if diverging else "viridis"].with_extremes(bad="#dfe3e8")
    low, high = limits if limits is not None else (float(np.nanmin(values)), float(np.nanmax(values)))
    if diverging and limits is None:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    image = axes.imshow(values, aspect="auto", cmap=colours, vmin=low, vmax=high)
    size = 7 if max(len(rows), len(columns)) > 20 else 8
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size)
    axes.set_yticks(range(len(rows)), rows, fontsize=size)
    axes.grid(visible=False)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01)
    bar.set_label(label)
    bar.outline.set_visible(False)


def annotate(axes: Axes, values: npt.NDArray[np.float64]) -> None:
    """Write the numbers of a heat map into its cells."""
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < middle else "#1b1f24"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)


def against(
    axes: Axes, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], labels: tuple[str, str], colour: str
) -> None:
    """One quantity against another that should equal it, on symmetric logarithmic axes, with the line of equality."""
    size = np.abs(np.concatenate([x, y]))
    threshold = max(float(np.quantile(size[size > 0], 0.2)) if (size > 0).any() else 1.0, 1e-12)
    limit = float(size.max()) * 1.3 if (size > 0).any() else 1.0
    axes.plot([-limit, limit], [-limit, limit], color="#5c6670", lw=0.9, ls=":")
    axes.scatter(x, y, s=6, color=colour, alpha=0.45, lw=0)
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("symlog", linthresh=threshold, linscale=0.5)
    for axis in (axes.xaxis, axes.yaxis):
        powers = 10.0 ** np.arange(np.ceil(np.log10(threshold)), np.floor(np.log10(max(limit, threshold * 10))) + 1)
        chosen = powers[:: max(1, len(powers) // 3)]
        axis.set_major_locator(matplotlib.ticker.FixedLocator([*-chosen[::-1], 0.0, *chosen]))
        axis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_xlim(-limit, limit)
    axes.set_ylim(-limit, limit)
    axes.tick_params(axis="x", labelsize=7, rotation=45)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])


def binned(
    axes: Axes, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], labels: tuple[str, str], colour: str
) -> None:
    """Points with the median and the quartiles of y in bins of a third of a unit of x."""
    axes.scatter(x, y, s=5, color=GREY, alpha=0.5, lw=0)
    bins = np.floor(x * 3).astype(int)
    middles = [int(b) for b in np.unique(bins) if (bins == b).sum() >= 10]
    if middles:
        low, mid, high = (np.array([np.quantile(y[bins == b], q) for b in middles]) for q in (0.25, 0.5, 0.75))
        centres = (np.array(middles) + 0.5) / 3
        axes.fill_between(centres, low, high, color=colour, alpha=0.2, lw=0, label="quartiles")
        axes.plot(centres, mid, color=colour, marker="o", ms=4, lw=1.8, label="median of a bin")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])


def shared_features(axes: Axes, table: pd.DataFrame, arms: Sequence[str]) -> None:
    """P(best cosine > threshold) with other seeds of the same arm, with other arms (dashed) and by chance (grey)."""
    for arm in arms:
        colour = look(arm, arms).colour
        for kind, line, width in (("same", "-", 1.6), ("other", "--", 1.0)):
            own = table[(table["arm"] == arm) & (table["kind"] == kind)]
            if len(own):
                axes.plot(own["threshold"], own["fraction"], color=colour, lw=width, ls=line,
                          label=arm if kind == "same" else None)  # fmt: skip
    random = table[table["kind"] == "random"].groupby("threshold")["fraction"].mean()
    if len(random):
        axes.plot(random.index, random, color="#7f868d", lw=1.6, ls=":", label="random directions")
    axes.set_xlabel("cosine threshold")
    axes.set_ylabel("features with a counterpart above it")
    axes.set_ylim(0, 1.02)


LEAST_SHARED = 0.05
"""Of an arm's features, below which a share of shares is noise."""


def shared_ratio(axes: Axes, table: pd.DataFrame, arms: Sequence[str]) -> None:
    """The curve of an arm with other arms, divided by that with its own other seeds."""
    for arm in arms:
        rows = table[(table["arm"] == arm) & table["kind"].isin(["same", "other"])]
        wide = rows.pivot_table(index="threshold", columns="kind", values="fraction")
        if {"same", "other"} <= {*wide.columns}:
            wide = wide[wide["same"] >= LEAST_SHARED]
            axes.plot(wide.index, wide["other"] / wide["same"], color=look(arm, arms).colour, lw=1.4)
    axes.axhline(1, color="#5c6670", lw=0.9, ls=":")
    axes.set_xlabel("cosine threshold")
    axes.set_ylabel("other arms / other seeds of the arm")
    axes.set_ylim(bottom=0)


def bars(axes: Axes, values: Mapping[str, Mapping[str, Any]], arms: Sequence[str], label: str) -> None:
    """A horizontal bar per arm with its interval; `values` holds mean and, where known, low and high."""
    shown = [arm for arm in arms if arm in values]
    for row, arm in enumerate(reversed(shown)):
        cell = values[arm]
        axes.barh(row, cell["mean"], color=look(arm, arms).colour, alpha=0.85, height=0.7)
        if "low" in cell:
            axes.plot([cell["low"], cell["high"]], [row, row], color="#1b1f24", lw=1.2)
    axes.set_yticks(range(len(shown)), list(reversed(shown)))
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)


def ridgeline(
    axes: Axes, groups: Sequence[tuple[str, npt.NDArray[np.float64]]], edges: npt.NDArray[np.float64], label: str
) -> None:
    """Histograms above one another, the first at the bottom, each scaled to its own maximum."""
    colours = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, max(len(groups), 1)))
    for row, ((_, values), colour) in enumerate(zip(groups, colours, strict=True)):
        counts, _ = np.histogram(values, bins=edges)
        axes.stairs(row + 0.9 * counts / max(counts.max(), 1), edges, baseline=row, color=colour, fill=True, alpha=0.85)
    axes.set_yticks(range(len(groups)), [name for name, _ in groups])
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
