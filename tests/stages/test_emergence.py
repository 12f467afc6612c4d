"""The whole stage `emergence` recovers planted times of emergence."""

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stages import emergence
from stages.lib.emergence import curves as curves
from stages.lib.io.errors import UserError
from stages.lib.io.summary import read_summaries
from tests.settings import working_directory, write_params
from tests.toy_checkpoints import STEPS, write_arm, write_held_out

RISE = [1, 1, 2, 4, 8, 16, 32, 64]
PARAMS = """
train: {seeds: [0, 1]}
emergence: {n_fit: 1500, n_validation: 1500, n_test: 1500, min_positives: 20, min_firings: 5, settled_cosine: 0.9,
  l0_tolerance: 0.1, min_final: 0.2, n_shifts: 5, n_permutations: 200, drivers: [log_prevalence, log_magnitude],
  family_phi: 0.5, seed: 0}
"""


@pytest.fixture(scope="module")
def here(shared_project: Path) -> Path:
    """The working directory, in which the stage has run on a TopK and a JumpReLU arm; no test changes it."""
    write_params(PARAMS)
    write_held_out(48, len(RISE), 30, ["main"])
    write_arm("toy", d_in=48, d_sae=24, rise=RISE, seeds=[0, 1])
    write_arm("jump", d_in=48, d_sae=24, rise=RISE, seeds=[0, 1], architecture="jumprelu")
    emergence.main("toy")
    emergence.main("jump")
    return shared_project


@pytest.fixture
def copy(here: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it as the working directory, for a test that runs the stage again."""
    with working_directory(shutil.copytree(here, tmp_path / "copy")) as directory:
        yield directory


def number(metric: str, arm: str = "toy", seed: int = 0) -> float:
    rows = read_summaries("emergence", [arm])
    return float(rows[(rows["metric"] == metric) & (rows["seed"] == seed)]["value"].iloc[0])


@pytest.mark.parametrize("arm", ["toy", "jump"])
def test_planted_times_are_found(here: Path, arm: str) -> None:
    times = pd.read_parquet(f"data/emergence/{arm}/emergence.parquet")
    found = times[~times["censored"]]
    assert len(found) >= 12
    planted = np.array([RISE[int(name.split("-")[1])] for name in found["concept"]])
    assert (found["tau"].to_numpy() == planted).mean() > 0.8
    before = {step: earlier for earlier, step in pairwise(STEPS)}
    late = found[found["tau"] > 0]
    assert [before[int(step)] for step in late["tau"]] == late["tau_after"].tolist()


def test_seeds_agree_on_the_planted_order(here: Path) -> None:
    assert number("kendall_w") > 0.9
    assert number("kendall_w_p") < 0.05
    assert 0 < number("n_emerged_all_seeds") <= len(RISE)
    assert number("n_families") == len(RISE)


def test_interpolated_times_lie_between_the_checkpoints(here: Path) -> None:
    times = pd.read_parquet("data/emergence/toy/emergence.parquet")
    late = times[times["tau"] > 0]
    assert (late["tau_interpolated"] <= late["tau"]).all()
    assert (late["tau_interpolated"] >= late["tau_after"]).all()
    row = read_summaries("emergence", ["toy"]).set_index("metric").loc["emergence_step"]
    assert 0 < row["low"] <= row["value"] <= row["high"] < STEPS[-1]


def test_features_that_did_not_turn_are_their_own_start(here: Path) -> None:
    assert number("start_identified_fraction") >= 16 / 24
    # A third of the rows turned to a direction that has nothing to do with their start: ||b - a||^2 = 2.
    assert number("relative_movement") == pytest.approx(np.sqrt(2 / 3), abs=0.1)
    assert number("median_settling_step") == 0
    assert number("settled_last_interval_fraction") == pytest.approx(1 / 24)
    table = pd.read_parquet("data/emergence/toy/trajectories.parquet")
    one = table[(table["seed"] == 0) & (table["feature"] == 5)].sort_values("step")
    assert one["cos_final"].iloc[-1] == pytest.approx(1, abs=1e-3)
    assert (one["cos_final"] > 0.99).tolist() == [step >= 16 for step in STEPS]
    assert one["angular_speed"].isna().tolist() == [True, True] + [False] * 6
    # The feature of the other seed turns to the same direction, and is what this one is matched with.
    assert (one["cos_other_seed"] > 0.9).tolist() == [step >= 16 for step in STEPS]
    assert (one["angular_speed"].iloc[2:] > 0.5).tolist() == [step == 16 for step in STEPS[2:]]


def test_population_tables_are_consistent(here: Path) -> None:
    table = pd.read_parquet("data/emergence/toy/checkpoints.parquet")
    first = table[table["seed"] == 0]
    assert first["births"].sum() == number("births")
    assert first["l0"].max() <= 4
    assert first["fvu"].iloc[-1] < first["fvu"].iloc[0]
    assert first["settled_fraction"].iloc[-1] == 1
    assert first["churn_excess"].iloc[1:].tolist() == (first["churn"] - first["churn_null"]).iloc[1:].tolist()
    curve = pd.read_parquet("data/emergence/toy/survival.parquet")
    assert (curve.groupby("tercile")["surviving"].diff().dropna() <= 0).all()
    assert curve.groupby("tercile")["surviving"].first().eq(1).all()
    concepts = pd.read_parquet("data/emergence/toy/concepts.parquet")
    last = concepts[concepts["step"] == STEPS[-1]]
    pd.testing.assert_series_equal(last["f1"], last["f1_fixed"], check_names=False)


def test_checkpoints_of_another_sparsity_are_told(here: Path) -> None:
    table = pd.read_parquet("data/emergence/jump/checkpoints.parquet")
    l0 = table[table["seed"] == 0]["l0"].to_numpy()
    assert number("l0_first", "jump") == pytest.approx(l0[0])
    outside = np.abs(l0 / l0[-1] - 1) > 0.1
    assert number("l0_outside_fraction", "jump") == pytest.approx(outside.mean())
    assert outside.any()


def test_the_same_bytes_again(copy: Path) -> None:
    files = sorted([*Path("data/emergence/toy").iterdir(), Path("reports/emergence/toy.json")])
    before = {path: path.read_bytes() for path in files}
    emergence.main("toy")
    assert {path: path.read_bytes() for path in files} == before


def test_too_few_positives(copy: Path) -> None:
    write_params(PARAMS.replace("min_positives: 20", "min_positives: 9999"))
    with pytest.raises(UserError, match=r"no concept has 9999 tokens in each part \(the most frequent of 8 has \d+\)"):
        emergence.main("toy")


def test_foreign_checkpoint(here: Path, tmp_path: Path) -> None:
    from stages.lib.emergence.checkpoints import at_checkpoint
    from stages.lib.io import tensors
    from stages.lib.sae.saved import load_sae

    tensors.save(tmp_path / "x.safetensors", {"W_enc": torch.zeros(2, 2)})
    final = load_sae(Path("data/train/toy/seed-0/level-1"))
    with pytest.raises(UserError, match="does not belong to the SAE beside it"):
        at_checkpoint(final, tmp_path / "x.safetensors")


def test_settings_refuse_an_unknown_driver(project: Path) -> None:
    write_params(PARAMS.replace("log_magnitude", "log_magnitud"))
    with pytest.raises(UserError, match=r"emergence\.drivers has 'log_magnitud'.*did you mean 'log_magnitude'"):
        emergence.settings()


def test_settings_refuse_a_cosine_of_1(project: Path) -> None:
    write_params(PARAMS.replace("settled_cosine: 0.9", "settled_cosine: 1.0"))
    with pytest.raises(UserError, match=r"emergence\.settled_cosine is 1\.0: input should be less than 1"):
        emergence.settings()
