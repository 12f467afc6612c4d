"""The compiled loops behind `stages.lib.sae.pairs`: sums over (token, feature) pairs, rows or features at a time.

Each takes the range of rows or features that it is to work on, so that threads share them. Sums run in one order, so
equal inputs give equal bits.
"""

import numpy as np

from stages.lib.run.parallel import compiled


@compiled
def add_rows(out: np.ndarray, rows: np.ndarray, chosen: np.ndarray, weights: np.ndarray, n: np.int64) -> None:
    """Add sum_p weights_p rows[chosen_p] to `out`; four rows at a time keep the memory busy."""
    p = 0
    # Each number of `out` is read and written once per four rows instead of once per row.
    while p + 4 <= n:
        f0, f1, f2, f3 = weights[p], weights[p + 1], weights[p + 2], weights[p + 3]
        a, b, c, d = rows[chosen[p]], rows[chosen[p + 1]], rows[chosen[p + 2]], rows[chosen[p + 3]]
        for j in range(out.shape[0]):
            out[j] += f0 * a[j] + f1 * b[j] + f2 * c[j] + f3 * d[j]
        p += 4
    while p < n:
        f0, a = weights[p], rows[chosen[p]]
        for j in range(out.shape[0]):
            out[j] += f0 * a[j]
        p += 1


@compiled
def products(own: np.ndarray, rows: np.ndarray, chosen: np.ndarray, out: np.ndarray) -> None:
    """Write out_p = own . rows[chosen_p], four rows at a time."""
    p, n = 0, chosen.shape[0]
    # Each number of `own` is read once per four rows, and four sums do not wait for one another.
    while p + 4 <= n:
        a, b, c, d = rows[chosen[p]], rows[chosen[p + 1]], rows[chosen[p + 2]], rows[chosen[p + 3]]
        t0 = t1 = t2 = t3 = own.dtype.type(0)
        for j in range(own.shape[0]):
            t0 += own[j] * a[j]
            t1 += own[j] * b[j]
            t2 += own[j] * c[j]
            t3 += own[j] * d[j]
        out[p], out[p + 1], out[p + 2], out[p + 3] = t0, t1, t2, t3
        p += 4
    while p < n:
        a, t0 = rows[chosen[p]], own.dtype.type(0)
        for j in range(own.shape[0]):
            t0 += own[j] * a[j]
        out[p] = t0
        p += 1


@compiled
def active(
    feature: np.ndarray, code: np.ndarray, start: int, stop: int, chosen: np.ndarray, weights: np.ndarray
) -> np.int64:
    """Copy the pairs from `start` to `stop` whose code is not 0; how many there are."""
    n = np.int64(0)
    for p in range(start, stop):
        # Written in any case and kept if the place moves on: at random a branch would be mispredicted often.
        chosen[n], weights[n] = feature[p], code[p]
        n += np.int64(code[p] != 0)
    return n


@compiled
def dots(
    x: np.ndarray,
    rows: np.ndarray,
    start: int,
    stop: int,
    bias: np.ndarray,
    first: np.ndarray,
    feature: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write out_p = x_n . rows[i] + bias_i."""
    for n in range(start, stop):
        begin, end = first[n], first[n + 1]
        products(x[n], rows, feature[begin:end], out[begin:end])
        for p in range(begin, end):
            out[p] += bias[feature[p]]


@compiled
def keep_largest(values: np.ndarray, k: int, start: int, stop: int, feature: np.ndarray, kept: np.ndarray) -> None:
    """Drop the smallest of each row until k are left, the last of equals first; the order stays."""
    for n in range(start, stop):
        row, columns = values[n], feature[n]
        m = row.shape[0]
        # Only few have to go, so looking for the smallest again each time takes less than sorting the row.
        while m > k:
            least = 0
            for q in range(m):
                if row[q] <= row[least]:
                    least = q
            m -= 1
            for q in range(least, m):
                row[q], columns[q] = row[q + 1], columns[q + 1]
        for q in range(k):
            kept[n, q] = row[q]


@compiled
def decode(
    x: np.ndarray,
    W_dec: np.ndarray,
    start: int,
    stop: int,
    b_dec: np.ndarray,
    first: np.ndarray,
    feature: np.ndarray,
    code: np.ndarray,
    ends: np.ndarray,
    errors: np.ndarray,
    squares: np.ndarray,
    slope: np.ndarray,
) -> None:
    """For each token the errors of its reconstructions by the features before each end, and the squares of these.

    Then the errors are summed from each end to the last, and a pair's slope is the product of its direction with the
    sum of its group: while the directions are in the cache. Slopes are left out where there is no memory for them.
    """
    n_ends, longest = ends.shape[0], 0
    for n in range(start, stop):
        longest = max(longest, first[n + 1] - first[n])
    chosen, weights = np.empty(longest + 1, np.int64), np.empty(longest + 1, code.dtype)
    begins = np.empty(n_ends + 1, np.int64)
    for n in range(start, stop):
        begins[0] = p = first[n]
        for g in range(n_ends):
            own, total = errors[g, n], code.dtype.type(0)
            # A dictionary reconstructs what the one before it does, and more: its error goes on from there.
            for j in range(own.shape[0]):
                own[j] = errors[g - 1, n, j] if g > 0 else b_dec[j] - x[n, j]
            # A token's features ascend, so the pairs of a group follow one another.
            while p < first[n + 1] and feature[p] < ends[g]:
                p += 1
            begins[g + 1] = p
            add_rows(own, W_dec, chosen, weights, active(feature, code, begins[g], p, chosen, weights))
            for j in range(own.shape[0]):
                total += own[j] * own[j]
            squares[n, g] = total
        # From the last end down, since a feature sees the errors of its own dictionary and of all larger ones.
        for g in range(n_ends - 1, -1, -1):
            own = errors[g, n]
            if g < n_ends - 1:
                for j in range(own.shape[0]):
                    own[j] += errors[g + 1, n, j]
            if slope.shape[0] > 0:
                part = slice(begins[g], begins[g + 1])
                products(own, W_dec, feature[part], slope[part])


@compiled
def by_feature(
    first: np.ndarray,
    feature: np.ndarray,
    weights: np.ndarray,
    hidden: np.ndarray,
    ends: np.ndarray,
    token: np.ndarray,
    sorted_weights: np.ndarray,
    sorted_hidden: np.ndarray,
) -> None:
    """Counting sort by feature of the pairs with a number that is not 0; a feature's tokens stay in order."""
    # A feature's number of pairs goes one place further on, so that the sums are where the features begin.
    for p in range(feature.shape[0]):
        ends[feature[p] + 1] += np.int64(weights[p] != 0 or hidden[p] != 0)
    for i in range(ends.shape[0] - 1):
        ends[i + 1] += ends[i]
    place = ends[:-1].copy()
    # Token by token, so that a feature's pairs are always added up in the same order.
    for n in range(first.shape[0] - 1):
        for p in range(first[n], first[n + 1]):
            if weights[p] != 0 or hidden[p] != 0:
                q = place[feature[p]]
                place[feature[p]] = q + 1
                token[q], sorted_weights[q], sorted_hidden[q] = n, weights[p], hidden[p]


@compiled
def feature_sums(
    errors: np.ndarray,
    x: np.ndarray,
    start: int,
    stop: int,
    group: np.ndarray,
    b_dec: np.ndarray,
    ends: np.ndarray,
    token: np.ndarray,
    weights: np.ndarray,
    hidden: np.ndarray,
    W_dec: np.ndarray,
    W_enc: np.ndarray,
    b_enc: np.ndarray,
) -> None:
    """Write for each feature the sums over its pairs: weights_p e_n of its group, hidden_p (x_n - b_dec), hidden_p."""
    for i in range(start, stop):
        part = slice(ends[i], ends[i + 1])
        own, up, total = token[part], W_enc[i], b_enc.dtype.type(0)
        if W_dec.shape[0] > 0:
            W_dec[i] = 0
            add_rows(W_dec[i], errors[group[i]], own, weights[part], own.shape[0])
        for q in range(ends[i], ends[i + 1]):
            total += hidden[q]
        # sum_p h_p (x_n - b_dec) = sum_p h_p x_n - (sum_p h_p) b_dec takes b_dec off once per feature, not per pair.
        for j in range(up.shape[0]):
            up[j] = -total * b_dec[j]
        add_rows(up, x, own, hidden[part], own.shape[0])
        b_enc[i] = total


@compiled
def keep(
    first: np.ndarray,
    feature: np.ndarray,
    z: np.ndarray,
    least: float,
    n_ties: int,
    own_first: np.ndarray,
    own_feature: np.ndarray,
    own_z: np.ndarray,
) -> None:
    """Copy the pairs with z > least, and the first so many with z = least."""
    # The last place is a spare one, which takes what is written and not kept once all others are taken.
    m, ties, size = np.int64(0), np.int64(n_ties), own_feature.shape[0] - 1
    for n in range(first.shape[0] - 1):
        for p in range(first[n], first[n + 1]):
            # Written in any case and kept if the place moves on: at random a branch would be mispredicted often.
            own_feature[min(m, size)], own_z[min(m, size)] = feature[p], z[p]
            is_tie = z[p] == least and ties > 0
            ties -= np.int64(is_tie)
            m += np.int64(z[p] > least or is_tie)
        own_first[n + 1] = m


@compiled
def scatter(
    dense: np.ndarray, begin: int, start: int, stop: int, first: np.ndarray, feature: np.ndarray, value: np.ndarray
) -> None:
    """Write pairs of the tokens from `begin` on into rows of zeros."""
    for r in range(start, stop):
        # Zeros row by row, so that the row is in the cache when its pairs are written.
        dense[r] = 0
        for p in range(first[begin + r], first[begin + r + 1]):
            dense[r, feature[p]] = value[p]


@compiled
def gather(
    dense: np.ndarray, begin: int, start: int, stop: int, first: np.ndarray, feature: np.ndarray, value: np.ndarray
) -> None:
    """Read pairs of the tokens from `begin` on."""
    for r in range(start, stop):
        for p in range(first[begin + r], first[begin + r + 1]):
            value[p] = dense[r, feature[p]]
