"""Two parts of the page at once: drawing is Python code, which threads cannot share.

A forked process starts in a moment with all that was imported and read, where a fresh one (`stages.lib.run.pool`) would
spend on its imports what it saves.
"""

import os
import threading
from collections.abc import Callable
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection
from typing import TypeVar

One = TypeVar("One")
Other = TypeVar("Other")
WATCHER = "watcher"
"""The name of that thread."""


def beside(one: Callable[[], One], other: Callable[[], Other]) -> tuple[One, Other]:
    """`(one(), other())`, `one` in a process of its own where that is safe and there are two cores.

    It is not where other threads run: what they have locked would stay locked for ever in the forked process. (A thread
    that only waits for the end of who asked for this process, `stages.lib.run.fork_server`, locks nothing.) That may
    work with NumPy, pandas and Matplotlib, not with PyTorch's threads, and its result must be what `pickle` takes. What
    fails there is done again here, and fails with its own message.
    """
    if "fork" not in get_all_start_methods() or _n_threads() > 1 or _n_cores() < 2:
        return one(), other()
    receiver, sender = get_context("fork").Pipe(duplex=False)
    process = get_context("fork").Process(target=_send, args=(one, sender), daemon=True)
    process.start()
    sender.close()
    try:
        here = other()
        try:
            there: One = receiver.recv()
        except EOFError:
            there = one()
        return there, here
    finally:
        process.terminate()
        process.join()


def _send(call: Callable[[], One], sender: Connection) -> None:
    try:
        sender.send(call())
    finally:
        os._exit(0)  # without the tidying up that is for the first process to do


def _n_threads() -> int:
    """Of this process, without the one that only waits."""
    return len([thread for thread in threading.enumerate() if thread.name != WATCHER])


def _n_cores() -> int:
    """Of this process, or as many as `OMP_NUM_THREADS` leaves it."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, int(os.environ.get("OMP_NUM_THREADS") or available))
