"""Calls in processes: in order, the same for any number of them, and none is left behind."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.lib.io.errors import UserError
from stages.lib.run.pool import AHEAD, in_processes
from tests.toy import ROOT


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes find the project."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.parametrize("n_processes", [1, 2])
def test_results_come_with_their_items_in_order(n_processes: int) -> None:
    items = [math.factorial(n) for n in (9, 1, 8, 2)] * 3
    assert [*in_processes(math.sqrt, items, n_processes)] == [(item, math.sqrt(item)) for item in items]


@pytest.mark.parametrize("n_processes", [1, 2])
def test_errors_are_those_of_the_call(n_processes: int) -> None:
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        list(in_processes(math.sqrt, [1.0, -1.0, 4.0], n_processes))


def test_items_are_taken_as_they_are_needed() -> None:
    taken = []
    work = in_processes(math.sqrt, (taken.append(i) or float(i) for i in range(1000)), 2)  # type: ignore[func-returns-value]
    assert next(work) == (0.0, 0.0)
    assert len(taken) == 2 * AHEAD + 1
    work.close()


def test_a_killed_process_is_said() -> None:
    with pytest.raises(UserError, match="one of 2 processes was killed, perhaps because memory ran out"):
        list(in_processes(os._exit, [3], 2))


ORPHANS = """
from stages.lib.run.pool import in_processes
if __name__ == "__main__":
    for _, pid in in_processes(eval, ["os.getpid()", "__import__('time').sleep(60)", "0"], 2):
        print(pid, flush=True)
"""


def is_there(process: Path) -> bool:
    """Whether a process, by its directory in /proc, has not ended; it may end while one looks."""
    try:
        return "zombie" not in (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_processes_end_when_the_first_is_killed(tmp_path: Path) -> None:
    (tmp_path / "orphans.py").write_text(ORPHANS)
    with subprocess.Popen([sys.executable, str(tmp_path / "orphans.py")], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = Path("/proc") / process.stdout.readline().strip()
        assert worker.is_dir()
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + 10
    while is_there(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_there(worker)
