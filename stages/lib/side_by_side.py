"""Independent calls, each in a thread of its own.

The products of a small SAE are too small to be shared among threads: two threads take the time of one. Two SAEs at once
take half of it, since PyTorch, NumPy and compiled loops leave Python's lock to others while they work.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

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
