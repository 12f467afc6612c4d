"""The figures of question 1: frontiers, training curves, agreement of dictionaries."""

import numpy as np
import pandas as pd

from stages.lib.report import draw
from stages.lib.report.draw import Matrix
from stages.lib.report.figures.plate import plate
from stages.lib.report.page import Figure
from stages.lib.report.results import Results


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
