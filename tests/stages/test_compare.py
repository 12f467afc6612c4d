"""The compare stage: tables by hand, the gate, agreement of dictionaries, and the stage on a made-up tree."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stages import compare
from stages.lib.features.agreement import Dictionary, pairs, random_level, shared_curves, summarise
from stages.lib.io import params
from stages.lib.io.errors import UserError
from stages.lib.io.files import sha256
from stages.lib.stats import equal_l0
from stages.lib.stats.intervals import estimate, holm, p_value, paired
from tests import fake_tree


def test_estimate_by_hand() -> None:
    # sd of 1, 2, 3 is 1; t(.975, 2) = 4.302653.
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)
    assert estimate([1.0]) == (1.0, None, None, 1)


def test_p_value_agrees_with_scipy() -> None:
    from scipy.stats import ttest_1samp

    values = [0.3, 0.1, 0.25, -0.02]
    assert p_value(values) == pytest.approx(float(ttest_1samp(values, 0).pvalue))
    assert p_value([1.0]) is None
    assert p_value([1.0, 1.0]) is None


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8})["b"] == 1.0


def test_paired_uses_seeds_that_both_have() -> None:
    assert paired({0: 1.0, 2: 5.0}, {2: 3.0, 1: 9.0}) == [2.0]


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
    assert contrast["low"] <= contrast["difference"] <= contrast["high"]
    assert contrast["n_runs"] == 6
    assert contrast["n_seed_pairs"] == 3
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


def gated(fvu: list[float], density: float = 0.04, unigram: float = 0.5) -> pd.DataFrame:
    return rows(
        [
            ("a", level, 0, metric, value)
            for level, x in enumerate(fvu)
            for metric, value in (("fvu", x), ("density", density), ("fvu_unigram", unigram), ("fvu_pca", 0.8))
        ]
    )


def test_gate_passes_if_one_level_beats_the_baselines() -> None:
    compare.gate(gated([0.6, 0.4]), [])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (gated([0.97, 0.3]), "no results table: a level 0 seed 0: test FVU 0.970 is not below 0.95"),
        (gated([0.3], density=0.6), "60% of the features"),
        (gated([0.6, 0.55]), "does not beat the mean activation by token.*saes.a or list it in compare.controls"),
    ],
)
def test_gate_refuses(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare.gate(table, [])
    compare.gate(table, ["a"])


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    fake_tree.write_params()
    fake_tree.write_summaries()
    fake_tree.write_training()
    return tmp_path


def outputs(root: Path) -> dict[str, str]:
    return {str(p): sha256(p) for d in ("data/compare", "reports/compare") for p in sorted((root / d).iterdir())}


def test_stage_on_a_made_up_tree(tree: Path) -> None:
    compare.main()
    matched_table = json.loads(Path("reports/compare/matched.json").read_text())
    cell = matched_table["l0-8"]["fvu"]["topk"]
    assert cell["n"] == 3
    # Interpolated between L0 4 and 16, so that it is near the value of the level that measured 8.0, 8.01 and 8.02.
    assert cell["mean"] == pytest.approx(np.mean([fake_tree.fvu("topk", 1, seed) for seed in range(3)]), rel=0.01)
    difference = json.loads(Path("reports/compare/differences.json").read_text())["l0-8"]["fvu"]
    assert difference["relu"]["mean"] > 0 and "p_holm" in difference["relu"] and "p_holm" not in difference["untrained"]
    assert "topk" not in difference
    missing = json.loads(Path("reports/compare/missing.json").read_text())
    assert missing["l0-4"]["fvu"]["relu"].startswith("seeds 0, 1, 2 do not reach it: L0 4.2 to")
    agreement = json.loads(Path("reports/compare/agreement.json").read_text())
    assert "untrained" not in agreement["arms"]["topk"]
    assert agreement["arms"]["topk"]["topk"] > agreement["arms"]["frozen_decoder"]["frozen_decoder"]
    assert len(pd.read_csv("reports/compare/frontier.csv")) == 4 * 3 * 3
    curves = pd.read_csv("reports/compare/curves.csv")
    assert curves.groupby("arm").size().max() <= compare.CURVE_POINTS
    assert curves["fvu"].notna().all()
    pairs_table = pd.read_parquet("data/compare/pairs.parquet")
    assert (pairs_table["alive"] == fake_tree.D_SAE - 1).all()


def test_same_bytes_twice(tree: Path) -> None:
    compare.main()
    first = outputs(tree)
    compare.main()
    assert outputs(tree) == first


def test_a_failing_arm_stops_the_stage_before_it_writes(tree: Path) -> None:
    fake_tree.write_params(fake_tree.PARAMS.replace("controls: [frozen_decoder, untrained]", "controls: [untrained]"))
    path = Path("reports/evaluate/frozen_decoder.json")
    content = json.loads(path.read_text())
    content["fvu"]["level-0"]["seed-1"]["value"] = 0.99
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"frozen_decoder level 0 seed 1: test FVU 0.990"):
        compare.main()
    assert not Path("reports/compare").exists()


def test_settings_name_the_nearest_arm(tree: Path) -> None:
    fake_tree.write_params(fake_tree.PARAMS.replace("reference: topk", "reference: topc"))
    with pytest.raises(UserError, match=r"compare.reference has 'topc', which is no arm of saes; did you mean 'topk'"):
        compare.settings()
    fake_tree.write_params(fake_tree.PARAMS.replace("controls: [frozen", "controls: [frozn"))
    with pytest.raises(UserError, match=r"compare.controls has 'frozn_decoder'"):
        compare.settings()


def test_settings_need_no_data_and_read_only_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fake_tree.write_params()
    seen = []
    original = params.value
    monkeypatch.setattr(params, "value", lambda path: seen.append(path) or original(path))
    compare.settings()
    assert set(seen) == {"compare", "saes", "train.seeds"}
