"""Stages forked from a process that has imported the libraries: they are what they would be without it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.toy import ROOT

PROBE = """
import json, os, sys, time
print(json.dumps({
    "arguments": sys.argv[1:], "directory": os.getcwd(), "parent": os.getppid(), "process": os.getpid(),
    "name": __name__, "spec": __spec__.name, "variable": os.environ.get("DVC_VARIABLE"), "edited": False,
    "decimal": "decimal" in sys.modules, "ours": [name for name in sys.modules if name.startswith("stages.")],
    "umask": os.umask(0), "terminal": sys.stdout.isatty(),
}), flush=True)
print("to stderr", file=sys.stderr)
what, *number = [*sys.argv[1:], ""]
if what == "sleep":
    time.sleep(60)
if what == "signal":
    os.kill(os.getpid(), int(number[0]))
if what == "exit":
    sys.exit(int(number[0]))
if what == "read":
    print(sys.stdin.read())
"""
IDLE = 2.0
"""Seconds after which the servers here end."""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A directory with a package `stages` whose only stage tells what it sees; its server imports `decimal` alone."""
    room = tmp_path / "stages/lib/run"
    room.mkdir(parents=True)
    shutil.copy(ROOT / "stages/__main__.py", tmp_path / "stages")
    server = (ROOT / "stages/lib/run/fork_server.py").read_text(encoding="utf-8")
    for before, after in (
        (r"FIRST = \(.*?\)  # fmt: skip", 'FIRST = ("decimal",)'),
        (r"LATER = \(.*?\)  # fmt: skip", 'LATER = ("no_such_library", "fractions")'),
        (r"IDLE_SECONDS = [\d.]+", f"IDLE_SECONDS = {IDLE}"),
    ):
        server, n_changed = re.subn(before, after, server, flags=re.DOTALL)
        assert n_changed == 1
    (room / "fork_server.py").write_text(server)
    (tmp_path / "stages/probe.py").write_text(PROBE)
    with tempfile.TemporaryDirectory() as short:  # the address of a socket cannot be long
        (tmp_path / "run").symlink_to(short)
        yield tmp_path


def start(project: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Begin the stage as DVC does."""
    kept = {name: value for name, value in os.environ.items() if name != "EXPLORING_SAES_FORK"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", "stages", "probe", *arguments],
        cwd=project,
        env={**kept, "DVC_STAGE": "probe", "XDG_RUNTIME_DIR": str((project / "run").resolve()), **variables},
        stdin=pipe, stdout=pipe, stderr=pipe, text=True,
    )  # fmt: skip


def seen(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the stage tells first."""
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def run(project: Path, *arguments: str, **variables: str) -> tuple[dict[str, Any], int]:
    """What the stage tells, and how it ends."""
    process = start(project, *arguments, **variables)
    found = seen(process)
    _, errors = process.communicate()
    assert "to stderr" in errors
    return found, process.returncode


def is_there(process: int) -> bool:
    """Whether a process has not ended; it may end while one looks."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_stage_is_what_it_is_without_a_server(project: Path) -> None:
    alone, status = run(project, "exit", "3", EXPLORING_SAES_FORK="0", DVC_VARIABLE="one")
    assert status == 3 and not alone["decimal"]
    first, second = (run(project, "exit", "3", DVC_VARIABLE=value) for value in ("one", "two"))
    assert first[1] == second[1] == 3
    # Both are children of the one server, which has the library and no file of the project but its own.
    assert first[0]["decimal"] and first[0]["parent"] == second[0]["parent"] != os.getpid()
    assert first[0]["process"] != second[0]["process"] and second[0]["variable"] == "two"
    differing = {name for name in alone if alone[name] != first[0][name]}
    assert differing == {"parent", "process", "decimal"}
    assert alone["ours"] == [] and alone["name"] == "__main__" and alone["spec"] == "stages.probe"


def test_the_code_that_runs_is_the_code_as_it_is_now(project: Path) -> None:
    before, _ = run(project)
    (project / "stages/probe.py").write_text(PROBE.replace('"edited": False', '"edited": True'))
    after, _ = run(project)
    assert after["parent"] == before["parent"] and after["edited"] and not before["edited"]


def test_another_environment_has_a_server_of_its_own(project: Path) -> None:
    servers = {run(project, OMP_NUM_THREADS=n)[0]["parent"] for n in ("1", "2", "1")}
    assert len(servers) == 2


def test_input_arrives_and_output_is_ones_own(project: Path) -> None:
    process = start(project, "read")
    seen(process)
    output, _ = process.communicate("a line")
    assert output == "a line\n" and process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stage_ends_with_the_process_that_stands_for_it(project: Path, number: signal.Signals) -> None:
    process = start(project, "sleep")
    found = seen(process)
    assert is_there(found["process"])
    process.send_signal(number)
    process.communicate()
    assert process.returncode in (-number, 1)  # Python ends with 1 or by the signal after an interrupt
    until = time.monotonic() + 5
    while is_there(found["process"]) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_there(found["process"])
    assert run(project)[0]["parent"] == found["parent"]  # the server is there yet


def test_a_stage_that_dies_by_a_signal_is_told_as_that(project: Path) -> None:
    assert run(project, "signal", str(int(signal.SIGKILL)))[1] == -signal.SIGKILL


def test_a_killed_server_is_followed_by_another(project: Path) -> None:
    process = start(project, "sleep")
    found = seen(process)
    assert found["parent"] not in (os.getpid(), process.pid)
    os.kill(found["parent"], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 1 and "the fork server of probe was killed" in errors
    os.kill(found["process"], signal.SIGKILL)
    after, status = run(project)
    assert status == 0 and after["decimal"] and after["parent"] != found["parent"]


def test_servers_end_by_themselves(project: Path) -> None:
    found, _ = run(project)
    until = time.monotonic() + 10 * IDLE
    while is_there(found["parent"]) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_there(found["parent"])
    assert not [path for path in (project / "run").resolve().rglob("*") if path.is_socket()]


@pytest.mark.parametrize("mode", [0o750, 0o707])
def test_a_directory_that_others_can_enter_is_not_used(project: Path, mode: int) -> None:
    directory = project / f"run/exploring-saes-{os.getuid()}"
    directory.mkdir()
    directory.chmod(mode)
    found, status = run(project)
    assert status == 0 and not found["decimal"] and not list(directory.iterdir())


def test_without_dvc_there_is_no_server(project: Path) -> None:
    words = [sys.executable, "-m", "stages", "probe"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    done = subprocess.run(words, cwd=project, env=variables, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["parent"] == os.getpid()


def test_a_stage_that_is_none_is_one_line(project: Path) -> None:
    words = [sys.executable, "-m", "stages", "prob"]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "with a stage out of probe, or" in done.stderr, done.stderr
