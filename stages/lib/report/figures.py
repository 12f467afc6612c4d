"""The figures of the report: tables in, pictures with captions out; what is drawn where, while `draw` says how.

Every caption says what an interval or a band is and on how many seeds it rests.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.figure
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from stages.lib.report import draw
from stages.lib.report.contexts import Stretch
from stages.lib.report.draw import Matrix, canvas, look, png
from stages.lib.report.page import Figure
from stages.lib.report.results import Results

MAX_ROWS = 32
"""Rows of a heat map that can still be read."""


class Plate:
    """A figure of the report while it is drawn."""

    def __init__(self, name: str, figure: matplotlib.figure.Figure, axes: list[Axes]) -> None:
        self.name, self.axes = name, axes
        self._figure = figure
        self._picture = b""

    def legend(self, axes: Axes) -> None:
        """Put the legend of one of the axes below the figure."""
        draw.legend(self._figure, axes)

    def finish(self) -> None:
        """Keep the picture as it is."""
        self._picture = png(self._figure)

    def captioned(self, caption: str) -> Figure:
        """The finished figure."""
        assert self._picture, f"{self.name} is not drawn to the end"
        return Figure(self.name, self._picture, caption)


@contextmanager
def plate(name: str, width: float, height: float, columns: int = 1, **options: Any) -> Iterator[Plate]:
    """A figure of `width` x `height` inches with axes side by side, printed when the block ends."""
    with canvas(width, height, columns=columns, **options) as (figure, axes):
        drawn = Plate(name, figure, axes)
        yield drawn
        drawn.finish()


def reference_table(results: Results, tables: Mapping[str, pd.DataFrame], *columns: str) -> pd.DataFrame:
    """The table of the reference arm, or one without rows if it is not there or lacks one of the columns."""
    table = tables.get(results.reference)
    if table is None or not {*columns} <= {*table.columns}:
        return pd.DataFrame(columns=[*columns])
    return table


def frontiers(results: Results, table: pd.DataFrame) -> Figure:
    """FVU and the loss in cross-entropy against L0."""
    with plate("frontier", 9.0, 4.2, columns=2) as drawn:
        left, right = drawn.axes
        fvu, delta_ce = (
            table.rename(columns={metric: "value"}).dropna(subset=["value"]) for metric in ("fvu", "delta_ce")
        )
        draw.frontier(left, fvu, results.arms, "FVU (test)", True)
        rows = results.rows["evaluate"]
        unigram = rows[(rows["metric"] == "fvu_unigram") & (rows["arm"] == results.reference)]["value"]
        if len(unigram):
            draw.baseline(left, float(unigram.mean()), "mean activation of the token")
        draw.frontier(right, delta_ce, results.arms, "ΔCE (nats per token)", False)
        left.set_title("Reconstruction")
        right.set_title("Effect on the language model")
        drawn.legend(left)
    n = len(results.seeds)
    return drawn.captioned(
        "Share of variance left unexplained (left) and added loss of the language model with the reconstruction in "
        f"place (right) against L0, on test documents. Thin lines: {n} seeds; markers: their mean at each level. "
        "Lower left is better."
    )


def training_curves(results: Results, table: pd.DataFrame) -> Figure:
    """FVU, L0 and dead features over training."""
    shown = {"fvu": "FVU (training batch)", "l0": "L0", "dead_fraction": "share of dead features"}
    with plate("training", 9.5, 3.5, columns=3) as drawn:
        fvu, l0, dead = drawn.axes
        for panel, (value, label) in zip(drawn.axes, shown.items(), strict=True):
            draw.curves(panel, table, results.arms, value, "tokens", ("training tokens", label))
        for panel in (fvu, l0):
            draw.log_ticks(panel, "y")
        dead.set_ylim(0, max(0.05, dead.get_ylim()[1]))  # not a scale of its own where nothing died
        drawn.legend(fvu)
    return drawn.captioned(
        f"Training at the followed level: mean over {len(results.seeds)} seeds; the band is the range of the FVU over "
        "seeds."
    )


def agreement(results: Results, shared: pd.DataFrame) -> Figure:
    """The matrix of agreement between arms and the shared-feature curve."""
    found = results.compare["agreement"]["arms"]
    arms = [arm for arm in results.arms if arm in found or any(arm in row for row in found.values())]
    values = np.array(
        [[found.get(a, {}).get(b, found.get(b, {}).get(a, np.nan)) for b in arms] for a in arms], dtype=np.float64
    )
    with plate("agreement", 9.5, 4.4, columns=2) as drawn:
        left, right = drawn.axes
        if arms and np.isfinite(values).any():
            draw.heat_map(left, Matrix(values, arms, arms, "mean matched cosine (MCC)"))
            draw.annotate(left, values)
        else:
            draw.empty(left, "agreement takes two seeds")
        draw.shared_features(right, shared, results.arms)
        left.set_title("Decoder agreement")
        right.set_title("Shared features")
        drawn.legend(right)
    random = results.compare["agreement"]["random"]["mean"]
    return drawn.captioned(
        "Left: mean cosine of matched decoder directions between runs of different seeds, at the level nearest L0 "
        f"{results.l0:g}, dead features left out; random directions reach {random:.2f}. Right: share of features with "
        "a counterpart above a cosine, in another seed of the arm (solid), in other arms (dashed), among random "
        "directions (grey)."
    )


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


def rates(results: Results, features: Mapping[str, pd.DataFrame]) -> Figure:
    """Histograms of firing rates, and specialisation against the rate for the reference arm."""
    with plate("frequency", 9.5, 4.4, columns=2) as drawn:
        left, right = drawn.axes
        draw.densities(left, {arm: table["rate"].to_numpy(np.float64) for arm, table in features.items()}, results.arms)
        left.set_title("How often features fire")
        table = reference_table(results, features, "rate", "mcc_calibrated")
        known = table[(table["rate"] > 0) & table["mcc_calibrated"].notna()]
        if len(known):
            rate, score = (known[name].to_numpy(np.float64) for name in ("rate", "mcc_calibrated"))
            labels = ("log₁₀ firing rate (per token)", "calibrated MCC of the best concept")
            draw.binned(right, np.log10(rate), score, labels, look(results.reference, results.arms).colour)
            right.legend(loc="upper left")
            right.set_title(f"Specialisation in {results.reference}")
        else:
            draw.empty(right, "specialisation was not measured")
    return drawn.captioned(
        f"Left: features that fired on test, {len(results.seeds)} seeds pooled, level nearest L0 {results.l0:g}; "
        "black: median; dotted: the limit from which a feature counts as dense. Each histogram is scaled to its own "
        "maximum. Right: one point per feature; the line is the median of a third of a decade."
    )


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


def heat_map(found: Stretch, features: Sequence[int], labels: Mapping[int, str]) -> Figure:
    """Activations of features along a passage, each feature scaled to its maximum in it."""
    values = found.feature_acts.T
    scaled = values / np.maximum(values.max(axis=1, keepdims=True), 1e-12)
    names = [f"{feature} {labels.get(feature, '')}".strip() for feature in features]
    tokens = [token.replace("\n", "⏎").replace(" ", "·").replace("$", r"\$") for token in found.tokens]
    tokens = [token if len(token) <= 14 else f"{token[:13]}…" for token in tokens]
    matrix = Matrix(np.asarray(scaled, dtype=np.float64), names, tokens, "activation / maximum")
    with plate("heat_map", 10.0, 1.4 + 0.19 * len(names) + 0.3) as drawn:
        draw.heat_map(drawn.axes[0], matrix, limits=(0.0, 1.0))
    return drawn.captioned(
        f"Features against the tokens of a passage of `{found.document}` (test split), each row scaled to its maximum "
        "there. Rows are the features with the largest share of their activation in the passage; beside the number, "
        "the feature's best concept."
    )


def feature_map(cosines: npt.NDArray[np.float64], concepts: Sequence[str], features: Sequence[str], arm: str) -> Figure:
    """Cosines between concept directions and the decoder directions of the features that detect them best."""
    side = 2.6 + 0.17 * len(concepts)
    with plate("feature_map", min(10.0, side + 1.2), side) as drawn:
        draw.heat_map(drawn.axes[0], Matrix(cosines, concepts, features, "cosine"), diverging=True)
        drawn.axes[0].set_xlabel("feature (best detector of the concept in the same row)")
    return drawn.captioned(
        "Cosine between the direction in which activations differ with a concept (rows; mean difference on fit "
        f"tokens) and the decoder direction of the best feature of each (columns), `{arm}`. A dark diagonal means "
        "that features that detect a concept also write in its direction; dark off the diagonal, that concepts share "
        "a direction."
    )


def embedding(results: Results, table: pd.DataFrame, arms: Sequence[str]) -> Figure:
    """The map of decoder directions, by arm and by the kind of the best concept."""
    with plate("embedding", 9.5, 4.8, columns=2) as drawn:
        left, right = drawn.axes
        for arm in arms:
            rows = table[table["arm"] == arm]
            left.scatter(rows["x"], rows["y"], s=6, color=look(arm, results.arms).colour, lw=0, alpha=0.6, label=arm)
        left.set_xticks([])
        left.set_yticks([])
        draw.scatter_by_kind(right, table)
        left.set_title("By arm")
        right.set_title("By kind of the best concept")
        for axes in drawn.axes:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, markerscale=2)
    return drawn.captioned(
        "UMAP of decoder directions (cosine), one seed per arm, arms on the same activations. Distances between far "
        "groups mean nothing; cluster numbers in the table were taken from the directions, not from this map."
    )


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
        draw.bars(right, results.near("attribution", "spearman"), results.arms, "Spearman ρ with ablation")
        right.set_xlim(right.get_xlim()[0], 1)
        right.set_title("Every arm")
    return drawn.captioned(
        f"Change of the loss when one feature is removed at one token: score against exact ablation for {len(random)} "
        f"randomly drawn active nodes ({len(results.seeds)} seeds pooled); dotted: equality. Right: mean over seeds "
        "and its 95 % interval."
    )


def coverage(results: Results, metrics: Sequence[tuple[str, str]]) -> Figure:
    """Concept coverage against L0."""
    rows = results.rows["interpret"]
    evaluated = results.rows["evaluate"]
    l0 = evaluated[evaluated["metric"] == "l0"].set_index(["arm", "level", "seed"])["value"].rename("l0")
    with plate("coverage", 9.0, 4.2, columns=len(metrics)) as drawn:
        for panel, (metric, label) in zip(drawn.axes, metrics, strict=True):
            table = rows[rows["metric"] == metric].join(l0, on=["arm", "level", "seed"], how="inner")
            if table.empty:
                draw.empty(panel, f"{label} was not measured")
            else:
                draw.frontier(panel, table, results.arms, label, False)
        drawn.legend(drawn.axes[0])
    return drawn.captioned(
        f"Mean over concepts of the best feature's F1 beyond chance, against L0. Thin lines: {len(results.seeds)} "
        "seeds; markers: their mean at each level. Contextual: beyond what the token alone tells, too."
    )


def kinds(features: pd.DataFrame, kind: Mapping[str, str], at_least: float) -> list[Any]:
    """The kind of each feature's best concept, empty where the calibrated MCC is below `at_least`."""
    return [
        kind.get(concept, "") if isinstance(concept, str) and score >= at_least else ""
        for concept, score in zip(features["best_concept"], features["mcc_calibrated"], strict=True)
    ]
