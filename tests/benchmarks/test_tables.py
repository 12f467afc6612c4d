"""Benchmarks at a tiny size: the tables have their rows and columns, ours is in them, and missing libraries are named.

Libraries are tested where they are installed: `benchmarks/environment.sh` makes such an environment.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import fidelity, train_step
from benchmarks.ours import SETTINGS, OurTrainer, revives
from benchmarks.trainers import Recipe, adapters, library, weaken
from stages.lib.activations.writer import StoreWriter

D_IN, D_SAE, BATCH = 8, 32, 64
CPU = torch.device("cpu")


def recipe(method: str, level: float, n_steps: int = 10) -> Recipe:
    return Recipe(method, D_IN, D_SAE, level, BATCH, n_steps, None, 10**9, 0, CPU, "fp32")


def activations(n: int = BATCH) -> torch.Tensor:
    return train_step.activations(n, D_IN, torch.Generator().manual_seed(0))


def call(main, monkeypatch: pytest.MonkeyPatch, module: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    main()


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as handle:
        return list(csv.DictReader(handle))


def test_train_step_prints_all_our_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    files = {kind: tmp_path / f"table.{kind}" for kind in ("csv", "markdown")}
    options = ["--size", "XS", "--batch", "64", "--rounds", "2", "--warm-up", "4", "--libraries"]
    call(train_step.main, monkeypatch, "train_step", *options, *(f"--{kind}={path}" for kind, path in files.items()))
    rows = table(files["csv"])
    assert [row["library"] for row in rows[:4]] == ["limit: encoder", "limit: five"] * 2
    ours = {(row["method"], row["precision"], row["dead"]) for row in rows if row["library"] == "ours"}
    dead = {method: ("", "10 %", "10 %, rarely positive") if revives(method) else ("",) for method in SETTINGS}
    assert ours == {(method, kind, n) for method in SETTINGS for kind in ("fp32", "bf16") for n in dead[method]}
    for row in rows:
        assert all(float(row[name]) >= 0 for name in ("ms", "/ encoder bf16", "/ five bf16"))
        assert row["/ fastest other"] == ""
        assert (row["/ idle"] != "") == (row["dead"] != "")
    printed = capsys.readouterr().out
    assert printed == files["markdown"].read_text()
    assert "1 thread" in printed and f"torch {torch.__version__}" in printed


def test_ratios_by_hand() -> None:
    row = train_step.Row
    seconds = {
        row("", "limit: encoder", "bf16"): 1.0,
        row("", "limit: five", "bf16"): 4.0,
        row("topk", "ours", "bf16"): 2.0,
        row("topk", "ours", "bf16", "10 %"): 2.5,
        row("topk", "a", "bf16"): 8.0,
        row("topk", "b", "fp32"): 5.0,
        row("relu", "b", "fp32"): 1.0,
    }
    calls = dict.fromkeys(seconds, train_step.Timed(lambda: None))
    cells = {tuple(line[:4]): line[5:] for line in train_step.table(seconds, calls, None).rows}
    assert cells["topk", "ours", "bf16", ""] == ["2.00", "0.50", "0.40", "0.25", "", ""]
    assert cells["topk", "ours", "bf16", "10 %"] == ["2.50", "0.62", "", "", "1.25", ""]
    assert cells["topk", "a", "bf16", ""] == ["8.00", "2.00", "1.60", "", "", ""]
    assert cells["relu", "b", "fp32", ""] == ["1.00", "0.25", "", "", "", ""]


def test_share_of_peak_by_hand() -> None:
    limits = [train_step.Row("", f"limit: {name}", "bf16") for name in ("encoder", "five")]
    seconds = dict(zip(limits, (0.001, 0.004), strict=True))
    calls = dict.fromkeys(seconds, train_step.Timed(lambda: None))
    found = train_step.table(seconds, calls, peak_ms=2.0)
    assert found.columns[-1] == "share of peak"
    assert [row[-1] for row in found.rows] == ["2.00", "0.50"]


def test_dead_features_are_those_that_were_killed() -> None:
    trainer, dead = OurTrainer(recipe("topk", 4)), torch.tensor([3, 7, 20])
    x = activations()
    for _ in range(3):
        trainer.step(x)
    trainer.kill(dead)
    assert trainer.sae.dead().nonzero()[:, 0].tolist() == [3, 7, 20]
    before = trainer.sae.W_dec.detach()[dead].clone()
    trainer.step(x)
    assert float(trainer.latest.auxiliary) > 0
    assert not torch.equal(trainer.sae.W_dec.detach()[dead], before)


def test_pre_activations_of_killed_features_are_as_often_positive_as_wanted() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, biases = torch.randn(6, 40, generator=generator), torch.ones(6)
    x = torch.randn(50_000, 40, generator=generator) / 40**0.5
    for positive in (0.5, 0.02):
        weaken(rows, biases, torch.tensor([1, 4]), positive)
        share = (torch.addmm(biases, x, rows.T) > 0).double().mean(0)
        assert share[[1, 4]].tolist() == pytest.approx([positive] * 2, rel=0.15)
    assert biases[[0, 2, 3, 5]].tolist() == [1.0] * 4


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Activations with a train, a validation and a test split."""
    n = {"train": 640, "validation": 128, "test": 128}
    identity = {"model": "tiny", "commit": None, "revision": "main", "hook_name": "blocks.2.hook_resid_post"}
    identity |= {"layer": 2, "d_in": D_IN, "dtype": "float32", "n_ctx": 64, "seed": 0, "permutation": {}}
    writer = StoreWriter(tmp_path / "main", identity, n, 400)
    x = activations(sum(n.values()))
    for split, part in zip(n, x.split(list(n.values())), strict=True):
        writer.prepare(split)
        writer.scatter(split, np.arange(len(part)), part, np.arange(1, len(part) + 1))
    writer.finish()
    return tmp_path / "main"


def test_fidelity_prints_our_rows(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [f"--store={store}", "--tokens=640", "--batch=64", "--d-sae=32", "--l0=4", "--libraries"]
    call(fidelity.main, monkeypatch, "fidelity", *options, f"--csv={tmp_path / 'table.csv'}")
    rows = table(tmp_path / "table.csv")
    assert tuple(rows[0]) == fidelity.COLUMNS
    assert [(row["method"], row["library"]) for row in rows] == [(method, "ours") for method in fidelity.METHODS]
    assert 0 < float(rows[0]["FVU"]) < 1.5
    assert [float(l0) for l0 in rows[0]["L0 of the SAEs"].split()] == pytest.approx([4, 4], abs=0.2)
    assert len(rows[0]["by seed"].split()) == 2


def test_scores_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    codes = torch.tensor([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0]])
    # The spread about (2, 0) is 2; each reconstruction misses by 1 / 2.
    found = fidelity.score(lambda batch: (codes, batch + 0.5 * torch.tensor([1.0, 0.0])), x)
    assert found == fidelity.Score(fvu=0.25, l0=1.5, dead=pytest.approx(1 / 3))


def outcome(lr: float | None, level: float, l0: float, fvu: float) -> fidelity.Outcome:
    score = fidelity.Score(fvu, l0, 0.0)
    return fidelity.Outcome(lr, level, score, score, 1.0)


def test_rate_with_the_least_fvu_at_the_wanted_l0_counts() -> None:
    slow = [outcome(None, 0.1, 8.0, 0.4), outcome(None, 0.2, 32.0, 0.1)]
    fast = [outcome(0.01, 0.1, 8.0, 0.3), outcome(0.01, 0.2, 32.0, 0.1)]
    nowhere = [outcome(0.1, 0.1, 40.0, 0.01), outcome(0.1, 0.2, 50.0, 0.01)]
    assert fidelity.at_wanted(slow, "test", 16.0) == pytest.approx(0.2)
    assert fidelity.at_wanted(nowhere, "test", 16.0) is None
    assert fidelity.best(slow + nowhere + fast, 16.0) == fast
    assert fidelity.best(nowhere, 16.0) == []
    assert fidelity.row("relu", "a", [nowhere], 16.0)[3] == "L0 not reached"
    assert fidelity.row("relu", "a", [slow, slow], 16.0)[2:5] == ["default", "0.2000", "0.2000 0.2000"]


def test_further_levels_go_towards_the_wanted_l0() -> None:
    dense = [outcome(None, 0.1, 60.0, 0.1), outcome(None, 0.3, 40.0, 0.1)]
    assert fidelity.beyond("saelens", "relu", dense, 16.0) == pytest.approx(0.75)
    assert fidelity.beyond("saelens", "relu", dense, 100.0) == pytest.approx(0.04)
    assert fidelity.beyond("saelens", "relu", dense, 50.0) is None
    aimed = [outcome(None, 12, 20.0, 0.1), outcome(None, 16, 24.0, 0.1)]
    assert fidelity.beyond("dictionary_learning", "jump_relu", aimed, 16.0) == 8
    assert fidelity.beyond("dictionary_learning", "jump_relu", aimed, 30.0) == 26
    assert fidelity.beyond("ours", "relu", aimed, 16.0) is None  # its level is the L0


@pytest.mark.parametrize("name", adapters())
def test_a_library_trains_every_method_that_it_has(name: str, capsys) -> None:
    found = library(name)
    if found is None:
        message = capsys.readouterr().err.strip()
        assert message.startswith(f"skipped {name}: ") and message.endswith("benchmarks/environment.sh installs it")
        pytest.skip(message)
    x, dead = activations(), torch.tensor([3, 7])
    for method in sorted(found.methods):
        for precision in found.precisions(method, "cpu"):
            level = 4 if method not in train_step.COEFFICIENTS else 0.1
            trainer = found.trainer(recipe(method, level)._replace(precision=precision))
            for _ in range(6):
                trainer.step(x)
            if revives(method):
                trainer.kill(dead)
                trainer.step(x)
            codes, x_hat = trainer.inference(x)(x)
            assert codes.shape == (BATCH, D_SAE) and x_hat.shape == x.shape
            assert bool((codes >= 0).all()) and bool(x_hat.isfinite().all())
            if method == "topk":
                assert int((codes > 0).sum(1).max()) <= 4
