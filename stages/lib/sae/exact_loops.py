"""The compiled loops behind `stages.lib.sae.exact`, rows at a time, so that threads share them."""

from typing import Any

import numpy as np

from stages.lib.run.parallel import compiled
from stages.lib.sae.search import SMALLEST, reached_by

FLOAT32 = 2.0**-21
"""Relative rounding error of a few operations in float32, 2^-24 each."""
BFLOAT16 = 2.0**-8
"""Unit roundoff of bfloat16."""
SLACK = 1 + 2.0**-10
"""For the rounding of the bound itself."""
N_QUARTERINGS = 6
"""Of the interval in which a number is looked for that k lower bounds reach."""


@compiled
def centre(
    x: np.ndarray,
    b_dec: np.ndarray,
    start: int,
    stop: int,
    centred: np.ndarray,
    rounded: np.ndarray,
    length: np.ndarray,
    lost: np.ndarray,
) -> None:
    """Write xc, it rounded to bfloat16 if there is room for that, the larger of ||xc|| and ||x'||, and ||xc - x'||."""
    d = x.shape[1]
    back = np.empty(d, np.int32)
    near = back.view(np.float32)
    for r in range(start, stop):
        own, bits, source = centred[r], centred[r].view(np.int32), x[r]
        for j in range(d):
            own[j] = source[j] - b_dec[j]
        if rounded.shape[1] > 0:
            target = rounded[r]
            for j in range(d):
                # To the nearest, of two equally near ones to the even one.
                up = (bits[j] + np.int32(0x7FFF) + ((bits[j] >> 16) & np.int32(1))) >> 16
                target[j] = np.int16(up)
                back[j] = np.int32(up) << 16
        else:
            back[:] = bits
        off = exact = kept = np.float32(0)
        for j in range(d):
            off += (own[j] - near[j]) * (own[j] - near[j])
            exact += own[j] * own[j]
            kept += near[j] * near[j]
        length[r], lost[r] = np.sqrt(max(exact, kept)), np.sqrt(off)


@compiled
def bounds(
    z: np.ndarray, biases: np.ndarray, reach: float, bits: np.ndarray, upper: np.ndarray, lower: np.ndarray
) -> None:
    """Write the upper bounds of a row, less the thresholds, and the lower bounds if there is room for them.

    `z` has the bits of the products, of bfloat16 or float32; `upper` is `bits` as float32.
    """
    share, wide = np.float32(BFLOAT16 * SLACK if z.itemsize == 2 else FLOAT32), np.float32(reach)
    raised, lowered, margin = biases[0], biases[1], biases[2]
    if z.itemsize == 2:
        for j in range(z.shape[0]):
            bits[j] = np.int32(z[j]) << 16
    else:
        for j in range(z.shape[0]):
            bits[j] = z[j]
    if lower.shape[0] == 0:
        for j in range(z.shape[0]):
            upper[j] += raised[j] + (wide * margin[j] + share * abs(upper[j]))
        return
    for j in range(z.shape[0]):
        p, error = upper[j], wide * margin[j] + share * abs(upper[j])
        upper[j] = p + raised[j] + error
        lower[j] = p + lowered[j] - error


@compiled
def fold(row: np.ndarray, highest: np.ndarray) -> None:
    """Write the maxima of groups: column j is in group j mod n_groups. NaNs are left out."""
    n_groups = highest.shape[0]
    highest[:] = -np.inf
    for begin in range(0, row.shape[0], n_groups):
        part = row[begin : begin + n_groups]
        for g in range(part.shape[0]):
            highest[g] = part[g] if part[g] > highest[g] else highest[g]


@compiled
def reached(lower: np.ndarray, groups: np.ndarray, few: np.ndarray, k: int) -> Any:
    """A number above 0 that k of the lower bounds reach, if there is one; few more than k reach it.

    `groups` and `few` are memory for maxima of groups and of groups of these.
    """
    fold(lower, groups)
    fold(groups, few)
    low, high = np.float32(SMALLEST), few[0]
    for g in range(few.shape[0]):
        high = few[g] if few[g] > high else high
    for _ in range(N_QUARTERINGS):
        step = (high - low) * np.float32(0.25)
        one, two, three = low + step, low + 2 * step, low + 3 * step
        n_one = n_two = n_three = np.int32(0)
        # Three numbers in a pass: so few numbers are counted that a pass takes as long with one.
        for g in range(groups.shape[0]):
            n_one += np.int32(groups[g] >= one)
            n_two += np.int32(groups[g] >= two)
            n_three += np.int32(groups[g] >= three)
        if n_three >= k:
            low, count = three, n_three
        elif n_two >= k:
            low, high, count = two, three, n_two
        elif n_one >= k:
            low, high, count = one, two, n_one
        else:
            high, count = one, np.int32(groups.shape[0])
        if k <= count <= k + k // 8:
            break
    return low


@compiled
def reaching(upper: np.ndarray, groups: np.ndarray, least: Any, hit: np.ndarray, found: np.ndarray) -> np.int64:
    """Write which columns reach `least`, ascending; how many. Only groups whose maximum does are looked through."""
    fold(upper, groups)
    n_groups, n_hit, n = groups.shape[0], np.int64(0), np.int64(0)
    for g in range(n_groups):
        # Written in any case and kept if the place moves on: at random a branch would be mispredicted often.
        hit[n_hit] = g
        n_hit += np.int64(groups[g] >= least)
    for begin in range(0, upper.shape[0], n_groups):
        for h in range(n_hit):
            j = begin + hit[h]
            found[n] = j
            n += np.int64(upper[j] >= least)
    return n


@compiled
def products(own: np.ndarray, rows: np.ndarray, b_enc: np.ndarray, found: np.ndarray, n: Any, z: np.ndarray) -> None:
    """Write the pre-activations of the first n found, and up to three more numbers.

    Always four at a time, so that each is summed in the same order whatever is beside it.
    """
    for q in range(n, n + 3):
        found[q] = found[n - 1]
    for q in range(0, n, 4):
        a, b, c, d = rows[found[q]], rows[found[q + 1]], rows[found[q + 2]], rows[found[q + 3]]
        s0 = s1 = s2 = s3 = np.float32(0)
        for j in range(own.shape[0]):
            s0 += own[j] * a[j]
            s1 += own[j] * b[j]
            s2 += own[j] * c[j]
            s3 += own[j] * d[j]
        z[q], z[q + 1], z[q + 2], z[q + 3] = s0, s1, s2, s3
    for q in range(n):
        z[q] += b_enc[found[q]]


@compiled
def decide(
    found: np.ndarray, z: np.ndarray, n: Any, k: int, threshold: np.ndarray, feature: np.ndarray, value: np.ndarray
) -> np.int64:
    """Write those above their thresholds, or the k largest of these (0: all), the first of equals first; how many."""
    m = np.int64(0)
    for q in range(n):
        feature[m], value[m] = found[q], z[q]
        m += np.int64(z[q] > threshold[found[q]])
    if k == 0 or m <= k:
        return m
    least, ties, kept = reached_by(value, m, k), np.int64(k), np.int64(0)
    for q in range(m):
        ties -= np.int64(value[q] > least)
    for q in range(m):
        own = value[q]
        is_tie = own == least and ties > 0
        ties -= np.int64(is_tie)
        feature[kept], value[kept] = feature[q], own
        kept += np.int64(own > least or is_tie)
    return kept


@compiled
def search(
    z: np.ndarray,
    k_and_n_groups: tuple[int, int],
    start: int,
    stop: int,
    centred: np.ndarray,
    reach: np.ndarray,
    rows: np.ndarray,
    biases: np.ndarray,
    counts: np.ndarray,
    feature: np.ndarray,
    value: np.ndarray,
) -> None:
    """Write the active features of rows, each at the start of its own."""
    k, n_groups = k_and_n_groups
    d = z.shape[1]
    # Columns after the last are NaN, which is never found.
    bits, lower = np.empty(-(-d // n_groups) * n_groups, np.int32), np.full(d if k > 0 else 0, np.nan, np.float32)
    upper = bits.view(np.float32)
    upper[d:] = np.nan
    groups, few = np.empty(n_groups, np.float32), np.empty(min(16, n_groups), np.float32)
    hit, found = np.empty(n_groups + 1, np.int32), np.empty(upper.shape[0] + 4, np.int32)
    exact, own, which = np.empty(d + 4, np.float32), np.empty(d + 1, np.float32), np.empty(d + 1, np.int32)
    for r in range(start, stop):
        bounds(z[r], biases, reach[r], bits, upper, lower)
        least = reached(lower, groups, few, k) if k > 0 else np.float32(SMALLEST)
        n = reaching(upper, groups, least, hit, found)
        if n > 0:
            products(centred[r], rows, biases[3], found, n, exact)
        counts[r] = decide(found, exact, n, k, biases[4], which, own)
        for q in range(counts[r]):
            feature[r, q], value[r, q] = which[q], own[q]


@compiled
def pack(
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
