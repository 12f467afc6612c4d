"""Calls in processes side by side, for Python code, which threads cannot share.

Results come in the order of the items, so they do not depend on the number of processes.
"""

import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, TypeVar

from stages.lib.io.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 3
"""Items for each process that are handed out before the first of them is done, so that no process waits for another."""
GARBAGE = 50_000
"""Objects between two looks for garbage: large trees are made and dropped, which is none, and 700 is the default."""
_call: Callable[[Any], Any] | None = None


def _begin(call: Callable[[Any], Any]) -> None:
    global _call
    _call = call
    gc.freeze()  # what was imported is never garbage, and looking through it takes a tenth of the time
    gc.set_threshold(GARBAGE)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads of its own would stand in the way of the other processes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process that is killed cannot end the others."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(item: Any) -> Any:
    assert _call is not None
    return _call(item)


def in_processes(
    call: Callable[[Item], Result], items: Iterable[Item], n_processes: int
) -> Generator[tuple[Item, Result], None, None]:
    """Each item with `call(item)`, in order; with one process in this one.

    Args:
        call: goes to each process once, so it may be large; it and the items must be what `pickle` takes.
        items: taken as they are needed, some of them ahead of the results.
        n_processes: results are the same for any number.

    Raises:
        UserError: if a process is killed, as a system that runs out of memory does.
    """
    if n_processes == 1:
        yield from ((item, call(item)) for item in items)
        return
    context = get_context("forkserver")  # forking a process that has threads can leave their locks closed for ever
    context.set_forkserver_preload([type(call).__module__])
    pool = ProcessPoolExecutor(n_processes, mp_context=context, initializer=_begin, initargs=(call,))
    waiting: deque[tuple[Item, Future[Result]]] = deque()

    def first() -> tuple[Item, Result]:
        item, future = waiting.popleft()
        return item, future.result()

    try:
        for item in items:
            waiting.append((item, pool.submit(_work, item)))
            if len(waiting) > AHEAD * n_processes:
                yield first()
        while waiting:
            yield first()
    except BrokenProcessPool:
        raise UserError(
            f"one of {n_processes} processes was killed, perhaps because memory ran out: "
            "OMP_NUM_THREADS=1 works with a single one"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
