"""Question 5: how do sparsity mechanisms affect interpretability?"""

from stages.lib.report.answers.words import absent, against_reference, controls_text, table
from stages.lib.report.page import Block, Note, Text
from stages.lib.report.results import Results
from stages.lib.stats.equal_l0 import as_text

METRICS = {
    "cc_coverage_contextual": "contextual cc-coverage",
    "cc_coverage": "cc-coverage",
    "coverage": "coverage (raw F1)",
    "contextual_gain": "contextual gain",
    "f1_over_probe": "F1 / dense probe",
    "probe_k1_auroc": "1-sparse probe AUROC",
    "probe_k5_auroc": "5-sparse probe AUROC",
}
"""What question 5 looks at, the primary endpoint first; those that were measured are shown."""


def interpretability(results: Results) -> list[Block]:
    """Question 5: how do sparsity mechanisms affect interpretability?"""
    metric = next((m for m in ("cc_coverage_contextual", "cc_coverage") if results.matched(m)), None)
    if metric is None:
        return [absent(f"Concept coverage at L0 {results.l0:g}")]
    label = METRICS[metric]
    cells = {arm: cell for arm, cell in results.matched(metric).items() if arm in results.tested}
    best = max(cells, key=lambda a: cells[a]["mean"]) if cells else None
    lead = (
        f"**{label[0].upper()}{label[1:]} at L0 {results.l0:g} is highest for `{best}`: {as_text(cells[best])}**"
        if best
        else ""
    )
    blocks: list[Block] = [Text(f"{lead} ({results.over}). {against_reference(results, metric)}")]
    shares = results.compare["variance"].get(metric)
    if shares:
        larger = max(shares, key=lambda name: shares[name]["mean"])
        names = {"l0": "L0", "arm": "the mechanism (arm)"}
        blocks.append(Text(
            f"Over all levels of the arms that are no controls, L0 alone explains {as_text(shares['l0'], 2)} and the "
            f"mechanism alone {as_text(shares['arm'], 2)} of its variance beyond the other (drop in R²; "
            f"{results.over}): {names[larger]} matters more here."
        ))  # fmt: skip
    columns = {METRICS[name]: results.matched(name) for name in METRICS if results.matched(name)}
    blocks.append(
        table(results, columns, f"At L0 {results.l0:g}, interpolated per seed. Mean [interval], {results.over}.")
    )
    blocks.append(Note("Control", controls_text(results, metric, label)))
    return [*blocks, Note("Caveat", (
        "Interpretability here means that single features detect concepts labelled exactly from the syntax of "
        "held-out text, corrected for chance; concepts nobody listed do not count, and no reader judged the "
        "features. Interpolated at equal L0, not at equal FVU."
    ))]  # fmt: skip
