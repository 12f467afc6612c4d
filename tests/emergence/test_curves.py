"""Curves of concepts over checkpoints, worked out by hand."""

import numpy as np
import pytest
import torch

from stages.lib.emergence import curves as curves
from stages.lib.sae.saved import SAE


def sae(d: int = 3) -> SAE:
    """Features are the coordinates."""
    eye, zeros = torch.eye(d), torch.zeros(d)
    return SAE("standard", eye, zeros, eye, zeros, None, None, {})


def sample(x: list[list[float]], labels: list[list[int]], n_first: int) -> curves.Sample:
    return curves.make_sample(torch.tensor(x), np.array(labels, bool), n_first)


def test_select_and_score_by_hand() -> None:
    x = [[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0.5, 0]]
    found = curves.select(sae(), sample(x, [[1, 0], [0, 1], [1, 0], [0, 0]], 2))
    # Feature 0 is concept 0; feature 1 is concept 1 above half of its maximum.
    assert found.choice.feature.tolist() == [0, 1]
    assert found.choice.level.tolist() == [0, 5]
    assert found.halves[0].n_firings.tolist() == [1, 1, 0]
    assert found.halves[1].mean.tolist() == [1, 0.5, 0]
    assert found.halves[0].concept[:2].tolist() == [0, 1]
    test = sample([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0.2, 0]], [[1, 0], [0, 0], [0, 1], [0, 1]], 2)
    scores = curves.score(sae(), test, [found.choice], found.maximum)
    assert scores.f1[0] == pytest.approx([2 / 3, 2 / 3])
    assert scores.fvu == pytest.approx(0, abs=1e-9)
    assert scores.l0 == 1


def half(concept: list[int], n_firings: int = 9) -> curves.Half:
    n = len(concept)
    return curves.Half(np.full(n, n_firings), np.ones(n), np.ones(n), np.array(concept), np.ones(n))


def test_churn_by_hand() -> None:
    before, after = (half([0, 1, 2, 3]), half([0, 1, 2, 0])), (half([0, 2, 2, 3]), half([0, 2, 2, 3]))
    got = curves.churn(before, after, 5)
    assert got is not None
    # First to second half: feature 1 changes; second to first: features 1 and 3. Within: feature 3 before, none after.
    assert got.observed == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert got.null == pytest.approx((1 / 4 + 0) / 2)
    assert got.n == 4
    assert curves.churn(before, after, 10) is None
