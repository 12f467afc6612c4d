"""What a revision's language model loses without the activation, and without any change: sums over windows, in nats.

No SAE takes part, so all arms on the revision share these sums: `stages.ablations` writes them to
`data/ablations/<revision>/ablations.safetensors`, with what else needs no SAE (`reconstruction.Baselines`).

The unchanged model runs on all test windows. The SAEs run on some of them, spread evenly, and so do the ablations,
which put zeros or the mean training activation at all valid positions. What an SAE costs is a difference at the same
predictions, so the windows chosen matter little for it; how sure it is depends on how many documents there are, hardly
on how many windows of each.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.lib.activations.store import Store
from stages.lib.fidelity.reconstruction import Baselines
from stages.lib.io import tensors
from stages.lib.io.errors import UserError, nearest
from stages.lib.language.copies import Copies
from stages.lib.language.patching import (
    check_resumption,
    index_batches,
    next_token_nll,
    run_clean,
    run_from,
    scored,
    substitute,
)
from stages.lib.language.windows import Windows
from stages.lib.run.parallel import side_by_side

ABLATIONS, FILE = Path("data/ablations"), "ablations.safetensors"
LOGITS, MOST_WINDOWS = 2**23, 16
"""What a run of the model takes at most, unless one window has more logits; each thread has a run."""


class Ablations(NamedTuple):
    """Sums over the predictions that count, of each window."""

    n: Int[np.ndarray, " window"]
    """How many they are, for all windows of the split."""
    clean: Float[np.ndarray, " window"]
    """Negative log-likelihood of the unchanged model, for all windows of the split."""
    zero: Float[np.ndarray, " chosen"]
    """The same with zeros for the activation, for the windows that SAEs run on."""
    mean: Float[np.ndarray, " chosen"]
    """The same with the mean training activation."""


class Site(NamedTuple):
    """Where a language model's activation is replaced."""

    models: Copies
    hook_name: str
    mean: Tensor
    """The mean training activation, [d_in]."""


class Batch(NamedTuple):
    """Some windows, cut after the longest of them."""

    window: Int[np.ndarray, " window"]
    """Their places in the split."""
    tokens: Tensor
    valid: Tensor


def spread(n_windows: int, n_chosen: int) -> Int[np.ndarray, " chosen"]:
    """Indices of windows spread evenly over all of them, so that they fall on as many documents as they can."""
    return np.unique(np.linspace(0, n_windows - 1, min(n_chosen, n_windows)).round().astype(np.int64))


def chosen_windows(store: Store, windows: Windows, n_tokens: int) -> Int[np.ndarray, " chosen"]:
    """The test windows that SAEs run on: spread evenly, with about `n_tokens` tokens."""
    per_window = store.n_rows("test") / len(windows.length)
    return spread(len(windows.length), math.ceil(n_tokens / per_window))


def windows_at_a_time(n_ctx: int, d_vocab: int) -> int:
    """How many windows a run takes; it does not depend on the machine, since other products may round otherwise."""
    return max(1, min(MOST_WINDOWS, LOGITS // (n_ctx * d_vocab)))


def batches(windows: Windows, chosen: Int[np.ndarray, " some"], size: int, on: torch.device) -> Iterator[Batch]:
    """The chosen windows, `size` at a time."""
    valid = windows.valid()
    for rows in index_batches(len(chosen), size):
        own = torch.from_numpy(chosen)[rows]
        longest = int(windows.length[own].max())
        yield Batch(own.numpy(), windows.tokens[own, :longest].to(on), valid[own, :longest].to(on))


def by_window(values: Float[Tensor, "window pos"], counts: Bool[Tensor, "window pos"]) -> Float[np.ndarray, " window"]:
    """The sums over the predictions that count."""
    sums: np.ndarray = (values * counts).sum(1, dtype=torch.float64).cpu().numpy()
    return sums


class _Sums(NamedTuple):
    """Those of a batch; without ablations where it is none of the chosen windows."""

    window: np.ndarray
    n: np.ndarray
    clean: np.ndarray
    ablated: list[np.ndarray]


@torch.no_grad()
def _sums(work: tuple[Batch, list[Tensor]], site: Site) -> _Sums:
    """The sums of a batch, with each of the vectors in place of the activation too."""
    (window, tokens, valid), vectors = work
    counts, ablated = scored(valid), []
    with site.models.one() as model:
        clean = run_clean(model, tokens, site.hook_name)
        for vector in vectors:
            x = substitute(clean.x, vector.to(clean.x).expand(int(valid.sum()), -1), valid)
            ablated.append(by_window(next_token_nll(run_from(model, tokens, site.hook_name, x), tokens), counts))
    return _Sums(window, counts.sum(1).cpu().numpy(), by_window(next_token_nll(clean.logits, tokens), counts), ablated)


def measure_ablations(site: Site, windows: Windows, chosen: Int[np.ndarray, " chosen"], size: int) -> Ablations:
    """The sums over the windows of a split, `size` at a time.

    Raises:
        UserError: if the model cannot be patched at the site.
    """
    n_windows, on = len(windows.length), site.mean.device
    vectors = [torch.zeros_like(site.mean), site.mean]
    first = next(batches(windows, chosen, size, on))
    check_resumption(site.models.model, first.tokens, site.hook_name)
    others = np.setdiff1d(np.arange(n_windows), chosen)
    work = [(batch, vectors) for batch in batches(windows, chosen, size, on)]
    work += [(batch, []) for batch in batches(windows, others, size, on)]
    n, clean, ablated = np.zeros(n_windows, np.int64), np.zeros(n_windows), []
    for part in side_by_side(partial(_sums, site=site), work, on):
        n[part.window], clean[part.window] = part.n, part.clean
        ablated += [part.ablated] if part.ablated else []
    zero, mean = (np.concatenate(sums) for sums in zip(*ablated, strict=True))
    return Ablations(n, clean, zero, mean)


def identity(store: Store, windows: Windows, n_tokens: int) -> dict[str, Any]:
    """What the sums were measured on and with; those of SAEs stand beside sums of the same.

    The index of the activations has the checksums of their shards and of the model's weights.
    """
    text = hashlib.sha256(windows.tokens.numpy().tobytes() + windows.length.numpy().tobytes())
    index = hashlib.sha256(json.dumps(store.index, sort_keys=True).encode())
    return {"activations": index.hexdigest(), "windows": text.hexdigest(), "n_ce_tokens": n_tokens}


class WithoutSAE(NamedTuple):
    """What all arms on a revision share."""

    ablations: Ablations
    baselines: Baselines


def write_ablations(revision: str, found: WithoutSAE, description: dict[str, Any]) -> None:
    """Write them; `description` is their `identity`."""
    content = {name: torch.from_numpy(np.asarray(values)) for part in found for name, values in part._asdict().items()}
    tensors.save(ABLATIONS / revision / FILE, content, description)


def read_ablations(revision: str, description: dict[str, Any]) -> WithoutSAE:
    """The ablations of a revision whose `identity` is `description`.

    Raises:
        UserError: if there are none, or none of that identity.
    """
    known = sorted(path.parent.name for path in ABLATIONS.glob(f"*/{FILE}"))
    if revision not in known:
        raise UserError(
            f"{ABLATIONS} has no ablations of revision {revision!r}{nearest(revision, known)}; "
            "`dvc repro ablations` makes those of the revisions in activations.revisions"
        )
    path = ABLATIONS / revision / FILE
    found = tensors.describe(path)
    for name, value in description.items():
        if found.get(name) != value:
            raise UserError(f"{path} was made with another {name} than this run has; `dvc repro ablations` renews it")
    content = {name: values.numpy() for name, values in tensors.load(path).items()}
    baselines = Baselines(content["total"], float(content["unigram"]), content["principal"])
    return WithoutSAE(Ablations(*(content[name] for name in Ablations._fields)), baselines)
