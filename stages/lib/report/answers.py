"""What the report says, made from the numbers: no verdict stands in the code, words follow intervals.

Each function answers one of the five questions with blocks of text and tables (`stages.lib.report.page`); figures are
put in by the report. A number that no analysis delivered is said to be missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stages.lib.report.page import Block, Note, Table, Text
from stages.lib.report.results import SIGNIFICANT, Cell, Results, sign
from stages.lib.stats.equal_l0 import as_text, key


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


def _controls_text(results: Results, metric: str, label: str) -> str:
    cells, base = results.matched(metric), results.matched(metric).get(results.reference)
    parts = [f"`{arm}` {as_text(cells[arm])}" for arm in results.controls if arm in cells]
    if base is None or not parts:
        return f"no control reaches L0 {results.l0:g}, so {label} has no control at this L0."
    own = f"{label} at L0 {results.l0:g} is {as_text(base)} for `{results.reference}`"
    return f"{own} and {'; '.join(parts)} for the controls."


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
        blocks.append(Text(f"{first} {_against_reference(results, 'fvu')}"))
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
    blocks.append(Note("Control", _controls_text(results, "fvu", "FVU")))
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


def _against_reference(results: Results, metric: str) -> str:
    found = {arm: cell for arm, cell in results.difference(metric).items() if arm in results.tested}
    if not found:
        return ""
    clear = [arm for arm, cell in found.items() if cell.get("p_holm", 1.0) < SIGNIFICANT]
    numbers = ", ".join(f"`{arm}` {found[arm]['mean']:+.3f} (p {found[arm]['p_holm']:.2g})" for arm in clear)
    if not any("p_holm" in cell for cell in found.values()):
        return f"Differences to `{results.reference}` cannot be tested with {len(results.seeds)} seed(s)."
    head = f"Against `{results.reference}`, paired by seed, {len(clear)} of {len(found)} arms differ (Holm-corrected)"
    return f"{head}: {numbers}." if clear else f"{head} at p < {SIGNIFICANT}."


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


def interpretability(results: Results) -> list[Block]:
    """Question 5: how do sparsity mechanisms affect interpretability?"""
    metric = next((m for m in ("cc_coverage_contextual", "cc_coverage") if results.matched(m)), None)
    if metric is None:
        return [absent(f"Concept coverage at L0 {results.l0:g}")]
    label = METRICS[metric]
    cells = {arm: cell for arm, cell in results.matched(metric).items() if arm in results.tested}
    best = max(cells, key=lambda a: cells[a]["mean"]) if cells else None
    lead = (
        f"**{label[0].upper()}{label[1:]} at L0 {results.l0:g} is highest for `{best}`: {as_text(cells[best])}**"
        if best
        else ""
    )
    blocks: list[Block] = [Text(f"{lead} ({results.over}). {_against_reference(results, metric)}")]
    shares = results.compare["variance"].get(metric)
    if shares:
        larger = max(shares, key=lambda name: shares[name]["mean"])
        names = {"l0": "L0", "arm": "the mechanism (arm)"}
        blocks.append(Text(
            f"Over all levels of the arms that are no controls, L0 alone explains {as_text(shares['l0'], 2)} and the "
            f"mechanism alone {as_text(shares['arm'], 2)} of its variance beyond the other (drop in R²; "
            f"{results.over}): {names[larger]} matters more here."
        ))  # fmt: skip
    columns = {METRICS[name]: results.matched(name) for name in METRICS if results.matched(name)}
    blocks.append(
        table(results, columns, f"At L0 {results.l0:g}, interpolated per seed. Mean [interval], {results.over}.")
    )
    blocks.append(Note("Control", _controls_text(results, metric, label)))
    return [*blocks, Note("Caveat", (
        "Interpretability here means that single features detect concepts labelled exactly from the syntax of "
        "held-out text, corrected for chance; concepts nobody listed do not count, and no reader judged the "
        "features. Interpolated at equal L0, not at equal FVU."
    ))]  # fmt: skip


METRICS = {
    "cc_coverage_contextual": "contextual cc-coverage",
    "cc_coverage": "cc-coverage",
    "coverage": "coverage (raw F1)",
    "contextual_gain": "contextual gain",
    "f1_over_probe": "F1 / dense probe",
    "probe_k1_auroc": "1-sparse probe AUROC",
    "probe_k5_auroc": "5-sparse probe AUROC",
}
"""What question 5 looks at, the primary endpoint first; those that were measured are shown."""


def _reading(cell: Cell, rising: str, falling: str) -> str:
    return {1: rising, -1: falling, 0: "no relation that can be told from none"}[sign(cell)]


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


def drivers(results: Results) -> list[Block]:
    """Question 2: what drives the emergence of concepts?"""
    emerged, reference = results.near("emergence", "n_emerged"), results.reference
    blocks: list[Block] = []
    if reference in emerged:
        w, p = (results.near("emergence", name).get(reference) for name in ("kendall_w", "kendall_w_p"))
        agreed = "Whether seeds agree on their order was not measured."
        if w and p:
            word = "agree" if p["mean"] < SIGNIFICANT else "cannot be said to agree"
            agreed = f"Seeds {word} on their order (Kendall's W {w['mean']:.2f}, permutation p {p['mean']:.2g})."
        blocks.append(Text(
            f"**In `{reference}`, {as_text(emerged[reference], 1)} concepts emerge during training** (persistent "
            f"half-rise of the chance-corrected F1; {results.over}). {agreed}"
        ))  # fmt: skip
    else:
        blocks.append(absent(f"Emergence of concepts in `{reference}`"))
    blocks += _driver_blocks(results)
    controls = "; ".join(f"`{arm}` {as_text(emerged[arm], 1)}" for arm in results.controls if arm in emerged)
    blocks.append(Note("Control", f"concepts that emerge in the controls: {controls or 'not measured'}."))
    caveat = (
        "An order in time that goes with a property of the concepts is no proof that the property drives it: nothing "
        "was intervened on. Only concepts that emerge in every seed count, so that intervals over concepts are wide."
    )
    return [*blocks, Note("Caveat", caveat)]


def _driver_blocks(results: Results) -> list[Block]:
    rows = results.rows["emergence"]
    rows = rows[rows["metric"].str.startswith("driver_") & (rows["metric"] != "driver_half_width")]
    own = rows[rows["arm"] == results.reference]
    if own.empty:
        return [absent("Correlations of emergence times with properties of the concepts")]
    clear = [str(row.metric)[7:] for row in own.itertuples() if sign({"low": row.low, "high": row.high})]
    verdict = (
        f"the interval excludes 0 for {listed(clear)}"
        if clear
        else "every interval includes 0: **no driver is established**"
    )
    names = list(dict.fromkeys(rows["metric"]))
    body = []
    for arm in [arm for arm in results.arms if (rows["arm"] == arm).any()]:
        found: dict[str, Any] = {str(row.metric): row for row in rows[rows["arm"] == arm].itertuples()}
        texts = [_with_interval(found[name]) if name in found else "–" for name in names]
        body.append([f"`{arm}`", *texts, f"{max(row.n for row in found.values()):.0f}"])
    caption = "Spearman's ρ of emergence time (geometric mean of seeds) and property; 95 % over concepts (bootstrap)."
    text = f"Of {len(own)} candidate drivers, measured before any SAE was trained, in `{results.reference}` {verdict}."
    return [Text(text), Table(["arm", *(name[7:].replace("_", " ") for name in names), "concepts"], body, caption)]


def _with_interval(row: Any) -> str:
    interval = {"low": row.low, "high": row.high} if pd.notna(row.low) else {}
    return as_text({"mean": row.value, **interval}, 2)


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


def attribution(results: Results) -> list[Block]:
    """Which features matter for the language model's loss: the scores against exact ablation."""
    names = {"spearman": "ρ, grad×act", "spearman_ig": "ρ, IG", "sign_agreement": "same sign", "slope": "slope",
             "spearman_magnitude": "ρ of sizes, grad×act",
             "spearman_magnitude_activation": "ρ of sizes, activation alone",
             "spearman_naive": "ρ of sizes, mean |W_enc| × mean f"}  # fmt: skip
    columns = {label: cells for name, label in names.items() if (cells := results.near("attribution", name))}
    cell = results.near("attribution", "spearman").get(results.reference)
    if cell is None:
        return [absent(f"Attribution of `{results.reference}`")]
    size, plain = (results.near("attribution", name).get(results.reference)
                   for name in ("spearman_magnitude", "spearman_naive"))  # fmt: skip
    against = (
        f" For sizes alone grad×act reaches {as_text(size)}, a score that knows no token {as_text(plain)}."
        if size and plain
        else ""
    )
    return [
        Text(f"**What a feature at a token does to the loss, one backward pass predicts with ρ = {as_text(cell)}** "
             f"(`{results.reference}`, randomly drawn active nodes, against exact ablation; {results.over}).{against}"),
        table(results, columns, f"Followed level, randomly drawn active nodes; mean [interval], {results.over}."),
    ]  # fmt: skip


def setting(model: Mapping[str, Any], corpus: Mapping[str, Any], tokens: Mapping[str, Any]) -> list[Block]:
    """What the results rest on: the text and the language model."""
    rows = [
        [f"`{split}`", f"{facts['documents']:,}", f"{facts['characters']:,}"]
        for split, facts in sorted(corpus["splits"].items())
    ]
    caption = f"Documents by split, source `{corpus['source']}`; split by document, near-copies removed first."
    counts = ", ".join(f"{facts['tokens']:,} ({split})" for split, facts in sorted(tokens["splits"].items()))
    left_out = [f"{n:,} {reason.replace('_', ' ')}" for reason, n in sorted(corpus.get("dropped", {}).items())]
    dropped = {split: facts["dropped"] for split, facts in sorted(tokens["splits"].items()) if "dropped" in facts}
    left_out += [
        f"{n:,} {reason.replace('_', ' ')} ({split})"
        for split, reasons in dropped.items()
        for reason, n in sorted(reasons.items())
        if n
    ]
    blocks: list[Block] = [
        Table(["split", "documents", "characters"], rows, caption),
        Text(f"Tokens, in windows of {tokens['n_ctx']} that never cross a document: {counts}. Documents left out: "
             f"{', '.join(left_out) or 'none'}."),
    ]  # fmt: skip
    losses: Mapping[str, Mapping[str, float]] = {
        unit: model[unit] for unit in ("nats_per_token", "nats_per_character") if unit in model
    }
    if not losses:
        source = " ".join(str(model[name]) for name in ("source", "name", "commit") if model.get(name))
        return [*blocks, Text(f"Language model: {source}; its held-out loss is not recorded.")]
    names = list(next(iter(losses.values())))
    body = [[name, *(f"{facts[name]:.3f}" for facts in losses.values())] for name in names]
    header = ["held-out loss", *(unit.replace("_", " ") for unit in losses)]
    own, best = (
        losses[next(iter(losses))]["model"],
        min(v for k, v in next(iter(losses.values())).items() if k != "model"),
    )
    word = "below" if own < best else "not below"
    text = (
        f"The language model's loss on held-out text is {own:.3f} {next(iter(losses)).replace('_', ' ')}, {word} the "
        f"best of its baselines ({best:.3f}): n-gram models of the same tokens, and the same model before training."
    )
    return [
        *blocks,
        Text(text),
        Table(header, body, "n-gram models back off and are fitted on the same training text."),
    ]


def clusters(results: Results, found: Mapping[str, Any]) -> list[Block]:
    """Whether decoder directions form clusters beyond chance."""
    rows, beyond = [], []
    for arm in [arm for arm in results.arms if arm in found]:
        facts = found[arm]
        cells = [facts.get(name) for name in ("silhouette", "stability", "between_seeds")]
        texts = [f"{one['value']:.3f} (null {one['null']:.3f}, p {one['p']:.2g})" if one else "–" for one in cells]
        rows.append([f"`{arm}`", str(facts["n_clusters"]), *texts])
        if cells[0] and cells[0]["p"] < SIGNIFICANT:
            beyond.append(arm)
    if not rows:
        return [absent("Clusters of decoder directions")]
    text = f"Decoder directions cluster more tightly than random directions of the same covariance in {listed(beyond)}"
    header = ["arm", "clusters", "silhouette", "stability under subsampling", "between seeds"]
    caption = (
        "First seed, followed level. In brackets: mean of the null, and the share of null dictionaries that reach it."
    )
    return [Text(f"{text}, of {len(rows)} arms."), Table(header, rows, caption)]
