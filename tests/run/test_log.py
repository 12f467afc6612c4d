import json

import pytest

from stages.lib.run import log
from stages.lib.run.log import Log


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)


def lines(stage):
    return [json.loads(line) for line in (log.LOG / f"{stage}.jsonl").read_text().splitlines()]


def test_without_a_terminal_progress_is_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr(log, "PLAIN_INTERVAL", 0.0)
    with Log("train@topk-0", 10, "steps", start=2) as progress:
        progress.advance(3, fvu=0.25, l0="8/16")
    said = capsys.readouterr().err
    assert said.startswith("train@topk-0: 5 of 10 steps, ")
    assert "s left  fvu 0.25  l0 8/16" in said


def test_the_log_file_has_a_dict_a_line_and_how_it_ended():
    with Log("model") as progress:
        progress.write(step=1, loss=2.5)
    first, last = lines("model")
    assert (first["step"], first["loss"], last["event"]) == (1, 2.5, "end")
    with pytest.raises(RuntimeError), Log("model"):
        raise RuntimeError
    assert lines("model")[-1]["event"] == "failed"


def test_tracking_is_a_process_of_its_own_and_starts_only_when_asked_for(monkeypatch):
    started = []
    monkeypatch.setattr(log.subprocess, "Popen", lambda command: started.append(command))
    with Log("model"):
        assert not started
    monkeypatch.setenv("WANDB_MODE", "offline")
    with Log("model"):
        assert started[0][1:5] == ["-m", "stages.lib.run.tracking", "stage", "model"]
