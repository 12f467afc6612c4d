"""The figures of question 1: frontiers, training curves, agreement of dictionaries."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from stages.lib.report import draw
from stages.lib.report.draw import Matrix
from stages.lib.report.figures.plate import plate
from stages.lib.report.page import Figure
from stages.lib.report.results import Results


def frontiers(results: Results, table: pd.DataFrame) -> Figure:
    """FVU and the loss in cross-entropy against L0, and what the arms' FVU differs by."""
    with plate("frontier", 11.5, 4.2, columns=3, width_ratios=[1, 1, 0.8]) as drawn:
        left, middle, right = drawn.axes
        fvu, delta_ce = (
            table.rename(columns={metric: "value"}).dropna(subset=["value"]) for metric in ("fvu", "delta_ce")
        )
        draw.frontier(left, fvu, results.arms, "FVU (test)", True)
        rows = results.rows["evaluate"]
        unigram = rows[(rows["metric"] == "fvu_unigram") & (rows["arm"] == results.reference)]["value"]
        if len(unigram):
            draw.baseline(left, float(unigram.mean()), "mean activation of the token")
        draw.frontier(middle, delta_ce, results.arms, "ΔCE (nats per token)", False, framed=results.tested)
        _differences(right, results)
        left.set_title("Reconstruction")
        middle.set_title("Effect on the language model")
        right.set_title(f"FVU against {results.reference}, L0 {results.l0:g}")
        drawn.legend(left)
    n = len(results.seeds)
    more = f", and {len(results.more_seeds)} further ones at the middle level" if results.more_seeds else ""
    return drawn.captioned(
        "Share of variance left unexplained (left) and added loss of the language model with the reconstruction in "
        f"place (middle) against L0, on test documents. Lines: {n} seeds{more}; markers: their mean at each level. "
        "Lower left is better. Right: difference in FVU to the reference arm as a share of its mean, with simultaneous "
        "95 % intervals over seeds; the band is the margin within which an arm counts as equal."
    )


def _differences(axes: Axes, results: Results) -> None:
    """The differences in FVU to the reference, in per cent of its mean."""
    base = results.matched("fvu").get(results.reference)
    found = {arm: cell for arm, cell in results.difference("fvu").items() if arm in results.tested}
    if base is None or not found:
        draw.empty(axes, "no arm can be compared with the reference")
        return
    scale = 100 / base["mean"]
    cells = {arm: {name: cell[name] * scale for name in ("mean", "low", "high") if name in cell}
             for arm, cell in found.items()}  # fmt: skip
    margin = max((cell["margin"] * scale for cell in found.values() if "margin" in cell), default=None)
    draw.forest(axes, cells, results.arms, f"difference, % of {results.reference}", margin)


def training_curves(results: Results, table: pd.DataFrame, ends: Mapping[str, float]) -> Figure:
    """FVU, L0 and dead features over training; `ends` are shares of the training with a name each, marked in all."""
    shown = {"fvu": "FVU (training batch)", "l0": "L0", "dead_fraction": "share of dead features"}
    with plate("training", 9.5, 3.8, columns=3) as drawn:
        fvu, l0, dead = drawn.axes
        for panel, (value, label) in zip(drawn.axes, shown.items(), strict=True):
            draw.curves(panel, table, results.arms, value, "tokens", ("training tokens", label))
            draw.marks(panel, {name: share * float(table["tokens"].max()) for name, share in ends.items()})
        for panel in (fvu, l0):
            draw.log_ticks(panel, "y")
        for wanted in sorted(set(table["wanted_l0"].dropna())):
            draw.baseline(l0, float(wanted), f"wanted: {wanted:g}")
        dead.set_ylim(0, max(0.05, dead.get_ylim()[1]))  # not a scale of its own where nothing died
        drawn.legend(fvu)
    return drawn.captioned(
        f"Training at the followed level: mean over {len(results.seeds)} seeds; the band is the range of the FVU over "
        f"seeds. Dotted: {', '.join(ends)}; the wanted L0."
    )


def agreement(results: Results, shared: pd.DataFrame) -> Figure:
    """The matrices of agreement between arms, and the shared-feature curves."""
    found = results.compare["agreement"]
    raw, own, divided = (found.get(name, {}) for name in ("arms", "own", "disattenuated"))
    arms = [arm for arm in results.arms if arm in own]
    flat = {one: {two: cell["mean"] for two, cell in row.items()} for one, row in divided.items()}
    with plate("agreement", 9.5, 8.2, columns=2, rows=2) as drawn:
        above, beside, left, right = drawn.axes
        _matrix(above, raw, arms, "mean matched cosine (MCC)", "agreement takes two seeds")
        _matrix(beside, flat, arms, "agreement / that of seeds", "it takes two arms and two seeds")
        tested = shared[shared["arm"].isin(results.tested)]
        draw.shared_features(left, tested, results.arms)
        draw.shared_ratio(right, tested, results.arms)
        for panel, title in zip(drawn.axes, ("Decoder agreement", "Divided by that of seeds", "Shared features",
                                             "Divided by those of seeds"), strict=True):  # fmt: skip
            panel.set_title(title)
        drawn.legend(left)
    random = found["random"]["mean"]
    return drawn.captioned(
        "Above, left: mean cosine of matched decoder directions between runs of different seeds, at the level nearest "
        f"L0 {results.l0:g}, dead features left out; random directions reach {random:.2f}. Right: the same divided by "
        "the root of the product of the two arms' agreement with themselves; 1 means that another arm changes no more "
        "than another seed. Below, left: share of features with a counterpart above a cosine, in another seed of the "
        "arm (solid), in other arms that are no controls (dashed), among random directions (dotted). Right: dashed "
        f"divided by solid, where the solid curve is at least {draw.LEAST_SHARED:g}."
    )


def _matrix(axes: Axes, table: Mapping[str, Mapping[str, float]], arms: list[str], label: str, none: str) -> None:
    values: npt.NDArray[np.float64] = np.array(
        [[table.get(a, {}).get(b, table.get(b, {}).get(a, np.nan)) for b in arms] for a in arms], dtype=np.float64
    )
    if not np.isfinite(values).any():
        draw.empty(axes, none)
        return
    draw.heat_map(axes, Matrix(values, arms, arms, label))
    draw.annotate(axes, values)
