"""Intervals against values worked out by hand, scipy, and their own coverage."""

import numpy as np
import pytest
from scipy import stats

from stages.lib.stats.intervals import (
    Interval,
    block_sums,
    estimate,
    holm,
    paired,
    percentile_interval,
    possible,
    ratio_interval,
    resample_counts,
    t_interval,
)


def test_every_resample_draws_as_many_blocks_as_there_are() -> None:
    counts = resample_counts(7, 50, np.random.default_rng(0))
    assert counts.shape == (50, 7)
    assert (counts.sum(1) == 7).all() and (counts >= 0).all()
    assert len(np.unique(counts, axis=0)) > 40


def test_resamples_are_a_function_of_the_generator() -> None:
    same = [resample_counts(5, 9, np.random.default_rng(3)) for _ in range(2)]
    assert np.array_equal(*same)


def test_counts_have_the_mean_and_variance_of_the_multinomial() -> None:
    counts = resample_counts(4, 20_000, np.random.default_rng(1))
    assert counts.mean(0) == pytest.approx(np.ones(4), abs=0.03)
    assert counts.var(0) == pytest.approx(np.full(4, 0.75), abs=0.03)


def test_block_sums_by_hand() -> None:
    sums = block_sums(np.array([1.0, 2.0, 4.0, 8.0]), np.array([0, 2, 2, 0]), 4)
    assert sums.tolist() == [9.0, 0.0, 6.0, 0.0]


def test_ratio_interval_is_of_ratios_of_sums() -> None:
    # Two blocks, 1/1 and 0/3: the four resamples (2,0), (1,1), (1,1), (0,2) have the ratios 1, 1/4, 1/4, 0.
    counts = np.array([[2, 0], [1, 1], [1, 1], [0, 2]])
    interval = ratio_interval(np.array([1.0, 0.0]), np.array([1.0, 3.0]), counts, confidence=1 / 3)
    assert interval is not None
    # The outer thirds of [0, 1/4, 1/4, 1] are its second and third values.
    assert interval == pytest.approx((0.25, 0.25))
    assert ratio_interval(np.array([1.0, 0.0]), np.array([1.0, 3.0]), counts, confidence=1.0) == Interval(0.0, 1.0)


def test_resamples_without_denominator_are_left_out() -> None:
    counts = np.array([[2, 0], [0, 2]])
    assert ratio_interval(np.array([3.0, 0.0]), np.array([1.0, 0.0]), counts) == Interval(3.0, 3.0)
    assert ratio_interval(np.array([3.0, 0.0]), np.array([0.0, 0.0]), counts) is None


def test_blocks_that_agree_leave_no_width() -> None:
    counts = resample_counts(6, 100, np.random.default_rng(0))
    interval = ratio_interval(np.arange(1.0, 7.0), 2 * np.arange(1.0, 7.0), counts)
    assert interval == pytest.approx((0.5, 0.5))


def test_resampling_blocks_is_wider_than_resampling_tokens() -> None:
    # 20 blocks of 50 equal tokens each: the effective number of observations is 20, not 1000.
    generator = np.random.default_rng(0)
    block_values = generator.normal(size=20)
    tokens = np.repeat(block_values, 50)
    blocks = np.repeat(np.arange(20), 50)
    by_block = ratio_interval(block_sums(tokens, blocks, 20), np.full(20, 50.0), resample_counts(20, 500, generator))
    by_token = ratio_interval(tokens, np.ones(1000), resample_counts(1000, 500, generator))
    assert by_block is not None and by_token is not None
    ratio = (by_block.high - by_block.low) / (by_token.high - by_token.low)
    assert ratio == pytest.approx(50**0.5, rel=0.2)


def test_percentile_interval_by_hand() -> None:
    # 0..40: the 2.5th percentile is the second value, the 97.5th the last but one.
    assert percentile_interval([float(i) for i in range(41)]) == pytest.approx((1.0, 39.0))


def test_t_interval_by_hand_and_by_scipy() -> None:
    # n = 5, sd = sqrt(2.5), t = 2.776: 3 -+ 2.776 * 0.7071.
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert t_interval(values) == pytest.approx((3 - 1.963, 3 + 1.963), abs=1e-3)
    expected = stats.t.interval(0.95, 4, loc=3.0, scale=stats.sem(values))
    assert t_interval(values) == pytest.approx(expected)


def test_t_interval_needs_two_values() -> None:
    assert t_interval([1.0]) is None
    assert t_interval([]) is None


def test_t_interval_covers() -> None:
    generator = np.random.default_rng(4)
    intervals = [t_interval(generator.normal(size=3).tolist()) for _ in range(2000)]
    assert np.mean([i is not None and i.low < 0 < i.high for i in intervals]) == pytest.approx(0.95, abs=0.02)


def test_an_estimate_by_hand() -> None:
    # mean 2, sd 1, t(.975, 2) = 4.302653: 2 -+ 4.302653 / sqrt(3)
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    assert found.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)


def test_an_interval_ends_where_the_metric_does() -> None:
    assert estimate([0.1, 0.5, 0.9], "auroc_frequency")[1:3] == (0.0, 1.0)
    assert estimate([0.1, 0.5, 0.9], "probe_k1_auroc")[1:3] == (0.0, 1.0)
    assert estimate([0.5, 0.9, 0.95], "split_half_icc").high == 1.0
    assert estimate([0.0, 0.0, 3.0], "births").low == 0.0
    assert estimate([0.9, 1.0, 1.1], "spec_spearman_disattenuated").high > 1.0
    assert possible("relative_bias") == (-float("inf"), float("inf"))


def test_one_seed_has_no_interval() -> None:
    assert estimate([0.5]) == (0.5, None, None, 1)


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8})["b"] == 1.0


def test_paired_uses_seeds_that_both_have() -> None:
    assert paired({0: 1.0, 2: 5.0}, {2: 3.0, 1: 9.0}) == [2.0]
