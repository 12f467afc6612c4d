"""Which features of a token are active: the k largest pre-activations, or those above a threshold.

On a CPU `torch.topk` takes longer than the encoder's matrix product at the widths used here, so rows are searched by
compiled loops. What they choose does not depend on the number of threads. Other devices use PyTorch's own.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.lib.run.parallel import compiled, over_rows


@compiled
def _top_rows(z: np.ndarray, k: int, start: int, stop: int, chosen: np.ndarray) -> None:
    """Write where the k largest of rows `start` to `stop` are, by ascending column; the first of equals wins.

    The k-th largest value lies in [low, high]; halving that interval and counting what is at or above the middle needs
    no branches, so it runs on the processor's vector units. It ends when just k are counted, or when no number is left
    between the ends, so that one of them is the k-th largest value, perhaps several times.
    """
    n = z.shape[1]
    for r in range(start, stop):
        row = z[r]
        low, high = row[0], row[0]
        for j in range(n):
            low = row[j] if row[j] < low else low
            high = row[j] if row[j] > high else high
        exact = False
        while not exact:
            middle = low + (high - low) * row.dtype.type(0.5)
            if not low < middle < high:
                break
            count = np.int32(0)
            for j in range(n):
                count += np.int32(row[j] >= middle)
            if count >= k:
                low, exact = middle, count == k
            else:
                high = middle
        if not exact:
            # Nothing lies strictly between the ends, so the k-th largest is one of them.
            count = np.int32(0)
            for j in range(n):
                count += np.int32(row[j] >= high)
            if count >= k:
                low = high
        m, j = np.int64(0), 0
        if exact:
            # Written in any case and kept if the place moves on: at random a branch would be mispredicted often.
            while m < k:
                chosen[r, m] = j
                m += np.int64(row[j] >= low)
                j += 1
            continue
        ties = np.int64(k)
        for j in range(n):
            ties -= np.int64(row[j] > low)
        for j in range(n):
            if m < k and (row[j] > low or (row[j] == low and ties > 0)):
                ties -= np.int64(row[j] == low)
                chosen[r, m] = j
                m += 1
        for rest in range(m, k):  # only where there are NaNs, which the caller finds in its loss
            chosen[r, rest] = 0


@compiled
def _count_above(z: np.ndarray, threshold: np.ndarray, start: int, stop: int, counts: np.ndarray) -> None:
    """Write how many numbers of rows `start` to `stop` are above the thresholds of their columns."""
    # Counted in a loop without branches, on the vector units; `_fill_above` then knows where each row's places begin.
    for r in range(start, stop):
        count = np.int32(0)
        for j in range(z.shape[1]):
            count += np.int32(z[r, j] > threshold[j])
        counts[r] = count


@compiled
def _fill_above(
    z: np.ndarray,
    threshold: np.ndarray,
    start: int,
    stop: int,
    first: np.ndarray,
    feature: np.ndarray,
    value: np.ndarray,
) -> None:
    """Write column and number of those entries, a row's from `first[r]` on."""
    for r in range(start, stop):
        n, end = first[r], first[r + 1]
        for j in range(z.shape[1]):
            # The row has no more, and the next place is the next row's.
            if n == end:
                break
            # Written in any case and kept if the place moves on: at random a branch would be mispredicted often.
            feature[n], value[n] = j, z[r, j]
            n += np.int64(z[r, j] > threshold[j])


def top_k(z: Float[Tensor, "token d_sae"], k: int) -> Int[Tensor, "token k"]:
    """The columns of the k largest values of each row, in no set order; on a CPU the first of equal values wins."""
    if z.device.type != "cpu":
        return torch.topk(z, k, dim=1, sorted=False).indices
    chosen = torch.empty(len(z), k, dtype=torch.int64)
    over_rows(_top_rows, z.detach().contiguous().numpy(), k, chosen.numpy())
    return chosen


class Active(NamedTuple):
    """Pairs of a token and a feature, by token."""

    first: Int[Tensor, " token_plus_one"]
    """Where each token's pairs start, and at last the number of pairs."""
    feature: Int[Tensor, " pair"]
    value: Float[Tensor, " pair"]


def above(z: Float[Tensor, "token d_sae"], threshold: Float[Tensor, " d_sae"]) -> Active:
    """The entries with z > threshold."""
    values, limits = z.detach().contiguous().numpy(), threshold.detach().contiguous().numpy()
    counts = np.empty(len(values), np.int64)
    over_rows(_count_above, values, limits, counts)
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    feature, value = np.empty(first[-1], np.int64), np.empty(first[-1], values.dtype)
    over_rows(_fill_above, values, limits, first, feature, value)
    return Active(torch.from_numpy(first), torch.from_numpy(feature), torch.from_numpy(value))
