"""What may drive the order of emergence, by hand and against SciPy."""

import numpy as np
import pytest
from scipy import stats

from stages.lib.emergence import drivers


def test_contrast_by_hand() -> None:
    x = np.array([[1.0, 0], [3, 0], [0, 1], [0, -1]])
    got = drivers.contrast(x, np.array([[True], [True], [False], [False]]))
    # delta = (2, 0); p (1 - p) 4 = 1; within variance along it: (1 + 1 + 0 + 0) / 4.
    assert got.variance_share == pytest.approx([1.0])
    assert got.separability == pytest.approx([4 / 0.5])


def test_redundancy_is_with_more_prevalent_concepts() -> None:
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0], [1, 1, 0]], bool)
    got = drivers.redundancy(labels)
    assert got[0] == 0
    assert got[1] == pytest.approx(stats.pearsonr(labels[:, 0], labels[:, 1]).statistic)


def test_lexicality_of_a_token_and_of_chance() -> None:
    tokens = np.array([3, 3, 4, 5] * 10)
    one = drivers.Ids(tokens, np.stack([tokens == 3, np.arange(40) % 8 < 4], axis=1))
    got = drivers.lexicality(one, one, one, 6)
    assert got[0] == 1
    assert got[1] == pytest.approx(2 / 3)  # all tokens, half of them positive


def test_correlation_agrees_with_scipy() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=30), generator.normal(size=30)
    got = drivers.correlation(a, a + b, 500, generator)
    assert got is not None and got.interval is not None
    assert got.value == pytest.approx(stats.spearmanr(a, a + b).statistic)
    assert got.interval.low < got.value < got.interval.high
    assert drivers.correlation(a[:3], b[:3], 10, generator) is None
    assert drivers.correlation(np.ones(9), b[:9], 10, generator) is None
