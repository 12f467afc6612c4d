"""Which features of a token are active, searched in pre-activations that may be coarse, a few tokens at a time.

The products z = x W_enc + bias of some hundred tokens are searched while they are in the processor's cache, and the
bias is added there, so a step neither writes nor reads the d_sae numbers of all its tokens in full precision.

For the k largest of a row, columns are dealt into groups, column j into group j mod n_groups. What the maxima of k
groups or a few more reach is reached by at least k numbers, and only in these groups are there any: a few more than k.
Maxima of groups dealt like that need no branches, so they run on the vector units. In the same way, only groups whose
maximum exceeds a threshold are looked through for those above it.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stages.lib.run.parallel import compiled, over_rows
from stages.lib.sae.selection import Active

N_NUMBERS = 2**22
"""Pre-activations searched at a time."""
FEWEST_GROUPS = 64
"""Groups of columns that are looked through for those above a threshold, so that vector units have enough to do."""
SMALLEST = 2.0**-149
"""The least float32 above 0."""


@compiled
def reached_by(values: np.ndarray, n: int | np.int64, k: int, most: int = 0) -> Any:
    """A number that k of the first n values reach, or more than k where their k-th largest is tied: then it is that.

    It lies in [low, high]; halving that interval and counting needs no branches. Where `most` is more than k, a number
    that so many reach will do.
    """
    low, high = values[0], values[0]
    for j in range(n):
        low = values[j] if values[j] < low else low
        high = values[j] if values[j] > high else high
    while True:
        middle = low + (high - low) * values.dtype.type(0.5)
        if not low < middle < high:
            break
        count = np.int32(0)
        for j in range(n):
            count += np.int32(values[j] >= middle)
        if count == k or k < count <= most:
            return middle
        if count > k:
            low = middle
        else:
            high = middle
    # Nothing lies strictly between the ends, so the k-th largest is one of them.
    count = np.int32(0)
    for j in range(n):
        count += np.int32(values[j] >= high)
    return high if count >= k else low


@compiled
def _widen(z: np.ndarray, bits: np.ndarray) -> None:
    """The bits of float32 numbers from those of bfloat16 or float32."""
    if z.itemsize == 2:
        for j in range(z.shape[0]):
            bits[j] = np.int32(z[j]) << 16
    else:
        for j in range(z.shape[0]):
            bits[j] = z[j]


@compiled
def _larger_(best: np.ndarray, other: np.ndarray) -> None:
    """Write the larger of each two numbers; NaNs of `other` are left out."""
    for g in range(other.shape[0]):
        best[g] = other[g] if other[g] > best[g] else best[g]


@compiled
def _load(
    z: np.ndarray, addend: np.ndarray, bits: np.ndarray, row: np.ndarray, best: np.ndarray, n_groups: int
) -> None:
    """Write row = z + addend and, first in `best`, the maxima of its groups, NaNs left out.

    `row` is `bits` seen as float32, as long as whole groups, and `best` is as long.
    """
    _widen(z, bits[: z.shape[0]])
    for j in range(addend.shape[0]):
        row[j] += addend[j]
    # A column stays in its group when what is beyond the middle is laid over what is before it; long loops are fast.
    width = -(-row.shape[0] // n_groups // 2) * n_groups
    best[:width] = -np.inf
    _larger_(best[:width], row[:width])
    _larger_(best[: row.shape[0] - width], row[width:])
    while width > n_groups:
        half = -(-width // n_groups // 2) * n_groups
        _larger_(best[: width - half], best[half:width])
        width = half


@compiled
def _collect(row: np.ndarray, best: np.ndarray, least: float, groups: np.ndarray, found: np.ndarray) -> np.int64:
    """Write where the row is `least` or more, by ascending column; the number of places."""
    n_groups, n_hit, m = best.shape[0], np.int64(0), np.int64(0)
    for g in range(n_groups):
        # Written in any case and kept if the place moves on: at random a branch would be mispredicted often.
        groups[n_hit] = g
        n_hit += np.int64(best[g] >= least)
    # A group is every n_groups-th column, so this order gives ascending columns; few groups have to be looked at.
    for begin in range(0, row.shape[0], n_groups):
        for h in range(n_hit):
            j = begin + groups[h]
            found[m] = j
            m += np.int64(row[j] >= least)
    return m


@compiled
def _top_rows(
    z: np.ndarray,
    k_and_n_groups: tuple[int, int],
    start: int,
    stop: int,
    bias: np.ndarray,
    chosen: np.ndarray,
    value: np.ndarray,
) -> None:
    """Write where the k largest of z + bias of each row are, by ascending column, and them; first of equals first."""
    d = z.shape[1]
    k, n_groups = k_and_n_groups
    bits = np.empty(-(-d // n_groups) * n_groups, np.int32)
    row = bits.view(np.float32)
    row[d:] = np.nan  # which is never found
    maxima, groups = np.empty(row.shape[0], np.float32), np.empty(n_groups + 1, np.int32)
    best = maxima[:n_groups]
    found, among = np.empty(row.shape[0] + 1, np.int32), np.empty(row.shape[0], np.float32)
    for r in range(start, stop):
        _load(z[r], bias, bits, row, maxima, n_groups)
        # What the maxima of k groups or more reach is reached by k numbers or more, so by all that are kept.
        n = _collect(row, best, reached_by(best, n_groups, k, k + k // 8 + 1), groups, found)
        for q in range(n):
            among[q] = row[found[q]]
        least, m, ties = -np.inf, np.int64(0), np.int64(k)
        if n > k:
            least = reached_by(among, n, k)
            for q in range(n):
                ties -= np.int64(among[q] > least)
        for q in range(n):
            if m < k and (among[q] > least or (among[q] == least and ties > 0)):
                ties -= np.int64(among[q] == least)
                chosen[r, m], value[r, m] = found[q], among[q]
                m += 1
        for rest in range(m, k):  # only where there are NaNs, which the caller finds in its loss
            chosen[r, rest], value[r, rest] = 0, np.nan


@compiled
def _rows_above(
    z: np.ndarray,
    n_groups: int,
    start: int,
    stop: int,
    bias: np.ndarray,
    below: np.ndarray,
    reach: np.ndarray,
    margin: np.ndarray,
    counts: np.ndarray,
    feature: np.ndarray,
    value: np.ndarray,
) -> None:
    """Write, at the start of each row, where z + reach margin > below, and z + bias there."""
    d = z.shape[1]
    bits = np.empty(-(-d // n_groups) * n_groups, np.int32)
    row = bits.view(np.float32)
    row[d:] = np.nan  # which is never found
    addend = np.empty(d, np.float32)
    maxima, groups = np.empty(row.shape[0], np.float32), np.empty(n_groups + 1, np.int32)
    best = maxima[:n_groups]
    found = np.empty(row.shape[0] + 1, np.int32)
    for r in range(start, stop):
        wide = reach[r]
        for j in range(d):
            addend[j] = wide * margin[j] - below[j]
        _load(z[r], addend, bits, row, maxima, n_groups)
        n = _collect(row, best, SMALLEST, groups, found)
        counts[r] = n
        for q in range(n):
            j = found[q]
            feature[r, q] = j
            bits[q] = np.int32(z[r, j]) << 16 if z.itemsize == 2 else z[r, j]
            value[r, q] = row[q] + bias[j]


@compiled
def _pack(
    feature: np.ndarray,
    value: np.ndarray,
    start: int,
    stop: int,
    first: np.ndarray,
    packed: np.ndarray,
    values: np.ndarray,
) -> None:
    """Move what each row found to its place."""
    for r in range(start, stop):
        begin = first[r]
        for q in range(first[r + 1] - begin):
            packed[begin + q], values[begin + q] = feature[r, q], value[r, q]


N_SAMPLED = 2**17
"""Numbers of which the n-th largest is guessed."""


def nth_largest(values: Float[Tensor, " entry"], n: int) -> tuple[float, float]:
    """The n-th largest number, n >= 1, and the largest after it."""
    if values.device.type != "cpu":
        last, after = (float(values.kthvalue(len(values) - n + place).values) for place in (1, 0))
        return last, after
    numbers = values.numpy()
    sample = np.sort(numbers[:: len(numbers) // N_SAMPLED | 1])  # odd, so that it meets all features
    # Where more than n exceed a guess, the largest are among them, and few numbers are left to be sorted.
    for share in (1.25 * n / len(numbers), 2.5 * n / len(numbers), 1.0):
        place = int(share * len(sample)) + 1
        above = numbers[numbers > sample[-place]] if place < len(sample) else numbers
        if len(above) > n:
            break
    found = np.partition(above, (len(above) - n - 1, len(above) - n))
    return float(found[len(found) - n]), float(found[len(found) - n - 1])


class Encoder(NamedTuple):
    """Weights that are multiplied to search: z = x W + bias, where the product alone may be coarse."""

    W: Float[Tensor, "d_in d_sae"]
    bias: Float[Tensor, " d_sae"]


def products(encoder: Encoder, x: Float[Tensor, "token d_in"]) -> Iterator[tuple[slice, np.ndarray]]:
    """The bits of x W for some tokens at a time, in memory that the next ones are written over."""
    W = encoder.W
    # Equal parts: each costs some time, however short it is.
    n_parts = -(-x.shape[0] * W.shape[1] // N_NUMBERS)
    size = -(-len(x) // max(1, n_parts))
    z = x.new_empty(size, W.shape[1], dtype=W.dtype)
    bits = z.view(torch.int16 if W.dtype == torch.bfloat16 else torch.int32).numpy()
    for start in range(0, len(x), size):
        rows = slice(start, min(start + size, len(x)))
        n = rows.stop - start
        torch.mm(x[rows].to(W.dtype), W, out=z[:n])
        yield rows, bits[:n]


def largest(encoder: Encoder, x: Float[Tensor, "token d_in"], k: int) -> tuple[Tensor, Tensor]:
    """The k features of each token with the largest z, by ascending feature, and these z; the first of equals wins."""
    feature, value = torch.empty(len(x), k, dtype=torch.int64), x.new_empty(len(x), k)
    # About as many groups as columns that are looked at in the groups with the largest maxima.
    d_sae = len(encoder.bias)
    n_groups = min(d_sae, max(1 << (2 * k).bit_length(), 1 << math.isqrt(d_sae * k).bit_length() - 1))
    for rows, z in products(encoder, x):
        over_rows(_top_rows, z, (k, n_groups), encoder.bias.numpy(), feature[rows].numpy(), value[rows].numpy())
    return feature, value


def above(
    encoder: Encoder,
    x: Float[Tensor, "token d_in"],
    below: Float[Tensor, " d_sae"],
    reach: Float[Tensor, " token"],
    margin: Float[Tensor, " d_sae"],
    at_most: float = 1.0,
) -> Active | None:
    """The entries with x W + reach margin > below, and z there; None if the first rows have too large a share of them.

    Args:
        encoder: weights.
        x: the batch.
        below: the threshold of each feature, less its bias.
        reach: of each token, times ...
        margin: ... that of each feature is how far below z may be.
        at_most: the share that is too large.
    """
    n_groups = max(min(len(encoder.bias), FEWEST_GROUPS), len(encoder.bias) // 8)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    arrays = [tensor.numpy() for tensor in (encoder.bias, below)]
    counts = np.empty(len(x), np.int64)
    feature: np.ndarray | None = None
    for rows, z in products(encoder, x):
        if feature is None:
            feature, value = np.empty(z.shape, np.int32), np.empty(z.shape, np.float32)
        inputs = (*arrays, reach[rows].numpy(), margin.numpy())
        over_rows(_rows_above, z, n_groups, *inputs, counts[rows], feature, value)
        first = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[rows])])
        if not found and first[-1] > at_most * z.size:
            return None
        packed = np.empty(first[-1], np.int64), np.empty(first[-1], np.float32)
        over_rows(_pack, feature, value, first, *packed, n_rows=len(z), work=len(packed[0]))
        found.append(packed)
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    parts = (np.concatenate(part) for part in zip(*found, strict=True))
    return Active(torch.from_numpy(first), *(torch.from_numpy(part) for part in parts))
