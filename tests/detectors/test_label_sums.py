"""The compiled sums against plain NumPy, on one thread and on two."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from stages.lib.detectors.label_sums import (
    Members,
    add_label_sums,
    best_f1,
    detector_counts,
    in_words,
    mark_firing,
    members,
)
from stages.lib.run import parallel

N, D_SAE, N_LEVELS = 700, 6, 10


@pytest.fixture(params=[1, 2])
def n_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """How many threads share the work, however little it is."""
    before = torch.get_num_threads()
    monkeypatch.setattr(parallel, "PARALLEL_FROM", 0)
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def pairs(seed: int = 0, n_keys: int = D_SAE) -> tuple[np.ndarray, np.ndarray]:
    """Rows and keys; the last key has none, the first one has every row."""
    own = np.random.default_rng(seed).random((N, n_keys)) < 0.2
    own[:, 0], own[:, -1] = True, False
    row, key = own.nonzero()
    return row, key


@pytest.mark.parametrize("n_concepts", [1, 8, 63, 64, 65, 209])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_sums_of_labels(n_concepts: int, dtype: type, n_threads: int) -> None:
    row, key = pairs()
    labels = np.random.default_rng(1).random((N, n_concepts)) < 0.9  # more than 255 of the rows of the first key
    sums = np.ones((D_SAE, n_concepts), dtype)
    add_label_sums(sums, members(row, key, D_SAE), in_words(labels))
    expected = np.ones((D_SAE, n_concepts), np.int64)
    np.add.at(expected, key, labels[row])
    assert np.array_equal(sums, expected), n_threads
    assert sums.dtype == dtype


def test_sums_of_nothing(n_threads: int) -> None:
    nothing = np.empty(0, np.int32)
    sums = np.zeros((3, 5), np.int32)
    add_label_sums(sums, members(nothing, nothing, 3), in_words(np.ones((4, 5), bool)))
    assert not sums.any(), n_threads


def test_members_keep_the_order_of_the_rows() -> None:
    found = members(np.array([0, 0, 1, 5]), np.array([2, 0, 2, 0]), 4)
    assert found.first.tolist() == [0, 2, 2, 4, 4]
    assert found.row.tolist() == [0, 5, 0, 1]


def test_copies_stand_below_each_other() -> None:
    labels = np.random.default_rng(0).random((3, 70)) < 0.5
    words = in_words(labels, copies=2)
    assert np.array_equal(words.labels(), np.concatenate([labels, labels])) and len(words) == 6
    assert np.array_equal(words.rows(slice(1, 4)).labels(), words.labels()[1:4])


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_the_best_f1_is_the_first_of_the_largest(dtype: type) -> None:
    generator = np.random.default_rng(0)
    fired = generator.integers(0, 3, (D_SAE, N_LEVELS))
    fired[3] = fired[2]
    both = np.minimum(generator.integers(0, 2, (D_SAE, N_LEVELS, 40)), fired[:, :, None]).astype(dtype)
    both[3] = both[2]  # equal features, and with so small numbers equal levels
    positives = generator.integers(0, 30, 40)
    feature, level, score = best_f1(both, fired, positives)
    at_least, n_fired = (counts[:, ::-1].cumsum(1)[:, ::-1] for counts in (both, fired))
    kind = np.float32 if dtype == np.int32 else np.float64
    below = np.maximum(n_fired[:, :, None] + positives, 1).astype(kind)
    expected = (2 * at_least.astype(kind) / below).reshape(-1, 40)
    assert np.array_equal(feature * N_LEVELS + level, expected.argmax(0))
    assert np.array_equal(score, expected.max(0))


def test_counts_and_marks_of_detectors() -> None:
    generator = np.random.default_rng(2)
    row, key = pairs(3)
    levels = generator.integers(0, N_LEVELS, len(row)).astype(np.uint8)
    labels = generator.random((N, 20)) < 0.3
    feature, least = generator.integers(0, D_SAE, 20), generator.integers(0, N_LEVELS, 20)
    feature[:2] = D_SAE - 1  # never fires
    reached = np.full((N, D_SAE), -1)
    reached[row, key] = levels
    expected = reached[:, feature] >= least
    fires = np.zeros((N, 20), bool)
    mark_firing(fires, (row, key, levels), members(np.arange(20), feature, D_SAE), least)
    assert np.array_equal(fires, expected)
    order = members(np.arange(len(row)), key, D_SAE)
    keys = Members(order.first, row.astype(np.int32)[order.row])
    both, fired = detector_counts(feature, least, keys, levels[order.row], in_words(labels))
    assert np.array_equal(both, (expected & labels).sum(0)) and np.array_equal(fired, expected.sum(0))
