"""Question 4: can the behaviour of features during training be quantified and seen?"""

from stages.lib.report.answers.pooled import pooled
from stages.lib.report.answers.words import absent, listed, table
from stages.lib.report.page import Block, Note, Table, Text
from stages.lib.report.results import Cell, Results, sign
from stages.lib.stats.equal_l0 import as_text

MOTION = {
    "settled_last_interval_fraction": "settled in the last interval only",
    "start_identified_fraction": "own start recognised",
    "relative_movement": "‖W_T − W_0‖ / ‖W_0‖",
    "cos_other_seed_first": "cosine to other seed, start",
    "cos_other_seed_last": "cosine to other seed, end",
    "churn_excess_last_decade": "excess churn per interval",
    "churn_excess_across_last_decade": "excess churn across the decade",
    "births": "births",
    "deaths": "deaths",
}
CHANNELS = {
    "icc_log_rate": "firing rate",
    "icc_mean_activation": "mean activation",
    "icc_max_activation": "largest activation",
    "icc_best_mcc": "best MCC",
}
GOOD_ICC = 0.75
"""From here on reliability is called good (Koo & Li 2016, J. Chiropr. Med. 15:155)."""


def training(results: Results) -> list[Block]:
    """Question 4: can the behaviour of features during training be quantified and seen?"""
    lead = [part for part in (_settling(results), _relabelling(results), _start(results)) if part]
    columns = {label: cells for name, label in MOTION.items() if (cells := results.near("emergence", name))}
    channels = {label: cells for name, label in CHANNELS.items() if (cells := results.near("emergence", name))}
    blocks: list[Block] = []
    if lead:
        blocks.append(Text(f"**In `{results.reference}`, {'; '.join(lead)}** ({results.over})."))
    if channels:
        blocks += [Text(_reliability(results, channels)), table(results, channels, _CHANNEL_CAPTION)]
    if not blocks:
        blocks.append(absent(f"Trajectories of the features of `{results.reference}`"))
    if columns:
        caption = f"Followed level; mean [interval], {results.over}. {_CAPTION}"
        blocks.append(_with_settling(results, table(results, columns, caption)))
    caveat = (
        "What happens between two checkpoints is not seen: a time of settling is read off the angle, taken as linear "
        "in log(1 + step) between them. It is told from the last direction, which every feature reaches by definition, "
        "and follows the decay of the learning rate; the cosine to the other seed's feature is free of that. A feature "
        "that is matched with one of many random directions has a cosine above 0 too: that of the frozen decoder."
    )
    return [*blocks, Note("Control", _control(results)), Note("Caveat", caveat)]


_CAPTION = (
    "Settled: the step from which on half of the features stay near their last direction (`emergence.settled_cosine`); "
    "its interval is Student's on a scale that ends at the last step. Own start recognised: features whose own start "
    "is the most similar of all starts. Excess churn: share of features whose best concept changes, less that between "
    "two halves of the documents; in the last decade of steps."
)
_CHANNEL_CAPTION = "ICC(2,1) of what is measured of a feature on two halves of the documents, at the last checkpoint."


def _with_settling(results: Results, made: Table) -> Table:
    """The table with the step of settling, made from all seeds at once, as its first number."""
    found = pooled(results, "emergence")
    steps = {arm: as_text(own.get("settling_step"), 0) for arm, own in found.items()}
    # The first cell of a row is the arm, as code and perhaps with a remark.
    rows = [[row[0], steps.get(row[0].split("`")[1], "–"), *row[1:]] for row in made.rows]
    return Table([made.header[0], "settled by step", *made.header[1:]], rows, made.caption)


def _settling(results: Results) -> str:
    own = pooled(results, "emergence").get(results.reference, {})
    if "settling_step" not in own:
        return ""
    text = f"half of the features have settled by step {as_text(own['settling_step'], 0)}"
    if "settling_after" in own:
        text += f" (the checkpoints alone say: after {own['settling_after']['mean']:.0f} and by "
        text += f"{own['settling_by']['mean']:.0f})"
    return text


def _relabelling(results: Results) -> str:
    excess = results.near("emergence", "churn_excess_last_decade").get(results.reference)
    if not excess:
        return ""
    number = f"excess churn {as_text(excess)} per interval of checkpoints"
    if sign(excess) > 0:
        return f"features still change their best concept in the last decade of steps ({number})"
    return f"no change of best concepts beyond noise can be told in the last decade of steps ({number})"


def _start(results: Results) -> str:
    found = results.near("emergence", "start_identified_fraction").get(results.reference)
    if not found:
        return ""
    rows = pooled(results, "emergence")[results.reference]["start_identified_fraction"]
    chance = f", chance {1 / rows['n']:.3f}" if "n" in rows else ""
    return f"a share of {as_text(found)} still points more to its own start than to any other{chance}"


def _reliability(results: Results, channels: dict[str, dict[str, Cell]]) -> str:
    own = {label: cells[results.reference] for label, cells in channels.items() if results.reference in cells}
    good = [label for label, cell in own.items() if cell.get("low", cell["mean"]) >= GOOD_ICC]
    poor = [label for label in own if label not in good]
    text = (
        f"What is measured of a feature at one checkpoint is reliable (ICC of two halves of the documents, interval "
        f"above {GOOD_ICC:g}) in `{results.reference}` for {listed(good)}"
    )
    text += f" and not shown to be for {listed(poor)}." if poor else "."
    seeds = results.near("frequency", "cross_seed_icc").get(results.reference)
    told = f" Between matched features of two seeds the firing rate has {as_text(seeds)}." if seeds else ""
    return f"{text}{told} Directions, births and changes of concept have no such number yet."


def _control(results: Results) -> str:
    parts = []
    for arm in results.controls:
        found = {
            "own start recognised": results.near("emergence", "start_identified_fraction").get(arm),
            "excess churn": results.near("emergence", "churn_excess_last_decade").get(arm),
            "cosine to the other seed's feature at the end": results.near("emergence", "cos_other_seed_last").get(arm),
        }
        texts = [f"{label} {as_text(cell)}" for label, cell in found.items() if cell]
        parts += [f"`{arm}` {', '.join(texts)}"] if texts else []
    return f"{'; '.join(parts) or 'not measured'}. A decoder that is frozen is its own start by construction."
