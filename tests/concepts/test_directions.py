"""Directions of concepts, worked out by hand."""

import torch

from stages.lib.concepts.directions import mean_differences


def test_mean_difference_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    labels = torch.tensor([[True, False], [True, False], [False, False]]).numpy()
    found = mean_differences([(x[:1], labels[:1]), (x[1:], labels[1:])])
    assert found.tolist() == [[2.0, -4.0], [0.0, 0.0]]
