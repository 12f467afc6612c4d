"""Concept coverage and its chance level against values worked out by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from stages.lib.detectors.coverage import always_on, averages, bases, chance_level, corrected


def test_always_on_by_hand() -> None:
    assert always_on(np.array([0.4, 1.0]))[0] == pytest.approx(0.8 / 1.4)


def test_always_on_is_the_f1_of_always_firing() -> None:
    y = np.arange(100) < 13
    assert always_on(np.array([0.13]))[0] == pytest.approx(f1_score(y, np.ones(100)))


def test_the_chance_level_is_the_larger_of_the_two() -> None:
    null = np.stack([np.linspace(0, 1, 101), np.zeros(101)], 1)
    assert chance_level(np.array([0.1, 0.1]), null) == pytest.approx([0.99, 0.2 / 1.1])


def test_correction_by_hand() -> None:
    score, chance = np.array([1.0, 0.2, 0.6, 0.1, 1.0]), np.array([0.2, 0.2, 0.2, 0.2, 1.0])
    assert corrected(score, chance) == pytest.approx([1, 0, 0.5, -0.125, 0])


def test_averages_by_hand() -> None:
    f1, token, f0 = np.array([0.6, 0.1, 0.8]), np.array([0.2, 0.5, 0.6]), np.array([0.2, 0.2, 0.2])
    found = averages(f1, token, f0, np.array([True, False, True]))
    assert found["coverage"] == pytest.approx(0.5)
    assert found["cc_coverage"] == pytest.approx((0.5 + 0 + 0.75) / 3)
    assert found["cc_coverage_unfloored"] == pytest.approx((0.5 - 0.125 + 0.75) / 3)
    assert found["contextual_gain"] == pytest.approx((0.4 + 0 + 0.2) / 3)
    assert found["coverage_contextual"] == pytest.approx(0.7)
    assert found["cc_coverage_contextual"] == pytest.approx((0.5 + 0.5) / 2)


def test_without_contextual_concepts_there_are_no_contextual_averages() -> None:
    found = averages(np.ones(2), np.zeros(2), np.zeros(2), np.zeros(2, bool))
    assert not any(name.endswith("_contextual") for name in found)


def test_bases_have_both_signs_and_the_largest_variance() -> None:
    x = torch.randn(500, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.1, 3.0, 0.1]) + 2
    found = bases(x, 4)
    z = found["residual"].encode(x)
    assert z.shape == (500, 4) and (z >= 0).all()
    assert torch.allclose(z[:, :2] - z[:, 2:], (x - x.mean(0))[:, [1, 3]], atol=1e-4)
    projected = found["pca"].encode(x)
    assert projected[:, :2].square().sum() + projected[:, 2:].square().sum() >= z.square().sum()
    assert bases(x, 99)["pca"].encode(x).shape == (500, 10)
