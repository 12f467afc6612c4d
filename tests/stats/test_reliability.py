"""Agreement of measurements against published and hand-worked values and scipy."""

import numpy as np
import pytest

from stages.lib.stats.correlation import pearson
from stages.lib.stats.intervals import resample_counts
from stages.lib.stats.reliability import agreement, ccc, icc, rate_agreement, rates

GENERATOR = np.random.default_rng(0)


def test_icc_of_the_example_of_shrout_and_fleiss() -> None:
    ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    assert icc(np.array(ratings, float)) == pytest.approx(0.29, abs=0.005)


def test_icc_by_hand() -> None:
    # Rows 1, 2, 3 and the same plus 1: mean squares 2 (rows), 1.5 (columns), 0 (residual): 2 / (2 + 2 * 1.5 / 3)
    assert icc(np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]])) == pytest.approx(2 / 3)


def test_ccc_by_hand() -> None:
    # Variances and covariance 2/3, means 1 apart: (4/3) / (4/3 + 1)
    assert ccc(np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0])) == pytest.approx(4 / 7)


def test_a_measurement_agrees_with_itself() -> None:
    x = GENERATOR.standard_normal(20)
    assert agreement(x, x) == pytest.approx((1, 1, 1, 0, 20))


def test_a_constant_factor_is_seen_by_all_but_the_ranks() -> None:
    x = GENERATOR.standard_normal(50)
    found = agreement(x, x + 0.5)
    assert found is not None
    assert found.spearman == pytest.approx(1) and found.dex == pytest.approx(0.5)
    assert found.icc < 0.95 and found.ccc < 0.95


def test_no_correlation_without_spread() -> None:
    assert pearson(np.full(5, 0.1), np.arange(5.0)) is None
    assert agreement(np.full(5, 0.1), np.arange(5.0)) is None


def test_unresolved_features_do_not_count() -> None:
    left, right = np.array([10, 100, 1000, 400, 5]), np.array([90, 200, 2000, 800, 5])
    found = rate_agreement(left, right, (1000, 2000), 30)
    assert found is not None
    assert found.n == 3 and found.dex == pytest.approx(0)


def test_too_few_resolved_features_have_no_agreement() -> None:
    assert rate_agreement(np.array([50, 1]), np.array([50, 50]), (100, 100), 30) is None


def test_rates_of_independent_tokens_have_a_design_effect_of_1() -> None:
    n_documents, size = 200, 50
    firings = GENERATOR.binomial(size, 0.1, (n_documents, 40))
    counts = resample_counts(n_documents, 300, GENERATOR)
    found = rates(firings, np.full(n_documents, size), counts)
    assert found.rate == pytest.approx(firings.sum(0) / 10_000)
    assert np.median(found.design_effect) == pytest.approx(1, abs=0.1)
    assert np.median(found.standard_error) == pytest.approx((0.09 / 10_000) ** 0.5, rel=0.1)


def test_firing_in_whole_documents_multiplies_the_variance_by_their_size() -> None:
    firings = 50 * GENERATOR.binomial(1, 0.2, (300, 20))
    found = rates(firings, np.full(300, 50), resample_counts(300, 300, GENERATOR))
    assert np.median(found.design_effect) == pytest.approx(50, rel=0.1)


def test_a_dead_feature_has_a_rate_but_no_design_effect() -> None:
    found = rates(np.zeros((4, 1), int), np.full(4, 10), resample_counts(4, 10, GENERATOR))
    assert found.rate[0] == 0 and found.standard_error[0] == 0 and np.isnan(found.design_effect[0])
