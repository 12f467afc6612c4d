"""Concept coverage and its chance level against values worked out by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from stages.lib.detectors.coverage import always_on, at_places, averages, bases, chance_level, corrected
from stages.lib.detectors.firings import firings
from stages.lib.detectors.null import concept_null, offsets, record
from tests.toy_concepts import runs


def test_always_on_by_hand() -> None:
    assert always_on(np.array([0.4, 1.0]))[0] == pytest.approx(0.8 / 1.4)


def test_always_on_is_the_f1_of_always_firing() -> None:
    y = np.arange(100) < 13
    assert always_on(np.array([0.13]))[0] == pytest.approx(f1_score(y, np.ones(100)))


def test_the_chance_level_by_hand() -> None:
    null = np.stack([np.linspace(0, 1, 101), np.zeros(101)], 1)
    # The 101st of 101, since one more is above the 101st with a probability of 1/102, above the 100th of 2/102.
    assert chance_level(np.array([0.1, 0.1]), null) == pytest.approx([1, 0.2 / 1.1])
    assert chance_level(np.array([0.1]), null[:99, :1]) == pytest.approx([0.98])
    assert chance_level(np.array([0.01]), null[:20, :1]) == pytest.approx([0.19])
    assert chance_level(np.array([0.01]), np.arange(299)[:, None] / 1000) == pytest.approx([0.296])


@pytest.mark.parametrize(("n_shifts", "passed"), [(99, 0.01), (199, 0.01), (20, 1 / 21)])
def test_one_in_a_hundred_passes_the_chance_level(n_shifts: int, passed: float) -> None:
    """Heavy-tailed and skewed draws: the order of exchangeable numbers does not depend on how they are distributed."""
    generator, n = np.random.default_rng(0), 20_000
    null = generator.exponential(size=(n_shifts, n)) ** 2
    above = (generator.exponential(size=n) ** 2 > chance_level(np.zeros(n), null)).mean()
    assert above == pytest.approx(passed, abs=4 * (passed / n) ** 0.5)
    interpolated = (generator.exponential(size=n) ** 2 > np.percentile(null, 99, axis=0)).mean()
    assert interpolated > passed


def test_bursty_labels_pass_the_chance_level_as_often_as_promised() -> None:
    """The whole selection on tracks in runs that are independent by construction."""
    above, n_concepts = [], 24
    for repeat in range(10):
        generator = np.random.default_rng(repeat)
        acts, labels = (
            [np.stack([runs(3000, 0.08, 15, generator) for _ in range(k)], 1) for _ in range(2)]
            for k in (12, n_concepts)
        )
        tracks = [
            record(torch.Tensor.clone, torch.from_numpy(a.astype(np.float32)), np.ones(12, np.float32), y)
            for a, y in zip(acts, labels, strict=True)
        ]
        by = [np.concatenate([[0], offsets(3000, 15.0, 99, generator)]) for _ in range(2)]
        found = concept_null(*tracks, *by)
        above.append(found[0] > chance_level(np.zeros(n_concepts), found[1:]))
    assert np.mean(above) < 0.035  # 0.01 is expected; 240 draws have a standard error of 0.006, more as they cluster


def test_correction_by_hand() -> None:
    score, chance = np.array([1.0, 0.2, 0.6, 0.1, 1.0]), np.array([0.2, 0.2, 0.2, 0.2, 1.0])
    assert corrected(score, chance) == pytest.approx([1, 0, 0.5, -0.125, 0])


LOOKUPS = {"token": np.array([0.2, 0.5, 0.6]), "bigram": np.array([0.4, 0.6, 0.5]), "trigram": np.array([0.7, 0, 0])}


def test_averages_by_hand() -> None:
    f1, f0 = np.array([0.6, 0.1, 0.8]), np.array([0.2, 0.2, 0.2])
    found = averages(f1, f0, LOOKUPS, np.array([True, False, True]))
    expected = {
        "coverage": 0.5,
        "cc_coverage": (0.5 + 0 + 0.75) / 3,
        "cc_coverage_unfloored": (0.5 - 0.125 + 0.75) / 3,
        "n_above_chance": 2,
        "gain_over_token": (0.4 + 0 + 0.2) / 3,
        "coverage_contextual": 0.7,
        "cc_beyond_token": (0.5 + 0.5) / 2,
        "cc_beyond_token_unfloored": (0.5 + 0.5) / 2,
        "n_beyond_token": 2,
        "cc_beyond_ngrams": (0 + 0.5) / 2,
        "cc_beyond_ngrams_unfloored": (-1 / 3 + 0.5) / 2,
        "n_beyond_ngrams": 1,
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)


def test_averages_of_resamples_are_those_of_each() -> None:
    generator = np.random.default_rng(0)
    f1, f0, mask = generator.random((4, 3)), generator.random(3) / 2, np.array([True, False, True])
    lookups = {name: generator.random((4, 3)) for name in LOOKUPS}
    found = averages(f1, f0, lookups, mask)
    for i in range(4):
        one = averages(f1[i], f0, {name: value[i] for name, value in lookups.items()}, mask)
        one = {name: float(value) for name, value in one.items()}
        assert {name: float(value[i]) for name, value in found.items()} == pytest.approx(one)


def test_without_contextual_concepts_there_are_no_contextual_averages() -> None:
    found = averages(np.ones(3), np.zeros(3), LOOKUPS, np.zeros(3, bool))
    assert not any(name.endswith("_contextual") or "beyond" in name for name in found)


def test_bases_have_both_signs_and_the_largest_variance() -> None:
    x = torch.randn(500, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.1, 3.0, 0.1]) + 2
    found = bases(x, 4)
    z = found["residual"].encode(x)
    assert z.shape == (500, 4) and (z >= 0).all()
    assert torch.allclose(z[:, :2] - z[:, 2:], (x - x.mean(0))[:, [1, 3]], atol=1e-4)
    projected = found["pca"].encode(x)
    assert projected[:, :2].square().sum() + projected[:, 2:].square().sum() >= z.square().sum()
    assert bases(x, 99)["pca"].encode(x).shape == (500, 10)


def test_firings_at_places_are_those_of_these_rows() -> None:
    acts = torch.from_numpy(np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)).clamp_min(0)
    for places in (np.arange(9), np.array([1, 2, 7]), np.array([], np.int64)):
        expected = firings(acts[places])
        found = at_places(firings(acts), places, 9, 5)
        assert np.array_equal(found.row, expected.row + 5)
        assert np.array_equal(found.feature, expected.feature)
        assert np.array_equal(found.activation, expected.activation)
