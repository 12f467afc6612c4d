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
    scores, track = curves.score(sae(), test, [found.choice], found.maximum)
    assert scores.f1[0] == pytest.approx([2 / 3, 2 / 3])
    assert scores.fvu == pytest.approx(0, abs=1e-9)
    assert scores.l0 == 1
    assert (track.row.tolist(), track.feature.tolist()) == ([0, 1, 2, 3], [0, 0, 1, 1])


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


def reported(true: np.ndarray, n_concepts: int, generator: np.random.Generator) -> curves.Half:
    """What a half reports: the true concept with probability 0.7, else any."""
    n = len(true)
    return half(np.where(generator.random(n) < 0.7, true, generator.integers(0, n_concepts, n)).tolist())


@pytest.mark.parametrize("changed", [0.0, 0.3])
def test_excess_churn_is_the_share_that_changed_times_the_agreement(changed: float) -> None:
    generator, n, n_concepts = np.random.default_rng(0), 400, 50
    excess = []
    for _ in range(200):
        true = generator.integers(0, n_concepts, n)
        other = np.where(generator.random(n) < changed, (true + 1) % n_concepts, true)
        before, after = ((reported(at, n_concepts, generator), reported(at, n_concepts, generator))
                         for at in (true, other))  # fmt: skip
        got = curves.churn(before, after, 5)
        assert got is not None
        excess.append(got.observed - got.null)
    # Two halves agree on the same concept with a = 0.7^2 + (1 - 0.7^2) / 50 at other concepts with (1 - 0.7^2) / 50.
    assert np.mean(excess) == pytest.approx(changed * 0.7**2, abs=4 * np.std(excess) / np.sqrt(200))
    assert np.std(excess) / np.sqrt(200) < 0.003
