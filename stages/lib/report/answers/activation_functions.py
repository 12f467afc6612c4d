"""Question 1: how do activation functions affect feature learning?"""

from collections.abc import Mapping, Sequence
from typing import Any

from stages.lib.report.answers.words import (
    absent,
    against_reference,
    best_text,
    controls_text,
    documents,
    listed,
    p_text,
    table,
)
from stages.lib.report.page import Block, Note, Text
from stages.lib.report.results import SIGNIFICANT, Cell, Results
from stages.lib.stats.equal_l0 import as_text, key

ENDPOINT = "fvu"


def fidelity(results: Results) -> list[Block]:
    """Question 1: how do activation functions affect feature learning?"""
    blocks: list[Block] = [_endpoint(results), _agreement(results), _reconstruction_table(results)]
    names = {"γ": "relative_bias", "dead": "dead_fraction", "dense": "dense_fraction", "L0, SD over tokens": "l0_sd"}
    columns = {label: cells for label, metric in names.items() if (cells := results.near("evaluate", metric))}
    caption = (
        f"Level nearest L0 {results.l0:g}; {results.over_cells(*columns.values())}. γ below 1: activations are shrunk; "
        "dense: features with a rate above 0.1."
    )
    blocks.append(table(results, columns, caption))
    blocks.append(Note("Control", f"{controls_text(results, ENDPOINT, 'FVU')}{_agreement_controls(results)}"))
    missing = results.compare["missing"].get(key(results.l0), {}).get(ENDPOINT, {})
    unreached = (
        f" Not at L0 {results.l0:g}: {'; '.join(f'`{a}` ({why})' for a, why in missing.items())}." if missing else ""
    )
    caveat = (
        "One language model and one training budget for all arms: results say what happens at this budget, and a "
        "longer one may reorder arms that are close. Intervals over seeds hold for these test documents; how far other "
        "documents would move the numbers of all arms is in the heads of the columns. FVU is not comparable between "
        "language models, so that of arms on other activations says nothing about theirs being better." + unreached
    )
    return [*blocks, Note("Caveat", caveat)]


def _endpoint(results: Results) -> Block:
    """The declared endpoint: which arms differ from the reference in FVU at the middle L0."""
    cells = {arm: cell for arm, cell in results.matched(ENDPOINT).items() if arm in results.tested}
    if not cells:
        return absent(f"FVU at L0 {results.l0:g}")
    base = cells.get(results.reference)
    own = f" is {as_text(base)} for `{results.reference}`" if base is not None else ": the reference does not reach it"
    head = (
        f"**At L0 {results.l0:g} the FVU (share of variance left unexplained, test documents){own}** "
        f"({results.over_cells(cells)}{documents(results, cells, 3).replace(' (', '; ').rstrip(')')})."
    )
    parts = [head, against_reference(results, ENDPOINT, 4), best_text(results, ENDPOINT, lower=True)]
    return Text(" ".join(part for part in parts if part))


def _reconstruction_table(results: Results) -> Block:
    columns = {f"FVU at L0 {target:g}": results.matched(ENDPOINT, target) for target in results.targets}
    columns[f"ΔCE (nats) at L0 {results.l0:g}"] = results.matched("delta_ce")
    random = results.matched("delta_ce_random_error")
    if random:
        columns["ΔCE of a random error of the same size"] = random
    caption = (
        f"Mean [interval], {results.over_cells(*columns.values())}; documents: half of the 95 % interval over test "
        "documents, which all seeds share, the widest of the arms. Interpolated per seed and never extrapolated: a "
        "dash means that the arm's levels do not reach that L0. ΔCE: added loss of the language model with the "
        "reconstruction in place."
    )
    return table(results, columns, caption)


def _agreement(results: Results) -> Block:
    """Whether the arms learn the same dictionary, apart from how reproducible each of them is."""
    found = results.compare["agreement"]
    matrix, own = found.get("disattenuated", {}), found.get("own", {})
    arms = [arm for arm in results.tested if arm in own]
    if not any(_cell(matrix, one, two) for one in arms for two in arms):
        return absent("Agreement of dictionaries within and between arms (it takes two arms and two seeds)")
    parts = [_same_text(found, arms), _endpoint_text(found), _own_text(results, arms)]
    return Text(" ".join(part for part in parts if part))


def _cell(matrix: Mapping[str, Any], one: str, two: str) -> Cell | None:
    cell: Cell | None = matrix.get(one, {}).get(two, matrix.get(two, {}).get(one))
    return cell


def _same_text(found: Mapping[str, Any], arms: Sequence[str]) -> str:
    """Which arms learn the same dictionary by their intervals, and how far the others agree with these."""
    matrix, least = found["disattenuated"], found["alike"]
    group = [arm for arm in arms if arm in found.get("group", {})]
    measure = "decoder agreement between arms divided by that of each arm's own seeds"
    if not group:
        cells = [cell for i, one in enumerate(arms) for two in arms[i + 1 :] if (cell := _cell(matrix, one, two))]
        verdict = (
            f"No two arms are established to learn the same dictionary: of no pair is the whole interval at or above "
            f"{least:g}"
            if all("low" in cell for cell in cells)
            else "Whether arms learn the same dictionary is not established: an interval takes three seeds"
        )
        return f"**{verdict}** ({measure}: {_range(cells)})."
    inner = [cell for i, one in enumerate(group) for two in group[i + 1 :] if (cell := _cell(matrix, one, two))]
    own = max((found["own"][arm]["mean"] for arm in group), default=1.0)
    text = (
        f"**{listed(group)} learn the same dictionary up to what another seed changes: {_range(inner)}** ({measure}; "
        f"every interval is at or above {least:g}, over {found['n_seeds']} seeds; "
        f"before the division two seeds agree by at most {own:.2f})."
    )
    others = [_other(arm, [cell for one in group if (cell := _cell(matrix, arm, one))], least)
              for arm in arms if arm not in group]  # fmt: skip
    return f"{text} With these agree {'; '.join(others)}." if others else text


def _other(arm: str, cells: Sequence[Cell], least: float) -> str:
    """An arm outside the group, with what its intervals allow to say."""
    if all(cell.get("high", 1.0) < least for cell in cells):
        verdict = f"apart, every interval below {least:g}"
    else:
        below = sum(cell.get("high", 1.0) < least for cell in cells)
        verdict = f"undecided, {below} of {len(cells)} intervals below {least:g}"
    return f"`{arm}` by {_range(cells)} ({verdict})"


def _range(cells: Sequence[Cell]) -> str:
    low, high = min(cell["mean"] for cell in cells), max(cell["mean"] for cell in cells)
    return f"{low:.2f} to {high:.2f}" if f"{low:.2f}" != f"{high:.2f}" else f"{low:.2f}"


def _endpoint_text(found: Mapping[str, Any]) -> str:
    share = found.get("share_alike")
    if share is None:
        return ""
    n = share["n_pairs"]
    bounds = (
        f" ({share['low'] * n:.0f} with the whole interval, {share['high'] * n:.0f} with a part of it)"
        if "low" in share
        else ""
    )
    return (
        f"Of the {n} pairs of arms that limit how many features are active, declared before, "
        f"{share['mean'] * n:.0f} reach {found['alike']:g}{bounds}."
    )


def _own_text(results: Results, arms: Sequence[str]) -> str:
    """How far the seeds of each arm agree; an order of the arms only where they were trained at one rate."""
    found = results.compare["agreement"]
    rates, contrast = found["rates"], found.get("contrast")
    each = ", ".join(f"`{arm}` {found['own'][arm]['mean']:.2f} (rate {rates[arm]:g})" for arm in arms)
    text = f"Two seeds of one arm agree by a mean matched cosine (MCC) of: {each}; random directions by "
    text += f"{found['random']['mean']:.2f}"
    if found.get("initial"):
        text += f", the same seeds before training by {found['initial']['mean']:.2f}"
    text += "."
    if len({rates[arm] for arm in arms}) > 1:
        text += (
            " The arms were trained at different rates, on which the agreement of seeds depends, so that these numbers "
            "do not order the methods."
        )
    if contrast:
        word = "more" if contrast["difference"] > 0 else "less"
        clear = "" if contrast["p"] < SIGNIFICANT else ", which is not told from none"
        text += (
            f" Over all arms, runs of one arm agree {word} than runs of two ({contrast['within']:.3f} against "
            f"{contrast['between']:.3f}; permutation {p_text(contrast['p'])}, {contrast['n_runs']} runs{clear})."
        )
    return text


def _agreement_controls(results: Results) -> str:
    """The divided agreement of controls with the reference, which shows where the scale of it begins."""
    matrix = results.compare["agreement"].get("disattenuated", {})
    cells = {arm: cell for arm in results.controls if (cell := _cell(matrix, arm, results.reference))}
    if not cells:
        return ""
    text = "; ".join(f"`{arm}` {as_text(cell, 2)}" for arm, cell in cells.items())
    return f" Agreement divided by that of seeds, of the controls with `{results.reference}`: {text}."
