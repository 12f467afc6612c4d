"""The figure of question 2: coverage and concepts over training."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from stages.lib.report import draw
from stages.lib.report.draw import KINDS, Matrix
from stages.lib.report.figures.plate import MAX_ROWS, plate, reference_table
from stages.lib.report.page import Figure
from stages.lib.report.results import Results

INK = "#1b1f24"


def emergence(
    results: Results, tables: Mapping[str, pd.DataFrame], known: pd.DataFrame, ends: Mapping[str, float]
) -> Figure:
    """Chance-corrected F1 over training: the mean per arm, and concept by concept for the reference arm.

    `known` has a row for each concept of the reference arm: kind, place in the order, token lookup and chance level.
    `ends` says what ends or begins in training, as shares of the steps.
    """
    frames = [pd.DataFrame(columns=["step", "cc", "cc_low", "cc_high", "arm"])]
    for arm, table in tables.items():
        by_seed = table.groupby(["step", "seed"])["cc_f1"].mean().groupby("step")
        frames.append(by_seed.agg(cc="mean", cc_low="min", cc_high="max").reset_index().assign(arm=arm))
    means = pd.concat(frames[1:] or frames, ignore_index=True)
    own = reference_table(results, tables, "concept", "step", "cc_f1")
    with plate("emergence", 11.0, 6.4, columns=3, width_ratios=[1.15, 1.25, 0.4]) as drawn:
        left, middle, right = drawn.axes
        labels = ("training step", "mean chance-corrected F1 of the concepts")
        draw.curves(left, means, results.arms, "cc", "step", labels)
        left.set_title("All concepts")
        if len(means):
            _mark_ends(left, ends, float(means["step"].max()))
        wide = stratified(own, known) if len(own) and len(known) else pd.DataFrame()
        if wide.empty:
            draw.empty(middle, f"no curves of {results.reference}")
            draw.empty(right, "")
        else:
            _concepts_over_training(middle, results, wide, known, ends)
            _against_lookup(right, wide, known)
        drawn.legend(left)
    return drawn.captioned(
        f"Left: mean over all concepts, line and range over {len(results.seeds)} seeds; dotted, in both: "
        f"{', '.join(ends)}. Middle: {len(wide)} concepts of `{results.reference}`, as many of "
        "each kind (colours of the names) where there are as many, spread evenly over the final scores of the kind, "
        "with those that never emerge; within a kind in the order of emergence (mean over seeds). Right: final score, "
        "and as a tick what the token alone tells (lookup), corrected for the same chance. Detectors are chosen anew "
        "on validation at every checkpoint and scored on test."
    )


def stratified(table: pd.DataFrame, known: pd.DataFrame, rows: int = MAX_ROWS) -> pd.DataFrame:
    """Curves [concept, step] of some concepts of every kind, by kind and then by their place in the order of emergence.

    Within a kind the concepts are spread evenly over the order of their final scores, so the easiest are there with the
    hardest.
    """
    wide = table.pivot_table(index="concept", columns="step", values="cc_f1")
    kind, rank = known.set_index("concept")["kind"], known.set_index("concept")["rank"]
    present = [name for name in KINDS if (kind == name).any()]
    chosen: list[str] = []
    for name in present:
        own = wide.loc[[concept for concept in kind.index[kind == name] if concept in wide.index]]
        ordered = own.sort_values(own.columns[-1], ascending=False, kind="stable").index
        places = np.unique(np.linspace(0, len(ordered) - 1, rows // len(present)).round().astype(int))
        chosen += [str(concept) for concept in rank.loc[ordered[places]].sort_values(kind="stable").index]
    return wide.loc[chosen]


def _mark_ends(axes: Axes, ends: Mapping[str, float], n_steps: float) -> None:
    for name, share in ends.items():
        axes.axvline(share * n_steps, color="#5c6670", lw=0.9, ls=":")
        axes.annotate(
            name, (share * n_steps, 0.99), xycoords=("data", "axes fraction"), rotation=90, fontsize=7,
            ha="right", va="top", color="#5c6670",
        )  # fmt: skip


def _concepts_over_training(
    axes: Axes, results: Results, wide: pd.DataFrame, known: pd.DataFrame, ends: Mapping[str, float]
) -> None:
    """The chosen concepts, a row each."""
    steps = wide.columns.to_numpy(dtype=np.float64)
    draw.heat_map(
        axes, Matrix(wide.to_numpy(np.float64), list(wide.index), [f"{s:g}" for s in steps], "chance-corrected F1")
    )
    kind = known.set_index("concept")["kind"]
    for label, concept in zip(axes.get_yticklabels(), wide.index, strict=True):
        label.set_color(KINDS.get(str(kind[concept]), INK))
    for share in ends.values():
        # Between the columns of the checkpoints around it, as far as it lies between their steps.
        axes.axvline(float(np.interp(share * steps[-1], steps, np.arange(len(steps)))), color="white", lw=1.2, ls=":")
    axes.set_xlabel("training step")
    axes.set_title(f"Concepts of {results.reference}")


def _against_lookup(axes: Axes, wide: pd.DataFrame, known: pd.DataFrame) -> None:
    """The final score of each row as a bar, what the token alone tells as a tick."""
    facts = known.set_index("concept").loc[wide.index]
    chance = facts["f1_chance"].to_numpy(dtype=np.float64)
    lookup = np.maximum((facts["lexicality"].to_numpy(dtype=np.float64) - chance) / np.maximum(1 - chance, 1e-9), 0)
    rows = np.arange(len(wide))
    colours = [KINDS.get(str(kind), INK) for kind in facts["kind"]]
    axes.barh(rows, wide.iloc[:, -1], color=colours, alpha=0.55, height=0.8)
    axes.plot(lookup, rows, ls="", marker="|", ms=8, mew=1.6, color=INK)
    axes.set_ylim(len(wide) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xlim(0, 1)
    axes.set_xlabel("final; | token lookup")
    axes.grid(axis="y", visible=False)
