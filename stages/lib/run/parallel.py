"""Work shared among threads: independent calls side by side, and compiled loops that share rows.

The products of a small SAE are too small to be shared among threads: two threads take the time of one. Two SAEs at once
take half of it, since PyTorch, NumPy and compiled loops leave Python's lock to others while they work. What the loops
write does not depend on the number of threads.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from inspect import unwrap
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numba import njit

Item = TypeVar("Item")
Result = TypeVar("Result")


@cache
def _pool(n_workers: int, n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(n_threads,))


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
