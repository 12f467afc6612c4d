"""Synthetic activations: frequencies, correlation and hierarchy against what was asked, and what settings do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm, spearmanr

from stages.lib.io.errors import UserError
from stages.lib.io.params import check
from stages.lib.run import seeds
from synthetic.truth import load_codes, load_truth, save_codes, save_truth
from synthetic.world import (
    MIN_MAGNITUDE,
    SyntheticParams,
    Truth,
    draw_codes,
    draw_truth,
    low_coherence_directions,
    mean_max_cosine,
    mix,
    zipf_frequencies,
)

N = 100_000
SMALL: dict[str, Any] = {
    "d_in": 8,
    "n_features": 40,
    "coherence_steps": 20,
    "l0": 4.0,
    "zipf": 0.8,
    "p_max": 0.3,
    "correlation": {"shared": 0.4, "rank": 3},
    "hierarchy": {"n_parents": 4, "n_children": 3, "p_child": 0.7},
    "magnitudes": [0.5, 1.0],
    "magnitude_sd": 0.25,
    "noise": 0.05,
}


def settings(**changes: Any) -> SyntheticParams:
    return check("generate", SMALL | changes, SyntheticParams)


def drawn(own: SyntheticParams, n: int = N, seed: int = 0) -> tuple[Truth, np.ndarray]:
    truth = draw_truth(own, seed)
    return truth, draw_codes(truth, own, n, seeds.numpy_generator(seed, "synthetic", "test", 0))


def within(share: np.ndarray, p: np.ndarray, n: int | np.ndarray, deviations: float = 4.5) -> np.ndarray:
    """Whether observed shares of n independent tokens are what probabilities p give."""
    return np.abs(share - p) <= deviations * np.sqrt(p * (1 - p) / n)


def test_zipf_frequencies_by_hand() -> None:
    # c = 0.4: min(0.4, 0.3) + 0.4 / 2 + 0.4 / 4 = 0.6
    found = zipf_frequencies(np.array([4, 1, 2]), np.ones(3), zipf=1.0, l0=0.6, p_max=0.3)
    assert found == pytest.approx([0.1, 0.3, 0.2])
    # The first counts twice: 2 c / 2 + c = 0.4
    found = zipf_frequencies(np.array([2, 1]), np.array([2.0, 1.0]), zipf=1.0, l0=0.4, p_max=0.3)
    assert found == pytest.approx([0.1, 0.2])
    assert zipf_frequencies(np.arange(1, 6), np.ones(5), zipf=0.0, l0=1.0, p_max=0.9) == pytest.approx([0.2] * 5)


def test_too_many_features_at_once_are_refused() -> None:
    with pytest.raises(UserError, match=r"generate\.l0 is 8\.6: it must be below 8\.49, what all features at p_max"):
        draw_truth(settings(l0=8.6, hierarchy=None, n_features=283, p_max=0.03), 0)


def test_a_hierarchy_that_needs_more_features_is_refused() -> None:
    with pytest.raises(UserError, match=r"generate\.n_features is 15, but generate\.hierarchy needs 16"):
        draw_truth(settings(n_features=15), 0)


@pytest.mark.parametrize("correlation", [None, SMALL["correlation"]])
@pytest.mark.parametrize("hierarchy", [None, SMALL["hierarchy"]])
def test_features_are_on_as_often_as_asked(correlation: Any, hierarchy: Any) -> None:
    own = settings(correlation=correlation, hierarchy=hierarchy)
    truth, codes = drawn(own)
    assert truth.frequency.sum() == pytest.approx(own.l0)
    assert truth.frequency[truth.roots].max() <= own.p_max
    assert within((codes > 0).mean(0), truth.frequency, N).all()


def test_correlation_is_that_of_the_latent_gaussians() -> None:
    own = settings(correlation={"shared": 0.8, "rank": 2}, hierarchy=None, n_features=6, l0=1.2)
    truth, codes = drawn(own)
    latent = truth.loadings @ truth.loadings.T
    on, found, expected = codes[:, truth.roots] > 0, [], []
    for i in range(6):
        for j in range(i):
            limit = norm.ppf(truth.frequency[truth.roots[[i, j]]])  # P(both above) = P(both below the mirror image)
            both = multivariate_normal(cov=[[1, latent[i, j]], [latent[i, j], 1]]).cdf(limit)
            found.append((on[:, i] & on[:, j]).mean())
            expected.append(float(both))
    assert within(np.array(found), np.array(expected), N).all()
    p = truth.frequency[truth.roots]
    independent = np.array([p[i] * p[j] for i in range(6) for j in range(i)])
    assert not within(np.array(found), independent, N).any()
    assert np.square(truth.loadings).sum(1) == pytest.approx(0.8)


def test_children_imply_their_parent_and_exclude_each_other() -> None:
    truth, codes = drawn(settings())
    on = codes > 0
    parent, child = on[:, truth.parents], on[:, truth.children]
    assert not (child & ~parent[:, :, None]).any()
    assert child.sum(2).max() == 1
    n = parent.sum(0)
    assert within(child.any(2).sum(0) / n, np.full(4, 0.7), n).all()
    assert within(child.sum(0) / n[:, None], np.full((4, 3), 0.7 / 3), n[:, None]).all()
    everyone = np.concatenate([truth.roots, truth.children.ravel()])
    assert sorted(everyone) == list(range(40)) and set(truth.parents) <= set(truth.roots)


def test_order_says_nothing_about_frequency_or_role() -> None:
    own = settings(n_features=512, hierarchy={"n_parents": 32, "n_children": 4, "p_child": 0.7}, l0=8.4)
    truth = draw_truth(own, 0)
    assert abs(spearmanr(np.arange(512), truth.frequency).statistic) < 0.15
    assert abs(spearmanr(truth.frequency, truth.magnitude).statistic) < 0.15
    assert truth.parents.mean() == pytest.approx(255.5, abs=4 * 148 / 32**0.5)
    assert np.diff(truth.parents).min() < 0


def test_strengths_have_the_asked_mean_spread_and_floor() -> None:
    truth, codes = drawn(settings(hierarchy=None))
    assert sorted(truth.magnitude) == [0.5] * 20 + [1.0] * 20
    for feature in np.argsort(-truth.frequency)[:5]:
        strength, mean = codes[codes[:, feature] > 0, feature], truth.magnitude[feature]
        assert strength.mean() == pytest.approx(mean, abs=5 * 0.25 * mean / len(strength) ** 0.5)
        assert strength.std() == pytest.approx(0.25 * mean, rel=0.05)
    _, wide = drawn(settings(magnitude_sd=3.0), 2000)
    assert wide[wide > 0].min() == np.float32(MIN_MAGNITUDE)


def test_activations_are_the_sum_of_directions_and_noise() -> None:
    own = settings(noise=0.0)
    truth, codes = drawn(own, 500)
    generator = np.random.default_rng(0)
    exact = codes.astype(np.float64) @ truth.dictionary.double().numpy()
    assert mix(truth, codes, 0.0, generator).numpy() == pytest.approx(exact, abs=1e-5)
    noise = mix(truth, codes, 0.2, generator).numpy() - exact
    assert noise.std() == pytest.approx(0.2, rel=5 / (2 * noise.size) ** 0.5)


def test_descent_lowers_the_coherence_of_unit_rows() -> None:
    start, end = (low_coherence_directions(512, 64, n, torch.Generator().manual_seed(1)) for n in (0, 200))
    for rows in (start, end):
        assert torch.allclose(rows.norm(dim=1), torch.ones(512), atol=1e-6)
    assert mean_max_cosine(end) < 0.21 < 0.35 < mean_max_cosine(start)
    orthogonal = low_coherence_directions(16, 16, 400, torch.Generator().manual_seed(1))
    assert (orthogonal @ orthogonal.T - torch.eye(16)).abs().max() < 0.05


def outcome(own: SyntheticParams, seed: int = 0) -> torch.Tensor:
    truth = draw_truth(own, seed)
    generator = seeds.numpy_generator(seed, "synthetic", "train", 0)
    return mix(truth, draw_codes(truth, own, 50, generator), own.noise, generator)


CHANGES: dict[str, Any] = {
    "d_in": 9,
    "n_features": 41,
    "coherence_steps": 21,
    "l0": 3.9,
    "zipf": 0.7,
    "p_max": 0.2,
    "magnitudes": [1.0],
    "magnitude_sd": 0.3,
    "noise": 0.04,
    "correlation": {"shared": 0.5, "rank": 3},
    "hierarchy": {"n_parents": 4, "n_children": 2, "p_child": 0.7},
}


@pytest.mark.parametrize("name", sorted(SyntheticParams.model_fields))
def test_every_setting_changes_the_activations(name: str) -> None:
    before = outcome(settings())
    after = outcome(settings(**{name: CHANGES[name]}))
    assert after.shape != before.shape or not torch.equal(after, before)


@pytest.mark.parametrize(
    "change",
    [
        {"correlation": {"shared": 0.4, "rank": 2}},
        {"hierarchy": {"n_parents": 3, "n_children": 3, "p_child": 0.7}},
        {"hierarchy": {"n_parents": 4, "n_children": 3, "p_child": 0.5}},
    ],
)
def test_so_does_every_nested_setting(change: dict[str, Any]) -> None:
    assert not torch.equal(outcome(settings(**change)), outcome(settings()))


def test_seed_says_it_all() -> None:
    assert torch.equal(outcome(settings()), outcome(settings()))
    assert not torch.equal(outcome(settings(), 1), outcome(settings()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p_max": 1.0}, r"generate\.p_max is 1\.0: input should be less than 1"),
        ({"magnitudes": []}, r"generate\.magnitudes is \[\]: list should have at least 1 item"),
        ({"hierarchy": {"n_parents": 4, "n_children": 3, "p_chlid": 0.7}}, r"unknown key generate\.hierarchy\.p_chlid|"
                                                                         r"generate\.hierarchy\.p_child is missing"),
        ({"noise": -0.1}, r"generate\.noise is -0\.1"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**change)


@pytest.mark.parametrize("own", [settings(), settings(hierarchy=None, correlation=None)])
def test_truth_and_codes_come_back_from_the_disk(tmp_path: Path, own: SyntheticParams) -> None:
    truth, codes = drawn(own, 300)
    codes[:2] = 0.0  # tokens without a feature
    codes[-1] = 0.0
    save_truth(tmp_path, truth)
    save_codes(tmp_path, 3, codes)
    read: Callable[[Any], np.ndarray] = np.asarray
    for before, after in zip(truth, load_truth(tmp_path), strict=True):
        assert np.array_equal(read(before), read(after))
    assert np.array_equal(load_codes(tmp_path, 3).numpy(), codes)
