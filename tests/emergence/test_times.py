"""Emergence times, Kendall's W and Kaplan-Meier curves, by hand and against scipy."""

import numpy as np
import pytest
from scipy import stats

from stages.lib.emergence import times as e

nan = float("nan")


def columns(*curves: list[float]) -> np.ndarray:
    return np.array(curves).T


def test_half_rise_is_persistent() -> None:
    curves = columns(
        [0.0, 0.3, 0.1, 0.2, 0.4],  # half of 0.4 is first reached at 1, but held only from 3
        [0.0, 0.0, 0.0, 0.0, 0.4],
        [0.4, 0.4, 0.4, 0.4, 0.4],  # there from the start
        [0.0, 0.9, 0.9, 0.9, 0.19],  # below the minimum at the end: never
    )
    np.testing.assert_array_equal(e.half_rise(curves, 0.2), [3, 4, 0, nan])
    np.testing.assert_array_equal(e.first_passage(curves, 0.2), [1, 4, 0, nan])


def test_censored_concepts_share_the_last_place() -> None:
    assert e.mean_rank(np.array([[5.0, nan, 2.0, nan], [1.0, 3.0, 2.0, nan]])).tolist() == [1.5, 3.25, 1.5, 3.75]


def test_the_minimum_itself_emerges() -> None:
    np.testing.assert_array_equal(e.half_rise(columns([0.0, 0.2]), 0.2), [1])


def test_sharpness_recovers_a_logistic_rise() -> None:
    log_step = np.log(np.geomspace(1, 1000, 16))
    beta = 6.0
    curve = 0.1 + 0.5 / (1 + np.exp(beta * (np.log(50) - log_step)))
    fit = e.sharpness(log_step, curve)
    assert fit is not None
    assert fit.width == pytest.approx(2 * np.log10(9) / beta, rel=0.1)
    assert fit.delta_bic > 10


def test_a_straight_rise_is_not_sharp() -> None:
    log_step = np.log(np.geomspace(1, 1000, 16))
    noise = np.random.default_rng(0).normal(0, 0.02, 16)
    fit = e.sharpness(log_step, 0.05 * log_step + noise)
    assert fit is not None
    assert fit.delta_bic < 10


def test_flat_or_short_curves_have_no_sharpness() -> None:
    assert e.sharpness(np.arange(8.0), np.full(8, 0.3)) is None
    assert e.sharpness(np.arange(3.0), np.arange(3.0)) is None


def test_kendall_w_by_hand() -> None:
    # Ranks 1 2 3 and 1 3 2: sums 2 5 5, mean 4, S = 6; W = 12 * 6 / (4 * 24) = 0.75.
    got = e.kendall_w(np.array([[10.0, 20, 30], [1, 3, 2]]), 200, np.random.default_rng(0))
    assert got is not None
    assert got.w == pytest.approx(0.75)
    # Of the 36 pairs of orders, the sums are as far apart in (6 equal + 12 one neighbour apart) / 36 = half.
    assert got.p == pytest.approx(0.5, abs=0.1)


def test_kendall_w_with_ties_is_one_for_equal_rankings() -> None:
    row = [1.0, 1, 2, 3, 3, 3]
    got = e.kendall_w(np.array([row, row, row]), 500, np.random.default_rng(0))
    assert got is not None
    assert got.w == pytest.approx(1)
    assert got.p < 0.02


def test_kendall_w_is_the_friedman_statistic() -> None:
    times = np.random.default_rng(1).integers(0, 5, (4, 9)).astype(float)
    got = e.kendall_w(times, 10, np.random.default_rng(0))
    assert got is not None
    assert got.w == pytest.approx(stats.friedmanchisquare(*times.T).statistic / (4 * 8))


def test_kendall_w_needs_two_seeds_three_concepts_and_a_difference() -> None:
    generator = np.random.default_rng(0)
    assert e.kendall_w(np.ones((1, 5)), 10, generator) is None
    assert e.kendall_w(np.ones((3, 2)), 10, generator) is None
    assert e.kendall_w(np.ones((3, 5)), 10, generator) is None


def test_kaplan_meier_by_hand() -> None:
    # At 1: 1 of 5; the case censored at 2 leaves; at 3: 1 of 3; at 4: 1 of 2; the last is censored.
    times, observed = np.array([1.0, 2, 3, 4, 5]), np.array([True, False, True, True, False])
    curve = e.kaplan_meier(times, observed)
    assert curve.time.tolist() == [1, 3, 4]
    assert curve.surviving == pytest.approx([4 / 5, 4 / 5 * 2 / 3, 4 / 5 * 2 / 3 * 1 / 2])
    assert curve.median() == 4


def test_kaplan_meier_agrees_with_scipy() -> None:
    generator = np.random.default_rng(2)
    times, observed = generator.integers(1, 9, 40).astype(float), generator.random(40) < 0.6
    curve = e.kaplan_meier(times, observed)
    reference = stats.ecdf(stats.CensoredData(uncensored=times[observed], right=times[~observed])).sf
    assert curve.surviving == pytest.approx(reference.evaluate(curve.time))


def test_without_events_all_survive() -> None:
    curve = e.kaplan_meier(np.array([4.0, 4]), np.array([False, False]))
    assert curve.median() is None
    assert len(curve.time) == 0
