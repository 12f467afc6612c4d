"""The figure of question 5: coverage against L0."""

from collections.abc import Sequence

from stages.lib.report import draw
from stages.lib.report.figures.plate import plate
from stages.lib.report.page import Figure
from stages.lib.report.results import Results


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
