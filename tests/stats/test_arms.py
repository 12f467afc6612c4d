"""Tables of arms against the reference: what a tested arm, a control and an arm that cannot be tested have."""

import pandas as pd
import pytest

from stages.lib.stats.arms import contrasts, differences


def values() -> pd.DataFrame:
    records = [(arm, seed, "m", 8.0, base + (0.1 * seed) + 0.01 * (seed * (i + 1) % 3)) for i, (arm, base) in
               enumerate((("a", 5.0), ("b", 5.5), ("c", 9.0))) for seed in range(4)]  # fmt: skip
    return pd.DataFrame(records, columns=["arm", "seed", "metric", "l0", "value"])


def test_controls_are_kept_out_of_the_tests() -> None:
    found = differences(values(), ["m"], [8.0], "a", ["c"], {"m": 0.02})["l0-8"]["m"]
    assert set(found["b"]) == {"mean", "low", "high", "p", "detectable", "margin", "p_equal", "n", "verdict"}
    assert (found["b"]["verdict"], found["b"]["n"]) == ("differs", 4)
    assert found["b"]["margin"] == pytest.approx(0.02 * values().query("arm == 'a'")["value"].mean())
    assert found["c"] == {"mean": pytest.approx(4.0, abs=0.02), "n": 4}
    # What a control is like changes nothing for the others.
    other = values()
    other.loc[other["arm"] == "c", "value"] *= 100
    assert differences(other, ["m"], [8.0], "a", ["c"], {"m": 0.02})["l0-8"]["m"]["b"] == found["b"]


def test_a_metric_without_a_margin_has_none() -> None:
    found = differences(values(), ["m", "other"], [8.0, 9.0], "a", [], {})
    assert set(found) == {"l0-8"} and set(found["l0-8"]) == {"m"}
    assert "margin" not in found["l0-8"]["m"]["b"] and "p_equal" not in found["l0-8"]["m"]["b"]


def test_an_arm_with_one_seed_has_a_difference_and_no_test() -> None:
    table = values()
    table = table[(table["arm"] != "b") | (table["seed"] == 0)]
    found = differences(table, ["m"], [8.0], "a", [], {})["l0-8"]["m"]
    assert set(found["b"]) == {"mean", "n"} and "p" in found["c"]


def test_pairs_of_the_arms_named() -> None:
    found = contrasts(values(), ["m"], [8.0], ["a", "b"])["l0-8"]["m"]
    assert list(found["pairs"]) == ["a"] and list(found["pairs"]["a"]) == ["b"]
    assert found["pairs"]["a"]["b"]["mean"] == pytest.approx(-0.5, abs=0.02)
    assert set(found["omnibus"]) == {"f", "df", "df_error", "p"}
