"""Tests of many arms at once, on data whose answer is known: errors under the null, power, coverage, equality."""

import functools

import numpy as np
import pytest
from scipy import stats

from stages.lib.stats.best import as_good_as_best
from stages.lib.stats.contrasts import (
    Comparison,
    Pair,
    against_reference,
    all_pairs,
    omnibus,
)
from stages.lib.stats.intervals import holm
from stages.lib.stats.two_way import fit

ARMS, REFERENCE, REPEATS = 6, "arm-3", 300
EQUAL = (1.0,) * ARMS
UNEQUAL = (0.4, 0.4, 2.3, 0.3, 0.6, 2.3)
"""As the FVU has them at L0 16 in relu, gated, jump_relu, topk, batch_topk and matryoshka, in units of 0.001."""
NOISY_REFERENCE = (0.4, 0.4, 0.4, 2.3, 0.4, 0.4)


def table(y: np.ndarray) -> dict[str, dict[int, float]]:
    return {f"arm-{i}": dict(enumerate(row)) for i, row in enumerate(y.tolist())}


@functools.cache
def repeats(
    n: int, spread: tuple[float, ...], effects: tuple[float, ...] = (0.0,) * ARMS, share: float | None = None
) -> list[dict[str, Comparison]]:
    """The comparisons of many made-up runs of n seeds, with effects of arms, effects of seeds, and noise."""
    generator = np.random.default_rng([n, *(int(10 * one) for one in spread)])
    found = []
    for _ in range(REPEATS):
        noise = generator.normal(size=(ARMS, n)) * np.array(spread)[:, None]
        y = 100.0 + np.array(effects)[:, None] + 3 * generator.normal(size=n) + noise
        found.append(against_reference(table(y), REFERENCE, share))
    return found


@pytest.mark.parametrize(("n", "spread", "most"), [(3, EQUAL, 0.09), (3, UNEQUAL, 0.11), (6, EQUAL, 0.08),
                                                    (6, UNEQUAL, 0.085), (6, NOISY_REFERENCE, 0.085)])  # fmt: skip
def test_a_family_without_differences_seldom_shows_one(n: int, spread: tuple[float, ...], most: float) -> None:
    errors = np.mean([any(one.p is not None and one.p < 0.05 for one in run.values()) for run in repeats(n, spread)])
    assert 0.02 < errors < most


def test_a_pooled_variance_would_err_far_more_often() -> None:
    # Why it is not used: the same runs, judged by one variance for all arms and Dunnett's 2.69 (25 degrees of freedom).
    generator = np.random.default_rng(0)
    errors = 0
    for _ in range(500):
        y = generator.normal(size=(ARMS, 6)) * np.array(NOISY_REFERENCE)[:, None]
        residual = y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()
        t = (y.mean(1) - y[3].mean()) / (2 / 6 * (residual**2).sum() / 25) ** 0.5
        errors += np.abs(t).max() > 2.69
    assert errors / 500 > 0.15


@pytest.mark.parametrize(("n", "least"), [(3, 0.90), (6, 0.925)])
def test_simultaneous_intervals_cover_all_differences_together(n: int, least: float) -> None:
    effects = (0.0, 3.0, -1.0, 0.5, 2.0, -4.0)
    truth = {f"arm-{i}": effects[i] - effects[3] for i in range(ARMS)}
    covered = np.mean([
        all(one.low is not None and one.high is not None and one.low <= truth[arm] <= one.high
            for arm, one in run.items())
        for run in repeats(n, UNEQUAL, effects)
    ])  # fmt: skip
    assert least <= covered <= 0.985


def test_the_detectable_difference_is_found_with_the_stated_power() -> None:
    # Where the standard error is what it really is: sqrt(2 / 6), 9.6 degrees of freedom.
    typical = float(np.median([run["arm-0"].detectable for run in repeats(6, EQUAL)]))
    found = [run["arm-0"].p < 0.05 for run in repeats(6, EQUAL, (typical, 0.0, 0.0, 0.0, 0.0, 0.0))]  # type: ignore[operator]
    assert np.mean(found) == pytest.approx(0.8, abs=0.07)


@pytest.mark.parametrize("n", [3, 6])
def test_arms_at_the_edge_of_the_margin_seldom_pass_for_equal(n: int) -> None:
    effects = (2.0, -2.0, 2.0, 0.0, -2.0, 2.0)  # the reference's mean is about 100: a margin of 2
    wrong = np.mean([any(one.verdict == "equal" for one in run.values()) for run in repeats(n, EQUAL, effects, 0.02)])
    assert wrong < 0.08


def test_equal_arms_are_found_equal_where_the_margin_is_wide() -> None:
    share = np.mean([[one.verdict == "equal" for one in run.values()] for run in repeats(6, EQUAL, share=0.04)])
    assert share > 0.9


def test_p_and_interval_say_the_same() -> None:
    for run in repeats(3, UNEQUAL, (0.0, 3.0, -1.0, 0.5, 2.0, -4.0))[:50]:
        for one in run.values():
            assert one.p is not None and one.low is not None and one.high is not None
            assert (one.p < 0.05) == (one.low > 0 or one.high < 0) or one.p == pytest.approx(0.05, abs=1e-3)


def test_equality_by_hand() -> None:
    # Two arms: the paired t of 4 differences with mean .25 and sd .1291, so that the error is .0645 with 3 degrees.
    found = against_reference({"a": dict(enumerate([1.1, 1.2, 1.3, 1.4])), "b": dict.fromkeys(range(4), 1.0)}, "b", 0.5)
    one = found["a"]
    expected = stats.ttest_1samp([0.1, 0.2, 0.3, 0.4], 0.0)
    assert (one.mean, one.margin, one.n) == pytest.approx((0.25, 0.5, 4))
    assert one.p == pytest.approx(expected.pvalue, abs=1e-4)
    assert one.p_equal == pytest.approx(float(stats.t.cdf((0.25 - 0.5) / (0.12909944 / 2), 3)), abs=1e-5)
    assert one.verdict == "equal"  # told from 0 and within the margin: the margin says what counts
    assert against_reference({"a": {0: 1.1, 1: 1.2}, "b": {0: 1.0, 1: 1.0}}, "c") == {}


def test_verdicts() -> None:
    assert Comparison(0.1).verdict is None
    assert Comparison(0.1, p=0.01).verdict == "differs"
    assert Comparison(0.1, p=0.2).verdict == "undecided"
    assert Comparison(0.1, p=0.2, p_equal=0.2).verdict == "undecided"
    assert Comparison(0.1, p=0.2, p_equal=0.01).verdict == "equal"


def test_equality_of_several_arms_is_corrected() -> None:
    generator = np.random.default_rng(5)
    values = table(10 + 0.1 * generator.normal(size=(3, 6)))
    found = against_reference(values, "arm-0", 0.02)
    model = fit(values)
    assert model is not None
    single = {}
    for arm in ("arm-1", "arm-2"):
        contrast = model.contrast({arm: 1.0, "arm-0": -1.0})
        assert contrast is not None
        margin = found[arm].margin or 0.0
        single[arm] = float(stats.t.cdf((abs(contrast.value) - margin) / contrast.error, contrast.df))
    assert {arm: one.p_equal for arm, one in found.items()} == pytest.approx(holm(single))


def test_all_pairs_of_two_arms_are_the_paired_t_test() -> None:
    a, b = [1.0, 2.0, 4.5], [1.5, 2.1, 5.5]
    pair = all_pairs({"a": dict(enumerate(a)), "b": dict(enumerate(b))})["a", "b"]
    assert pair.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert pair.p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=1e-6)


@pytest.mark.parametrize(("n", "spread", "most"), [(3, EQUAL, 0.10), (6, UNEQUAL, 0.09)])
def test_all_pairs_without_differences_seldom_show_one(n: int, spread: tuple[float, ...], most: float) -> None:
    generator, errors = np.random.default_rng(n), 0
    limit: float | None = None
    for _ in range(300):
        y = generator.normal(size=(ARMS, n)) * np.array(spread)[:, None] + generator.normal(size=n)
        model = fit(table(y))
        assert model is not None
        pairs = [model.contrast({f"arm-{i}": 1.0, f"arm-{j}": -1.0}) for i in range(ARMS) for j in range(i)]
        # The designs are alike, and so are the degrees of freedom: one critical value, which takes long, is enough.
        limit = limit or float(stats.studentized_range.ppf(0.95, ARMS, pairs[0].df)) / 2**0.5  # type: ignore[union-attr]
        errors += max(abs(one.value) / one.error for one in pairs if one is not None) > limit
    assert 0.01 < errors / 300 < most


def test_as_good_as_the_best() -> None:
    means = {"a": 1.0, "b": 1.1, "c": 2.0, "d": 0.9}
    pairs = {("a", "b"): Pair(-0.1, 0.9), ("a", "c"): Pair(-1.0, 0.001), ("b", "c"): Pair(-0.9, 0.01)}
    assert as_good_as_best(means, pairs, lower=False) == ["c"]
    pairs |= {("d", "a"): Pair(-0.1, 0.5), ("b", "d"): Pair(0.2, 0.2)}
    # Of c and d no pair was tested: c is left out.
    assert as_good_as_best(means, pairs, lower=True) == ["d", "a", "b"]


def test_omnibus_is_empty_without_a_second_arm() -> None:
    assert omnibus({"a": {0: 1.0, 1: 2.0}}) == {}
    assert omnibus(table(np.random.default_rng(0).normal(size=(3, 3))))["df_error"] == 4


@pytest.mark.parametrize(("spread", "most"), [(EQUAL, 0.075), (UNEQUAL, 0.13)])
def test_the_omnibus_errs_more_often_with_unequal_variances(spread: tuple[float, ...], most: float) -> None:
    # It is a summary and decides nothing; this is how far it may be trusted.
    generator = np.random.default_rng(3)
    errors = np.mean([
        omnibus(table(generator.normal(size=(ARMS, 6)) * np.array(spread)[:, None]))["p"] < 0.05 for _ in range(500)
    ])  # fmt: skip
    assert 0.02 < errors < most
