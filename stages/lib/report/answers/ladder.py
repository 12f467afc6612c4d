"""How far firing rates agree with themselves when one thing about their measurement changes, rung by rung."""

from dataclasses import replace

from stages.lib.report.page import Block, Table, Text
from stages.lib.report.results import Cell, Results
from stages.lib.stats.equal_l0 import as_text

RUNGS = {
    "split_half": "half of the test documents and the other half",
    "validation": "test and validation documents",
    "threshold": "f > 0 and f > a tenth of the maximum",
    "cross_seed": "another seed, same features",
    "cross_seed_all": "another seed, all matched pairs",
    "cross_level": "next sparsity level, same features",
    "cross_level_all": "next sparsity level, all matched pairs",
}
"""What changes between the two measurements, by the name in the summary."""
SHORT = {
    "split_half": "halves",
    "validation": "documents",
    "threshold": "threshold",
    "cross_seed": "seed, same",
    "cross_seed_all": "seed, all",
    "cross_level": "level, same",
    "cross_level_all": "level, all",
}
LIMITS = {0.9: "excellent", 0.75: "good", 0.5: "moderate"}
"""Words for an ICC from these values up, "poor" below (Koo and Li 2016, J. Chiropr. Med. 15:155)."""


def graded(icc: float) -> str:
    """The word for an ICC."""
    return next((word for limit, word in LIMITS.items() if icc >= limit), "poor")


def counts(results: Results) -> Results:
    """The same results with the number of features behind each number of `frequency` in its place."""
    rows = results.rows["frequency"].dropna(subset=["n"])
    return replace(results, rows=results.rows | {"frequency": rows.assign(value=rows["n"].astype(float))})


def ladder_blocks(results: Results) -> list[Block]:
    """A sentence, the whole ladder of the reference arm and the ICC of all arms; nothing if it was not measured."""
    reference, near = results.reference, results.near
    icc = {name: cells for name in RUNGS if (cells := near("frequency", f"{name}_icc"))}
    own = {name: cells[reference] for name, cells in icc.items() if reference in cells}
    if not own:
        return []
    return [Text(_sentence(results, own)), _of_reference(results, own), *_of_arms(results, icc)]


def _share(results: Results, name: str) -> Cell | None:
    """The share of features that have a counterpart, for rungs of the same features."""
    return results.near("frequency", f"{name}_matched_fraction").get(results.reference)


def _sentence(results: Results, own: dict[str, Cell]) -> str:
    parts = []
    for name, cell in own.items():
        share = _share(results, name)
        some = f" of the {share['mean']:.0%} with a counterpart" if share else ""
        parts.append(f"{SHORT[name]}{some} {cell['mean']:.2f} ({graded(cell['mean'])})")
    return (
        f"How reliable the rate itself is depends on what is changed, ICC(2,1) of log₁₀ rate in `{results.reference}`: "
        f"{'; '.join(parts)}. Each word holds for its rung alone."
    )


def _of_reference(results: Results, own: dict[str, Cell]) -> Table:
    reference, near, n = results.reference, results.near, counts(results)
    rows = []
    for name, cell in own.items():
        others = [
            near("frequency", f"{name}_{measure}").get(reference) for measure in ("spearman", "ccc", "sem", "dex")
        ]
        share, features = _share(results, name), n.near("frequency", f"{name}_icc").get(reference)
        rows.append([
            RUNGS[name], as_text(cell), graded(cell["mean"]), *(as_text(other) for other in others),
            f"{share['mean']:.0%}" if share else "–", f"{features['mean']:.0f}" if features else "–",
        ])  # fmt: skip
    header = ["what changes", "ICC(2,1)", "word", "Spearman", "Lin's concordance", "SEM (dex)", "mean |Δ| (dex)",
              "same", "features"]  # fmt: skip
    return Table(header, rows, (
        f"Log₁₀ rates of `{reference}`, level nearest L0 {results.l0:g}, {results.over}; words after Koo and Li 2016. "
        "SEM: the standard error of a measurement; an ICC also grows with the spread of the features. The next "
        "level has more active features, which raises all rates; Spearman forgives that, the ICC does not. Same: "
        "features whose matched decoder is near enough to count as the same; features: with enough firings in both."
    ))  # fmt: skip


def _of_arms(results: Results, icc: dict[str, dict[str, Cell]]) -> list[Table]:
    shares = results.near("frequency", "cross_seed_matched_fraction")
    unresolved = results.near("frequency", "unresolved_fraction")
    rows = []
    for arm in results.arms:
        if any(arm in cells for cells in icc.values()):
            values = [f"{cells[arm]['mean']:.2f}" if arm in cells else "–" for cells in icc.values()]
            ends = [f"{cells[arm]['mean']:.0%}" if arm in cells else "–" for cells in (shares, unresolved)]
            rows.append([f"`{arm}`" + (" (control)" if arm in results.controls else ""), *values, *ends])
    header = ["arm", *(SHORT[name] for name in icc), "same in another seed", "unresolved"]
    return [Table(header, rows, f"ICC(2,1) of each rung, level nearest L0 {results.l0:g}, mean of the seeds.")]
