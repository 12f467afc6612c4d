"""Question 1: how do activation functions affect feature learning?"""

from typing import Any

from stages.lib.report.answers.words import absent, against_reference, controls_text, table
from stages.lib.report.page import Block, Note, Text
from stages.lib.report.results import SIGNIFICANT, Results
from stages.lib.stats.equal_l0 import as_text, key


def fidelity(results: Results) -> list[Block]:
    """Question 1: how do activation functions affect feature learning?"""
    cells = {arm: cell for arm, cell in results.matched("fvu").items() if arm in results.tested}
    blocks: list[Block] = []
    if cells:
        best, worst = min(cells, key=lambda a: cells[a]["mean"]), max(cells, key=lambda a: cells[a]["mean"])
        first = (
            f"**At L0 {results.l0:g} the FVU (share of variance left unexplained, test documents) is lowest for "
            f"`{best}`: {as_text(cells[best])}**, and highest for `{worst}`: {as_text(cells[worst])} ({results.over})."
        )
        if best == worst:
            first = (
                f"**At L0 {results.l0:g} the FVU (share of variance left unexplained, test documents) of `{best}` is "
                f"{as_text(cells[best])}** ({results.over}); no other arm that is no control reaches that L0."
            )
        blocks.append(Text(f"{first} {against_reference(results, 'fvu')}"))
    else:
        blocks.append(absent(f"FVU at L0 {results.l0:g}"))
    columns = {f"FVU at L0 {target:g}": results.matched("fvu", target) for target in results.targets}
    columns[f"ΔCE (nats) at L0 {results.l0:g}"] = results.matched("delta_ce")
    caption = (
        f"Mean [interval], {results.over}. Interpolated per seed and never extrapolated: a dash means that the arm's "
        "levels do not reach that L0. ΔCE: added loss of the language model with the reconstruction in place."
    )
    blocks.append(table(results, columns, caption))
    names = {"γ": "relative_bias", "dead": "dead_fraction", "dense": "dense_fraction", "L0, SD over tokens": "l0_sd"}
    columns = {label: cells for label, metric in names.items() if (cells := results.near("evaluate", metric))}
    caption = (
        f"Level nearest L0 {results.l0:g}. γ below 1: activations are shrunk; dense: features with a rate above 0.1."
    )
    blocks.append(table(results, columns, caption))
    blocks.append(_agreement_text(results))
    blocks.append(Note("Control", controls_text(results, "fvu", "FVU")))
    missing = results.compare["missing"].get(key(results.l0), {}).get("fvu", {})
    unreached = (
        f" Not at L0 {results.l0:g}: {'; '.join(f'`{a}` ({why})' for a, why in missing.items())}." if missing else ""
    )
    caveat = (
        f"One language model, {len(results.seeds)} SAE seeds, one training budget for all arms: results say what "
        "happens at this budget, and a longer one may reorder arms that are close. FVU is not comparable between "
        "language "
        "models, so that of arms on other activations says nothing about theirs being better." + unreached
    )
    return [*blocks, Note("Caveat", caveat)]


def _closer_to_others(agreement: dict[str, Any], controls: list[str]) -> list[tuple[str, float, str, float]]:
    """Arms whose seeds agree less with one another than with another arm: arm, agreement, other arm, agreement."""
    both = {(one, other): value for one, row in agreement.items() for other, value in row.items()}
    arms = sorted({arm for pair in both for arm in pair} - {*controls})
    found = []
    for arm in arms:
        others = {other: both.get((arm, other), both.get((other, arm))) for other in arms if other != arm}
        known = {other: value for other, value in others.items() if value is not None}
        own = both.get((arm, arm))
        if own is not None and known and max(known.values()) > own:
            best = max(known, key=known.__getitem__)
            found.append((arm, own, best, known[best]))
    return found


def _agreement_text(results: Results) -> Block:
    found = results.compare["agreement"]
    contrast, random, initial = found.get("contrast"), found["random"], found.get("initial")
    if contrast is None:
        return absent("Agreement of dictionaries within and between arms (it takes two arms and two seeds)")
    clear, loose = contrast["p"] < SIGNIFICANT, _closer_to_others(found["arms"], results.controls)
    if clear and contrast["difference"] > 0:
        verdict = "Two seeds of one arm agree more than two arms do, so the arm does change which features are learned"
        if loose:
            verdict = (
                "Two seeds of one arm agree more than two arms do on average, but "
                + ", ".join(f"`{arm}` agrees with itself ({own:.3f}) less than with `{other}` ({best:.3f})"
                            for arm, own, other, best in loose)
                + ": arms differ in how reproducible their features are at least as much as in which they find"
            )  # fmt: skip
    elif clear:
        verdict = "The permutation test finds a difference of the other sign than expected"
    else:
        verdict = "Another arm changes the dictionary no more, as far as can be told, than another seed"
    levels = f"random directions reach {random['mean']:.3f}"
    if initial:
        levels += f", the same seeds before training {initial['mean']:.3f}"
    share = (contrast["within"] - random["mean"]) / max(1 - random["mean"], 1e-9)
    return Text(
        f"**{verdict}**: matched decoder cosine (MCC) {contrast['within']:.3f} within arms, {contrast['between']:.3f} "
        f"between, difference {contrast['difference']:.3f} [{contrast['low']:.3f}, {contrast['high']:.3f}] (range "
        f"over {contrast['n_seed_pairs']} pairs of seeds; permutation p {contrast['p']:.2g}, {contrast['n_runs']} "
        f"runs). As levels to compare with, {levels}; agreement between seeds covers {share:.0%} of the way from "
        "chance to identity."
    )
