"""Question 3: is the firing rate a reliable sign of specialisation?"""

from stages.lib.report.answers.words import absent, listed, table
from stages.lib.report.page import Block, Note, Text
from stages.lib.report.results import Cell, Results, sign
from stages.lib.stats.equal_l0 import as_text


def frequency(results: Results) -> list[Block]:
    """Question 3: is the firing rate a reliable sign of specialisation?"""
    rho = results.near("frequency", "spec_spearman")
    if results.reference not in rho:
        return [absent(f"The relation of frequency and specialisation for `{results.reference}`")]
    blocks = _frequency_verdict(results, rho[results.reference])
    columns = {label: cells for name, label in FREQUENCY.items() if (cells := results.near("frequency", name))}
    blocks.append(table(results, columns, f"Level nearest L0 {results.l0:g}; mean [interval], {results.over}."))
    controls = [arm for arm in results.controls if arm in rho]
    seen = [arm for arm in controls if sign(rho[arm]) == sign(rho[results.reference]) != 0]
    found = "; ".join(f"`{arm}` ρ = {as_text(rho[arm])}" for arm in controls)
    there = f"the relation is {'also' if seen else 'not'} present, with the same sign, in {listed(seen or controls)}"
    blocks.append(Note("Control", f"{there}: {found}." if controls else "no control was measured."))
    caveat = (
        "Features of one SAE are not independent, and only those with enough firings count (the share left out is in "
        "the table). Frequencies are those of this corpus."
    )
    return [*blocks, Note("Caveat", caveat)]


FREQUENCY = {
    "split_half_icc": "ICC, split half",
    "validation_icc": "ICC, other documents",
    "cross_seed_icc": "ICC, other seed",
    "spec_spearman": "ρ(log₁₀ p, calibrated MCC)",
    "spec_partial_spearman": "ρ, sizes held constant",
    "spec_spearman_disattenuated": "ρ, corrected for noise",
    "auroc_frequency": "AUROC of frequency",
    "unresolved_fraction": "unresolved",
}
"""What question 3 looks at; those that were measured are shown."""


def _frequency_verdict(results: Results, rho: Cell) -> list[Block]:
    reference, near = results.reference, results.near
    icc, area = (near("frequency", name).get(reference) for name in ("split_half_icc", "auroc_frequency"))
    grade = "is of unknown reliability"
    if icc:  # limits of 0.9 and 0.75 (Koo & Li 2016, J. Chiropr. Med. 15:155)
        word = "reliable" if icc["mean"] >= 0.9 else "moderately reliable" if icc["mean"] >= 0.75 else "not reliable"
        grade = f"is {word} (split-half ICC {as_text(icc)})"
    told = f", AUROC {as_text(area)}" if area else ""
    reading = _reading(rho, "frequent features are the more specialised", "rare features are the more specialised")
    blocks: list[Block] = [
        Text(
            f"**As a measurement, the firing rate {grade}; as a sign of specialisation it explains "
            f"{rho['mean'] ** 2:.0%} of the variance of ranks** (ρ = {as_text(rho)}{told}; `{reference}` near L0 "
            f"{results.l0:g}, {results.over}): {reading}. Specialisation is the MCC of the feature's concept, chosen "
            "on validation and scored on test, calibrated by circular shifts; this estimator was fixed before the "
            "results, because the sign depends on it."
        )
    ]
    chance, raw = (near("frequency", f"spec_spearman_{name}").get(reference) for name in ("chance", "f1"))
    if chance and raw:
        text = f"Raw best F1 gives ρ = {as_text(raw)}; the level that chance alone reaches has ρ = {as_text(chance)}"
        dominated = abs(chance["mean"]) > abs(rho["mean"])
        end = ": uncorrected scores mostly measure how often a feature fires." if dominated else "."
        blocks.append(Text(text + end))
    return blocks


def _reading(cell: Cell, rising: str, falling: str) -> str:
    return {1: rising, -1: falling, 0: "no relation that can be told from none"}[sign(cell)]
