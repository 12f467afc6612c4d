"""Running the model over windows up to a hook: which windows, in which order, and which row each token becomes."""

import copy
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from stages.lib.io.errors import UserError
from stages.lib.language.direct import Direct, depth_of, direct
from stages.lib.language.windows import Windows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


NEAR = 0.02
"""Relative distance that two ways to compute in bfloat16 may have."""
PROBE = (2, 128)
"""Windows, and tokens of a window, on which two ways to compute are compared."""


class Hook(NamedTuple):
    """A place in the model."""

    name: str
    layer: int


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
    activations: list[Float[Tensor, "row d_in"]]
    """At each hook."""
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
    model: "TransformerBridge | Direct", tokens: Int[Tensor, "batch pos"], hooks: list[Hook]
) -> list[Float[Tensor, "batch pos d_in"]]:
    """What passes each hook in one pass; nothing above the highest of their layers runs."""
    names = [hook.name for hook in hooks]
    if isinstance(model, Direct):
        return model.streams(tokens, [depth for name in names if (depth := depth_of(name)) is not None])
    with torch.inference_mode():
        _, cache = model.run_with_cache(tokens, names_filter=names, stop_at_layer=max(hook.layer for hook in hooks) + 1)
    return [cache[name] for name in names]  # the cache may hold the same tensors under aliases too


def runners(model: "TransformerBridge", hooks: list[Hook], n: int) -> "list[TransformerBridge] | list[Direct]":
    """What `n` threads run at once to capture the hooks, with the same weights in the same memory.

    Without the bridge if nothing but the residual stream is asked for, and if on some tokens what comes out is the
    same: in float32 to the bit, in bfloat16 within rounding.
    """
    found = direct(model)
    if found is not None and all(depth_of(hook.name) is not None for hook in hooks) and _agree(found, model, hooks):
        return [found] * n
    return [model, *(share(model) for _ in range(1, n))]


def _agree(found: Direct, model: "TransformerBridge", hooks: list[Hook]) -> bool:
    """Whether both give the same on some tokens."""
    n, n_ctx = PROBE
    tokens = torch.arange(n * min(n_ctx, model.cfg.n_ctx)).reshape(n, -1) % model.cfg.d_vocab
    pairs = zip(capture(found, tokens, hooks), capture(model, tokens, hooks), strict=True)
    if found.dtype == torch.float32:
        return all(torch.equal(ours, theirs) for ours, theirs in pairs)
    return all(torch.dist(ours.float(), theirs.float()) <= NEAR * theirs.float().norm() for ours, theirs in pairs)


def share(model: "TransformerBridge") -> "TransformerBridge":
    """A model with the same weights in the same memory, so that another thread can run it: hooks belong to a model."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})


def extract(
    model: "TransformerBridge | Direct",
    windows: Windows,
    work: Work,
    hooks: list[Hook],
    dtype: torch.dtype,
    batch: slice,
) -> Rows:
    """The rows of some windows of the work, as `dtype`.

    Padding needs no attention mask: it is on the right, where causal attention does not look.

    Raises:
        UserError: if an activation is not finite, naming the document.
    """
    device = model.device if isinstance(model, Direct) else next(model.parameters()).device
    window, first, rows = (column[batch, None] for column in work)
    pos = np.arange(int(rows.max()) + 1)[None]
    taken = (pos >= 1) & (pos <= rows)
    tokens = windows.tokens[torch.from_numpy(window[:, 0]), : pos.size].long()
    mask = torch.from_numpy(taken).to(device)
    kept = []
    for hook, found in zip(hooks, capture(model, tokens.to(device), hooks), strict=True):
        values = found[mask].to(dtype)
        # Anything that is not finite shows in the sum, which takes less time than a look at every number.
        if not values.sum(dtype=torch.float32).isfinite() and not values.isfinite().all():
            finite = values.isfinite().all(1).cpu().numpy()
            bad = int(np.broadcast_to(window, taken.shape)[taken][int(finite.argmin())])
            raise UserError(
                f"document {windows.document_ids[int(windows.document[bad])]!r} (window {bad}) has activations at "
                f"{hook.name} that are not finite as {str(dtype).removeprefix('torch.')}: choose another "
                "activations.dtype, activations.compute or activations.layer, or leave the document out of the corpus"
            )
        kept.append(values.cpu())
    return Rows((first + pos - 1)[taken], kept, (window * windows.n_ctx + pos)[taken])
