"""A whole run of `attribution` on toy data."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stages import attribution
from stages.lib.io.files import read_json
from tests import toy_data
from tests.settings import write_params

PARAMS = """
train: {seeds: [0, 1]}
attribution: {n_windows: 6, n_nodes: 60, ig_steps: 8, n_resamples: 50, seed: 0}
"""


@pytest.fixture(scope="module")
def summary(shared_project: Path) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """The summary of a run on the toy data, with the detail's path under `detail`."""
    write_params(PARAMS)
    toy_data.write_all()
    attribution.main("toy")
    written: dict[str, Any] = read_json(Path("reports/attribution/toy.json"))
    written["detail"] = pd.read_parquet("data/attribution/toy/nodes.parquet")
    return written


def test_a_run_is_exact_complete_and_informative(summary: dict[str, dict[str, dict[str, dict[str, float]]]]) -> None:
    assert list(summary["spearman"]) == ["level-1"]  # the followed one
    assert list(summary["spearman"]["level-1"]) == ["seed-0", "seed-1"]
    for seed in ("seed-0", "seed-1"):
        value = {name: levels["level-1"][seed]["value"] for name, levels in summary.items() if name != "detail"}
        assert value["hook_max_error"] < 1e-4
        assert abs(value["completeness_ig"]) < 0.05
        assert value["spearman"] > 0.5
        assert value["spearman_magnitude"] > value["spearman_naive"]
        own = summary["spearman"]["level-1"][seed]
        assert own["low"] <= own["value"] <= own["high"]
        assert own["n"] == 20


def test_the_detail_holds_the_nodes(summary: dict[str, pd.DataFrame]) -> None:
    table = summary["detail"]
    assert set(table["stratum"]) == {"top", "random", "activation"}
    assert len(table) == 2 * 3 * 20
    assert (table["activation"] > 0).all()
    assert (table["position"] % toy_data.N_CTX > 0).all()
    both = table[table["seed"] == 0].groupby(["position", "feature"])["ablation"].nunique()
    assert (both == 1).all()
