"""Interpolation at equal L0: exact on points and on straight lines, monotone, and never beyond the data."""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from stages.lib.stats import equal_l0
from stages.lib.stats.equal_l0 import at_l0, moved


def test_a_measured_point_keeps_its_value() -> None:
    assert at_l0([8.0, 16.0, 32.0], [0.5, 0.3, 0.2], 16.0, log=True) == pytest.approx(0.3)


def test_two_points_give_a_straight_line_in_logarithms() -> None:
    # Half way between 8 and 32 on a log scale is 16; half way between .4 and .1 is sqrt(.04) = .2, and .25 without log.
    assert at_l0([8.0, 32.0], [0.4, 0.1], 16.0, log=True) == pytest.approx(0.2)
    assert at_l0([8.0, 32.0], [0.4, 0.1], 16.0, log=False) == pytest.approx(0.25)


def test_power_law_is_exact() -> None:
    l0 = [4.0, 9.0, 20.0, 70.0]
    assert at_l0(l0, [x**-0.7 for x in l0], 31.0, log=True) == pytest.approx(31**-0.7)


def test_never_extrapolates() -> None:
    for target in (7.9, 32.1):
        assert at_l0([8.0, 32.0], [0.4, 0.1], target, log=True) is None


def test_order_duplicates_and_unusable_points() -> None:
    assert at_l0([32.0, 8.0], [0.1, 0.4], 16.0, log=True) == pytest.approx(0.2)
    assert at_l0([8.0, 8.0, 32.0], [0.3, 0.5, 0.2], 8.0, log=False) == pytest.approx(0.4)
    assert at_l0([0.0, 8.0, 32.0], [1.0, 0.4, 0.1], 16.0, log=True) == pytest.approx(0.2)
    assert at_l0([8.0, 16.0, 32.0], [0.4, math.nan, 0.1], 16.0, log=True) == pytest.approx(0.2)
    assert at_l0([], [], 16.0, log=False) is None


def test_one_point_counts_only_where_it_is() -> None:
    assert at_l0([16.0], [0.3], 16.0, log=True) == pytest.approx(0.3)
    assert at_l0([16.1], [0.3], 16.0, log=True) is None


def frontier(l0: float, seed: float = 0.0) -> float:
    """A made-up frontier, nearly straight in logarithms."""
    return math.exp(seed) * 1.2 * l0**-0.55 * (1 + 0.02 * math.log(l0) ** 2)


def test_a_seed_with_one_level_is_moved_along_the_others() -> None:
    others = [[(l0, frontier(l0, seed)) for l0 in (7.2, 16.6, 36.3)] for seed in (0.01, -0.02)]
    found = moved((16.7, frontier(16.7, 0.03)), 16.0, others, log=True)
    assert found == pytest.approx(frontier(16.0, 0.03), rel=1e-3)
    assert abs(frontier(16.7, 0.03) / frontier(16.0, 0.03) - 1) > 0.01  # so that not moving it would be seen
    plain = [[(l0, -math.log(l0)) for l0 in (7.2, 16.6, 36.3)]]
    assert moved((16.7, 1.0), 16.0, plain, log=False) == pytest.approx(1.0 + math.log(16.7 / 16.0))


def test_a_seed_with_one_level_is_not_moved_far_or_without_others() -> None:
    others = [[(l0, frontier(l0)) for l0 in (7.2, 16.6, 36.3)]]
    assert moved((17.7, 0.3), 16.0, others, log=True) is None
    assert moved((14.3, 0.3), 16.0, others, log=True) is None
    assert moved((16.7, 0.3), 16.0, [], log=True) is None
    assert moved((16.7, 0.3), 16.0, [[(17.0, 0.3), (36.0, 0.2)]], log=True) is None
    assert moved((16.7, math.nan), 16.0, others, log=True) is None


def test_monotone_data_stays_monotone() -> None:
    # A cubic spline would overshoot here.
    l0, values = [4.0, 8.0, 9.0, 64.0], [0.9, 0.85, 0.2, 0.19]
    read = [at_l0(l0, values, x, log=False) for x in np.geomspace(4.0, 64.0, 40).tolist()]
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
    values = equal_l0.matched_values(table, [16.0, 32.0])
    means = equal_l0.means(values, ["cc"], [16.0, 32.0])
    # In arm a 16 is half way from 8 to 32: 0.5 with seed 0, 1.5 with seed 1.
    assert means["l0-16"]["cc"]["a"]["mean"] == pytest.approx(1.0)
    assert means["l0-16"]["cc"]["a"]["n"] == 2
    assert set(means["l0-32"]["cc"]) == {"a"}
    missing = equal_l0.missing(table, values, ["cc", "typo"], [16.0, 32.0])
    assert missing["l0-32"]["cc"] == {"b": "seeds 0, 1 do not reach it: L0 8.0 to 20.0"}
    assert missing["l0-16"]["typo"] == {"a": "not measured", "b": "not measured"}


def test_more_seeds_count_at_the_headline_alone() -> None:
    table = pd.concat([two_arms(), rows([("a", 0, 5, "l0", 8.3), ("a", 0, 5, "cc", 7.0)])])
    values = equal_l0.matched_values(table, [8.0, 16.0])
    assert 8.0 in values[values["seed"] == 5]["l0"].tolist()  # both 8.3 and 8 lie on the others' curves
    values = equal_l0.matched_values(table, [8.5, 16.0])
    own = values[(values["seed"] == 5) & (values["metric"] == "cc")]
    # cc rises by 1 from L0 8 to 32 in both other seeds.
    assert own["l0"].tolist() == [8.5]
    assert own["value"].tolist() == pytest.approx([7.0 + math.log(8.5 / 8.3) / math.log(4)])
    missing = equal_l0.missing(table, values, ["cc"], [8.5, 16.0])
    assert missing == {}


def test_the_width_over_documents_is_that_of_the_nearest_level() -> None:
    table = two_arms().assign(low=math.nan, high=math.nan)
    cc = table["metric"] == "cc"
    table.loc[cc, "low"] = table["value"] - 0.1 * (1 + table["level"])
    table.loc[cc, "high"] = table["value"] + 0.1 * (1 + table["level"])
    means = equal_l0.means(equal_l0.matched_values(table, [9.0, 19.0]), ["cc"], [9.0, 19.0])
    equal_l0.add_document_widths(means, table, [9.0, 19.0])
    assert means["l0-9"]["cc"]["a"]["documents"] == pytest.approx(0.1)
    assert means["l0-19"]["cc"]["b"]["documents"] == pytest.approx(0.2)
    plain = equal_l0.means(equal_l0.matched_values(two_arms(), [9.0]), ["cc"], [9.0])
    equal_l0.add_document_widths(plain, two_arms().assign(low=math.nan, high=math.nan), [9.0])
    assert "documents" not in plain["l0-9"]["cc"]["a"]


def test_nearest_level_is_nearest_on_a_log_scale() -> None:
    table = rows([("a", 0, 0, "l0", 8.0), ("a", 1, 0, "l0", 40.0)])
    assert equal_l0.nearest_levels(table, 18.0) == {("a", 0): 1}
    assert equal_l0.nearest_levels(table, 17.0) == {("a", 0): 0}


def test_a_cell_as_text() -> None:
    assert equal_l0.as_text({"mean": 0.12345, "low": 0.1, "high": 0.2, "n": 3}) == "0.123 [0.100, 0.200]"
    assert equal_l0.as_text({"mean": 0.5, "n": 1}) == "0.500"
    assert equal_l0.as_text(None) == "–"


def test_a_single_level_far_from_the_target_stands_for_nothing() -> None:
    def of(seed: int, levels: dict[int, float]) -> list[dict]:
        return [{"arm": "a", "seed": seed, "level": i, "metric": "l0", "value": l0} for i, l0 in levels.items()]

    rows = pd.DataFrame([*of(0, {0: 8.0, 1: 15.9, 2: 33.0}), *of(1, {1: 16.2})])
    assert equal_l0.nearest_levels(rows, 16.0) == {("a", 0): 1, ("a", 1): 1}
    assert equal_l0.nearest_levels(rows, 32.0) == {("a", 0): 2}
    assert equal_l0.nearest_levels(rows[rows["seed"] == 1], 32.0) == {("a", 1): 1}  # there is no other
