"""Running the model over windows up to a hook: which windows, in which order, and which row each token becomes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from stages.lib.errors import UserError
from stages.lib.windows import Windows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Hook(NamedTuple):
    """What is taken from the model."""

    name: str
    layer: int
    dtype: torch.dtype
    """What it is stored as."""


class Work(NamedTuple):
    """The windows of a split to run, longest first: batches hold little padding, and the first needs most memory."""

    window: Int64[np.ndarray, " window"]
    first: Int64[np.ndarray, " window"]
    """The row of the window's first token of text."""
    rows: Int64[np.ndarray, " window"]
    """How many tokens of text are taken."""


class Rows(NamedTuple):
    """What a batch of windows gives."""

    row: Int64[np.ndarray, " row"]
    activations: Float[Tensor, "row d_in"]
    position: Int64[np.ndarray, " row"]
    """Flat position: window * n_ctx + position in the window."""


def plan(rows: Int64[np.ndarray, " window"], order: Int64[np.ndarray, " window"], limit: int) -> Work:
    """The windows taken, in `order`, until there are `limit` rows; the last one gives only what is still wanted."""
    first = np.cumsum(rows[order]) - rows[order]
    order, first = order[first < limit], first[first < limit]
    wanted = np.minimum(rows[order], limit - first)
    longest = np.argsort(-wanted, kind="stable")
    return Work(order[longest], first[longest], wanted[longest])


def capture(
    model: "TransformerBridge", tokens: Int[Tensor, "batch pos"], hook: Hook
) -> Float[Tensor, "batch pos d_in"]:
    """What passes the hook; nothing above its layer runs."""
    with torch.inference_mode():
        _, cache = model.run_with_cache(tokens, names_filter=[hook.name], stop_at_layer=hook.layer + 1)
    found: Tensor = cache[hook.name]  # the cache may hold the same tensor under an alias too
    return found


def extract(
    model: "TransformerBridge", windows: Windows, work: Work, hook: Hook, size: int, done: int
) -> Iterator[Rows]:
    """The rows of each batch of `size` windows, after the first `done` batches.

    Padding needs no attention mask: it is on the right, where causal attention does not look.

    Raises:
        UserError: if an activation is not finite, naming the document.
    """
    device = next(model.parameters()).device
    for start in range(done * size, len(work.window), size):
        window, first, rows = (column[start : start + size, None] for column in work)
        pos = np.arange(int(rows.max()) + 1)[None]
        taken = (pos >= 1) & (pos <= rows)
        tokens = windows.tokens[torch.from_numpy(window[:, 0]), : pos.size].long()
        found = capture(model, tokens.to(device), hook)
        kept = found[torch.from_numpy(taken).to(device)].to(hook.dtype)
        finite = kept.isfinite().all(1).cpu().numpy()
        if not finite.all():
            bad = int(np.broadcast_to(window, taken.shape)[taken][int(finite.argmin())])
            raise UserError(
                f"document {windows.document_ids[int(windows.document[bad])]!r} (window {bad}) has activations at "
                f"{hook.name} that are not finite as {str(hook.dtype).removeprefix('torch.')}: choose another "
                "activations.dtype or activations.layer, or leave the document out of the corpus"
            )
        yield Rows((first + pos - 1)[taken], kept.cpu(), (window * windows.n_ctx + pos)[taken])
