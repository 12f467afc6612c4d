"""What the answers to all questions share: names in a row, tables of arms, controls beside a number.

An answer is made from the numbers: no verdict stands in the code, words follow intervals. Each module here answers one
of the five questions with blocks of text and tables (`stages.lib.report.page`); figures are put in by the report. A
number that no analysis delivered is said to be missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stages.lib.report.page import Table, Text
from stages.lib.report.results import SIGNIFICANT, Cell, Results, most_seeds
from stages.lib.stats.equal_l0 import as_text
from stages.lib.stats.variance import established

SMALLEST_P = 0.001
"""That is written out."""


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    names = [f"`{name}`" for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def absent(what: str) -> Text:
    """The sentence in place of a result that is not there."""
    return Text(f"{what}: not measured in this run.")


def table(results: Results, columns: Mapping[str, Mapping[str, Cell]], caption: str, digits: int = 3) -> Table:
    """A table with a row per arm; controls are marked.

    A cell that rests on fewer seeds than others of its column says so. Where the cells know how wide the interval over
    test documents is, the header says it once: the widest of the arms that are no controls.
    """
    rows = [
        [
            f"`{arm}`" + (" (control)" if arm in results.controls else ""),
            *(_text(cells, arm, digits) for cells in columns.values()),
        ]
        for arm in results.arms
        if any(arm in cells for cells in columns.values())
    ]
    header = [f"{name}{documents(results, cells, digits)}" for name, cells in columns.items()]
    return Table(["arm", *header], rows, caption)


def _text(cells: Mapping[str, Cell], arm: str, digits: int) -> str:
    text = as_text(cells.get(arm), digits)
    n = cells.get(arm, {}).get("n")
    return f"{text} (n {n})" if n is not None and n < most_seeds(cells.values()) else text


def documents(results: Results, cells: Mapping[str, Cell], digits: int = 3) -> str:
    """` (documents ±0.0065)`: half of the interval over test documents, the widest of the tested arms; or nothing."""
    widths = [cell["documents"] for arm, cell in cells.items() if "documents" in cell and arm in results.tested]
    return f" (documents ±{max(widths):.{digits + 1}f})" if widths else ""


def p_text(p: float) -> str:
    """`p 0.013`, or `p < 0.001`."""
    return f"p {p:.2g}" if p >= SMALLEST_P else f"p < {SMALLEST_P:g}"


def controls_text(results: Results, metric: str, label: str) -> str:
    """A metric at the middle L0 in the reference arm and in the controls."""
    cells, base = results.matched(metric), results.matched(metric).get(results.reference)
    parts = [f"`{arm}` {as_text(cells[arm])}" for arm in results.controls if arm in cells]
    if base is None or not parts:
        return f"no control reaches L0 {results.l0:g}, so {label} has no control at this L0."
    own = f"{label} at L0 {results.l0:g} is {as_text(base)} for `{results.reference}`"
    return f"{own} and {'; '.join(parts)} for the controls."


def against_reference(results: Results, metric: str, digits: int = 3) -> str:
    """Which arms differ from the reference in a metric at the middle L0, which are equal, and what is not decided.

    Where a margin was declared for the metric (`compare.endpoints`) an arm can be equal within it; without one, an arm
    that is not told from the reference is undecided, with the difference that could have been found.
    """
    found = {arm: cell for arm, cell in results.difference(metric).items() if arm in results.tested}
    tested = {arm: cell for arm, cell in found.items() if "verdict" in cell}
    if not found:
        return ""
    if not tested:
        return f"Differences to `{results.reference}` cannot be tested with {len(results.seeds)} seed(s)."
    parts = []
    differs, equal, open_ = ([arm for arm, cell in tested.items() if cell["verdict"] == verdict]
                             for verdict in ("differs", "equal", "undecided"))  # fmt: skip
    if differs:
        parts.append(f"{_those(differs, tested, digits, 'p')} {'differs' if len(differs) == 1 else 'differ'}")
    if equal:
        margin = max(cell["margin"] for cell in tested.values())
        share = f"{results.endpoints[metric]:.0%} of its mean, " if metric in results.endpoints else ""
        verb = "is" if len(equal) == 1 else "are"
        told = [arm for arm in equal if tested[arm]["p"] < SIGNIFICANT]
        small = f", though {listed(told)} {'is' if len(told) == 1 else 'are'} told from it" if told else ""
        parts.append(f"{_those(equal, tested, digits, 'p_equal')} {verb} equal within ±{margin:.{digits}f} "
                     f"({share}two one-sided tests){small}")  # fmt: skip
    if open_:
        verb = "is" if len(open_) == 1 else "are"
        parts.append(f"{_those(open_, tested, digits, 'p')} {verb} undecided: with 80 % power the test finds a "
                     f"difference of {_detectable(tested, open_, digits)}")  # fmt: skip
    untested = [arm for arm in found if arm not in tested]
    end = f"; {listed(untested)} could not be tested" if untested else ""
    return (
        f"Against `{results.reference}`, {'; '.join(parts)}{end} (seeds as blocks, corrected for {len(tested)} arms)."
    )


def _those(arms: Sequence[str], cells: Mapping[str, Cell], digits: int, p: str) -> str:
    """`a` (+0.012, p 0.01) and `b` (-0.010, p 0.02)."""
    texts = [f"`{arm}` ({cells[arm]['mean']:+.{digits}f}, {p_text(cells[arm][p])})" for arm in arms]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _detectable(cells: Mapping[str, Cell], arms: Sequence[str], digits: int) -> str:
    sizes = sorted({f"{cells[arm]['detectable']:.{digits}f}" for arm in arms}, key=float)
    return sizes[0] if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def best_text(results: Results, metric: str, *, lower: bool, digits: int = 3) -> str:
    """Which arm is best at the middle L0, or which ones the data can't tell apart there; empty where untested."""
    best, cells = results.best(metric, lower=lower), results.matched(metric)
    if not best:
        return ""
    word = "lowest" if lower else "highest"
    if len(best) == 1:
        return (
            f"It is {word} for `{best[0]}`: {as_text(cells[best[0]], digits)} (told from every other arm, all pairs)."
        )
    first = f"`{best[0]}` ({as_text(cells[best[0]], digits)})"
    return f"It is {word} for {first}, which can't be told from {listed(best[1:])} (all pairs)."


def variance_text(results: Results, metric: str) -> str:
    """What L0 and the mechanism explain of a metric over all levels, against chance; empty where it is not defined.

    A factor is said to explain something only if its share beats chance with all arms and without any one of them.
    """
    shares = results.compare["variance"].get(metric)
    if not shares:
        return ""
    names = {"l0": "L0 alone", "arm": "the mechanism alone"}
    parts = []
    for name, label in names.items():
        cell = shares[name]
        numbers = f"{cell['mean']:.2f} (chance: up to {cell['null_high']:.2f}, {p_text(cell['p'])}"
        if "least" in cell:
            numbers += (
                f"; without one arm {cell['least']:.2f} to {cell['most']:.2f}, {p_text(cell['worst_p'])} at worst"
            )
        verdict = "" if established(cell) else ", which is not established"
        parts.append(f"{label} explains {numbers}){verdict}")
    return (
        f"Over all levels, of the variance beyond what the other explains (ω²), {' and '.join(parts)}. The share of L0 "
        "depends on the range of L0 that was trained."
    )


def with_interval(row: Any) -> str:
    """A row of a summary with its interval, as text."""
    interval = {"low": row.low, "high": row.high} if pd.notna(row.low) else {}
    return as_text({"mean": row.value, **interval}, 2)
