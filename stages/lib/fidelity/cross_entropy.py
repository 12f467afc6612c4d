"""What SAEs cost the language model: sums over windows of tokens, in nats.

The clean run of a batch of windows is done once and serves all SAEs. Replaced are all valid positions (so neither the
first nor padding), and what counts are the predictions made at them of tokens that are valid too. What needs no SAE,
`stages.lib.fidelity.ablations` has for the same windows.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.lib.fidelity.ablations import Batch, Site, by_window
from stages.lib.language.patching import (
    check_resumption,
    kl_divergence,
    next_token_nll,
    next_token_surprisal,
    random_error,
    run_clean,
    run_from,
    scored,
    substitute,
)
from stages.lib.run.parallel import side_by_side
from stages.lib.sae.saved import SAE


class Sums(NamedTuple):
    """Sums over the predictions of each window, and two numbers of each prediction."""

    n: np.ndarray
    """Predictions that count, [window]."""
    clean: np.ndarray
    """Negative log-likelihood of the unchanged model, [window]."""
    sae: np.ndarray
    """The same with each SAE's reconstruction, [sae, window]."""
    random_error: np.ndarray
    """The same with the activation moved by the length of the SAE's error in a random direction, [sae, window]."""
    kl: np.ndarray
    """KL(clean || reconstruction), [sae, window]."""
    token_nll: np.ndarray
    """Negative log-likelihood of the unchanged model at each prediction, [prediction]."""
    token_l0: np.ndarray
    """Active features of each SAE at each prediction, [sae, prediction]."""


class _Clean(NamedTuple):
    """A batch of windows with nothing replaced, which all SAEs share."""

    tokens: Tensor
    valid: Tensor
    counts: Tensor
    """Predictions that count, [window, pos]."""
    x: Tensor
    log_p: Tensor
    p: Tensor
    direction: Tensor
    """Of the random errors, [token, d_in]."""


class _OfOne(NamedTuple):
    """The sums of one SAE over a batch of windows, named as in `Sums`."""

    sae: np.ndarray
    random_error: np.ndarray
    kl: np.ndarray
    token_l0: np.ndarray


@torch.no_grad()
def _of_one(one: SAE, clean: _Clean, site: Site) -> _OfOne:
    tokens, counts, x = clean.tokens, clean.counts, clean.x[clean.valid]

    def logits_with(replacement: Tensor) -> Tensor:
        with site.models.one() as model:
            return run_from(model, tokens, site.hook_name, substitute(clean.x, replacement, clean.valid))

    active = one.active(x)
    x_hat = one.decode_active(active)
    # Normalised once for both: the logarithms of probabilities are logits too.
    log_p = logits_with(x_hat).log_softmax(-1)
    moved = logits_with(random_error(x, x_hat, clean.direction))
    return _OfOne(
        by_window(next_token_surprisal(log_p, tokens), counts),
        by_window(next_token_nll(moved, tokens), counts),
        by_window(kl_divergence(clean.log_p, log_p, clean.p), counts),
        active.first.diff()[counts[clean.valid]].cpu().numpy(),
    )


@torch.no_grad()
def window_sums(site: Site, batch: Batch, saes: Sequence[SAE], generator: torch.Generator) -> Sums:
    """The sums of one batch of windows; the random directions are the same for all SAEs."""
    _, tokens, valid = batch
    run, counts = run_clean(site.models.model, tokens, site.hook_name), scored(valid)
    direction = torch.randn(int(valid.sum()), run.x.shape[2], generator=generator).to(run.x)
    log_p = run.logits.log_softmax(-1)
    clean = _Clean(tokens, valid, counts, run.x, log_p, log_p.exp(), direction)
    of_each = side_by_side(partial(_of_one, clean=clean, site=site), saes, site.mean.device)
    nll = next_token_nll(run.logits, tokens)
    return Sums(
        n=counts.sum(1).cpu().numpy(),
        clean=by_window(nll, counts),
        token_nll=nll[counts].cpu().numpy(),
        **{name: np.stack([getattr(one, name) for one in of_each]) for name in _OfOne._fields},
    )


def joined(parts: Sequence[Sums]) -> Sums:
    """The sums of all windows from those of batches of them."""
    return Sums(*(np.concatenate(arrays, axis=-1) for arrays in zip(*parts, strict=True)))


def split_sums(site: Site, batches: Iterable[Batch], saes: Sequence[SAE], generator: torch.Generator) -> Sums:
    """The sums of all batches of windows.

    Raises:
        UserError: if the model cannot be patched at the site.
    """
    parts: list[Sums] = []
    for batch in batches:
        if not parts:
            check_resumption(site.models.model, batch.tokens, site.hook_name)
        parts.append(window_sums(site, batch, saes, generator))
    return joined(parts)
