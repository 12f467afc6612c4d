"""Question 4: can the behaviour of features during training be quantified and seen?"""

from stages.lib.report.answers.words import absent, table
from stages.lib.report.page import Block, Note, Text
from stages.lib.report.results import Results
from stages.lib.stats.equal_l0 import as_text


def training(results: Results) -> list[Block]:
    """Question 4: can the behaviour of features during training be quantified and seen?"""
    names = {"lazy_fraction": "lazy features", "births": "births", "deaths": "deaths",
             "median_settling_step": "median settling step", "churn": "churn", "churn_null": "churn, null"}  # fmt: skip
    columns = {label: cells for name, label in names.items() if (cells := results.near("emergence", name))}
    reference = results.reference
    blocks: list[Block] = []
    settling, lazy = (
        results.near("emergence", name).get(reference) for name in ("median_settling_step", "lazy_fraction")
    )
    parts = []
    if settling:
        parts.append(f"half of the features have settled by step {as_text(settling, 0)}")
    if lazy:
        parts.append(f"a share of {as_text(lazy)} ends close to where it began")
    if parts:
        blocks.append(Text(f"**In `{reference}`, {' and '.join(parts)}** ({results.over})."))
    icc, seeds = (results.near("frequency", name).get(reference) for name in ("split_half_icc", "cross_seed_icc"))
    if icc:
        good = icc["mean"] >= 0.75
        answer = "Yes, for the firing rate" if good else "Not reliably, for the firing rate"
        other = f", and between matched features of two seeds {as_text(seeds)}" if seeds else ""
        blocks.append(Text(
            f"{answer}: two halves of the documents give it with an ICC of {as_text(icc)}{other}. A channel below "
            "0.75 would say more about the sample than about the feature."
        ))  # fmt: skip
    if not blocks:
        blocks.append(absent(f"Trajectories of the features of `{reference}`"))
    if columns:
        blocks.append(table(results, columns, f"Followed level; mean [interval], {results.over}."))
    cells = results.near("emergence", "lazy_fraction")
    text = "; ".join(f"`{arm}` {as_text(cells[arm])}" for arm in results.controls if arm in cells)
    blocks.append(
        Note(
            "Control",
            f"share of lazy features in the controls: {text or 'not measured'}. A decoder that is frozen is lazy by "
            "construction.",
        )
    )
    return [
        *blocks,
        Note("Caveat", "Checkpoints lie on a logarithmic grid of steps: what happens between two of them is not seen."),
    ]
