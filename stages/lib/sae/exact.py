"""The active features of a trained SAE on a CPU: looked for in a coarse product, decided by exact pre-activations.

With xc = x - b_dec, the pre-activations z_i = xc . w_i + b_i of a few features decide which are active; the product of
all features only has to say which few. It is taken in bfloat16 where the processor multiplies that (six times as fast),
and no active feature can be missed: for rounded factors x', w' and the product p that comes out,

    |p + b - z| <= ||xc - x'|| ||w|| + ||x'|| ||w - w'|| + 3 d_in 2^-24 ||xc|| ||w|| + r |p| + 2^-21 |b|

by the inequality of Cauchy and Schwarz, where the norms of the rounding errors are those of the very numbers; the third
term is for the sums of d_in float32 products, in any order, in p and in z (Higham 2002, "Accuracy and Stability of
Numerical Algorithms", section 3.1); r is 2^-8 where p is rounded to bfloat16, and 2^-21 for what follows in float32.
Every feature that may be active within that bound is a candidate. The z of candidates are dot products in float32, each
summed in the same order whichever they are, so what is found is the same, bit by bit, with any product and any number
of threads.

For the k largest, the k-th largest lower bound is reached by k features, so one whose upper bound is below it is none
of them. It is taken over maxima of groups of columns, as in `stages.lib.sae.search`, which makes it a little lower.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.lib.run.parallel import over_rows
from stages.lib.sae.exact_loops import FLOAT32, SLACK, centre, pack, search
from stages.lib.sae.selection import Active

N_NUMBERS = 2**20
"""Products searched at a time: those of bfloat16 fit into the cache of a core, and each part costs some time."""
LEAST_ROWS = 256
"""Tokens multiplied at a time at least, however many features there are: with fewer, reading the weights takes over."""
UNDERFLOW = 2.0**-60
"""More than all that is lost where squares and products of tiny numbers become 0."""


@cache
def coarse_dtype() -> torch.dtype:
    """In which the product is taken: bfloat16 where the processor multiplies it, float32 elsewhere."""
    known = torch.cpu.get_capabilities()
    return torch.bfloat16 if known.get("avx512_bf16") or known.get("amx_bf16") else torch.float32


class Coarse(NamedTuple):
    """The encoder of an SAE as it is searched."""

    W: Tensor
    """W_enc, [d_in, d_sae], in the dtype of the product."""
    rows: npt.NDArray[np.float32]
    """W_enc by feature, [d_sae, d_in]."""
    b_dec: npt.NDArray[np.float32]
    norms: npt.NDArray[np.float32]
    """What of the bound is times ||xc - x'|| and times the larger of ||xc|| and ||x'||, [2, d_sae]."""
    biases: npt.NDArray[np.float32]
    """[5, d_sae]: b_enc less the threshold and with what of the bound is the same for all tokens, b_enc without that,
    room for what of the bound is times the length of a token, b_enc, and the threshold: 0 where the k largest are
    active."""
    k: int | None

    def biases_for(
        self, length: Float[np.ndarray, " token"], lost: Float[np.ndarray, " token"]
    ) -> Float[np.ndarray, "5 d_sae"]:
        """`biases` with the bound of some tokens: with the largest ||xc - x'|| / ||x'|| of them, which vary little."""
        told = np.isfinite(length) & (length > 0)
        worst = np.float32(np.divide(lost, length, out=np.zeros_like(lost), where=told).max())
        biases = self.biases.copy()
        biases[2] = np.float32(SLACK) * (worst * self.norms[0] + self.norms[1])
        return biases


def coarse(
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"],
    threshold: Float[Tensor, " d_sae"] | None,
    k: int | None,
    dtype: torch.dtype | None = None,
) -> Coarse:
    """What a search needs; `dtype` is that of the product if it is not to be `coarse_dtype()`."""
    W = W_enc.to(dtype or coarse_dtype())
    least = torch.zeros_like(b_enc) if threshold is None else threshold.clamp_min(0)
    norm = W_enc.norm(dim=0)
    rounded = (W_enc - W.float()).norm(dim=0) + 3 * len(W_enc) * 2.0**-24 * norm + UNDERFLOW
    alone = FLOAT32 * (b_enc.abs() + least) + UNDERFLOW * (1 + norm)
    biases = torch.stack([b_enc - least + alone, b_enc - alone, torch.zeros_like(norm), b_enc, least])
    rows, norms = W_enc.T.contiguous(), torch.stack([norm, rounded])
    return Coarse(W.contiguous(), rows.numpy(), b_dec.contiguous().numpy(), norms.numpy(), biases.numpy(), k)


class Memory:
    """What the search of some tokens writes; the next ones are written over it."""

    def __init__(self, encoder: Coarse, n_tokens: int) -> None:
        d_in, d_sae = encoder.W.shape
        self.size = min(max(LEAST_ROWS, N_NUMBERS // d_sae), max(1, n_tokens))
        is_rough = encoder.W.dtype == torch.bfloat16
        self.centred = torch.empty(self.size, d_in)
        self.rounded = torch.empty(self.size, d_in if is_rough else 0, dtype=torch.bfloat16)
        self.factor = self.rounded if is_rough else self.centred
        self.products = torch.empty(self.size, d_sae, dtype=encoder.W.dtype)
        self.bits = self.products.view(torch.int16 if is_rough else torch.int32).numpy()
        self.length, self.lost = np.empty((2, self.size), np.float32)
        width = min(encoder.k, d_sae) if encoder.k else d_sae
        self.feature, self.value = np.empty((self.size, width), np.int32), np.empty((self.size, width), np.float32)


def _found(
    encoder: Coarse, x: Float[np.ndarray, "token d_in"], memory: Memory, counts: Int[np.ndarray, " token"]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The active features of some tokens and their activations; `counts` is told how many each token has."""
    n, d_sae, k = len(x), encoder.W.shape[1], encoder.k or 0
    centred, length, lost = memory.centred.numpy(), memory.length[:n], memory.lost[:n]
    over_rows(centre, x, encoder.b_dec, centred, memory.rounded.view(torch.int16).numpy(), length, lost)
    torch.mm(memory.factor[:n], encoder.W, out=memory.products[:n])
    # A group of columns for every few of the features that are likely to be active.
    n_groups = min(d_sae, max(64, 1 << (4 * k).bit_length())) if k else max(1, d_sae // 8)
    inputs = (centred, length, encoder.rows, encoder.biases_for(length, lost))
    over_rows(search, memory.bits[:n], (k, n_groups), *inputs, counts, memory.feature, memory.value)
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    feature, value = np.empty(first[-1], np.int64), np.empty(first[-1], np.float32)
    over_rows(pack, memory.feature, memory.value, first, feature, value, n_rows=n, work=len(feature))
    return feature, value


def active(encoder: Coarse, x: Float[Tensor, "token d_in"]) -> Active:
    """The features of each token that are active, by ascending feature, and their activations."""
    memory, source = Memory(encoder, len(x)), x.detach().contiguous().numpy()
    first = np.zeros(len(x) + 1, np.int64)
    found = [(np.empty(0, np.int64), np.empty(0, np.float32))]
    for start in range(0, len(x), memory.size):
        part = slice(start, start + memory.size)
        found.append(_found(encoder, source[part], memory, first[1:][part]))
    np.cumsum(first, out=first)
    feature, value = (np.concatenate(part) for part in zip(*found, strict=True))
    return Active(torch.from_numpy(first), torch.from_numpy(feature), torch.from_numpy(value))
