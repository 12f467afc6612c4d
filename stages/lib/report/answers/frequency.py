"""Question 3: is the firing rate a reliable sign of specialisation?"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from stages.lib.report.answers.ladder import ladder_blocks
from stages.lib.report.answers.words import absent, listed
from stages.lib.report.page import Block, Note, Table, Text
from stages.lib.report.results import Cell, Results, sign
from stages.lib.stats.equal_l0 import as_text


class Measure(NamedTuple):
    """How a measure of specialisation is named, and what features that have more and less of it are."""

    label: str
    more: str
    less: str


MEASURES = {
    "entropy_rarefied": Measure(
        "token entropy, rarefied", "less particular about tokens", "more particular about tokens"
    ),
    "purity": Measure("purity beyond the base rate", "purer", "less pure"),
    "mcc_calibrated": Measure("calibrated MCC", "better detectors of a concept", "worse detectors of a concept"),
    "mcc": Measure("MCC, not calibrated", "better detectors by raw MCC", "worse detectors by raw MCC"),
    "f1": Measure("best F1 (a warning: chance alone raises it)", "better detectors by raw F1", "worse by raw F1"),
    "stability": Measure("largest cosine in other seeds", "found in other seeds more", "found in other seeds less"),
    "stability_matched": Measure(
        "matched cosine in other seeds", "matched in other seeds more closely", "matched in other seeds less closely"
    ),
    "effect": Measure("effect on the loss of a firing", "of more effect a firing", "of less effect a firing"),
    "kurtosis": Measure("kurtosis of f > 0", "heavier-tailed", "lighter-tailed"),
}  # fmt: skip
"""In the order in which they are shown; the report knows them by their columns."""


def frequency(results: Results) -> list[Block]:
    """Question 3: is the firing rate a reliable sign of specialisation?"""
    found: Mapping[str, Any] = results.compare.get("frequency", {})
    ladder = ladder_blocks(results)
    blocks: list[Block] = [*map(Text, _verdict(results, found)), *ladder[:1]]
    if not blocks:
        return [absent(f"The relation of frequency and specialisation for `{results.reference}`")]
    return [*blocks, *_tables(results, found), *ladder[1:], *_shape(results), *_notes(results, found)]


def _verdict(results: Results, found: Mapping[str, Any]) -> Iterator[str]:
    """The sentence of the declared measure, and that of all others."""
    reference = results.reference
    cells: Mapping[str, Mapping[str, Cell]] = found.get("differences", {})
    ruled = found.get("verdict", {})
    same: Mapping[str, Cell] = found.get("common_range", {}).get(ruled.get("endpoint", ""), {})
    if reference not in same:
        return
    own, label = same[reference], MEASURES[ruled["endpoint"]].label
    yield (
        f"**{_ruling(ruled, own, label)}** In `{reference}` near L0 {results.l0:g} Spearman's ρ of log₁₀ rate and "
        f"{label} is {own['rho']:.2f}, in the random decoder (`{ruled['random_decoder']}`) {own['rho_random']:.2f}: "
        f"difference {_signed(own)}, over the rates that both have. The rule, fixed in `params.yaml`: |difference| ≥ "
        f"{ruled['least_difference']:g}, with one sign and an interval without 0, in {ruled['least_arms']} arms that "
        f"are no controls; it holds with + in {ruled['n_up']} and with − in {ruled['n_down']} of {ruled['n_tested']}."
        f"{_beside(results, found)}"
    )
    others = _others({name: arms[reference] for name, arms in cells.items() if reference in arms}, ruled["endpoint"])
    if others:
        yield f"By the other measures, over all rates, in `{reference}` {'; '.join(others)}."


def _beside(results: Results, found: Mapping[str, Any]) -> str:
    """In how many arms and in which controls the limits are met without equal rates, where a range adds to ρ."""
    ruled = found["verdict"]
    whole: Mapping[str, Cell] = found["differences"].get(ruled["endpoint"], {})
    if results.reference not in whole:
        return ""

    def meet(arms: list[str]) -> list[str]:
        wide = [arm for arm in arms if arm in whole and abs(whole[arm]["mean"]) >= ruled["least_difference"]]
        return [arm for arm in wide if sign(whole[arm]) == sign(whole[results.reference])]

    controls = meet(results.controls)
    end = f", but so {'does' if len(controls) == 1 else 'do'} {listed(controls)}." if controls else ", no control does."
    return (
        " Over all rates, whose wider range raises ρ by itself, the difference is "
        f"{_signed(whole[results.reference])}, and {len(meet(results.tested))} of {ruled['n_tested']} arms meet the "
        f"limits{end}"
    )


def _others(cells: Mapping[str, Cell], endpoint: str) -> list[str]:
    """What each measure but the endpoint says against the random decoder, by kind."""
    beyond, weaker, unclear = [], [], []
    for name, measure in MEASURES.items():
        if name == endpoint or name not in cells:
            continue
        cell = cells[name]
        side = sign(cell)
        if not side:
            unclear.append(measure.label)
        elif cell["rho"] * side > 0:
            beyond.append(f"{measure.more if side > 0 else measure.less} ({cell['mean']:+.2f})")
        else:
            weaker.append(f"{measure.label} (ρ {cell['rho']:.2f} against {cell['rho_random']:.2f})")
    return [
        f"{head} {', '.join(texts)}"
        for head, texts in (
            ("frequent features are, beyond the random decoder's,", beyond),
            ("the relation that random directions have is weaker or missing for", weaker),
            ("no difference can be told by", unclear),
        )
        if texts
    ]


def _ruling(ruled: Mapping[str, Any], own: Cell, label: str) -> str:
    """What the declared rule says."""
    if ruled["n_tested"] < ruled["least_arms"]:
        return (
            f"Whether firing frequency is a reliable sign of specialisation is not decided: the rule asks for "
            f"{ruled['least_arms']} arms, and {ruled['n_tested']} were trained."
        )
    if not ruled["sign"]:
        return f"By {label}, the declared measure, firing frequency is not a reliable sign of specialisation."
    if own["rho"] * ruled["sign"] <= 0:
        return (
            f"By {label}, the declared measure, firing frequency differs from a random decoder's, but only because "
            "the relation that is there at random is missing."
        )
    measure = MEASURES[ruled["endpoint"]]
    what = measure.more if ruled["sign"] > 0 else measure.less
    return (
        f"By {label}, the declared measure, firing frequency is a reliable sign, beyond a random decoder's: frequent "
        f"features are {what} than rare ones."
    )


def _signed(cell: Cell) -> str:
    return f"{cell['mean']:+.2f} [{cell['low']:+.2f}, {cell['high']:+.2f}]"


def _tables(results: Results, found: Mapping[str, Any]) -> Iterator[Block]:
    """Every measure against the random decoder."""
    cells: Mapping[str, Mapping[str, Cell]] = found.get("differences", {})
    rows = []
    for name, measure in MEASURES.items():
        arms = cells.get(name, {})
        own = arms.get(results.reference)
        if own is not None:
            sides = [sign(arms[arm]) for arm in results.tested if arm in arms]
            rows.append([
                measure.label, f"{own['rho']:.2f}", f"{own['rho_random']:.2f}", _signed(own), f"{own['features']:.0f}",
                f"{sides.count(1)} / {sides.count(-1)} of {len(sides)}",
            ])  # fmt: skip
    if rows:
        n = next(iter(cells.values()))[results.reference]["n"] if cells else 0
        header = ["measure", f"ρ, `{results.reference}`", "ρ, random decoder", "difference", "features", "arms + / −"]
        yield Table(header, rows, (
            "Spearman's ρ of log₁₀ rate and the measure over the features of a dictionary, mean of "
            f"{n} seeds; difference paired by seed, 95 % over seeds and features, not corrected for the number of "
            "measures. Last: tested arms whose interval is above / below 0."
        ))  # fmt: skip


def _shape(results: Results) -> Iterator[Block]:
    """Whether the relation turns, and how much frequency tells of which features are specialised."""
    reference, near = results.reference, results.near
    parts = []
    for metric, label in (("spec_spearman", "calibrated MCC"), ("spec_spearman_entropy", "token entropy")):
        below, above = (near("frequency", f"{metric}_{side}").get(reference) for side in ("below", "above"))
        if below and above:
            turns = sign(below) * sign(above)
            word = "the relation turns" if turns < 0 else "it has one direction" if turns > 0 else "no turn can be told"
            numbers = f"ρ {as_text(below, 2)} below and {as_text(above, 2)} above the median rate"
            parts.append(f"for {label} {word} ({numbers})")
    if parts:
        yield Text(f"Shape in `{reference}`: {'; '.join(parts)}.")
    count, area = (near("frequency", name).get(reference) for name in ("n_specialised", "auroc_frequency"))
    if count:
        some = f"{count['mean']:.0f} features a seed of `{reference}` count as specialised by calibrated MCC"
        told = (
            f"frequency alone tells them with an AUROC of {as_text(area)} ({results.over}; 0.5 is chance)"
            if area
            else "too few for an AUROC of frequency alone, which labels at random would move by over 0.05 either way"
        )
        yield Text(f"{some}: {told}.")


def _notes(results: Results, found: Mapping[str, Any]) -> Iterator[Block]:
    """The controls and the caveats."""
    ruled = found.get("verdict", {})
    endpoint = ruled.get("endpoint", "")
    cells: Mapping[str, Cell] = found.get("differences", {}).get(endpoint, {})
    same: Mapping[str, Cell] = found.get("common_range", {}).get(endpoint, {})
    others = [arm for arm in results.controls if arm in cells]
    parts = []
    if others:
        parts.append(
            "difference to the random decoder: " + ", ".join(f"`{arm}` {_signed(cells[arm])}" for arm in others)
        )
    if same:
        shown = [arm for arm in (results.reference, *others) if arm in same]
        spread = results.near("frequency", "log_rate_sd")
        widths = [f"`{arm}` {spread[arm]['mean']:.2f}" for arm in (*shown, ruled["random_decoder"]) if arm in spread]
        parts.append(
            "a correlation grows with the spread of what is correlated; at the rates in common with the random "
            f"decoder the difference is {', '.join(f'`{arm}` {_signed(same[arm])}' for arm in shown)}"
            + (f" (standard deviations of log₁₀ rate: {', '.join(widths)} dex)" if widths else "")
        )
    beyond = results.near("frequency", "beyond_chance_fraction").get(results.reference)
    chance = results.near("frequency", "spec_spearman_chance").get(results.reference)
    if beyond and chance:
        parts.append(
            f"the concept of a feature, chosen on validation, beats shifted labels on test (p ≤ 0.05) in "
            f"{beyond['mean']:.1%} of features; what shifted labels reach has ρ = {as_text(chance, 2)} with log₁₀ rate"
        )
    yield Note("Control", f"{'; '.join(parts)}." if parts else "no control was measured.")
    yield Note("Caveat", (
        "Specialisation has no agreed measure; the declared one was chosen after an earlier run of this pipeline had "
        "shown that measures disagree, so other models and texts are its test. No feature that fires more often than "
        "any one token can be a detector of one token; the random decoder carries this bound too, but with other "
        "directions. Features of one dictionary are not independent, unresolved ones are left out, and frequencies are "
        "those of this corpus."
    ))  # fmt: skip
