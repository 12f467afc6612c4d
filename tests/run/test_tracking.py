"""Weights & Biases: what is sent, when it ends, and that it is never imported unless asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from stages.lib.run.tracking import alive, follow, group, numbers

ROOT = Path(__file__).resolve().parents[2]


def test_numbers_are_the_numeric_facts() -> None:
    entry = {"step": 3, "fvu": 0.5, "ok": True, "arm": "topk", "l0": {"level-0": 8.0}}
    assert numbers(entry) == {"step": 3.0, "fvu": 0.5, "l0/level-0": 8.0}


def test_group_is_named_or_follows_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_RUN_GROUP", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "a.yaml").write_text("a: 1")
    (tmp_path / "b.yaml").write_text("a: 2")
    assert group(tmp_path / "a.yaml") == group(tmp_path / "a.yaml") != group(tmp_path / "b.yaml")
    monkeypatch.setenv("DVC_EXP_NAME", "wide-sae")
    assert group(tmp_path / "a.yaml") == "wide-sae"
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    assert group(tmp_path / "a.yaml") == "mine"


def test_follow_ends_with_the_event(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"fvu": 1}\n{"fvu": 0.5}\n{"event": "end"}\n{"late": 1}\n')
    assert [*follow(path, os.getpid(), 0.01)] == [{"fvu": 1}, {"fvu": 0.5}, {"event": "end"}]


def test_follow_ends_with_the_process_and_leaves_half_a_line(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert not alive(gone.pid)
    path = tmp_path / "log.jsonl"
    path.write_text('{"fvu": 1}\n{"fvu": 0')
    assert [*follow(path, gone.pid, 0.01)] == [{"fvu": 1}]


def offline(tmp_path: Path) -> dict[str, str]:
    own = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), "WANDB_SILENT": "true"}
    return os.environ | own


def test_offline_runs_are_written_by_processes_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("saes: {topk: {k: [8]}}\n")
    (tmp_path / "log.jsonl").write_text('{"step": 1, "fvu": 0.5}\n{"event": "end"}\n')
    reports = tmp_path / "reports"
    (reports / "compare").mkdir(parents=True)
    (reports / "figures").mkdir()
    (reports / "metrics.json").write_text(json.dumps({"fvu": {"topk": 0.25}}))
    pd.DataFrame({"arm": ["topk"], "step": [1], "fvu": [0.5], "l0": [8.0], "dead_fraction": [0.0]}).to_csv(
        reports / "compare" / "curves.csv", index=False
    )
    (tmp_path / "data/frequency/topk").mkdir(parents=True)
    pd.DataFrame({"rate": [0.0, 0.1, 0.01]}).to_parquet(tmp_path / "data/frequency/topk/features.parquet")
    stream = [sys.executable, "-m", "stages.lib.run.tracking", "stage", "train@topk-0", "log.jsonl", str(os.getpid())]
    report = [sys.executable, "-m", "stages.lib.run.tracking", "report"]
    started = [subprocess.Popen(command, cwd=tmp_path, env=offline(tmp_path)) for command in (stream, report)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    runs = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 2
    content = b"".join(run.read_bytes() for run in runs)
    for fact in (b"train@topk-0", b"fvu/topk", b"headline", b"log10_rate/topk"):
        assert fact in content


def test_nothing_imports_it_when_off() -> None:
    code = "import sys, stages.report, stages.compare; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
