"""Several stages at once on one machine: those whose inputs are there, each run by a DVC process of its own.

`dvc repro` runs one stage after the other. `dvc --wait-for-lock repro --single-item` runs one stage, and waits for
those moments in which another DVC process reads or writes the project's files; stages that need nothing of one another
so run side by side. What they write is the same.
"""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from typing import NamedTuple

from dvc.exceptions import DvcException
from dvc.repo import Repo

from stages.lib.io.errors import UserError

FIRST = "check"
"""The stage that looks at all settings and all code."""
LAST_LINES = 30
"""Lines shown of what a failed stage has printed."""


class Done(NamedTuple):
    """How a stage ended."""

    status: int
    output: str
    seconds: float


def to_run() -> dict[str, set[str]]:
    """The stages that have changed or come after one that has, each with those of them that it needs the outputs of.

    Raises:
        UserError: if DVC cannot read the project.
    """
    try:
        with Repo() as repo, repo.lock:
            graph = repo.index.graph
            needs = {stage.addressing: {need.addressing for need in graph.successors(stage)} for stage in graph}
            known = {stage.addressing: stage for stage in graph}
            found: dict[str, set[str]] = {}
            for name in TopologicalSorter(needs).static_order():
                before = needs[name] & found.keys()
                if before or known[name].changed():
                    found[name] = before
            return found
    except DvcException as error:
        raise UserError(str(error)) from None


def dvc_runs(stage: str, n_threads: int) -> Done:
    """Have DVC run one stage, if that is needed after all."""
    words = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    variables = {"OMP_NUM_THREADS": str(n_threads), **os.environ}
    begun = time.monotonic()
    done = subprocess.run(
        words, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return Done(done.returncode, done.stdout, time.monotonic() - begun)


def in_order(needs: dict[str, set[str]], n_jobs: int, call: Callable[[str], Done], say: Callable[[str], None]) -> bool:
    """Call for every stage, up to `n_jobs` at a time and after those that it needs; whether all went well.

    What comes after a stage that fails is left out; the others go on.
    """
    order, ready = TopologicalSorter(needs), deque[str]()
    order.prepare()
    running: dict[Future[Done], str] = {}
    n_done, well = 0, True
    with ThreadPoolExecutor(n_jobs) as pool:
        while order.is_active():
            ready += sorted(order.get_ready(), key=[*needs].index)
            while ready and len(running) < n_jobs:
                stage = ready.popleft()
                running[pool.submit(call, stage)] = stage
                say(f"begun: {stage}")
            if not running:
                break  # what is left comes after a stage that failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage, done = running.pop(future), future.result()
                if done.status:
                    well = False
                    last = "\n".join(done.output.splitlines()[-LAST_LINES:])
                    say(f"FAILED: {stage}, after {done.seconds:.1f} s; it printed:\n{last}")
                else:
                    n_done += 1
                    order.done(stage)
                    say(f"done: {stage}, {done.seconds:.1f} s ({n_done} of {len(needs)})")
    return well


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(n_jobs: int) -> None:
    """Bring the whole pipeline up to date with up to `n_jobs` stages at a time.

    Threads are shared among them unless OMP_NUM_THREADS says how many each is to have.

    Raises:
        UserError: if a stage fails, after all that do not need it have run.
    """
    n_threads = max(1, len(os.sched_getaffinity(0)) // n_jobs)

    def call(stage: str) -> Done:
        return dvc_runs(stage, n_threads)

    needs = to_run()
    well = True
    if FIRST in needs:  # any edit changes it, and what it writes tells whether that changes anything else
        well = in_order({FIRST: set()}, 1, call, say)
        needs = to_run()
    if not well or not in_order(needs, n_jobs, call, say):
        raise UserError("a stage failed (see above); the same command goes on from what is done")
    say("Data and pipelines are up to date.")
