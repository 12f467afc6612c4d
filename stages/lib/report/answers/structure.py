"""Whether decoder directions form clusters, and what single features do to the language model's loss."""

from collections.abc import Mapping
from typing import Any

from stages.lib.report.answers.words import absent, listed, table
from stages.lib.report.page import Block, Table, Text
from stages.lib.report.results import SIGNIFICANT, Results
from stages.lib.stats.equal_l0 import as_text


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
