"""The map of decoder directions, and attribution against ablation."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stages.lib.report import draw
from stages.lib.report.draw import look
from stages.lib.report.figures.plate import plate, reference_table
from stages.lib.report.page import Figure
from stages.lib.report.results import Results


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
