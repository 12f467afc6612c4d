"""The figure of question 5: coverage against L0."""

from matplotlib.axes import Axes

from stages.lib.report import draw
from stages.lib.report.figures.plate import plate
from stages.lib.report.page import Figure
from stages.lib.report.results import Results

PANELS = {
    "coverage": "mean F1, all concepts",
    "coverage_contextual": "mean F1, contextual concepts",
    "cc_beyond_ngrams": "chance-corrected F1 beyond n-grams,\ncontextual concepts",
}
LINES = {"token": "token lookup", "bigram": "bigram lookup", "trigram": "trigram lookup", "probe": "dense probe"}
"""What detects concepts without an SAE, by the end of its metrics' names."""


def coverage(results: Results) -> Figure:
    """Concept coverage against L0, beside what n-grams and a dense probe reach."""
    rows = results.rows["interpret"]
    evaluated = results.rows["evaluate"]
    l0 = evaluated[evaluated["metric"] == "l0"].set_index(["arm", "level", "seed"])["value"].rename("l0")
    with plate("coverage", 11.5, 4.6, columns=len(PANELS)) as drawn:
        for panel, (metric, label) in zip(drawn.axes, PANELS.items(), strict=True):
            found = rows[rows["metric"] == metric].join(l0, on=["arm", "level", "seed"], how="inner")
            if found.empty:
                draw.empty(panel, f"{label} was not measured")
                continue
            draw.frontier(panel, found, results.arms, label, False)
            _levels(results, panel, metric)
        drawn.legend(drawn.axes[0])
    return drawn.captioned(
        f"F1 of the best feature of each concept, averaged over concepts, against L0. Thin lines: {len(results.seeds)} "
        "seeds; markers: their mean at each level. Dotted: tables of the last one, two and three tokens, and a dense "
        f"probe of the activations of `{results.reference}`, on the same test text. Right: beyond what all three "
        "tables reach; there the tables are at 0."
    )


def _levels(results: Results, panel: Axes, metric: str) -> None:
    """Lines at what is reached without an SAE, in the activations of the reference, with their names beside them."""
    rows = results.rows["interpret"]
    for kind, label in LINES.items():
        found = rows[(rows["arm"] == results.reference) & (rows["metric"] == f"{metric}_{kind}")]
        if len(found):
            draw.baseline(panel, float(found["value"].iloc[0]), label)
