"""Bits counted by columns against NumPy's sums."""

import numpy as np
import pytest

from stages.lib.detectors.abacus import MOST_WORDS, SIZE, clear, count_rows, digits, read
from stages.lib.detectors.label_sums import bits


@pytest.mark.parametrize(("n_rows", "expected"), [(1, 6), (63, 6), (64, 9), (511, 9), (512, 12)])
def test_there_are_digits_enough(n_rows: int, expected: int) -> None:
    assert digits(n_rows) == expected and n_rows < 2**expected


@pytest.mark.parametrize("n_columns", [1, 64, 212, 64 * MOST_WORDS])
@pytest.mark.parametrize("n_rows", [0, 1, 7, 8, 9, 63, 64, 65, 600])
def test_counts_of_bits(n_rows: int, n_columns: int) -> None:
    generator = np.random.default_rng(n_rows)
    labels = generator.random((700, n_columns)) < [0.9] * n_columns
    row = generator.integers(0, 600, n_rows).astype(np.int32)
    abacus, total = np.full(SIZE, 2**63, np.uint64), np.full(n_columns, 5, np.int32)
    clear(abacus, digits(n_rows))
    half = n_rows // 3
    for start, stop in ((0, half), (half, n_rows)):  # in two goes, the second on top of the first
        count_rows(abacus, digits(n_rows), bits(labels), 100, row, start, stop)
        read(abacus, digits(n_rows), total)
        assert np.array_equal(total, labels[100 + row[:stop]].sum(0))
