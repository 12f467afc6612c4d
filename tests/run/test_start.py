"""How a stage starts: errors of the user in one line, and no start of code that is not the recorded one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.lib.io.errors import UserError
from stages.lib.io.files import write_json
from stages.lib.run.code import RECORDS, ROOT
from stages.lib.run.start import run


def test_an_error_of_the_user_is_one_line_and_exit_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["stage", "topk"])

    def main(arm: str) -> None:
        raise UserError(f"{arm} is\nwrong")

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: topk is wrong\n"


def test_a_stage_that_is_not_the_recorded_code_stops_in_a_line_before_it_does_anything(tmp_path: Path) -> None:
    write_json(tmp_path / RECORDS / "corpus.json", {"files": {"stages/corpus.py": "0" * 32}, "packages": {}})
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.corpus"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: stages/corpus.py (and ")
    assert "is not what data/check/code/corpus.json records" in done.stderr and done.stderr.count("\n") == 1
