"""Numbers about the order of emergence, from small tables of times."""

from pathlib import Path

import numpy as np
import pandas as pd

from stages.lib.emergence.summary_rows import DRIVERS, mean_times, order_rows, survival_table
from stages.lib.sae.members import Member


def time_rows(taus: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame([
        {"seed": seed, "concept": name, "tau": tau, "censored": bool(np.isnan(tau)), "last_step": 64, "cc_final": 0.5,
         "f1_chance": 0.1}
        for name, row in taus.items() for seed, tau in enumerate(row)
    ])  # fmt: skip


def test_mean_times_by_hand() -> None:
    times = time_rows({"a": [2.0, 8.0], "b": [4.0, np.nan], "c": [0.0, 16.0]})
    got = mean_times(times, pd.DataFrame({"concept": ["a", "b", "c"], "prevalence": [0.1, 0.2, 0.3]}))
    assert got["tau"].round(6).tolist()[::2] == [4, 4]  # geometric; 0 counts as 1
    assert np.isnan(got["tau"][1])
    assert got["n_emerged"].tolist() == [2, 1, 2]


def test_survival_by_tercile() -> None:
    times = time_rows({"a": [2.0, np.nan], "b": [4.0, 4.0], "c": [8.0, 16.0]})
    got = survival_table(times, pd.DataFrame({"concept": ["a", "b", "c"], "prevalence": [0.1, 0.2, 0.3]}))
    assert got[got["tercile"] == "rare"][["step", "surviving"]].to_numpy().tolist() == [[0, 1], [2, 0.5]]
    assert got[got["tercile"] == "frequent"]["surviving"].tolist() == [1, 0.5, 0]


def test_without_emerged_concepts_there_are_no_numbers_about_order() -> None:
    times = time_rows({"a": [np.nan, 2.0]})
    by_concept = pd.DataFrame({"concept": ["a"]} | {name: [0.1] for name in DRIVERS})
    order = mean_times(times, by_concept)
    rows = order_rows(Member("toy", 0, 1, Path(), 8.0), times, order, 10, 10, np.random.default_rng(0))
    assert [(row.metric, row.value) for row in rows] == [("n_emerged_all_seeds", 0.0)]
    assert survival_table(times, order).empty
