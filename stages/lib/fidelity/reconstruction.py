"""The streams behind an arm's fidelity: every row of the store is read once a pass and serves all SAEs of the arm."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stages.lib.activations.store import Store
from stages.lib.fidelity.measures import Fidelity, Moments, PrincipalComponents, TokenMeans, mean, squared_distance
from stages.lib.io.files import read_json
from stages.lib.language.windows import Windows, read_windows
from stages.lib.run.machine import device
from stages.lib.run.parallel import side_by_side
from stages.lib.sae.members import Member
from stages.lib.sae.saved import SAE
from stages.lib.stats.intervals import block_sums

BATCH = 4096
"""Tokens at a time."""


class Baselines(NamedTuple):
    """What needs no SAE, over the test tokens."""

    total: np.ndarray
    """Squared distance from the test mean, [document]."""
    unigram: float
    """FVU of the mean by token id."""
    principal: np.ndarray
    """FVU of the principal components at ranks 0, 1 .. d_in."""


def labelled(store: Store, windows: Windows, split: str) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
    """The rows of a split in batches, with their token ids and the documents that they belong to."""
    tokens, document = windows.tokens.flatten(), windows.document.numpy().astype(np.int64)
    positions, start = store.positions(split), 0
    for x in store.batches(split, BATCH):
        flat = positions[start : start + len(x)]
        start += len(x)
        yield x.to(device()), tokens[torch.from_numpy(flat)], document[flat // windows.n_ctx]


def token_means(store: Store, d_vocab: int) -> Float[Tensor, "d_vocab d_in"]:
    """The mean activation of each token id in the training rows."""
    means = TokenMeans(d_vocab, store.d_in)
    for x, ids, _ in labelled(store, read_windows("train"), "train"):
        means.add(x, ids)
    return means.table().to(device())


def baselines(store: Store, windows: Windows, d_vocab: int) -> Baselines:
    """The sums over the test tokens that need no SAE; `windows` are those of the test split."""
    n_documents = len(windows.document_ids)
    centre = mean(x.to(device()) for x in store.batches("test", BATCH))
    principal = PrincipalComponents(Moments(x.to(device()) for x in store.batches("fit", BATCH)))
    table = token_means(store, d_vocab)
    total, unigram, left = np.zeros(n_documents), 0.0, np.zeros(store.d_in + 1)
    for x, ids, documents in labelled(store, windows, "test"):
        total += block_sums(squared_distance(x, centre), documents, n_documents)
        unigram += float(squared_distance(x, table[ids.long()]).sum())
        left += principal.squared_error(x)
    return Baselines(total, unigram / total.sum(), left / total.sum())


def fidelities(store: Store, windows: Windows, saes: Sequence[SAE]) -> list[Fidelity]:
    """The sums of every SAE over the test tokens."""
    sums = [Fidelity(one.d_sae, len(windows.document_ids), store.mean.to(device())) for one in saes]
    for x, _, documents in labelled(store, windows, "test"):
        side_by_side(partial(_add, x=x, documents=documents), zip(saes, sums, strict=True), device())
    return sums


def _add(pair: tuple[SAE, Fidelity], x: Tensor, documents: np.ndarray) -> None:
    one, own = pair
    active = one.active(x)
    own.add(x, one.decode_active(active), active, documents)


def dead(store: Store, one: SAE, own: Fidelity) -> Bool[np.ndarray, " d_sae"]:
    """Which features fire neither in test nor in validation, read until all have fired."""
    silent = own.firings == 0
    for x in store.batches("validation", BATCH):
        if not silent.any():
            break
        silent[one.active(x.to(device())).feature] = False
    result: np.ndarray = silent.cpu().numpy()
    return result


class OnTraining(NamedTuple):
    """The sums of one SAE over training activations."""

    own: Fidelity
    unshifted: Fidelity | None
    """The same before the shift of the threshold that ends a training at the wanted L0, if there was one."""
    total: Float[np.ndarray, " 1"]
    """Squared distance from the mean of these activations."""


def shift_of(member: Member) -> float:
    """The shift of an SAE's pre-activations that ended its training, in normalised units; 0 where none is recorded."""
    facts = read_json(member.directory.parent / "train.json")
    shifts: list[float] = facts.get("shift", [0.0])
    # A seed of the followed level alone has one.
    return shifts[member.level] if len(shifts) == len(facts["levels"]) else shifts[0]


def unshifted(one: SAE, shift: float) -> SAE:
    """The SAE before its pre-activations were shifted by `shift` (in raw units); a TopK has no threshold to shift."""
    if one.threshold is not None:
        return replace(one, threshold=(one.threshold - shift).clamp_min(0))
    return replace(one, b_enc=one.b_enc + shift) if one.k is None else one


def on_training(store: Store, saes: Sequence[SAE], shifts: Sequence[float], n_tokens: int) -> list[OnTraining]:
    """The sums over the first `n_tokens` training rows, which are a random sample, since the rows are shuffled.

    `shifts` are those of normalised activations, as `train.json` has them.
    """
    x = store.rows("train", 0, min(n_tokens, store.n_rows("train"))).to(device())
    total = np.array([squared_distance(x, x.double().mean(0)).sum()])

    def over(one: SAE) -> Fidelity:
        sums = Fidelity(one.d_sae, 1, store.mean.to(device()))
        for start in range(0, len(x), BATCH):
            part = x[start : start + BATCH]
            _add((one, sums), part, np.zeros(len(part), np.int64))
        return sums

    before = {i: unshifted(saes[i], shift * store.scale) for i, shift in enumerate(shifts) if shift}
    sums = side_by_side(over, [*saes, *before.values()], device())
    unshifted_sums = dict(zip(before, sums[len(saes) :], strict=True))
    return [OnTraining(own, unshifted_sums.get(i), total) for i, own in enumerate(sums[: len(saes)])]
