"""What SAEs cost the language model: sums over windows of tokens, in nats.

The clean run and the ablations of a batch of windows are done once and serve all SAEs. Replaced are all valid positions
(so neither the first nor padding), and what counts are the predictions made at them of tokens that are valid too.

The unchanged model runs on all windows of the split, the SAEs on some of them, spread evenly. What an SAE costs is a
difference at the same predictions, so the windows chosen matter little for it; how sure it is depends on how many
documents there are, hardly on how many windows of each.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.lib.language.patching import (
    check_resumption,
    index_batches,
    kl_divergence,
    next_token_nll,
    next_token_surprisal,
    random_error,
    run_clean,
    run_from,
    scored,
    substitute,
)
from stages.lib.language.windows import Windows
from stages.lib.sae.saved import SAE

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Sums(NamedTuple):
    """Sums over the predictions of each window, and two numbers of each prediction."""

    n: np.ndarray
    """Predictions that count, [window]."""
    clean: np.ndarray
    """Negative log-likelihood of the unchanged model, [window]."""
    zero: np.ndarray
    """The same with zeros for the activation, [window]."""
    mean: np.ndarray
    """The same with the mean training activation, [window]."""
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


class CleanSums(NamedTuple):
    """Sums over the predictions of each window of the split, of the unchanged model alone."""

    n: Int[np.ndarray, " window"]
    nll: Float[np.ndarray, " window"]


def spread(n_windows: int, n_chosen: int) -> Int[np.ndarray, " chosen"]:
    """Indices of windows spread evenly over all of them, so that they fall on as many documents as they can."""
    return np.unique(np.linspace(0, n_windows - 1, min(n_chosen, n_windows)).round().astype(np.int64))


class Site(NamedTuple):
    """Where a language model's activation is replaced."""

    model: "TransformerBridge"
    hook_name: str
    mean: Tensor
    """The mean training activation, [d_in]."""


@torch.no_grad()
def window_sums(
    site: Site,
    tokens: Int[Tensor, "window pos"],
    valid: Bool[Tensor, "window pos"],
    saes: Sequence[SAE],
    generator: torch.Generator,
) -> Sums:
    """The sums of one batch of windows; the random directions are the same for all SAEs."""
    clean = run_clean(site.model, tokens, site.hook_name)
    counts = scored(valid)
    x = clean.x[valid]

    def by_window(values: Tensor) -> np.ndarray:
        sums: np.ndarray = (values * counts).sum(1, dtype=torch.float64).cpu().numpy()
        return sums

    def logits_with(replacement: Tensor) -> Tensor:
        return run_from(site.model, tokens, site.hook_name, substitute(clean.x, replacement, valid))

    def nll_with(replacement: Tensor) -> np.ndarray:
        return by_window(next_token_nll(logits_with(replacement), tokens))

    direction = torch.randn(x.shape, generator=generator).to(x)
    clean_nll, clean_log_p = next_token_nll(clean.logits, tokens), clean.logits.log_softmax(-1)
    sae, random, kl, l0 = [], [], [], []
    for one in saes:
        active = one.active(x)
        x_hat = one.decode_active(active)
        # Normalised once for both: the logarithms of probabilities are logits too.
        log_p = logits_with(x_hat).log_softmax(-1)
        sae.append(by_window(next_token_surprisal(log_p, tokens)))
        kl.append(by_window(kl_divergence(clean_log_p, log_p)))
        random.append(nll_with(random_error(x, x_hat, direction)))
        l0.append(active.first.diff()[counts[valid]].cpu().numpy())
    return Sums(
        n=counts.sum(1).cpu().numpy(),
        clean=by_window(clean_nll),
        zero=nll_with(torch.zeros_like(x)),
        mean=nll_with(site.mean.to(x).expand_as(x)),
        sae=np.stack(sae),
        random_error=np.stack(random),
        kl=np.stack(kl),
        token_nll=clean_nll[counts].cpu().numpy(),
        token_l0=np.stack(l0),
    )


def joined(parts: Sequence[Sums]) -> Sums:
    """The sums of all windows from those of batches of them."""
    return Sums(*(np.concatenate(arrays, axis=-1) for arrays in zip(*parts, strict=True)))


@torch.no_grad()
def clean_sums(
    site: Site, tokens: Int[Tensor, "window pos"], valid: Bool[Tensor, "window pos"]
) -> tuple[Int[np.ndarray, " window"], Float[np.ndarray, " window"]]:
    """How many predictions of each window count, and their summed negative log-likelihood in the unchanged model."""
    nll, counts = next_token_nll(run_clean(site.model, tokens, site.hook_name).logits, tokens), scored(valid)
    return counts.sum(1).cpu().numpy(), (nll * counts).sum(1, dtype=torch.float64).cpu().numpy()


def split_sums(
    site: Site,
    windows: Windows,
    chosen: Int[np.ndarray, " chosen"],
    saes: Sequence[SAE],
    generator: torch.Generator,
    *,
    batch: int,
) -> tuple[Sums, CleanSums]:
    """The sums of the chosen windows, and those of the unchanged model over all windows, `batch` at a time.

    Raises:
        UserError: if the model cannot be patched at the site.
    """
    valid, on = windows.valid(), site.mean.device

    def batches(indices: Int[np.ndarray, " some"]) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        for rows in index_batches(len(indices), batch):
            own = torch.from_numpy(indices)[rows]
            longest = int(windows.length[own].max())
            yield own.numpy(), windows.tokens[own, :longest].to(on), valid[own, :longest].to(on)

    n, nll = np.zeros(len(valid), np.int64), np.zeros(len(valid))
    parts: list[Sums] = []
    for own, tokens, mask in batches(chosen):
        if not parts:
            check_resumption(site.model, tokens, site.hook_name)
        parts.append(window_sums(site, tokens, mask, saes, generator))
        n[own], nll[own] = parts[-1].n, parts[-1].clean
    for own, tokens, mask in batches(np.setdiff1d(np.arange(len(valid)), chosen)):
        n[own], nll[own] = clean_sums(site, tokens, mask)
    return joined(parts), CleanSums(n, nll)
