"""Question 5: how do sparsity mechanisms affect interpretability?"""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from stages.lib.report.answers.words import (
    absent,
    against_reference,
    best_text,
    controls_text,
    documents,
    table,
    variance_text,
)
from stages.lib.report.page import Block, Note, Table, Text
from stages.lib.report.results import Cell, Results
from stages.lib.stats.equal_l0 import as_text
from stages.lib.stats.variance import established

ENDPOINT = "cc_beyond_ngrams"
"""Declared in `compare.endpoints`."""
SECOND = "cc_beyond_token"
COUNT = "n_beyond_ngrams"
CORRECTED = "mean chance-corrected F1"
METRICS = {
    "coverage": "mean F1, {all} concepts",
    "cc_coverage": CORRECTED + ", {all} concepts",
    "cc_beyond_token": CORRECTED + " beyond the token, {contextual} contextual concepts",
    ENDPOINT: CORRECTED + " beyond token, bigram and trigram, {contextual} contextual concepts",
    COUNT: "share of these concepts above 0",
    "cc_beyond_ngrams_over_probe": "share of the dense probe's",
    "cc_coverage_over_probe": "share of the dense probe's, {all} concepts",
}
"""The columns; those that were measured are shown."""
PROBES = {"probe_k1_auroc": "1-sparse probe AUROC", "probe_k5_auroc": "5-sparse probe AUROC"}
BESIDE = {"token": "token lookup", "bigram": "bigram lookup", "trigram": "trigram lookup", "probe": "dense probe"}
"""What detects concepts without an SAE, by the end of its metrics' names."""


def interpretability(results: Results, counted: Mapping[str, Any] | None = None) -> list[Block]:
    """Question 5: how do sparsity mechanisms affect interpretability?

    `counted` is `data/concepts/ngrams.json`: how much text the tables of n-grams were counted in.
    """
    cells = {arm: cell for arm, cell in results.matched(ENDPOINT).items() if arm in results.tested}
    if not cells:
        return [absent(f"Concept coverage beyond n-grams at L0 {results.l0:g}")]
    blocks: list[Block] = [_endpoint(results, cells), *_second(results, names(results)), _sae_table(results)]
    if beside := _beside_table(results):
        blocks.append(beside)
    blocks.append(Note("Control", _controls(results)))
    return [*blocks, Note("Caveat", (
        "A table of n-grams is learnt from labels, a feature is only picked by them: that a table detects a concept "
        "better does not make the feature bad, but its F1 then shows no more than what is near the token. "
        f"{_counted(counted)} Concepts below 0 count as "
        "0, which raises means of noise. Interpretability here means that single features detect concepts labelled "
        "exactly from the syntax of held-out text; a concept that is split over several features counts as found by "
        "the best of them alone, concepts nobody listed do not count, and no reader judged the features. Interpolated "
        "at equal L0, not at equal FVU."
    ))]  # fmt: skip


def _counted(counted: Mapping[str, Any] | None) -> str:
    """In how much text the tables were counted, and whether more would have told them more."""
    more = "labelled text makes the tables stronger and every number beyond them smaller."
    if counted is None:
        return f"More {more}"
    seen, half = (counted["seen"][text]["test"]["trigram"] for text in ("all", "half"))
    return (
        f"The tables were counted on {counted['n_tokens']:,} tokens, which have {seen:.1%} of the test tokens' "
        f"trigrams (half of that text: {half:.1%}); more {more}"
    )


def names(results: Results) -> dict[str, str]:
    """The names of the columns, with how many concepts each is a mean over."""
    counts = {
        "all": _concepts(results, "cc_coverage") or "all",
        "contextual": _concepts(results, ENDPOINT) or "the",
    }
    return {metric: name.format_map(counts) for metric, name in METRICS.items()}


def _endpoint(results: Results, cells: Mapping[str, Cell]) -> Block:
    """The declared endpoint: which arms differ from the reference, and what the numbers are to be read by."""
    label, base = names(results)[ENDPOINT], cells.get(results.reference)
    own = (
        f" is {as_text(base)} for `{results.reference}`"
        if base is not None
        else " has no reference: the arm does not reach this L0"
    )
    over = f"{results.over_cells(cells)}{documents(results, cells).replace(' (', '; ').rstrip(')')}"
    share = results.near("interpret", "cc_beyond_ngrams_over_probe").get(results.reference)
    ceiling = f"That is {share['mean']:.0%} of what a dense probe of the same activations reaches." if share else ""
    explained = any(established(cell) for cell in results.compare["variance"].get(ENDPOINT, {}).values())
    parts = [
        f"**At L0 {results.l0:g} the {label},{own}** ({over}).",
        ceiling,
        against_reference(results, ENDPOINT),
        best_text(results, ENDPOINT, lower=False),
        variance_text(results, ENDPOINT) if explained else "",
    ]
    return Text(" ".join(part for part in parts if part))


def _second(results: Results, all_names: Mapping[str, str]) -> list[Block]:
    """The second declared endpoint, which counts as contextual what the token before tells."""
    cells = results.matched(SECOND)
    if results.reference not in cells:
        return []
    return [Text(
        f"The second endpoint, {all_names[SECOND]}, is {as_text(cells[results.reference])} for `{results.reference}` "
        f"({results.over_cells(cells)}). {against_reference(results, SECOND)} {best_text(results, SECOND, lower=False)}"
    )]  # fmt: skip


def _sae_table(results: Results) -> Table:
    columns = {}
    for metric, label in (names(results) | PROBES).items():
        if cells := results.matched(metric) or results.near("interpret", metric):
            columns[label] = _of_all(results, cells) if metric == COUNT else cells
    caption = (
        f"SAEs at L0 {results.l0:g}, interpolated per seed, or at the level nearest to it. Mean [interval], "
        f"{results.over_cells(*columns.values())}. Chance-corrected: (F1 - F0) / (1 - F0), where F0 is the larger of "
        "always firing and of what 1 in 100 of the same selections reaches on shifted labels, and of the F1 of the "
        "lookups that the number is beyond; below 0 counts as 0. Contextual concepts are not told by definition by the "
        "token or by the one or two words before it."
    )
    return table(results, columns, caption)


def _of_all(results: Results, cells: Mapping[str, Cell]) -> dict[str, Cell]:
    """Numbers of concepts as shares of the contextual ones."""
    n = _concepts(results, ENDPOINT)
    if n is None:
        return {}
    limits = {"mean": 1.0, "low": 1.0, "high": 1.0, "documents": 1.0}
    return {
        arm: {name: min(max(value / n, 0.0), limits[name]) if name in limits else value for name, value in cell.items()}
        for arm, cell in cells.items()
    }


def _concepts(results: Results, metric: str) -> int | None:
    """How many concepts a metric is an average over."""
    rows = results.rows["interpret"]
    n = rows.loc[rows["metric"] == metric, "n"]
    return int(n.max()) if n.notna().any() else None


def _beside(results: Results) -> Iterator[tuple[str, str]]:
    """What stands beside the SAEs: the end of its metrics' names, and the arm on whose activations it was measured.

    Lookups need no activations, so they are the same for all arms; probes are the same for arms on the same ones.
    """
    for kind in BESIDE:
        seen: set[float] = set()
        for arm in [results.reference, *(a for a in results.arms if a != results.reference)]:
            value = _value(results, arm, f"coverage_{kind}")
            if value is None or value["mean"] in seen or (seen and kind != "probe"):
                continue
            seen.add(value["mean"])
            yield kind, arm


def _value(results: Results, arm: str, metric: str) -> Cell | None:
    """A number that an arm has once, with its interval over documents."""
    rows = results.rows["interpret"]
    found = rows[(rows["arm"] == arm) & (rows["metric"] == metric)]
    if found.empty:
        return None
    row = found.iloc[0]
    return {"mean": row["value"]} | ({"low": row["low"], "high": row["high"]} if pd.notna(row["low"]) else {})


def _beside_table(results: Results) -> Table | None:
    """The lookups and the dense probes."""
    rows = []
    of_all = _concepts(results, ENDPOINT)
    shown = {metric: label for metric, label in names(results).items() if not metric.endswith("_over_probe")}
    for kind, arm in _beside(results):
        where = f" (activations of `{arm}`)" if kind == "probe" else ""
        cells = {metric: _value(results, arm, f"{metric}_{kind}") for metric in shown}
        count = cells.get(COUNT)
        if count is not None and of_all:
            cells[COUNT] = {name: value / of_all for name, value in count.items()}
        rows.append([f"{BESIDE[kind]}{where}", *(as_text(cell) for cell in cells.values())])
    caption = (
        "What the text alone and all of the activation tell of the same concepts, with intervals over test documents. "
        "Lookups are tables of the last one, two or three tokens; they are not compared with themselves."
    )
    return Table(["without an SAE", *shown.values()], rows, caption) if rows else None


def _controls(results: Results) -> str:
    """The endpoint in the controls, and how much of it there is to find in their activations."""
    label = names(results)[ENDPOINT]
    text = controls_text(results, ENDPOINT, label)
    own = _value(results, results.reference, f"{ENDPOINT}_probe")
    little = []
    for arm in results.controls:
        ceiling = _value(results, arm, f"{ENDPOINT}_probe")
        if ceiling is None or own is None or ceiling["mean"] >= own["mean"] / 2:
            continue
        share = results.near("interpret", "cc_beyond_ngrams_over_probe").get(arm)
        reached = f", of which its SAEs reach {share['mean']:.0%}" if share else ""
        little.append(f"in the activations of `{arm}` even a dense probe finds {ceiling['mean']:.3f} "
                      f"({own['mean']:.3f} in those of `{results.reference}`){reached}")  # fmt: skip
    if not little:
        return f"{text[0].upper()}{text[1:]}"
    return (
        f"{text[0].upper()}{text[1:]} But {'; '.join(little)}: a low number there says that the model has nothing to "
        "find, not that the SAE fails to find it."
    )
