"""Question 2: what drives the emergence of concepts?"""

from typing import Any

from stages.lib.report.answers.words import absent, listed, with_interval
from stages.lib.report.page import Block, Note, Table, Text
from stages.lib.report.results import SIGNIFICANT, Results, sign
from stages.lib.stats.equal_l0 import as_text


def drivers(results: Results) -> list[Block]:
    """Question 2: what drives the emergence of concepts?"""
    emerged, reference = results.near("emergence", "n_emerged"), results.reference
    blocks: list[Block] = []
    if reference in emerged:
        w, p = (results.near("emergence", name).get(reference) for name in ("kendall_w", "kendall_w_p"))
        agreed = "Whether seeds agree on their order was not measured."
        if w and p:
            word = "agree" if p["mean"] < SIGNIFICANT else "cannot be said to agree"
            agreed = f"Seeds {word} on their order (Kendall's W {w['mean']:.2f}, permutation p {p['mean']:.2g})."
        blocks.append(Text(
            f"**In `{reference}`, {as_text(emerged[reference], 1)} concepts emerge during training** (persistent "
            f"half-rise of the chance-corrected F1; {results.over}). {agreed}"
        ))  # fmt: skip
    else:
        blocks.append(absent(f"Emergence of concepts in `{reference}`"))
    blocks += _driver_blocks(results)
    controls = "; ".join(f"`{arm}` {as_text(emerged[arm], 1)}" for arm in results.controls if arm in emerged)
    blocks.append(Note("Control", f"concepts that emerge in the controls: {controls or 'not measured'}."))
    caveat = (
        "An order in time that goes with a property of the concepts is no proof that the property drives it: nothing "
        "was intervened on. Only concepts that emerge in every seed count, so that intervals over concepts are wide."
    )
    return [*blocks, Note("Caveat", caveat)]


def _driver_blocks(results: Results) -> list[Block]:
    rows = results.rows["emergence"]
    rows = rows[rows["metric"].str.startswith("driver_") & (rows["metric"] != "driver_half_width")]
    own = rows[rows["arm"] == results.reference]
    if own.empty:
        return [absent("Correlations of emergence times with properties of the concepts")]
    clear = [str(row.metric)[7:] for row in own.itertuples() if sign({"low": row.low, "high": row.high})]
    verdict = (
        f"the interval excludes 0 for {listed(clear)}"
        if clear
        else "every interval includes 0: **no driver is established**"
    )
    names = list(dict.fromkeys(rows["metric"]))
    body = []
    for arm in [arm for arm in results.arms if (rows["arm"] == arm).any()]:
        found: dict[str, Any] = {str(row.metric): row for row in rows[rows["arm"] == arm].itertuples()}
        texts = [with_interval(found[name]) if name in found else "–" for name in names]
        body.append([f"`{arm}`", *texts, f"{max(row.n for row in found.values()):.0f}"])
    caption = "Spearman's ρ of emergence time (geometric mean of seeds) and property; 95 % over concepts (bootstrap)."
    text = f"Of {len(own)} candidate drivers, measured before any SAE was trained, in `{results.reference}` {verdict}."
    return [Text(text), Table(["arm", *(name[7:].replace("_", " ") for name in names), "concepts"], body, caption)]
