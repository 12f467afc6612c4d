"""Ranks, correlations and their resamples against SciPy, scikit-learn and values worked out by hand."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from scipy.stats import rankdata
from sklearn import metrics

from stages.lib.stats.correlation import (
    auroc,
    mean_ranks,
    pearson,
    resampled_pearson,
    resampled_sign_agreement,
    resampled_slope,
    resampled_spearman,
    sign_agreement,
    slope,
    spearman,
    top_recall,
)
from stages.lib.stats.intervals import resample_counts

GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("resampled", "statistic"),
    [(resampled_pearson, pearson), (resampled_slope, slope), (resampled_sign_agreement, sign_agreement)],
)
def test_a_resample_is_its_rows(resampled: Callable, statistic: Callable) -> None:
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 6)).round(1)
    a[:3], b[4] = 0.3, 0
    counts = np.concatenate([resample_counts(6, 50, generator), [[2, 3, 1, 0, 0, 0], [0, 0, 0, 0, 6, 0]]])
    each = [statistic(np.repeat(a, drawn), np.repeat(b, drawn)) for drawn in counts]
    expected = [value for value in each if value is not None]
    assert len(expected) < len(counts)
    np.testing.assert_allclose(resampled(a, b, counts), expected, rtol=1e-9)


@pytest.mark.parametrize("shape", [(0,), (1,), (50,), (3, 40), (2, 3, 7)])
@pytest.mark.parametrize("n_different", [1, 4, 10**6])
def test_ranks_are_scipys(shape: tuple[int, ...], n_different: int) -> None:
    values = np.random.default_rng(0).integers(0, n_different, shape).astype(float)
    assert np.array_equal(mean_ranks(values), rankdata(values, axis=-1))


def test_spearman_agrees_with_scipy_with_ties() -> None:
    x, y = GENERATOR.integers(0, 6, (2, 30)).astype(float)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_no_rank_correlation_of_fewer_than_three(n: int) -> None:
    assert spearman(np.arange(n, dtype=float), np.arange(n, dtype=float)) is None


def test_resampled_spearman_is_that_of_the_drawn_features() -> None:
    x, y = GENERATOR.integers(0, 8, (2, 25)).astype(float)
    counts = resample_counts(25, 20, GENERATOR)
    expected = [stats.spearmanr(np.repeat(x, drawn), np.repeat(y, drawn)).statistic for drawn in counts]
    assert resampled_spearman(x, y, counts) == pytest.approx(expected)


def test_resamples_without_spread_have_no_correlation() -> None:
    x = np.array([1.0, 2.0, 3.0])
    assert len(resampled_spearman(x, x, np.array([[3, 0, 0], [1, 1, 1]]))) == 1


def test_correlations_equal_scipy() -> None:
    generator = np.random.default_rng(2)
    a = generator.integers(0, 8, size=60).astype(np.float64)
    b = a + generator.normal(size=60).round()
    assert mean_ranks(a).tolist() == stats.rankdata(a).tolist()
    assert pearson(a, b) == pytest.approx(stats.pearsonr(a, b).statistic)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert slope(a, b) == pytest.approx(stats.linregress(a, b).slope)


def test_sign_agreement_and_recall_by_hand() -> None:
    a, b = np.array([1.0, -1.0, 2.0, 0.0]), np.array([3.0, 1.0, 1.0, 5.0])
    assert sign_agreement(a, b) == pytest.approx(2 / 3)
    score, truth = np.array([4.0, 3.0, 2.0, 1.0]), np.array([9.0, 0.0, 8.0, 1.0])
    assert top_recall(score, truth, 2) == 0.5
    assert top_recall(score, truth, 3) is None


def test_numbers_that_are_not_defined_are_absent() -> None:
    constant, other = np.ones(3), np.arange(3.0)
    assert pearson(constant, other) is None
    assert spearman(other, constant) is None
    assert slope(constant, other) is None
    assert sign_agreement(np.zeros(3), other) is None


def test_auroc_agrees_with_scikit_learn_with_ties() -> None:
    scores = GENERATOR.integers(0, 5, (3, 40)).astype(float)
    positive = GENERATOR.random((3, 40)) < 0.4
    expected = [metrics.roc_auc_score(p, s) for p, s in zip(positive, scores, strict=True)]
    assert auroc(scores, positive) == pytest.approx(expected)


def test_auroc_by_hand() -> None:
    # Of the four pairs two are right, one is a tie.
    assert auroc(np.array([1.0, 2.0, 2.0, 3.0]), np.array([True, False, True, False])) == pytest.approx(0.5 / 4)
