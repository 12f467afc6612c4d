"""The whole stage `compare` on a made-up tree, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages import compare
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


def test_settings_need_no_data(project: Path) -> None:
    write_params(fake_tree.PARAMS)
    assert compare.settings().seeds == [0, 1, 2]
