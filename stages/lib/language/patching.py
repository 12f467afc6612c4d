"""Running the language model with something else in place of the activation at one hook.

Two ways give the same logits. If the hook is the residual stream between two blocks, only the blocks above it run;
for any other hook the whole model runs and the hook puts the replacement in. What is never replaced is the first
position and padding: the caller leaves the clean activation there (`substitute`).

The SAE's error is a node of its own: with f the code and W_dec the decoder, `x = f W_dec + b_dec + error`, so the
model runs on x unchanged, and taking feature i off at a token changes x there by `-f_i W_dec[i]` alone.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.lib.io.errors import UserError
from stages.lib.language.copies import Copies

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MAX_RESUMPTION_ERROR = 1e-4
"""Of the largest logit: what float32 may cost when the blocks above the hook run alone."""
BETWEEN_BLOCKS = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


def index_batches(n: int, size: int) -> Iterator[Int[Tensor, " batch"]]:
    """0 .. n - 1, `size` at a time."""
    for start in range(0, n, size):
        yield torch.arange(start, min(start + size, n))


class Clean(NamedTuple):
    """A run with nothing replaced."""

    logits: Tensor
    """[window, pos, d_vocab]"""
    x: Tensor
    """The activation at the hook, [window, pos, d_in]."""


def run_clean(model: "TransformerBridge", tokens: Int[Tensor, "window pos"], hook_name: str) -> Clean:
    """The logits of the tokens, and the activation at the hook on the way."""
    seen: list[Tensor] = []

    def keep(activation: Tensor, hook: Any) -> None:  # noqa: ARG001
        seen.append(activation)

    with torch.no_grad():
        logits = model.run_with_hooks(tokens.long(), fwd_hooks=[(hook_name, keep)])
    assert len(seen) == 1, f"{hook_name} fired {len(seen)} times in a run"
    return Clean(logits, seen[0].detach())


def run_from(
    model: "TransformerBridge",
    tokens: Int[Tensor, "window pos"],
    hook_name: str,
    x: Float[Tensor, "window pos d_in"],
) -> Float[Tensor, "window pos d_vocab"]:
    """The logits with `x` at the hook; gradients flow to `x`."""
    start = _resumes_at(hook_name, len(model.blocks))
    logits: Tensor
    if start is None:

        def put(activation: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
            return x.to(activation.dtype)

        logits = model.run_with_hooks(tokens.long(), fwd_hooks=[(hook_name, put)])
    else:
        with _skipping(model, start):
            logits = model(x, start_at_layer=start)
    return logits


def _resumes_at(hook_name: str, n_layers: int) -> int | None:
    """The first block above the hook, or None if a run cannot begin there."""
    match = BETWEEN_BLOCKS.fullmatch(hook_name)
    if match is None:
        return None
    block = int(match[1]) + (match[2] == "post")
    return block if block < n_layers else None


@contextmanager
def _skipping(model: "TransformerBridge", n_blocks: int) -> Iterator[None]:
    """The first blocks pass their input on: `start_at_layer` runs them only to throw their output away."""

    def passing(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    # The wrapped module, because the bridge hands an assignment to itself on to it.
    skipped = [model.blocks[index].original_component for index in range(n_blocks)]
    for block in skipped:
        block.forward = passing
    try:
        yield
    finally:
        for block in skipped:
            del block.forward


def check_resumption(model: "TransformerBridge", tokens: Int[Tensor, "window pos"], hook_name: str) -> None:
    """Make sure that putting the clean activation back gives the clean logits.

    Raises:
        UserError: if it does not, so that nothing measured by patching would mean anything.
    """
    clean = run_clean(model, tokens, hook_name)
    with torch.no_grad():
        error = (run_from(model, tokens, hook_name, clean.x) - clean.logits).abs().max().item()
    if not error <= MAX_RESUMPTION_ERROR * clean.logits.abs().max().item():
        raise UserError(
            f"putting the clean activation back at {hook_name} moves a logit by {error:.2g}: this model cannot be "
            "patched there; choose another activations.site"
        )


def substitute(
    x: Float[Tensor, "window pos d_in"],
    replacement: Float[Tensor, "token d_in"],
    valid: Bool[Tensor, "window pos"],
) -> Float[Tensor, "window pos d_in"]:
    """`x` with the replacement at the valid positions, in their order, and the clean activation elsewhere."""
    return x.masked_scatter(valid[..., None], replacement.to(x.dtype))


def scored(valid: Bool[Tensor, "window pos"]) -> Bool[Tensor, "window pos"]:
    """The positions whose prediction counts: valid themselves, and the token that they predict is valid."""
    following = torch.zeros_like(valid)
    following[:, :-1] = valid[:, 1:]
    return valid & following


def next_token_nll(
    logits: Float[Tensor, "window pos d_vocab"], tokens: Int[Tensor, "window pos"]
) -> Float[Tensor, "window pos"]:
    """The negative log-likelihood in nats of the token after each position; 0 at the last, which has none after it."""
    target = tokens[:, 1:].long()
    nll: Tensor = logits[:, :-1].logsumexp(-1) - logits[:, :-1].gather(-1, target[..., None])[..., 0]
    return torch.nn.functional.pad(nll, (0, 1))


def next_token_surprisal(
    log_p: Float[Tensor, "window pos d_vocab"], tokens: Int[Tensor, "window pos"]
) -> Float[Tensor, "window pos"]:
    """What `next_token_nll` gives for logits, from the logarithms of the probabilities."""
    return torch.nn.functional.pad(-log_p[:, :-1].gather(-1, tokens[:, 1:, None].long())[..., 0], (0, 1))


def kl_divergence(
    clean_log_p: Float[Tensor, "window pos d_vocab"],
    log_p: Float[Tensor, "window pos d_vocab"],
    clean_p: Float[Tensor, "window pos d_vocab"],
) -> Float[Tensor, "window pos"]:
    """KL(clean || patched) in nats of the next-token distributions at each position, from their logarithms.

    `clean_p` is `clean_log_p.exp()`, which is the same for all that is patched.
    """
    return (clean_log_p - log_p).mul_(clean_p).sum(-1)


def random_error(
    x: Float[Tensor, "token d_in"], x_hat: Float[Tensor, "token d_in"], direction: Float[Tensor, "token d_in"]
) -> Float[Tensor, "token d_in"]:
    """`x` moved by the length of its reconstruction error along `direction` (Gurnee 2024)."""
    size = torch.linalg.vector_norm(x - x_hat, dim=1, keepdim=True)
    moved: Tensor = x + size * direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    return moved


class WindowLoss:
    """The summed next-token loss of each window as a function of the activation at the hook, relative to the clean run.

    Calling it with rows of activations and the windows that they stand for gives `sum (nll - clean nll)` in nats over
    the counted predictions of each row: a difference by position, so that what does not move cancels exactly. Several
    threads may call it at once.
    """

    def __init__(
        self,
        models: Copies,
        hook_name: str,
        tokens: Int[Tensor, "window pos"],
        valid: Bool[Tensor, "window pos"],
        batch: int,
    ) -> None:
        """Run the clean model, `batch` windows at a time."""
        self._models, self._hook_name, self._tokens = models, hook_name, tokens
        self.counted = scored(valid)
        x, nll = [], []
        for rows in index_batches(len(tokens), batch):
            clean = run_clean(models.model, tokens[rows], hook_name)
            x.append(clean.x)
            nll.append(next_token_nll(clean.logits, tokens[rows]))
        self.x, self.nll = torch.cat(x), torch.cat(nll)

    def by_position(self, x: Float[Tensor, "row pos d_in"], windows: Int[Tensor, " row"]) -> Float[Tensor, "row pos"]:
        """The change of the loss at each position; 0 where no prediction counts."""
        tokens = self._tokens[windows]
        with self._models.one() as model:
            logits = run_from(model, tokens, self._hook_name, x)
        nll = next_token_nll(logits, tokens)
        return (nll - self.nll[windows]) * self.counted[windows]

    def __call__(self, x: Float[Tensor, "row pos d_in"], windows: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """The change of each row's summed loss."""
        return self.by_position(x, windows).sum(1, dtype=torch.float64)
