"""The whole stage `compare` on a made-up tree, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages import compare
from stages.lib.fidelity.frontier import CURVE_POINTS
from stages.lib.io.errors import UserError
from stages.lib.io.files import sha256
from tests import fake_tree
from tests.settings import write_params


@pytest.fixture
def tree(project: Path) -> Path:
    write_params(fake_tree.PARAMS)
    fake_tree.write_summaries()
    fake_tree.write_training()
    return project


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
    assert difference["relu"]["mean"] > 0 and difference["relu"]["verdict"] == "differs"
    assert difference["relu"]["margin"] == pytest.approx(0.02 * cell["mean"], rel=1e-3)
    assert set(difference["untrained"]) == {"mean", "n"}
    assert "topk" not in difference
    pairs_of = json.loads(Path("reports/compare/contrasts.json").read_text())["l0-8"]["fvu"]["pairs"]
    assert pairs_of["relu"]["topk"]["mean"] == pytest.approx(difference["relu"]["mean"], rel=1e-4)
    missing = json.loads(Path("reports/compare/missing.json").read_text())
    assert missing["l0-4"]["fvu"]["relu"].startswith("seeds 0, 1, 2 do not reach it: L0 4.2 to")
    agreement = json.loads(Path("reports/compare/agreement.json").read_text())
    assert "untrained" not in agreement["arms"]["topk"]
    assert agreement["rates"] == {"relu": 0.01, "topk": 0.01, "frozen_decoder": 0.01}
    assert agreement["disattenuated"]["relu"]["topk"]["mean"] == pytest.approx(1.0, abs=0.05)
    assert agreement["share_alike"]["n_pairs"] == 1
    assert agreement["arms"]["topk"]["topk"] > agreement["arms"]["frozen_decoder"]["frozen_decoder"]
    assert len(pd.read_csv("reports/compare/frontier.csv")) == 4 * 3 * 3
    curves = pd.read_csv("reports/compare/curves.csv")
    assert curves.groupby("arm").size().max() <= CURVE_POINTS
    assert curves["fvu"].notna().all()
    assert (curves["wanted_l0"] == 8).all()
    shared = pd.read_parquet("data/compare/shared.parquet")
    assert set(shared["arm"]) == {"relu", "topk"}  # controls are no other arms
    pairs_table = pd.read_parquet("data/compare/pairs.parquet")
    assert (pairs_table["alive"] == fake_tree.D_SAE - 1).all()


def test_further_seeds_count_at_the_headline(tree: Path) -> None:
    more_seeds(tree)
    compare.main()
    cells = json.loads(Path("reports/compare/matched.json").read_text())
    assert [cells[f"l0-{l0}"]["fvu"]["topk"]["n"] for l0 in (4, 8)] == [1, 5]
    assert cells["l0-8"]["cc_coverage"]["topk"]["n"] == 3  # measured in three seeds alone
    missing = json.loads(Path("reports/compare/missing.json").read_text())
    assert "l0-8" not in missing
    agreement = json.loads(Path("reports/compare/agreement.json").read_text())
    assert agreement["n_seeds"] == 5
    assert agreement["contrast"]["n_runs"] == 10


def more_seeds(root: Path) -> None:
    """Seeds 3 and 4 of every arm at the followed level alone, as copies of those there are with a little noise."""
    write_params(fake_tree.PARAMS.replace("more_seeds: []", "more_seeds: [3, 4]"))
    for arm in fake_tree.ARMS:
        path = root / f"reports/evaluate/{arm}.json"
        content = json.loads(path.read_text())
        for levels in content.values():
            cells = levels["level-1"]
            cells |= {
                f"seed-{3 + i}": {**cells[f"seed-{i}"], "value": cells[f"seed-{i}"]["value"] * 1.001} for i in (0, 1)
            }
        path.write_text(json.dumps(content))
        rates = pd.read_parquet(root / f"data/frequency/{arm}/features.parquet")
        further = rates[(rates["level"] == 1) & (rates["seed"] < 2)].assign(seed=rates["seed"] + 3)
        target = root / f"data/evaluate/{arm}/alive.parquet"
        target.parent.mkdir(parents=True)
        pd.concat([rates, further]).to_parquet(target, index=False)
        for i in (0, 1):
            cell = root / f"data/train/{arm}/more/seed-{3 + i}"
            shutil.copytree(root / f"data/train/{arm}/seed-{i}", cell)
            for level in (0, 2):
                shutil.rmtree(cell / f"level-{level}")


def test_same_bytes_twice(tree: Path) -> None:
    compare.main()
    first = outputs(tree)
    compare.main()
    assert outputs(tree) == first


def test_a_failing_arm_stops_the_stage_before_it_writes(tree: Path) -> None:
    write_params(fake_tree.PARAMS.replace("controls: [frozen_decoder, untrained]", "controls: [untrained]"))
    path = Path("reports/evaluate/frozen_decoder.json")
    content = json.loads(path.read_text())
    content["fvu"]["level-0"]["seed-1"]["value"] = 0.99
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"frozen_decoder level 0 seed 1: test FVU 0.990"):
        compare.main()
    assert not Path("reports/compare").exists()


def test_settings_name_the_nearest_arm(tree: Path) -> None:
    write_params(fake_tree.PARAMS.replace("reference: topk", "reference: topc"))
    with pytest.raises(UserError, match=r"compare.reference has 'topc', which is no arm of saes; did you mean 'topk'"):
        compare.settings()
    write_params(fake_tree.PARAMS.replace("controls: [frozen", "controls: [frozn"))
    with pytest.raises(UserError, match=r"compare.controls has 'frozn_decoder'"):
        compare.settings()


def test_settings_refuse_an_endpoint_that_is_not_in_the_tables(tree: Path) -> None:
    for old, new, message in (
        ("endpoints: {fvu: 0.02", "endpoints: {fuv: 0.02", r"compare.endpoints has 'fuv', .* did you mean 'fvu'"),
        ("endpoints: {fvu: 0.02", "endpoints: {fvu: 0", r"compare.endpoints"),
        ("l0_type: [relu, topk]", "l0_type: [relu, tokp]", r"compare.l0_type has 'tokp', which is no arm"),
    ):
        write_params(fake_tree.PARAMS.replace(old, new))
        with pytest.raises(UserError, match=message):
            compare.settings()


def test_settings_need_no_data(project: Path) -> None:
    write_params(fake_tree.PARAMS)
    assert compare.settings().seeds == [0, 1, 2]
