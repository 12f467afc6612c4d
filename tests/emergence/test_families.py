"""Families of concepts from labels that go together."""

import numpy as np
import pytest

from stages.lib.emergence import families as f


def test_correlation_is_that_of_numpy() -> None:
    labels = np.random.default_rng(0).random((200, 5)) < 0.3
    assert f.label_correlation(labels) == pytest.approx(np.corrcoef(labels.T.astype(float)), abs=1e-9)


def test_copies_are_a_family_and_strangers_are_not() -> None:
    generator = np.random.default_rng(1)
    base = generator.random((4000, 3)) < 0.2
    noise = generator.random((4000, 6)) < 0.02
    labels = np.concatenate([base, base], axis=1) ^ noise
    got = f.families(f.label_correlation(labels), 0.5)
    assert got[:3].tolist() == got[3:].tolist()
    assert len(set(got.tolist())) == 3
    assert f.families(f.label_correlation(labels), 0.99).max() == 5


def test_opposites_are_a_family() -> None:
    on = np.arange(20) % 2 == 0
    assert f.families(f.label_correlation(np.stack([on, ~on], axis=1)), 0.9).tolist() == [0, 0]
    assert f.families(np.ones((1, 1)), 0.5).tolist() == [0]


def test_participation_ratio_of_copies_and_of_strangers() -> None:
    assert f.participation_ratio(np.eye(7)) == pytest.approx(7)
    assert f.participation_ratio(np.ones((7, 7))) == pytest.approx(1)
