"""Tables of times, and the numbers about their order, from small tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.lib.emergence.concept_times import mean_times, survival_table
from stages.lib.emergence.drivers import PROPERTIES
from stages.lib.emergence.order_rows import Numbers, order_rows
from stages.lib.sae.members import Member

FIRST = Member("toy", 0, 1, Path(), 8.0)


def time_rows(taus: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame([
        {"seed": seed, "concept": name, "tau": tau, "tau_interpolated": tau, "censored": bool(np.isnan(tau)),
         "at_start": tau == 0, "last_step": 64, "cc_final": 0.5, "f1_chance": 0.1}
        for name, row in taus.items() for seed, tau in enumerate(row)
    ])  # fmt: skip


def test_mean_times_by_hand() -> None:
    times = time_rows({"a": [1.0, 7.0], "b": [5.0, np.nan], "c": [0.0, 15.0], "d": [np.nan, np.nan]})
    got = mean_times(times, pd.DataFrame({"concept": list("abcd"), "prevalence": [0.1, 0.2, 0.3, 0.4]}))
    assert got["tau"].round(6).tolist()[::2] == [3, 3]  # sqrt(2 * 8) - 1, sqrt(1 * 16) - 1
    assert got["tau"][[1, 3]].isna().all()
    assert got["n_emerged"].tolist() == [2, 1, 2, 0]
    assert got["n_at_start"].tolist() == [0, 0, 1, 0]
    # Seed 0: c, a, b, d; seed 1: a, c, and b and d share the last place.
    assert got["rank"].tolist() == [1.5, 3.25, 1.5, 3.75]


def test_survival_by_tercile() -> None:
    times = time_rows({"a": [2.0, np.nan], "b": [4.0, 4.0], "c": [8.0, 16.0]})
    got = survival_table(times, pd.DataFrame({"concept": ["a", "b", "c"], "prevalence": [0.1, 0.2, 0.3]}))
    assert got[got["tercile"] == "rare"][["step", "surviving"]].to_numpy().tolist() == [[0, 1], [2, 0.5]]
    assert got[got["tercile"] == "frequent"]["surviving"].tolist() == [1, 0.5, 0]


def concepts(n: int, generator: np.random.Generator) -> pd.DataFrame:
    columns = {name: np.exp(generator.normal(size=n)) for name in PROPERTIES}
    return pd.DataFrame({"concept": [f"c{i}" for i in range(n)], "family": np.arange(n) // 2} | columns)


def test_a_planted_driver_is_found_with_the_censored_concepts() -> None:
    generator = np.random.default_rng(0)
    by_concept = concepts(60, generator)
    log_tau = 3 - np.log(by_concept["magnitude"].to_numpy())[:, None] + 0.3 * generator.normal(size=(60, 2))
    taus = np.where(log_tau > 3.5, np.nan, np.exp(log_tau))
    times = time_rows({f"c{i}": row.tolist() for i, row in enumerate(taus)})
    rows = order_rows(FIRST, times, mean_times(times, by_concept),
                      Numbers(["log_prevalence", "log_magnitude"], 200), generator)  # fmt: skip
    found = {row.metric: row for row in rows}
    assert found["joint_log_magnitude"].high is not None and found["joint_log_magnitude"].high < -0.5
    assert found["joint_log_magnitude"].n == 60
    assert found["joint_emerged_log_magnitude"].n == found["n_emerged_all_seeds"].value < 60
    assert found["joint_log_magnitude_p"].value < 1e-6 < found["joint_log_prevalence_p"].value
    assert found["joint_p"].value == pytest.approx(1 / 201)
    assert found["joint_c_index"].value > 0.8 > found["joint_c_index_null"].value
    assert found["joint_p"].n == found["n_families"].value == 30
    assert found["driver_magnitude"].value < -0.7
    assert found["driver_magnitude_p"].value < found["driver_redundancy_p"].value
    assert 1 <= found["joint_vif_log_magnitude"].value < 1.5


def test_without_emerged_concepts_there_are_no_numbers_about_order() -> None:
    times = time_rows({"a": [np.nan, 2.0]})
    by_concept = pd.DataFrame({"concept": ["a"], "family": [0]} | {name: [0.1] for name in PROPERTIES})
    rows = order_rows(FIRST, times, mean_times(times, by_concept), Numbers(["prevalence"], 10),
                      np.random.default_rng(0))  # fmt: skip
    assert [(row.metric, row.value) for row in rows] == [("n_emerged_all_seeds", 0.0), ("n_families", 1.0)]
    assert survival_table(times, by_concept).empty
