"""Spans against masks over the characters."""

import numpy as np
import pytest

from stages.lib.concepts.spans import Spans

NAMES = ["a", "b", "x_depth_1_up", "x_depth_2_up", "first", "second"]
SIZE = 40


@pytest.mark.parametrize("in_order", [True, False])
def test_labels_are_those_of_masks(in_order: bool) -> None:
    generator = np.random.default_rng(0)
    spans, masks = Spans(NAMES, SIZE), {name: np.zeros(SIZE, bool) for name in NAMES}
    depth, choice = np.zeros(SIZE, int), np.full(SIZE, -1)
    for number, (start, end) in enumerate(generator.integers(0, SIZE + 1, (9, 2)).tolist()):
        name = ["a", "b", "unwanted"][number % 3]
        spans.paint(name, start, end)
        if name in masks:
            masks[name][start:end] = True
        spans.deepen("x", start, end)
        depth[start:end] += 1
        spans.choose(("first", "unwanted", "second"), number % 3, start, end)
        choice[start:end] = number % 3
    masks |= {"x_depth_1_up": depth >= 1, "x_depth_2_up": depth >= 2, "first": choice == 0, "second": choice == 2}
    places = generator.integers(0, SIZE, 100)
    places = np.sort(places) if in_order else places
    expected = np.stack([masks[name][places] for name in NAMES], axis=1)
    assert np.array_equal(spans.labels(places), expected)


def test_many_spans_at_once() -> None:
    spans = Spans(["a", "b"], 5)
    spans.paint_all(np.array([0, 1, -1, 1]), np.array([0, 1, 0, 4]), np.array([2, 3, 5, 9]))
    spans.paint_each("a", np.array([3]), np.array([4]))
    spans.paint_each("unwanted", np.array([0]), np.array([5]))
    assert spans.labels(np.arange(5)).T.astype(int).tolist() == [[1, 1, 0, 1, 0], [0, 1, 1, 0, 1]]
