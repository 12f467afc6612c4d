"""Interpolation at equal L0: exact on points and on straight lines, monotone, and never beyond the data."""

import math
from itertools import pairwise

import numpy as np
import pytest

from stages.lib.stats.equal_l0 import at_l0


def test_a_measured_point_keeps_its_value() -> None:
    assert at_l0([8.0, 16.0, 32.0], [0.5, 0.3, 0.2], 16.0, 0.0, log=True) == pytest.approx(0.3)


def test_two_points_give_a_straight_line_in_logarithms() -> None:
    # Half way between 8 and 32 on a log scale is 16; half way between .4 and .1 is sqrt(.04) = .2, and .25 without log.
    assert at_l0([8.0, 32.0], [0.4, 0.1], 16.0, 0.0, log=True) == pytest.approx(0.2)
    assert at_l0([8.0, 32.0], [0.4, 0.1], 16.0, 0.0, log=False) == pytest.approx(0.25)


def test_power_law_is_exact() -> None:
    l0 = [4.0, 9.0, 20.0, 70.0]
    assert at_l0(l0, [x**-0.7 for x in l0], 31.0, 0.0, log=True) == pytest.approx(31**-0.7)


def test_never_extrapolates() -> None:
    for target in (7.9, 32.1):
        assert at_l0([8.0, 32.0], [0.4, 0.1], target, 0.0, log=True) is None


def test_tolerance_takes_the_end_value_and_no_more() -> None:
    assert at_l0([8.0, 31.8], [0.4, 0.1], 32.0, 0.02, log=True) == pytest.approx(0.1)
    assert at_l0([8.0, 31.0], [0.4, 0.1], 32.0, 0.02, log=True) is None


def test_order_duplicates_and_unusable_points() -> None:
    assert at_l0([32.0, 8.0], [0.1, 0.4], 16.0, 0.0, log=True) == pytest.approx(0.2)
    assert at_l0([8.0, 8.0, 32.0], [0.3, 0.5, 0.2], 8.0, 0.0, log=False) == pytest.approx(0.4)
    assert at_l0([0.0, 8.0, 32.0], [1.0, 0.4, 0.1], 16.0, 0.0, log=True) == pytest.approx(0.2)
    assert at_l0([8.0, 16.0, 32.0], [0.4, math.nan, 0.1], 16.0, 0.0, log=True) == pytest.approx(0.2)
    assert at_l0([], [], 16.0, 0.0, log=False) is None


def test_one_point_counts_only_near_it() -> None:
    assert at_l0([16.1], [0.3], 16.0, 0.02, log=True) == 0.3
    assert at_l0([18.0], [0.3], 16.0, 0.02, log=True) is None


def test_monotone_data_stays_monotone() -> None:
    # A cubic spline would overshoot here.
    l0, values = [4.0, 8.0, 9.0, 64.0], [0.9, 0.85, 0.2, 0.19]
    read = [at_l0(l0, values, x, 0.0, log=False) for x in np.geomspace(4.0, 64.0, 40).tolist()]
    assert all(a is not None and b is not None and a >= b - 1e-12 for a, b in pairwise(read))
