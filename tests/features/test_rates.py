"""The distribution of firing rates and which SAEs they are compared with, by hand."""

import numpy as np
import pytest

from stages.lib.features.rates import EDGES, Rung, histogram, neighbours, standard_error
from stages.lib.stats.reliability import icc


def test_the_histogram_counts_every_living_feature_in_range() -> None:
    found = histogram(np.array([0.0, 1e-3, 1.05e-3, 0.5, 1e-7]))
    assert found["n_features"].sum() == 3
    assert len(found) == len(EDGES) - 1
    assert found.loc[np.isclose(found["log10_rate"], -3), "n_features"].item() == 2


def test_the_next_seed_and_the_next_level_are_neighbours() -> None:
    keys = [(level, seed) for level in (0, 1) for seed in (3, 5)]
    assert neighbours((0, 3), keys) == {"cross_seed": (0, 5), "cross_level": (1, 3)}
    # The last seed is followed by the first; there is no level above the last.
    assert neighbours((1, 5), keys) == {"cross_seed": (1, 3)}
    assert neighbours((0, 3), [(0, 3)]) == {}


def test_the_standard_error_by_hand() -> None:
    # 100 against 1000 of 1000 tokens is one dex, 100 against 100 none; 5 firings are too few.
    left, right = np.array([100, 100, 5]), np.array([1000, 100, 500])
    assert standard_error(left, right, (1000, 1000), 30) == pytest.approx(0.5)
    # Twice the tokens for the same firings: half the rate.
    assert standard_error(left[1:2], right[1:2], (1000, 2000), 30) == pytest.approx(np.log10(2) / 2**0.5)


def test_the_standard_error_is_that_of_one_of_two_noisy_measurements() -> None:
    generator = np.random.default_rng(0)
    truth = generator.uniform(-3, -1, 4000)
    left, right = (np.round(10 ** (truth + 0.1 * generator.normal(size=4000) + 6)).astype(int) for _ in range(2))
    assert standard_error(left, right, (10**6, 10**6), 30) == pytest.approx(0.1, rel=0.05)


def test_a_wider_spread_raises_the_icc_and_not_the_standard_error() -> None:
    generator = np.random.default_rng(0)
    found = []
    for width in (0.2, 1.0):
        log_rate = width * generator.normal(size=2000) - 2
        pair = [np.round(10 ** (log_rate + 0.1 * generator.normal(size=2000) + 7)).astype(int) for _ in range(2)]
        found.append(Rung(pair[0], pair[1], (10**7, 10**7)).numbers(30))
        assert found[-1]["icc"][0] == pytest.approx(icc(np.log10(np.stack(pair, 1) / 10**7)))
    assert found[1]["icc"][0] - found[0]["icc"][0] > 0.1
    assert found[1]["sem"][0] == pytest.approx(found[0]["sem"][0], rel=0.1)


def test_a_rung_without_features_has_no_numbers() -> None:
    assert Rung(np.array([3]), np.array([4]), (10, 10)).numbers(30) == {}
