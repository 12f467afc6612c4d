"""Counting bits by columns: sums of rows of labels, of which 64 are in a word.

A count has a row of words for each binary digit: bit c of the row of digit d says whether 2^d is in the count of
column c. Rows are added by full adders, which for 64 columns at once are

    sum = x ^ y ^ z        carry = (x & y) | ((x ^ y) & z)

Eight rows go through seven of them, which leaves a row that counts by eights; eight of those go through the next seven
(Harley and Seal's method: Mula, Kurz and Lemire 2018, arXiv 1611.07612, section 3, where it counts all the bits of an
array). 212 labels are 32 bytes in this way and 212 where a byte is 0 or 1, so that the labels of 30,000 tokens stay in
the processor's cache.

All rows are in one array, at distances that are known when the loops are compiled: otherwise each loop, of a few words,
would first ask whether any two of its rows overlap.
"""

import numpy as np

from stages.lib.run.parallel import compiled

MOST_WORDS = 32
"""Of a row; more are not needed for 2,048 labels."""
_ROW = MOST_WORDS
_UPPER, _DIGITS = 9 * _ROW, 18 * _ROW
"""Where the rows that count by eights wait, and where the digits begin. First of all come the rows themselves."""
SIZE = _DIGITS + 33 * _ROW
"""Words of an abacus with 33 digits."""


@compiled
def digits(n_rows: int) -> int:
    """How many digits a count of so many rows needs, in threes, at least six."""
    n = 6
    while n_rows >> n:
        n += 3
    return n


@compiled
def clear(abacus: np.ndarray, n_digits: int) -> None:
    """Begin to count, with so many digits."""
    for j in range(_DIGITS, _DIGITS + n_digits * _ROW):
        abacus[j] = 0


@compiled
def _add_eight(abacus: np.ndarray, at: int, digit: int, n_words: int) -> None:
    """Add the eight rows from `at` on to three digits, and leave behind them the row that is carried."""
    for j in range(n_words):
        one, two, four = abacus[digit + j], abacus[digit + _ROW + j], abacus[digit + 2 * _ROW + j]
        x, y = abacus[at + j], abacus[at + _ROW + j]
        either = one ^ x
        two_a, one = (one & x) | (either & y), either ^ y
        x, y = abacus[at + 2 * _ROW + j], abacus[at + 3 * _ROW + j]
        either = one ^ x
        two_b, one = (one & x) | (either & y), either ^ y
        either = two ^ two_a
        four_a, two = (two & two_a) | (either & two_b), either ^ two_b
        x, y = abacus[at + 4 * _ROW + j], abacus[at + 5 * _ROW + j]
        either = one ^ x
        two_a, one = (one & x) | (either & y), either ^ y
        x, y = abacus[at + 6 * _ROW + j], abacus[at + 7 * _ROW + j]
        either = one ^ x
        two_b, one = (one & x) | (either & y), either ^ y
        either = two ^ two_a
        four_b, two = (two & two_a) | (either & two_b), either ^ two_b
        either = four ^ four_a
        abacus[at + 8 * _ROW + j] = (four & four_a) | (either & four_b)
        abacus[digit + j], abacus[digit + _ROW + j], abacus[digit + 2 * _ROW + j] = one, two, either ^ four_b


@compiled
def _carry(abacus: np.ndarray, n_digits: int, n_words: int) -> None:
    """Add the row that counts by 64 to the digits from the seventh on."""
    for digit in range(_DIGITS + 6 * _ROW, _DIGITS + n_digits * _ROW, _ROW):
        for j in range(n_words):
            old, more = abacus[digit + j], abacus[_UPPER + 8 * _ROW + j]
            abacus[digit + j] = old ^ more
            abacus[_UPPER + 8 * _ROW + j] = old & more


@compiled
def count_rows(
    abacus: np.ndarray, n_digits: int, words: np.ndarray, base: int, row: np.ndarray, start: int, stop: int
) -> None:
    """Add the words' rows `base + row[p]`, for p from `start` to `stop`."""
    n_words, waiting = words.shape[1], 0
    for p in range(start, stop, 8):
        n = min(8, stop - p)
        for i in range(n):
            r = np.uint64(base + row[p + i])  # unsigned, or each access would ask whether it counts from the end
            for j in range(n_words):
                abacus[i * _ROW + j] = words[r, j]
        for i in range(n, 8):
            for j in range(n_words):
                abacus[i * _ROW + j] = 0
        _add_eight(abacus, 0, _DIGITS, n_words)
        for j in range(n_words):
            abacus[_UPPER + waiting * _ROW + j] = abacus[8 * _ROW + j]
        waiting += 1
        if waiting == 8 or p + 8 >= stop:
            for i in range(waiting, 8):
                for j in range(n_words):
                    abacus[_UPPER + i * _ROW + j] = 0
            _add_eight(abacus, _UPPER, _DIGITS + 3 * _ROW, n_words)
            _carry(abacus, n_digits, n_words)
            waiting = 0


@compiled
def read(abacus: np.ndarray, n_digits: int, total: np.ndarray) -> None:
    """Write the count of each column, int32."""
    n, halves, one = total.shape[0], abacus.view(np.uint32), np.uint32(1)
    for c in range(n):
        total[c] = 0
    for digit in range(0, n_digits, 3):
        at = 2 * (_DIGITS + digit * _ROW)
        for j in range((n + 31) // 32):
            a, b, c = halves[at + j], halves[at + 2 * _ROW + j], halves[at + 4 * _ROW + j]
            for i in range(min(32, n - 32 * j)):
                bit = np.uint32(i)
                own = ((a >> bit) & one) | (((b >> bit) & one) << one) | (((c >> bit) & one) << np.uint32(2))
                total[32 * j + i] += np.int32(own) << np.int32(digit)
