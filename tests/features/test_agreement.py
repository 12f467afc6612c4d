"""Agreement of dictionaries: live features matched by direction, against seeds, arms and chance."""

import numpy as np
import pandas as pd
import pytest
import torch

from stages import compare
from stages.lib.features.agreement import Dictionary, pairs, random_level, shared_curves, summarise
from tests import fake_tree


def toy(arm: str, seed: int, decoder: torch.Tensor, dead: int = 0) -> Dictionary:
    alive = torch.arange(len(decoder)) >= dead
    return Dictionary(arm, seed, decoder, alive, fake_tree.unit(len(decoder), 50 + seed))


def test_pairs_leave_dead_features_out_and_count_them() -> None:
    decoder = fake_tree.unit(8, 0)
    other = decoder.clone()
    other[:2] = fake_tree.unit(2, 9)
    (row,) = pairs([toy("a", 0, decoder, dead=2), toy("a", 1, other, dead=2)])
    assert row["mcc"] == pytest.approx(1.0, abs=1e-5)
    assert row["mcc_all"] == pytest.approx(6 / 8, abs=1e-5)
    assert row["alive"] == 6
    assert row["initial"] < 0.9
    (empty,) = pairs([toy("a", 0, decoder, dead=8), toy("b", 1, other)])
    assert "mcc" not in empty
    assert "initial" not in empty


def test_agreement_summary_finds_arms_that_agree_with_themselves() -> None:
    found = [toy(arm, seed, fake_tree.unit(16, arm_seed) + 0.1 * fake_tree.unit(16, 60 + 10 * arm_seed + seed))
             for arm, arm_seed in (("a", 1), ("b", 2), ("c", 3)) for seed in range(3)]  # fmt: skip
    table = pd.DataFrame(pairs(found))
    summary = summarise(table, ["c"], 99, np.random.default_rng(0))
    contrast = summary["contrast"]
    assert contrast["within"] > 0.95 > 0.8 > contrast["between"]
    assert contrast["difference"] == pytest.approx(contrast["within"] - contrast["between"])
    assert contrast["n_runs"] == 6
    assert set(summary["arms"]["a"]) == {"a", "b", "c"}
    # Before training all arms are random: as alike as random directions are.
    level = random_level(16, fake_tree.D_IN, 20, torch.Generator().manual_seed(0))
    assert abs(summary["initial"]["mean"] - level["mean"]) < 4 * level["sd"]


def test_summary_of_a_single_seed_has_no_contrast() -> None:
    table = pd.DataFrame(pairs([toy("a", 0, fake_tree.unit(8, 0)), toy("b", 0, fake_tree.unit(8, 1))]))
    assert summarise(table.reindex(columns=compare.PAIR_COLUMNS), [], 9, np.random.default_rng(0)) == {"arms": {}}


def test_shared_curves_by_kind() -> None:
    decoder = fake_tree.unit(16, 0)
    table = shared_curves(
        [toy("a", 0, decoder), toy("a", 1, decoder), toy("b", 1, -decoder)], torch.Generator().manual_seed(0)
    )
    same = table[(table["kind"] == "same") & (table["arm"] == "a")]
    assert (same["fraction"] == 1.0).all()
    assert set(table["kind"]) == {"same", "other", "random"}


def test_random_directions_have_a_curve_of_their_own() -> None:
    found = [toy("a", seed, fake_tree.unit(200, seed)) for seed in range(2)]
    table = shared_curves(found, torch.Generator().manual_seed(77))
    random, same = (table[table["kind"] == kind].set_index("threshold")["fraction"] for kind in ("random", "same"))
    assert random.iloc[0] == 1.0 > random.iloc[-1]
    assert (random - same).abs().max() < 0.12  # two seeds of random directions are no more alike than chance


def test_a_run_without_its_start_has_no_level_before_training() -> None:
    left, right = (toy("a", seed, fake_tree.unit(8, seed)) for seed in range(2))
    (row,) = pairs([left._replace(initial=None), right])
    assert "initial" not in row and "mcc" in row
