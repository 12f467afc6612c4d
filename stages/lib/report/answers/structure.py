"""How decoder directions lie, what single features do to the language model's loss, and what the SAE's error does."""

from collections.abc import Mapping, Sequence
from typing import Any

from stages.lib.report.answers.pooled import pooled
from stages.lib.report.answers.words import absent, listed, p_text, table
from stages.lib.report.page import Block, Note, Table, Text
from stages.lib.report.results import SIGNIFICANT, Cell, Results
from stages.lib.stats.equal_l0 import as_text

Facts = Mapping[str, Any]


def clusters(results: Results, found: Mapping[str, Facts]) -> list[Block]:
    """Whether decoder directions form clusters, or lie closely together, beyond chance."""
    arms = [arm for arm in results.arms if arm in found]
    if not arms:
        return [absent("Clusters of decoder directions")]
    tested, facts = [arm for arm in arms if arm in results.tested], found[arms[0]]
    least = len(arms) / (facts["n_null"] + 1)
    test = (
        f"first seed, followed level, {facts['n_null']} random dictionaries of the same covariance for each arm, p "
        f"corrected for {len(arms)} arms and never below {least:.2g}"
    )
    if least >= SIGNIFICANT:
        return [Text(f"Whether decoder directions lie more closely together than chance is not decided: {test}."),
                _cluster_table(results, found, arms)]  # fmt: skip
    beyond = _beyond(found, "silhouette", tested)
    head = (
        f"Decoder directions form clusters beyond chance in {listed(beyond)}, of {len(tested)} arms"
        if beyond
        else f"In none of {len(tested)} arms do decoder directions form clusters beyond chance"
    )
    near, opposite = (_beyond(found, name, tested) for name in ("nearest", "opposite"))
    closer = (
        f"Each direction's nearest neighbour is closer than chance in {listed(near)}; its most opposite direction is "
        f"more opposite in {listed(opposite)}. {_antipodal(found, tested)}"
    )
    return [
        Text(f"**{head}** (mean silhouette; {test}). {closer}{_edges(found, tested)}"),
        _cluster_table(results, found, arms),
        Note("Control", _cluster_controls(results, found)),
        Note("Caveat", "One seed an arm: p is over random dictionaries, and says nothing of other seeds. Chance means "
             "directions with this mean and covariance and no other structure."),
    ]  # fmt: skip


def _beyond(found: Mapping[str, Facts], name: str, arms: Sequence[str]) -> list[str]:
    return [arm for arm in arms if found[arm][name]["p_holm"] < SIGNIFICANT]


def _antipodal(found: Mapping[str, Facts], arms: Sequence[str]) -> str:
    pairs = [found[arm]["antipodal_pairs"] for arm in arms]
    values = [pair["value"] for pair in pairs]
    chance = max(pair["null"] for pair in pairs)
    return (
        f"Antipodal pairs (cosine at most {-found[arms[0]]['pair_cosine']:g}): {min(values)} to {max(values)} an arm, "
        f"by chance at most {chance:.2g} on average."
    )


def _edges(found: Mapping[str, Facts], arms: Sequence[str]) -> str:
    parts = [f"the {edge} tried in {listed(some)}" for edge in ("lowest", "highest")
             if (some := [arm for arm in arms if found[arm]["edge"] == edge])]  # fmt: skip
    return (
        f" The number of clusters with the best silhouette is {' and '.join(parts)}, which prefers no number."
        if parts
        else ""
    )


def _cluster_controls(results: Results, found: Mapping[str, Facts]) -> str:
    names = {"silhouette": "silhouette", "nearest": "nearest", "opposite": "opposite"}
    parts = [
        f"`{arm}` " + ", ".join(f"{label} {p_text(found[arm][name]['p_holm'])}" for name, label in names.items())
        for arm in results.controls
        if arm in found
    ]
    return f"{'; '.join(parts)} (corrected)." if parts else "no control was measured."


def _cluster_table(results: Results, found: Mapping[str, Facts], arms: Sequence[str]) -> Table:
    def cell(facts: Facts, name: str, sign: int = 1) -> str:
        own = facts[name]
        return f"{sign * own['value']:.3f} ({sign * own['null']:.3f}; {p_text(own['p_holm'])})"

    cosine = f"{found[arms[0]]['pair_cosine']:g}"
    header = ["arm", "clusters", "silhouette", "nearest cosine", "most opposite cosine", f"pairs ≥ {cosine}",
              f"pairs ≤ -{cosine}", "stability"]  # fmt: skip
    rows = [
        [
            f"`{arm}`" + (" (control)" if arm in results.controls else ""),
            str(facts["n_clusters"]) + ("" if facts["edge"] == "inside" else f" ({facts['edge']} tried)"),
            cell(facts, "silhouette"), cell(facts, "nearest"), cell(facts, "opposite", -1),
            *(f"{facts[name]['value']} ({facts[name]['null']:.2g})" for name in ("close_pairs", "antipodal_pairs")),
            f"{facts['stability']['value']:.3f} ({facts['stability']['null']:.3f})",
        ]
        for arm, facts in ((arm, found[arm]) for arm in arms)
    ]  # fmt: skip
    caption = (
        "Means over the features that fire. In brackets: the mean of random dictionaries and the corrected p. "
        "Stability: adjusted Rand index with the clusters of random parts of the features, which is not tested."
    )
    return Table(header, rows, caption)


def attribution(results: Results) -> list[Block]:
    """Which features matter for the language model's loss: the scores against exact ablation."""
    cells = pooled(results, "attribution")
    own = cells.get(results.reference, {})
    if "spearman_pooled" not in own:
        return [absent(f"Attribution of `{results.reference}`")]
    names = {"spearman": "ρ, grad×act", "slope": "slope", "spearman_ig": "ρ, IG", "sign_agreement": "same sign",
             "spearman_magnitude": "ρ of sizes, grad×act",
             "spearman_magnitude_activation": "ρ of sizes, activation alone",
             "spearman_naive": "ρ of sizes, mean |W_enc| × mean f"}  # fmt: skip
    columns: dict[str, Mapping[str, Cell]] = {}
    for name, label in names.items():
        column = {arm: numbers[f"{name}_pooled"] for arm, numbers in cells.items() if f"{name}_pooled" in numbers}
        # Without n: it differs between arms by what is above the smallest score, which the caption says.
        columns[label] = {arm: {k: v for k, v in cell.items() if k != "n"} for arm, cell in column.items()}
        if name in ("spearman", "slope"):
            columns[f"{label}, over seeds"] = results.near("attribution", name)
    n, nodes = len(results.seeds), own["spearman_pooled"].get("n", 0)
    caption = (
        f"Followed level. {nodes:,} nodes in `{results.reference}`: the same random tokens in every arm and seed, one "
        f"active feature at each. Intervals: 95 % over documents and {n} seeds, all seeds together; `over seeds`: mean "
        f"of the seeds, {results.over}. Slope: median of ablation ÷ grad×act where {_large(own)}."
    )
    caveat = (
        "One feature at one token is removed, to 0, with everything else clean: effects of several do not add up to "
        "the effect of all. Documents are those of the windows measured; no language model but one."
    )
    return [Text(f"{_slope_text(results, own)}{_size_text(own)}"), table(results, columns, caption),
            Note("Caveat", caveat)]  # fmt: skip


def _large(own: Mapping[str, Cell]) -> str:
    return f"|grad×act| > {own['min_score']['mean']:g} nats" if "min_score" in own else "the score is not 0"


def _slope_text(results: Results, own: Mapping[str, Cell]) -> str:
    rank = own["spearman_pooled"]
    where = f"`{results.reference}`, random active nodes, 95 % over documents and {len(results.seeds)} seeds, one LM"
    if "slope_pooled" not in own:
        return f"**Scores of one backward pass rank the exact effects with ρ = {as_text(rank)}** ({where})."
    cell = own["slope_pooled"]
    bias = ""
    if "low" in cell:
        low, high = cell["low"], cell["high"]
        bias = (
            ", so the gradient overstates the median effect" if high < 1
            else ", so the gradient understates the median effect" if low > 1
            else ", which is not told from 1"
        )  # fmt: skip
    return (
        f"**Removing a feature at a token moves the loss by {as_text(cell)} times what one backward pass says{bias}; "
        f"the ranks of the two agree with ρ = {as_text(rank)}** ({where}; {cell.get('n', 0):,} nodes with "
        f"{_large(own)} for the first, {rank.get('n', 0):,} for the second)."
    )


def _size_text(own: Mapping[str, Cell]) -> str:
    names = {"spearman_magnitude_pooled": "grad×act reaches", "spearman_magnitude_activation_pooled": "the activation",
             "spearman_naive_pooled": "a score that knows no token"}  # fmt: skip
    parts = [f"{label} {as_text(own[name])}" for name, label in names.items() if name in own]
    return f" For the sizes of effects alone, {', '.join(parts)}." if len(parts) > 1 else ""


def errors(results: Results) -> list[Block]:
    """Whether what an SAE leaves out costs the language model more than a random error of the same size."""
    cells, arm = results.near("evaluate", "random_error_ratio"), results.reference
    own, random = (results.near("evaluate", name).get(arm) for name in ("delta_ce", "delta_ce_random_error"))
    if arm not in cells or own is None or random is None:
        return [absent(f"The loss that the error of `{arm}` adds, against a random error")]
    ranges = {name: over_documents(results, "random_error_ratio", name) for name in cells}
    told = {name: pair for name, pair in ranges.items() if pair is not None}
    less = [name for name, (_, high) in told.items() if high < 1]
    verdict = (
        "less than"
        if arm in less
        else "more than"
        if arm in told and told[arm][0] > 1
        else "as much, as far as known, as"
    )
    documents = f"; over test documents, all seeds: {told[arm][0]:.2f} to {told[arm][1]:.2f}" if arm in told else ""
    left = [name for name in results.arms if name not in cells]
    unable = f"; in {listed(left)} the SAE's error costs too little for a ratio" if left else ""
    return [
        Text(
            f"**A random error of the same size adds {verdict} the SAE's own error to the loss: {as_text(random)} "
            f"against {as_text(own)} nats, a ratio of {as_text(cells[arm], 2)}** (`{arm}`, level nearest L0 "
            f"{results.l0:g}; {results.over_cells(cells)}{documents}). The ratio is below 1 over documents in every "
            f"seed in {len(less)} of {len(told)} arms{unable}. Where it is, the error lies in directions "
            "that matter more to the language model than random ones do."
        ),
    ]


def over_documents(results: Results, metric: str, arm: str) -> tuple[float, float] | None:
    """The lowest and the highest end of the seeds' intervals over test documents, nearest the middle L0."""
    rows = results.rows["evaluate"]
    own = rows[(rows["metric"] == metric) & (rows["arm"] == arm)]
    near = [results.levels.get((arm, seed)) == level for seed, level in zip(own["seed"], own["level"], strict=True)]
    own = own[near]
    if own.empty or own[["low", "high"]].isna().to_numpy().any():
        return None
    return float(own["low"].min()), float(own["high"].max())
