"""The studentised range against SciPy, and what it is for two means."""

import pytest
from scipy import stats

from stages.lib.stats.studentized_range import survival


@pytest.mark.parametrize("k", [2, 3, 6, 20])
@pytest.mark.parametrize("df", [1.0, 1.7, 4.0, 30.0, 3000.0])
def test_it_is_that_of_scipy(k: int, df: float) -> None:
    for q in (0.0, 0.5, 2.0, 5.0, 40.0):
        assert survival(q, k, df) == pytest.approx(float(stats.studentized_range.sf(q, k, df)), abs=2e-11)


@pytest.mark.parametrize("df", [1.0, 2.5, 12.0])
def test_of_two_means_it_is_the_t_test(df: float) -> None:
    assert survival(3.0, 2, df) == pytest.approx(2 * stats.t.sf(3 / 2**0.5, df), rel=1e-10)


def test_the_table_of_critical_values() -> None:
    # Three means, ten degrees of freedom, 5 %: 3.877 (Harter 1960).
    assert survival(3.877, 3, 10.0) == pytest.approx(0.05, abs=1e-4)
