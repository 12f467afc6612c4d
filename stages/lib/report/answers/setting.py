"""What the results rest on: the text and the language model."""

from collections.abc import Mapping
from typing import Any

from stages.lib.report.answers.structure import over_documents
from stages.lib.report.answers.words import absent
from stages.lib.report.page import Block, Table, Text
from stages.lib.report.results import Results
from stages.lib.stats.equal_l0 import as_text


def setting(
    model: Mapping[str, Any], corpus: Mapping[str, Any], tokens: Mapping[str, Any], results: Results
) -> list[Block]:
    """What the results rest on: the text, the language model and its loss on the evaluated text."""
    return [*_text(corpus, tokens), *_model(model), *evaluated(results, model, tokens)]


def _text(corpus: Mapping[str, Any], tokens: Mapping[str, Any]) -> list[Block]:
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
    return [
        Table(["split", "documents", "characters"], rows, caption),
        Text(f"Tokens, in windows of {tokens['n_ctx']} that never cross a document: {counts}. Documents left out: "
             f"{', '.join(left_out) or 'none'}."),
    ]  # fmt: skip


def _model(model: Mapping[str, Any]) -> list[Block]:
    losses: Mapping[str, Mapping[str, float]] = {
        unit: model[unit] for unit in ("nats_per_token", "nats_per_character") if unit in model
    }
    if not losses:
        source = " ".join(str(model[name]) for name in ("source", "name", "commit") if model.get(name))
        return [Text(f"Language model: {source}; its held-out loss is not recorded.")]
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
        Text(text),
        Table(header, body, "n-gram models back off and are fitted on the same training text."),
    ]


def evaluated(results: Results, model: Mapping[str, Any], tokens: Mapping[str, Any]) -> list[Block]:
    """On which text the SAEs are evaluated: the language model's loss there, and how far it is from their training."""
    rows = results.rows["evaluate"]
    own = rows[rows["arm"] == results.reference]
    losses = {name: own[own["metric"] == name].iloc[0] for name in ("ce_clean_test", "ce_clean")
              if (own["metric"] == name).any()}  # fmt: skip
    if len(losses) < 2:
        return [absent("The language model's loss on the evaluated text")]
    (all_text, some) = (
        f"{as_text({'mean': row.value, 'low': row.low, 'high': row.high})} on {int(row.n):,}" for row in losses.values()
    )
    documents = len(tokens["splits"]["test"]["documents"])
    held_out = model.get("nats_per_token", {}).get("model")
    beside = (
        f" The language model's own held-out loss, {held_out:.3f} on {model['heldout_tokens']:,} tokens, is of whole "
        "documents in another draw of the test split, where each weighs by its length and the first prediction of a "
        "window counts too; here a document has one excerpt."
        if held_out is not None and "heldout_tokens" in model
        else ""
    )
    text = (
        f"Losses with an SAE in place are differences to the unchanged model at the same predictions. Its loss is "
        f"{all_text} predictions, all of the test tokens that are used here ({documents} documents), and {some} of "
        f"them on which the SAEs run (nats a token; 95 % over documents).{beside}"
    )
    return [Text(text), *_domain_gap(results)]


def _domain_gap(results: Results) -> list[Block]:
    arm = results.reference
    test, train = (results.near("evaluate", name).get(arm) for name in ("fvu", "fvu_train"))
    if test is None or train is None:
        return []
    n = results.rows["evaluate"].query("metric == 'fvu_train'")["n"].iloc[0]
    documents = over_documents(results, "fvu", arm)
    outside = documents is not None and not documents[0] <= train["mean"] <= documents[1]
    lies = "outside" if outside else "inside"
    where = (
        f", {lies} the interval of the former over documents [{documents[0]:.3f}, {documents[1]:.3f}]"
        if documents
        else ""
    )
    more = f"{test['mean'] / train['mean'] - 1:+.0%}"
    return [Text(
        f"The FVU of `{arm}` is {as_text(test)} on test documents and {as_text(train)} on activations that it was "
        f"trained on (n {int(n):,}{where}): {more} on documents that it has not seen, which every test FVU contains."
    )]  # fmt: skip
