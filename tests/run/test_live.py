"""The live table: what a terminal gets, and that without one nothing changes."""

import io

import pytest
from rich.console import Console

from stages.lib.run import log
from stages.lib.run.live import LevelRow, TrainingLog

ROW = {"fvu": 0.25, "l0": 15.875, "dead_fraction": 0.125, "lr": 3e-3, "coefficient": 0.0054321, "n_resampled": 1234}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)


def test_a_terminal_gets_a_row_for_each_level_and_what_is_left() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=140)
    with TrainingLog("train@relu-0", 10, 2, console) as progress:
        progress.show([LevelRow("l0 16", ROW), LevelRow("l0 32", {**ROW, "fvu": 0.5})])
        progress.advance(3)
        progress.say("level 1 stays behind")
    said = screen.getvalue()
    for text in (
        "train@relu-0",
        "l0 16",
        "l0 32",
        "0.2500",
        "0.5000",
        "15.88",
        "12.5%",
        "3.00e-03",
        "0.00543",
        "1,234",
    ):
        assert text in said, text
    assert "5/10" in said and "level 1 stays behind" in said and "steps" in said


def test_without_a_terminal_lines_stay_plain(monkeypatch, capsys) -> None:
    monkeypatch.setattr(log, "PLAIN_INTERVAL", 0.0)
    with TrainingLog("train@relu-0", 10) as progress:
        progress.show([LevelRow("l0 16", ROW)])
        progress.advance(3, fvu="0.25", lr="3e-3")
        progress.say("a word")
    said = capsys.readouterr().err
    assert said.startswith("train@relu-0: 3 of 10 steps, ") and "fvu 0.25  lr 3e-3" in said and "a word" in said
    assert "\x1b" not in said and "level" not in said
