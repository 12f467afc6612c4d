"""The active features of tokens on a CPU: searched in coarse pre-activations, computed in full.

With L0 of d_sae features active, an exact encoder is mostly spent on features that turn out not to fire. Here

    c = fl(x - b_dec) fl(W_enc) + b_enc        in bfloat16 where the processor multiplies it, which costs a third
    z_i = (x - b_dec) . W_enc[:, i] + b_enc_i  in float32, for the features that c leaves possible

and only z decides, so what is found does not depend on how coarse c is; where rounding could decide, z is summed in the
order of a matrix product, so that the same features are found as by one. With unit roundoff u (2^-9 of bfloat16) two
rounded factors and a rounded sum are off by at most 3 u |x - b_dec| |W_enc[:, i]| (Higham 2002, "Accuracy and Stability
of Numerical Algorithms", section 3.1). With m no less than that, the k largest z are among the c no more than 2 m below
the k-th largest c, and z > threshold asks for c > threshold - m: no active feature is missed.
"""

from inspect import unwrap
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

from stages.lib.selection import Active, Kernel, compiled

MARGIN = {torch.bfloat16: 3.1 * 2.0**-9, torch.float32: 2.0**-16}
"""Of |x - b_dec| |W_enc[:, i]|: more than coarse pre-activations can be off by."""
SLACK = 2.0**-15
"""The same of two sums in float32 that differ in their order alone."""


def _in_order(function: Kernel) -> Kernel:
    """As `compiled`, but sums are taken as they are written."""
    kernel: Kernel = njit(nogil=True, cache=True, fastmath={"contract"})(unwrap(function))
    return kernel


@compiled
def _dots(
    x: np.ndarray, rows: np.ndarray, place: np.ndarray, n: int | np.int64, bias: np.ndarray, z: np.ndarray
) -> None:
    """Write x . rows[place] + bias[place] of the first n places."""
    for q in range(n):
        other, total = rows[place[q]], x.dtype.type(0)
        for j in range(x.shape[0]):
            total += x[j] * other[j]
        z[q] = total + bias[place[q]]


@_in_order
def _ordered_dots(
    x: np.ndarray, rows: np.ndarray, place: np.ndarray, n: int | np.int64, bias: np.ndarray, z: np.ndarray
) -> None:
    """The same with each sum in the order in which a matrix product takes it, which gives its very bits, slowly."""
    for q in range(n, n + 7):
        place[q] = place[0]  # eight at a time, since each sum waits for its last addition
    for q in range(0, n, 8):
        r0, r1, r2, r3 = rows[place[q]], rows[place[q + 1]], rows[place[q + 2]], rows[place[q + 3]]
        r4, r5, r6, r7 = rows[place[q + 4]], rows[place[q + 5]], rows[place[q + 6]], rows[place[q + 7]]
        z0 = z1 = z2 = z3 = z4 = z5 = z6 = z7 = x.dtype.type(0)
        for j in range(x.shape[0]):
            z0 += x[j] * r0[j]
            z1 += x[j] * r1[j]
            z2 += x[j] * r2[j]
            z3 += x[j] * r3[j]
            z4 += x[j] * r4[j]
            z5 += x[j] * r5[j]
            z6 += x[j] * r6[j]
            z7 += x[j] * r7[j]
        z[q], z[q + 1], z[q + 2], z[q + 3] = z0, z1, z2, z3
        z[q + 4], z[q + 5], z[q + 6], z[q + 7] = z4, z5, z6, z7
    for q in range(n):
        z[q] += bias[place[q]]


@compiled
def _at_least(row: np.ndarray, n: int | np.int64, k: int, spare: int, least: float) -> Any:
    """A number that at least k of the first n reach, and at most `spare` more if halving to `least` finds it."""
    low, high = row[0], row[0]
    for j in range(n):
        low = row[j] if row[j] < low else low
        high = row[j] if row[j] > high else high
    while high - low > least:
        middle = low + (high - low) * row.dtype.type(0.5)
        if not low < middle < high:
            break
        count = np.int32(0)
        for j in range(n):
            count += np.int32(row[j] >= middle)
        if count >= k:
            low = middle
            if count <= k + spare:
                break
        else:
            high = middle
    return low


@compiled
def _top(
    x: np.ndarray,
    rows: np.ndarray,
    bias: np.ndarray,
    k: int,
    coarse: np.ndarray,
    margin: np.ndarray,
    slack: np.ndarray,
    first: np.ndarray,
    feature: np.ndarray,
    value: np.ndarray,
) -> None:
    """Write the k largest pre-activations of each token as far as they are above 0; the first of equals wins."""
    d_sae = coarse.shape[1]
    place, z = np.empty(d_sae + 8, np.int64), np.empty(d_sae + 8, x.dtype)
    n = 0
    for r in range(x.shape[0]):
        row, m = coarse[r], np.int64(0)
        limit = _at_least(row, d_sae, k, k // 4, margin[r]) - 2 * margin[r]
        for j in range(d_sae):
            # Written in any case and kept if the place moves on: at random a branch would be mispredicted often.
            place[m] = j
            m += np.int64(row[j] >= limit)
        _dots(x[r], rows, place, m, bias, z)
        least = _at_least(z, m, k, 0, 0.0)
        close, doubtful = np.int64(-k), False
        for q in range(m):
            close += np.int64(z[q] >= least - slack[r])
            doubtful |= abs(z[q]) <= slack[r]
        if close > 0 or doubtful:  # rounding could decide
            _ordered_dots(x[r], rows, place, m, bias, z)
            least = _at_least(z, m, k, 0, 0.0)
        surplus = np.int64(-k)
        for q in range(m):
            surplus += np.int64(z[q] >= least)
        for _ in range(surplus):  # only where numbers are equal: the last of them goes
            last = 0
            for q in range(m):
                last = q if z[q] == least else last
            z[last] = -np.inf
        for q in range(m):
            if z[q] >= least and z[q] > 0:
                feature[n], value[n] = place[q], z[q]
                n += 1
        first[r + 1] = n


@compiled
def _above(
    x: np.ndarray,
    rows: np.ndarray,
    bias: np.ndarray,
    threshold: np.ndarray,
    coarse: np.ndarray,
    margin: np.ndarray,
    slack: np.ndarray,
    first: np.ndarray,
    feature: np.ndarray,
    value: np.ndarray,
) -> None:
    """Write the pre-activations of each token that are above the thresholds."""
    d_sae = coarse.shape[1]
    place, z = np.empty(d_sae + 8, np.int64), np.empty(d_sae + 8, x.dtype)
    n = 0
    for r in range(x.shape[0]):
        row, m = coarse[r], np.int64(0)
        for j in range(d_sae):
            place[m] = j
            m += np.int64(row[j] > threshold[j] - margin[r])
        _dots(x[r], rows, place, m, bias, z)
        doubtful = False
        for q in range(m):
            doubtful |= abs(z[q] - threshold[place[q]]) <= slack[r]
        if doubtful:  # rounding could decide
            _ordered_dots(x[r], rows, place, m, bias, z)
        for q in range(m):
            i = place[q]
            if z[q] > threshold[i]:
                feature[n], value[n] = i, z[q]
                n += 1
        first[r + 1] = n


class Search:
    """Finds the active features of one SAE's tokens.

    Args:
        W_enc: the encoder.
        b_enc: its bias.
        b_dec: what is taken off every activation.
        limit: how many features at most are active on a token, or above which pre-activation each is.
        coarse: the type in which to search; as a rule the fastest.
    """

    def __init__(
        self,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        b_dec: Float[Tensor, " d_in"],
        limit: int | Float[Tensor, " d_sae"],
        coarse: torch.dtype | None = None,
    ) -> None:
        self._dtype = coarse or fastest()
        self._coarse, self._b_enc, self._b_dec = W_enc.to(self._dtype), b_enc, b_dec
        self._rows, self._bias = W_enc.T.contiguous().numpy(), b_enc.numpy()
        self._limit = limit if isinstance(limit, int) else limit.numpy()
        self._norm = float(W_enc.norm(dim=0).max())

    def __call__(self, x: Float[Tensor, "token d_in"]) -> Active:
        """The features with f > 0 of each token, in the order of the features."""
        x = x - self._b_dec
        coarse = torch.mm(x.to(self._dtype), self._coarse).float().add_(self._b_enc).numpy()
        norm = x.norm(dim=1).mul_(self._norm)
        margin, slack = (norm.mul(share).numpy() for share in (MARGIN[self._dtype], SLACK))
        most = min(self._limit, coarse.shape[1]) if isinstance(self._limit, int) else coarse.shape[1]
        first = np.zeros(len(x) + 1, np.int64)
        feature, value = np.empty(len(x) * most, np.int64), np.empty(len(x) * most, np.float32)
        tokens, outputs = (x.numpy(), self._rows, self._bias), (coarse, margin, slack, first, feature, value)
        if isinstance(self._limit, int):
            _top(*tokens, self._limit, *outputs)
        else:
            _above(*tokens, self._limit, *outputs)
        return Active(*map(torch.from_numpy, (first, feature[: first[-1]].copy(), value[: first[-1]].copy())))


def fastest() -> torch.dtype:
    """The type in which this processor multiplies matrices fastest."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
