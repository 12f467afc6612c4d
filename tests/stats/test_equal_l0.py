"""Interpolation at equal L0: exact on points and on straight lines, monotone, and never beyond the data."""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from stages.lib.stats import equal_l0
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


def rows(records: list[tuple[str, int, int, str, float]]) -> pd.DataFrame:
    return pd.DataFrame(records, columns=["arm", "level", "seed", "metric", "value"])


def two_arms() -> pd.DataFrame:
    records = []
    for arm, offset, l0s in (("a", 0.0, (8.0, 32.0)), ("b", 0.1, (8.0, 20.0))):
        for seed in (0, 1):
            for level, l0 in enumerate(l0s):
                records += [(arm, level, seed, "l0", l0), (arm, level, seed, "cc", level + offset + seed)]
    return rows(records)


def test_matched_table_by_hand() -> None:
    table = two_arms()
    values = equal_l0.matched_values(table, [16.0, 32.0], 0.0)
    means = equal_l0.means(values, ["cc"], [16.0, 32.0])
    # In arm a 16 is half way from 8 to 32: 0.5 with seed 0, 1.5 with seed 1.
    assert means["l0-16"]["cc"]["a"]["mean"] == pytest.approx(1.0)
    assert means["l0-16"]["cc"]["a"]["n"] == 2
    assert set(means["l0-32"]["cc"]) == {"a"}
    missing = equal_l0.missing(table, values, ["cc", "typo"], [16.0, 32.0])
    assert missing["l0-32"]["cc"] == {"b": "seeds 0, 1 do not reach it: L0 8.0 to 20.0"}
    assert missing["l0-16"]["typo"] == {"a": "not measured", "b": "not measured"}


def test_differences_are_paired() -> None:
    values = equal_l0.matched_values(two_arms(), [8.0], 0.0)
    found = equal_l0.differences(values, ["cc"], [8.0], "a", [])
    # Seeds differ by 1, the pairs by 0.1 each: no spread, so no p.
    cell = found["l0-8"]["cc"]["b"]
    assert cell["mean"] == pytest.approx(0.1)
    assert cell["high"] - cell["low"] == pytest.approx(0.0, abs=1e-9)


def test_differences_have_holm_p_for_arms_that_are_no_controls() -> None:
    records = [(arm, seed, "m", 8.0, base + 0.01 * seed * (i + 1)) for i, (arm, base) in
               enumerate((("a", 0.0), ("b", 0.5), ("c", 0.9))) for seed in range(3)]  # fmt: skip
    values = pd.DataFrame(records, columns=["arm", "seed", "metric", "l0", "value"])
    found = equal_l0.differences(values, ["m"], [8.0], "a", ["c"])["l0-8"]["m"]
    assert found["b"]["p_holm"] == found["b"]["p"] < 0.01
    assert "p" not in found["c"]


def test_nearest_level_is_nearest_on_a_log_scale() -> None:
    table = rows([("a", 0, 0, "l0", 8.0), ("a", 1, 0, "l0", 40.0)])
    assert equal_l0.nearest_levels(table, 18.0) == {("a", 0): 1}
    assert equal_l0.nearest_levels(table, 17.0) == {("a", 0): 0}


def test_variance_shares_tell_arm_from_l0() -> None:
    records = []
    for arm, offset in (("a", 0.0), ("b", 1.0)):
        for seed in (0, 1):
            for level in range(4):
                l0 = 4.0 * 2**level
                records += [
                    (arm, level, seed, "l0", l0),
                    (arm, level, seed, "m", offset),
                    (arm, level, seed, "k", np.log(l0)),
                ]
    table = rows(records)
    shares = equal_l0.variance_shares(table, "m", ["a", "b"])
    assert (shares["arm"]["mean"], shares["l0"]["mean"]) == pytest.approx((1.0, 0.0), abs=1e-9)
    shares = equal_l0.variance_shares(table, "k", ["a", "b"])
    assert (shares["arm"]["mean"], shares["l0"]["mean"]) == pytest.approx((0.0, 1.0), abs=1e-9)
    assert equal_l0.variance_shares(table[table["level"] < 1], "m", ["a", "b"]) == {}


def test_a_cell_as_text() -> None:
    assert equal_l0.as_text({"mean": 0.12345, "low": 0.1, "high": 0.2, "n": 3}) == "0.123 [0.100, 0.200]"
    assert equal_l0.as_text({"mean": 0.5, "n": 1}) == "0.500"
    assert equal_l0.as_text(None) == "–"
