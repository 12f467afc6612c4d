"""The largest of correlated t statistics: published tables, scipy's integral, and the noncentral t."""

import numpy as np
import pytest
from scipy.stats import multivariate_t, nct, t

from stages.lib.stats.multivariate_t import critical, loadings, power, within


@pytest.mark.parametrize(
    ("n", "df", "published"), [(1, 10.0, 2.228), (2, 10.0, 2.57), (5, 10.0, 2.99), (5, 20.0, 2.73), (3, 6.0, 3.10)]
)
def test_critical_values_are_those_of_dunnetts_table(n: int, df: float, published: float) -> None:
    # Dunnett (1964), table II: two-sided, 95 %, equal groups, so that all correlations are 1/2.
    assert critical(np.full(n, 0.5**0.5) if n > 1 else np.zeros(1), df, 0.95) == pytest.approx(published, abs=0.006)


@pytest.mark.parametrize(("c", "df"), [(2.5, 10.0), (3.0, 4.0), (6.0, 3.0), (1.0, 30.0)])
def test_probability_agrees_with_scipy_for_unequal_correlations(c: float, df: float) -> None:
    loading = np.array([0.2, 0.7, 0.95, 0.6])
    correlation = np.outer(loading, loading)
    np.fill_diagonal(correlation, 1.0)
    expected = multivariate_t(shape=correlation, df=df, seed=0).cdf(np.full(4, c), lower_limit=np.full(4, -c))
    assert within(c, loading, df) == pytest.approx(expected, abs=5e-4)


def test_one_statistic_is_students_t() -> None:
    assert within(2.1, np.zeros(1), 3.85) == pytest.approx(1 - 2 * t.sf(2.1, 3.85), abs=1e-4)


def test_loadings_are_found_and_approximate_what_has_none() -> None:
    wanted = np.array([0.3, 0.5, 0.8, 0.6])
    correlation = np.outer(wanted, wanted)
    np.fill_diagonal(correlation, 1.0)
    assert loadings(correlation) == pytest.approx(wanted, abs=1e-3)
    assert np.prod(loadings(np.array([[1.0, -0.4], [-0.4, 1.0]]))) == pytest.approx(-0.4)
    assert loadings(np.eye(1)).tolist() == [0.0]
    assert np.abs(loadings(np.eye(4))).max() < 0.1


@pytest.mark.parametrize(("effect", "df"), [(4.0, 9.6), (2.0, 3.8), (5.0, 2.0)])
def test_power_is_that_of_the_noncentral_t(effect: float, df: float) -> None:
    assert power(effect, 3.0, df) == pytest.approx(nct.sf(3.0, df, effect) + nct.cdf(-3.0, df, effect), abs=1e-3)
