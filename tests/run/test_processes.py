"""Extraction by several processes: the bytes of one, whoever does what and whoever is killed."""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stages import activations
from stages.lib.io.errors import UserError
from stages.lib.run.processes import PROCESSES, Team, launch
from tests.extraction import configure, snapshot, write_tokens
from tests.toy import ROOT

ENTRIES = ["main", "main+blocks.0.hook_mlp_out", "untrained"]


def environment(**changes: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", PROCESSES)}
    return {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changes}


def stage(**changes: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "stages.activations"], env=environment(**changes), capture_output=True, text=True
    )


@pytest.fixture
def reference(workspace: Path) -> dict[str, bytes]:
    """What one process with one thread writes."""
    write_tokens(20)
    configure(revisions=ENTRIES, n_tokens=200, batch_windows=5, shard_rows=70)
    activations.main()
    found = snapshot()
    assert {Path(name).parent.name for name in found} == set(ENTRIES)
    return found


@pytest.mark.slow
def test_torchrun_gives_the_same_bytes(reference: dict[str, bytes]) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, "-m", "stages.activations"], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert snapshot() == reference


FORKED = """
import hashlib, json, os, pathlib, shutil, signal, socket, sys
import transformer_lens.model_bridge
import stages.activations as stage
from stages.lib.activations import extract

extract.RECORD_SECONDS = 0.01
scatter, done = extract.StoreWriter.scatter, [0]

def run(size, threads, victim=None, batches=0):
    # Ranks as torchrun starts them, without the seconds that each takes to import everything.
    def dying(*arguments):
        scatter(*arguments)
        done[0] += 1
        if done[0] == batches:
            os.kill(os.getpid(), signal.SIGKILL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(size):
        children.append(os.fork())
        if children[-1] == 0:
            if rank == victim:
                extract.StoreWriter.scatter = dying
            stage.torch.set_num_threads(threads)
            if size > 1:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            try:
                stage.main()
            except SystemExit as end:
                os._exit(end.code)
            os._exit(0)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def hashes():
    root = pathlib.Path("data/activations")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}
ways, kills = json.loads(sys.argv.pop())
found = []
for size, threads in ways:
    shutil.rmtree("data/activations", ignore_errors=True)
    found.append([run(size, threads), hashes(), 0])
for size, victim, batches in kills:
    shutil.rmtree("data/activations", ignore_errors=True)
    killed = run(size, 1, victim, batches)
    assert killed[victim] == -signal.SIGKILL and not hashes(), killed
    records = len(list(pathlib.Path("data/.resume/activations").glob("*/progress-*.resume")))
    found.append([run(4 - size, 1), hashes(), records])
print(json.dumps(found))
"""
WAYS = [(1, 3), (3, 1), (2, 2)]
"""Ranks and threads of each."""
KILLS = [(3, 1, 7), (2, 0, 4), (3, 2, 1)]
"""Ranks, which of them is killed, and at which of its writes."""


@pytest.mark.slow
def test_any_number_of_processes_and_threads_and_any_kill_gives_the_same_bytes(reference: dict[str, bytes]) -> None:
    expected = {f"data/activations/{name}": hashlib.sha256(content).hexdigest() for name, content in reference.items()}
    done = subprocess.run(
        [sys.executable, "-c", FORKED, json.dumps([WAYS, KILLS])], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for (codes, hashes, n_records), way in zip(found, [*WAYS, *KILLS], strict=True):
        assert hashes == expected, way
        assert set(codes) == {0}, way
        assert (n_records > 0) == (way in KILLS)  # what was done before a kill is taken up by another number of ranks


def test_what_is_wrong_is_said_once(workspace: Path) -> None:
    configure(n_tokens=10**6)
    done = stage(**{PROCESSES: "2"})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: params.yaml: activations.n_tokens is 1,000,000")
    assert done.stderr.count("error: ") == 1


@pytest.mark.slow
def test_ending_the_launcher_ends_all(workspace: Path) -> None:
    write_tokens(400)
    configure(revisions=["main"], n_tokens=4000, batch_windows=1)
    parent = subprocess.Popen(
        [sys.executable, "-m", "stages.activations"], env=environment(**{PROCESSES: "2"}), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(Path("data/.resume/activations").glob("*/main/train-00000.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(60) != 0
    lock = next(Path("data/.resume/activations").glob("*/lock"))
    with lock.open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # free once the first process is gone; blocks until then


@pytest.mark.parametrize("value", ["0", "two", "-1"])
def test_a_number_that_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv(PROCESSES, value)
    with pytest.raises(UserError, match=f"{PROCESSES} is '{value}'"):
        launch("stages.activations")


def test_one_process_is_a_team(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", PROCESSES):
        monkeypatch.delenv(name, raising=False)
    assert launch("stages.activations") is False
    with Team() as team:
        team.meet()
        assert (team.rank, team.size) == (0, 1)
    found: Any = Team().device
    assert str(found(__import__("torch").device("cuda"))) == "cuda"
