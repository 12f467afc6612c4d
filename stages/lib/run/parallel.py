"""Work shared among threads: independent calls or chains of them side by side, and compiled loops that share rows.

The products of a small SAE are too small to be shared among threads: two threads take the time of one. Two SAEs at once
take half of it, since PyTorch, NumPy and compiled loops leave Python's lock to others while they work. What the loops
write does not depend on the number of threads.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from inspect import unwrap
from itertools import pairwise
from queue import Empty, PriorityQueue
from typing import Any, TypeVar

import numpy as np
import torch
from numba import njit

Item = TypeVar("Item")
Result = TypeVar("Result")


def use_threads(n: int) -> None:
    """Let PyTorch use so many threads for what it is asked in this one."""
    torch.get_num_threads()  # the first time it is asked, it takes the number of another thread over
    torch.set_num_threads(n)


@cache
def _pool(n_workers: int, n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_workers, initializer=use_threads, initargs=(n_threads,))


def side_by_side(call: Callable[[Item], Result], items: Iterable[Item], on: torch.device | str = "cpu") -> list[Result]:
    """`[call(item) for item in items]`; on a CPU side by side, sharing the processor's threads.

    There are up to twice as many workers as threads, so that few items of different length keep all threads busy.

    Args:
        call: must not change what another call reads.
        items: their results come back in this order.
        on: the device on which the calls work; others than a CPU take them one after another.
    """
    todo, n_threads = [*items], torch.get_num_threads()
    n_workers = min(len(todo), 2 * n_threads)
    if torch.device(on).type != "cpu" or n_workers < 2 or n_threads == 1:
        return [call(item) for item in todo]
    return [*_pool(n_workers, max(1, n_threads // n_workers)).map(call, todo)]


def in_turns(chains: Sequence[Iterator[object]], on: torch.device | str = "cpu") -> None:
    """Go to the end of iterators that do some work before each item; on a CPU side by side, each in its own order.

    There are as many workers as threads, and one that is free takes the next item of the iterator of which the fewest
    were taken. So they advance evenly and end together: three on two cores take one and a half times as long as one.

    Args:
        chains: must not change what another one reads.
        on: the device on which they work; others than a CPU take them one after another.
    """
    n_threads = torch.get_num_threads()
    n_workers = min(len(chains), n_threads)
    if torch.device(on).type != "cpu" or n_workers < 2:
        for chain in chains:
            for _ in chain:
                pass
        return
    behind: PriorityQueue[tuple[int, int]] = PriorityQueue()
    for place in range(len(chains)):
        behind.put((0, place))

    def work() -> None:
        while True:
            try:
                n_taken, place = behind.get_nowait()
            except Empty:  # what is left is in the hands of the other workers
                return
            try:
                next(chains[place])
            except StopIteration:
                continue
            behind.put((n_taken + 1, place))

    workers = [_pool(n_workers, n_threads // n_workers).submit(work) for _ in range(n_workers)]
    wait(workers)
    for worker in workers:
        worker.result()


PARALLEL_FROM = 2**17
"""Numbers to search from which a second thread pays."""
Kernel = Callable[..., None]
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """The function as machine code, kept on disk; sums may be reordered, which puts them on the vector units."""
    # Type checks that tests wrap around every function cannot be compiled.
    kernel: Function = njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})(unwrap(function))
    return kernel


@cache
def _row_pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads)


def over_rows(
    kernel: Kernel, z: np.ndarray, argument: Any, *rest: np.ndarray, n_rows: int | None = None, work: int | None = None
) -> None:
    """Call `kernel(z, argument, start, stop, *rest)` so that every row is in one call; threads share the rows.

    There are as many rows as in `z`, and as much work as it has numbers, unless the caller says otherwise.
    """
    n_rows = len(z) if n_rows is None else n_rows
    n_threads = torch.get_num_threads() if (z.size if work is None else work) >= PARALLEL_FROM else 1
    if n_threads == 1:
        kernel(z, argument, 0, n_rows, *rest)
        return
    edges = [n_rows * part // n_threads for part in range(n_threads + 1)]
    calls = [_row_pool(n_threads).submit(kernel, z, argument, *part, *rest) for part in pairwise(edges)]
    for call in calls:
        call.result()
