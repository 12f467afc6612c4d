"""The figures of the report: tables in, pictures with captions out; what is drawn where, while `figures` says how.

Every caption says what an interval or a band is and on how many seeds it rests.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from stages.lib.report import draw
from stages.lib.report.contexts import Stretch
from stages.lib.report.draw import canvas, look, png
from stages.lib.report.page import Figure
from stages.lib.report.results import Results

MAX_ROWS = 32
"""Rows of a heat map that can still be read."""


def frontiers(results: Results, table: pd.DataFrame) -> Figure:
    """FVU and the loss in cross-entropy against L0."""
    with canvas(9.0, 4.2, columns=2) as (figure, (left, right)):
        draw.frontier(
            left, table.rename(columns={"fvu": "value"}).dropna(subset=["value"]), results.arms, "FVU (test)", True
        )
        rows = results.rows["evaluate"]
        for metric, label in (("fvu_unigram", "mean activation of the token"),):
            values = rows[(rows["metric"] == metric) & (rows["arm"] == results.reference)]["value"]
            if len(values):
                draw.baseline(left, float(values.mean()), label)
        draw.frontier(
            right,
            table.rename(columns={"delta_ce": "value"}).dropna(subset=["value"]),
            results.arms,
            "ΔCE (nats per token)",
            False,
        )
        left.set_title("Reconstruction")
        right.set_title("Effect on the language model")
        draw.legend(figure, left)
        picture = png(figure)
    n = len(results.seeds)
    return Figure("frontier", picture, (
        "Share of variance left unexplained (left) and added loss of the language model with the reconstruction in "
        f"place (right) against L0, on test documents. Thin lines: {n} seeds; markers: their mean at each level. "
        "Lower left is better."
    ))  # fmt: skip


def training_curves(results: Results, table: pd.DataFrame) -> Figure:
    """FVU, L0 and dead features over training."""
    with canvas(9.5, 3.5, columns=3) as (figure, axes):
        for panel, (value, label) in zip(
            axes,
            (("fvu", "FVU (training batch)"), ("l0", "L0"), ("dead_fraction", "share of dead features")),
            strict=True,
        ):
            draw.curves(panel, table, results.arms, value, "tokens", ("training tokens", label))
        for panel in axes[:2]:
            draw.log_ticks(panel, "y")
        axes[2].set_ylim(0, max(0.05, axes[2].get_ylim()[1]))  # not a scale of its own where nothing died
        draw.legend(figure, axes[0])
        picture = png(figure)
    return Figure("training", picture, (
        f"Training at the followed level: mean over {len(results.seeds)} seeds; the band is the range of the FVU over "
        "seeds."
    ))  # fmt: skip


def agreement(results: Results, shared: pd.DataFrame) -> Figure:
    """The matrix of agreement between arms and the shared-feature curve."""
    found = results.compare["agreement"]["arms"]
    arms = [arm for arm in results.arms if arm in found or any(arm in row for row in found.values())]
    values = np.array(
        [[found.get(a, {}).get(b, found.get(b, {}).get(a, np.nan)) for b in arms] for a in arms], dtype=np.float64
    )
    with canvas(9.5, 4.4, columns=2) as (figure, (left, right)):
        if arms and np.isfinite(values).any():
            draw.heat_map(left, values, arms, arms, label="mean matched cosine (MCC)")
            draw.annotate(left, values)
        else:
            draw.empty(left, "agreement takes two seeds")
        draw.shared_features(right, shared, results.arms)
        left.set_title("Decoder agreement")
        right.set_title("Shared features")
        draw.legend(figure, right)
        picture = png(figure)
    random = results.compare["agreement"]["random"]["mean"]
    return Figure("agreement", picture, (
        "Left: mean cosine of matched decoder directions between runs of different seeds, at the level nearest L0 "
        f"{results.l0:g}, dead features left out; random directions reach {random:.2f}. Right: share of features with "
        "a counterpart above a cosine, in another seed of the arm (solid), in other arms (dashed), among random "
        "directions (grey)."
    ))  # fmt: skip


def emergence(results: Results, tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Chance-corrected F1 over training: the mean per arm, and concept by concept for the reference arm."""
    frames = [pd.DataFrame(columns=["step", "cc", "cc_low", "cc_high", "arm"])]
    for arm, table in tables.items():
        by_seed = table.groupby(["step", "seed"])["cc_f1"].mean().groupby("step")
        frames.append(by_seed.agg(cc="mean", cc_low="min", cc_high="max").reset_index().assign(arm=arm))
    means = pd.concat(frames[1:] or frames, ignore_index=True)
    with canvas(10.0, 5.6, columns=2, width_ratios=[1, 1.25]) as (figure, (left, right)):
        draw.curves(
            left, means, results.arms, "cc", "step", ("training step", "mean chance-corrected F1 of the concepts")
        )
        left.set_title("All concepts")
        own = tables.get(results.reference)
        if own is not None and len(own):
            wide = own.pivot_table(index="concept", columns="step", values="cc_f1")
            last = wide[wide.columns[-1]].sort_values(ascending=False).index[:MAX_ROWS]
            wide = wide.loc[last]
            half = (wide.to_numpy() >= 0.5 * wide.iloc[:, -1:].to_numpy()).argmax(axis=1)
            wide = wide.iloc[np.lexsort((-wide.iloc[:, -1].to_numpy(), half))]
            draw.heat_map(
                right,
                wide.to_numpy(np.float64),
                list(wide.index),
                [f"{s:g}" for s in wide.columns],
                label="chance-corrected F1",
            )
            right.set_xlabel("training step")
            right.set_title(f"Concepts of {results.reference}")
        else:
            draw.empty(right, f"no curves of {results.reference}")
        draw.legend(figure, left)
        picture = png(figure)
    return Figure("emergence", picture, (
        f"Left: mean over concepts, line and range over {len(results.seeds)} seeds. Right: the concepts of "
        f"`{results.reference}` with the highest final score, ordered by when they pass half of it (mean over seeds). "
        "Detectors are chosen anew on validation at every checkpoint and scored on test."
    ))  # fmt: skip


def rates(results: Results, features: Mapping[str, pd.DataFrame]) -> Figure:
    """Histograms of firing rates, and specialisation against the rate for the reference arm."""
    with canvas(9.5, 4.4, columns=2) as (figure, (left, right)):
        draw.densities(left, {arm: table["rate"].to_numpy(np.float64) for arm, table in features.items()}, results.arms)
        left.set_title("How often features fire")
        own = features.get(results.reference)
        known = (
            None
            if own is None or "mcc_calibrated" not in own
            else own[(own["rate"] > 0) & own["mcc_calibrated"].notna()]
        )
        if known is not None and len(known):
            draw.binned(
                right,
                np.log10(known["rate"].to_numpy(np.float64)),
                known["mcc_calibrated"].to_numpy(np.float64),
                ("log₁₀ firing rate (per token)", "calibrated MCC of the best concept"),
                look(results.reference, results.arms).colour,
            )
            right.legend(loc="upper left")
            right.set_title(f"Specialisation in {results.reference}")
        else:
            draw.empty(right, "specialisation was not measured")
        picture = png(figure)
    return Figure("frequency", picture, (
        f"Left: features that fired on test, {len(results.seeds)} seeds pooled, level nearest L0 {results.l0:g}; "
        "black: median; dotted: the limit from which a feature counts as dense. Each histogram is scaled to its own "
        "maximum. Right: one point per feature; the line is the median of a third of a decade."
    ))  # fmt: skip


def trajectories(
    results: Results, features: Mapping[str, pd.DataFrame], checkpoints: Mapping[str, pd.DataFrame]
) -> Figure:
    """Firing rates over checkpoints, how directions settle, and churn of best concepts with its null."""
    with canvas(10.0, 4.0, columns=3) as (figure, (left, middle, right)):
        own = features.get(results.reference)
        if own is not None and len(own):
            steps = sorted(own["step"].unique())
            steps = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, 8).round().astype(int))]
            groups = [
                (f"step {s:g}", np.log10(own["rate"][(own["step"] == s) & (own["rate"] > 0)].to_numpy(np.float64)))
                for s in steps
            ]
            draw.ridgeline(left, groups, np.linspace(-5, 0, 41), "log₁₀ firing rate (per token)")
            left.set_title(f"Rates in {results.reference}")
        else:
            draw.empty(left, "no trajectories")
        quartiles = np.array([0.25, 0.5, 0.75])
        parts = [
            table.groupby("step")["cos_final"].quantile(quartiles).unstack().reset_index().assign(arm=arm)
            for arm, table in features.items()
        ]
        if parts:
            medians = pd.concat(parts).rename(columns={0.25: "cos_low", 0.5: "cos", 0.75: "cos_high"})
            draw.curves(
                middle, medians, results.arms, "cos", "step", ("training step", "cosine to the final direction")
            )
            middle.set_title("Directions settle")
        for arm, table in checkpoints.items():
            style = look(arm, results.arms)
            mean = table.groupby("step")[["churn", "churn_null"]].mean().dropna()
            right.plot(mean.index, mean["churn"], color=style.colour, ls=style.line, lw=1.4)
            right.plot(mean.index, mean["churn_null"], color=style.colour, ls=":", lw=1)
        right.set_xscale("log")
        right.set_xlabel("training step")
        right.set_ylabel("features with another best concept")
        right.set_title("Relabelling (dotted: null)")
        draw.legend(figure, middle)
        picture = png(figure)
    return Figure("trajectories", picture, (
        f"Followed level, {len(results.seeds)} seeds pooled. Middle: median and quartiles over features. Right: share "
        "of features whose best concept changes from one checkpoint to the next; dotted: between two halves of the "
        "documents at one checkpoint."
    ))  # fmt: skip


def heat_map(found: Stretch, features: Sequence[int], labels: Mapping[int, str]) -> Figure:
    """Activations of features along a passage, each feature scaled to its maximum in it."""
    values = found.feature_acts.T
    scaled = values / np.maximum(values.max(axis=1, keepdims=True), 1e-12)
    names = [f"{feature} {labels.get(feature, '')}".strip() for feature in features]
    tokens = [token.replace("\n", "⏎").replace(" ", "·").replace("$", r"\$") for token in found.tokens]
    tokens = [token if len(token) <= 14 else f"{token[:13]}…" for token in tokens]
    with canvas(10.0, 1.4 + 0.19 * len(names) + 0.3) as (figure, (axes,)):
        draw.heat_map(
            axes, np.asarray(scaled, dtype=np.float64), names, tokens, label="activation / maximum", limits=(0.0, 1.0)
        )
        picture = png(figure)
    return Figure("heat_map", picture, (
        f"Features against the tokens of a passage of `{found.document}` (test split), each row scaled to its maximum "
        "there. Rows are the features with the largest share of their activation in the passage; beside the number, "
        "the feature's best concept."
    ))  # fmt: skip


def feature_map(cosines: npt.NDArray[np.float64], concepts: Sequence[str], features: Sequence[str], arm: str) -> Figure:
    """Cosines between concept directions and the decoder directions of the features that detect them best."""
    side = 2.6 + 0.17 * len(concepts)
    with canvas(min(10.0, side + 1.2), side) as (figure, (axes,)):
        draw.heat_map(axes, cosines, concepts, features, label="cosine", diverging=True)
        axes.set_xlabel("feature (best detector of the concept in the same row)")
        picture = png(figure)
    return Figure("feature_map", picture, (
        "Cosine between the direction in which activations differ with a concept (rows; mean difference on fit "
        f"tokens) and the decoder direction of the best feature of each (columns), `{arm}`. A dark diagonal means "
        "that features that detect a concept also write in its direction; dark off the diagonal, that concepts share "
        "a direction."
    ))  # fmt: skip


def embedding(results: Results, table: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """The map of decoder directions, by arm and by the kind of the best concept."""
    with canvas(9.5, 4.8, columns=2) as (figure, (left, right)):
        for arm in arms:
            rows = table[table["arm"] == arm]
            left.scatter(rows["x"], rows["y"], s=6, color=look(arm, results.arms).colour, lw=0, alpha=0.6, label=arm)
        left.set_xticks([])
        left.set_yticks([])
        draw.scatter_by_kind(right, table)
        left.set_title("By arm")
        right.set_title("By kind of the best concept")
        for axes in (left, right):
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, markerscale=2)
        picture = png(figure)
    return Figure("embedding", picture, (
        "UMAP of decoder directions (cosine), one seed per arm, arms on the same activations. Distances between far "
        "groups mean nothing; cluster numbers in the table were taken from the directions, not from this map."
    ))  # fmt: skip


def attribution(results: Results, tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Scores against exact ablation, and the rank correlation of every arm."""
    with canvas(9.5, 3.9, columns=3) as (figure, (left, middle, right)):
        own = tables.get(results.reference)
        own = None if own is None else own[own["stratum"] == "random"]
        if own is not None and len(own):
            colour = look(results.reference, results.arms).colour
            effect = own["ablation"].to_numpy(np.float64)
            labels = ("grad × act (nats)", "exact ablation (nats)")
            draw.against(left, own["grad_x_act"].to_numpy(np.float64), effect, labels, colour)
            draw.against(
                middle, own["ig"].to_numpy(np.float64), effect, ("integrated gradients (nats)", labels[1]), colour
            )
            left.set_title(f"One gradient, {results.reference}")
            middle.set_title("Path of gradients")
        else:
            draw.empty(left, "no scores")
            draw.empty(middle, "no scores")
        draw.bars(right, results.near("attribution", "spearman"), results.arms, "Spearman ρ with ablation")
        right.set_xlim(right.get_xlim()[0], 1)
        right.set_title("Every arm")
        picture = png(figure)
    n = 0 if own is None else len(own)
    return Figure("attribution", picture, (
        f"Change of the loss when one feature is removed at one token: score against exact ablation for {n} randomly "
        f"drawn active nodes ({len(results.seeds)} seeds pooled); dotted: equality. Right: mean over seeds and its 95 "
        "% interval."
    ))  # fmt: skip


def coverage(results: Results, metrics: Sequence[tuple[str, str]]) -> Figure:
    """Concept coverage against L0."""
    rows = results.rows["interpret"]
    evaluated = results.rows["evaluate"]
    l0 = evaluated[evaluated["metric"] == "l0"].set_index(["arm", "level", "seed"])["value"].rename("l0")
    with canvas(9.0, 4.2, columns=len(metrics)) as (figure, axes):
        for panel, (metric, label) in zip(axes, metrics, strict=True):
            table = rows[rows["metric"] == metric].join(l0, on=["arm", "level", "seed"], how="inner")
            if table.empty:
                draw.empty(panel, f"{label} was not measured")
            else:
                draw.frontier(panel, table, results.arms, label, False)
        draw.legend(figure, axes[0])
        picture = png(figure)
    return Figure("coverage", picture, (
        f"Mean over concepts of the best feature's F1 beyond chance, against L0. Thin lines: {len(results.seeds)} "
        "seeds; markers: their mean at each level. Contextual: beyond what the token alone tells, too."
    ))  # fmt: skip


def kinds(features: pd.DataFrame, kind: Mapping[str, str], at_least: float) -> list[Any]:
    """The kind of each feature's best concept, empty where the calibrated MCC is below `at_least`."""
    return [
        kind.get(concept, "") if isinstance(concept, str) and score >= at_least else ""
        for concept, score in zip(features["best_concept"], features["mcc_calibrated"], strict=True)
    ]
