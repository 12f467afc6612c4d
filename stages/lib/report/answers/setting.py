"""What the results rest on: the text and the language model."""

from collections.abc import Mapping
from typing import Any

from stages.lib.report.page import Block, Table, Text


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
