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
attribution: {n_windows: 6, n_random: 30, n_stratum: 20, min_score: 0.001, ig_steps: 8, n_resamples: 50, seed: 0}
"""


@pytest.fixture(scope="module")
def summary(shared_project: Path) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """The summary of a run on the toy data, with the detail's path under `detail`."""
    write_params(PARAMS)
    toy_data.write_all()
    attribution.main("toy")
    written: dict[str, Any] = read_json(Path("reports/attribution/toy.json"))
    written["detail"] = pd.read_parquet("data/attribution/toy/nodes.parquet")
    written["features"] = pd.read_parquet("data/attribution/toy/features.parquet")
    return written


def of_seed(summary: dict[str, Any]) -> dict[str, Any]:
    """What each seed has."""
    return {name: levels for name, levels in summary.items()
            if name not in ("detail", "features", "min_score") and not name.endswith("_pooled")}  # fmt: skip


def test_a_run_is_exact_complete_and_informative(summary: dict[str, dict[str, dict[str, dict[str, float]]]]) -> None:
    assert list(summary["spearman"]) == ["level-1"]  # the followed one
    assert list(summary["spearman"]["level-1"]) == ["seed-0", "seed-1"]
    for seed in ("seed-0", "seed-1"):
        value = {name: levels["level-1"][seed]["value"] for name, levels in of_seed(summary).items()}
        assert value["hook_max_error"] < 1e-4
        assert abs(value["completeness_ig"]) < 0.05
        assert value["spearman"] > 0.5
        assert value["spearman_magnitude"] > value["spearman_naive"]
        own = summary["spearman"]["level-1"][seed]
        assert own["low"] <= own["value"] <= own["high"]
        assert own["n"] == 30


def test_the_detail_holds_the_nodes(summary: dict[str, pd.DataFrame]) -> None:
    table = summary["detail"]
    assert set(table["stratum"]) == {"top", "random", "activation"}
    assert table["stratum"].value_counts().to_dict() == {"random": 2 * 30, "top": 2 * 20, "activation": 2 * 20}
    assert (table["activation"] > 0).all()
    assert (table["position"] % toy_data.N_CTX > 0).all()
    both = table[table["seed"] == 0].groupby(["position", "feature"])["ablation"].nunique()
    assert (both == 1).all()


def test_both_seeds_are_measured_at_the_same_tokens(summary: dict[str, pd.DataFrame]) -> None:
    random = summary["detail"][summary["detail"]["stratum"] == "random"]
    first, second = (random[random["seed"] == seed]["position"].tolist() for seed in (0, 1))
    assert first == second


def test_all_seeds_together_have_an_interval(summary: dict[str, dict[str, dict[str, dict[str, float]]]]) -> None:
    table = pd.DataFrame(summary["detail"])
    random = table[table["stratum"] == "random"]
    cell = summary["slope_pooled"]["level-1"]["seed-0"]
    large = random[random["grad_x_act"].abs() > 0.001]
    assert cell["value"] == pytest.approx((large["ablation"] / large["grad_x_act"]).median(), rel=1e-6)
    assert cell["low"] < cell["value"] < cell["high"]
    assert cell["n"] == len(large)
    assert summary["spearman_pooled"]["level-1"]["seed-0"]["n"] == 60


def test_each_feature_has_its_mean_effect(summary: dict[str, pd.DataFrame]) -> None:
    table = summary["features"]
    assert table.columns.tolist() == ["feature", "effect", "n_firings", "level", "seed"]
    assert not table.duplicated(["seed", "level", "feature"]).any()
    assert (table["n_firings"] > 0).all()
    assert (table["effect"] >= 0).all()
    # The largest of a feature's ablated nodes is at least their mean over all its nodes, if all were ablated.
    top = summary["detail"].query("stratum == 'top' and seed == 0")["grad_x_act"].abs().max()
    assert table[table["seed"] == 0]["effect"].max() <= top + 1e-6
