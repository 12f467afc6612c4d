"""What the answers to all questions share: names in a row, tables of arms, controls beside a number."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stages.lib.report.page import Table, Text
from stages.lib.report.results import SIGNIFICANT, Cell, Results
from stages.lib.stats.equal_l0 import as_text


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    names = [f"`{name}`" for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def absent(what: str) -> Text:
    """The sentence in place of a result that is not there."""
    return Text(f"{what}: not measured in this run.")


def table(results: Results, columns: Mapping[str, Mapping[str, Cell]], caption: str, digits: int = 3) -> Table:
    """A table with a row per arm; controls are marked."""
    rows = [
        [
            f"`{arm}`" + (" (control)" if arm in results.controls else ""),
            *(as_text(c.get(arm), digits) for c in columns.values()),
        ]
        for arm in results.arms
        if any(arm in cells for cells in columns.values())
    ]
    return Table(["arm", *columns], rows, caption)


def controls_text(results: Results, metric: str, label: str) -> str:
    """A metric at the middle L0 in the reference arm and in the controls."""
    cells, base = results.matched(metric), results.matched(metric).get(results.reference)
    parts = [f"`{arm}` {as_text(cells[arm])}" for arm in results.controls if arm in cells]
    if base is None or not parts:
        return f"no control reaches L0 {results.l0:g}, so {label} has no control at this L0."
    own = f"{label} at L0 {results.l0:g} is {as_text(base)} for `{results.reference}`"
    return f"{own} and {'; '.join(parts)} for the controls."


def against_reference(results: Results, metric: str) -> str:
    """Which arms differ from the reference in a metric at the middle L0."""
    found = {arm: cell for arm, cell in results.difference(metric).items() if arm in results.tested}
    if not found:
        return ""
    clear = [arm for arm, cell in found.items() if cell.get("p_holm", 1.0) < SIGNIFICANT]
    numbers = ", ".join(f"`{arm}` {found[arm]['mean']:+.3f} (p {found[arm]['p_holm']:.2g})" for arm in clear)
    if not any("p_holm" in cell for cell in found.values()):
        return f"Differences to `{results.reference}` cannot be tested with {len(results.seeds)} seed(s)."
    head = f"Against `{results.reference}`, paired by seed, {len(clear)} of {len(found)} arms differ (Holm-corrected)"
    return f"{head}: {numbers}." if clear else f"{head} at p < {SIGNIFICANT}."


def with_interval(row: Any) -> str:
    """A row of a summary with its interval, as text."""
    interval = {"low": row.low, "high": row.high} if pd.notna(row.low) else {}
    return as_text({"mean": row.value, **interval}, 2)
