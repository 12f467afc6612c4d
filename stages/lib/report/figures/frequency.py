"""The figure of question 3: firing rates, and specialisation against them."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from stages.lib.report import draw
from stages.lib.report.draw import look
from stages.lib.report.figures.plate import plate, reference_table
from stages.lib.report.page import Figure
from stages.lib.report.results import Results


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
