"""Batches: by hand over a ring of rows, each row once an epoch, and a function of (seed, step) alone."""

import numpy as np
import pytest
import torch

from stages.lib.activations.batches import normalised_batches, read_batch, starts
from stages.lib.activations.store import Scaling
from tests.worlds import Numbered


def numbers(store: Numbered, seed: int, step: int, size: int) -> list[int]:
    return [int(row) for row in read_batch(store, seed, step, size)[:, 0]]


def test_a_batch_is_a_run_of_rows_on_a_ring() -> None:
    store = Numbered(10)
    for step in range(3):
        first = int(starts(4, 0, 10, 3)[step])
        assert numbers(store, 4, step, 3) == [first % 10, (first + 1) % 10, (first + 2) % 10]


def test_batches_that_cross_the_end_take_two_reads() -> None:
    store = Numbered(7)
    for step in range(40):
        store.reads.clear()
        rows = numbers(store, 0, step, 3)
        assert len(store.reads) == (2 if rows[0] > 4 else 1)


@pytest.mark.parametrize(("n", "size"), [(12, 4), (10, 3), (5, 5), (7, 1)])
def test_every_row_comes_at_most_once_an_epoch(n: int, size: int) -> None:
    per_epoch = n // size
    for epoch in range(3):
        rows = [i for step in range(per_epoch) for i in numbers(Numbered(n), 1, epoch * per_epoch + step, size)]
        assert len(set(rows)) == len(rows) == per_epoch * size


def test_rows_left_out_differ_between_epochs() -> None:
    seen = {i for step in range(3 * 30) for i in numbers(Numbered(10), 0, step, 3)}
    assert seen == set(range(10))


def test_seed_and_epoch_change_the_order_and_nothing_else_does() -> None:
    assert np.array_equal(starts(0, 0, 1000, 10), starts(0, 0, 1000, 10))
    assert not np.array_equal(starts(0, 0, 1000, 10), starts(1, 0, 1000, 10))
    assert not np.array_equal(starts(0, 0, 1000, 10), starts(0, 1, 1000, 10))


def test_normalises_and_goes_on_anywhere() -> None:
    store, scaling = Numbered(20), Scaling(torch.tensor([1.0, 2.0]), 4.0)
    whole = list(normalised_batches(store, scaling, seed=3, size=6, steps=range(7)))
    assert len(whole) == 7
    raw = read_batch(store, 3, 5, 6)
    assert torch.equal(whole[5], (raw - scaling.mean) / 4)
    rest = list(normalised_batches(store, scaling, seed=3, size=6, steps=range(4, 7)))
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))
