"""Work shared among threads: every item once, chains in their own order, errors passed on."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from stages.lib.run import parallel
from stages.lib.run.parallel import in_turns, side_by_side


@pytest.fixture(params=[1, 2, 3])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def chain(name: str, n: int, log: list[tuple[str, int]]) -> Iterator[None]:
    for item in range(n):
        log.append((name, item))
        yield


def test_chains_are_taken_to_their_ends_in_order(n_threads: int) -> None:
    log: list[tuple[str, int]] = []
    in_turns([chain("a", 20, log), chain("b", 3, log), chain("c", 11, log), chain("d", 0, log)])
    for name, n in (("a", 20), ("b", 3), ("c", 11), ("d", 0)):
        assert [item for one, item in log if one == name] == list(range(n))
    assert n_threads > 1 or log == sorted(log)


def test_a_free_worker_takes_the_chain_that_is_furthest_behind() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    log: list[tuple[str, int]] = []
    ended = threading.Event()

    def slow() -> Iterator[None]:
        assert ended.wait(60)
        yield

    def last() -> Iterator[None]:
        yield from chain("b", 4, log)
        ended.set()

    in_turns([slow(), chain("a", 4, log), last()])
    torch.set_num_threads(before)
    assert log == [(name, item) for item in range(4) for name in "ab"]


def test_threads_of_a_worker_are_its_share(n_threads: int) -> None:
    found: list[int] = []

    def one() -> Iterator[None]:
        found.append(torch.get_num_threads())
        yield

    in_turns([one(), one()])
    assert found == [1, 1]


@pytest.mark.parametrize("n", [1, 2])
def test_an_error_of_a_chain_is_raised_after_the_others_have_ended(n: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    log: list[tuple[str, int]] = []

    def failing() -> Iterator[None]:
        yield
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        in_turns([chain("a", 5, log), failing()])
    torch.set_num_threads(before)
    assert log == [("a", item) for item in range(5)]


def test_calls_side_by_side_come_back_in_order(n_threads: int) -> None:
    assert side_by_side(lambda item: item**2, range(7)) == [item**2 for item in range(7)]
    names = side_by_side(lambda _: threading.current_thread().name, range(4), "meta")
    assert set(names) == {threading.current_thread().name}  # another device takes them one after another


def test_rows_are_shared_without_gaps(n_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "PARALLEL_FROM", 0)
    out = np.zeros(10, np.int64)

    def kernel(z: np.ndarray, step: int, start: int, stop: int, found: np.ndarray) -> None:
        found[start:stop] += step

    parallel.over_rows(kernel, np.zeros((10, 2)), 3, out)
    assert out.tolist() == [3] * 10
