"""The additive model: by hand, against ordinary least squares, and the paired t-test as its special case."""

import numpy as np
import pytest
from scipy import stats

from stages.lib.stats.two_way import Values, fit

DIFFERENT = {"b": 1.0, "a": -1.0}


def table(y: np.ndarray) -> Values:
    return {f"arm-{i}": dict(enumerate(row)) for i, row in enumerate(y.tolist())}


def test_two_arms_are_the_paired_t_test() -> None:
    a, b = [1.0, 2.0, 4.5, 3.0], [1.5, 2.1, 5.5, 2.7]
    model = fit({"a": dict(enumerate(a)), "b": dict(enumerate(b))})
    assert model is not None
    found, expected = model.contrast(DIFFERENT), stats.ttest_rel(b, a)
    assert found is not None
    assert (found.value / found.error, found.df) == pytest.approx((expected.statistic, 3))
    omnibus = model.omnibus()
    assert omnibus is not None
    assert omnibus == pytest.approx((expected.statistic**2, 1, 3, expected.pvalue))


def test_seeds_are_taken_out() -> None:
    y = np.array([[1.0, 2.0, 3.0], [1.5, 2.4, 3.6], [0.0, 1.2, 1.8]])
    shifted = y + np.array([10.0, -20.0, 30.0])
    for one in (y, shifted):
        model = fit(table(one))
        assert model is not None
        found = model.contrast({"arm-1": 1.0, "arm-0": -1.0})
        assert found is not None
        assert found.value == pytest.approx(0.5)
        assert found.error == pytest.approx(fit(table(y)).contrast({"arm-1": 1.0, "arm-0": -1.0}).error)  # type: ignore[union-attr]


def test_the_omnibus_is_the_f_test_of_a_randomised_block_design() -> None:
    y = np.random.default_rng(0).normal(size=(4, 5)) + np.arange(5) + 0.5 * np.arange(4)[:, None]
    arms, seeds = y.mean(1, keepdims=True), y.mean(0)
    residual = y - arms - seeds + y.mean()
    f = 5 * ((arms - y.mean()) ** 2).sum() / 3 / ((residual**2).sum() / 12)
    model = fit(table(y))
    assert model is not None
    assert model.omnibus() == pytest.approx((f, 3, 12, stats.f.sf(f, 3, 12)))


def test_missing_cells_give_the_least_squares_estimate() -> None:
    generator = np.random.default_rng(1)
    effects, blocks = np.array([0.0, 1.0, -2.0]), generator.normal(size=4)
    cells = {(i, s): effects[i] + blocks[s] for i in range(3) for s in range(4) if (i, s) not in {(0, 1), (2, 3)}}
    values: dict[str, dict[int, float]] = {}
    for (i, s), value in cells.items():
        values.setdefault(f"arm-{i}", {})[s] = value + 1e-3 * float(generator.normal())
    model = fit(values)
    assert model is not None
    found = model.contrast({"arm-2": 1.0, "arm-0": -1.0})
    assert found is not None
    # Means over the seeds that an arm has would mix blocks in; the additive model does not.
    assert found.value == pytest.approx(-2.0, abs=0.01)


def test_what_cannot_be_tested_has_no_contrast() -> None:
    assert fit({"a": {0: 1.0}, "b": {1: 2.0}}) is None
    assert fit({"a": {0: 1.0, 1: 2.0}}) is None
    one = fit({"a": {0: 1.0}, "b": {0: 2.0}})
    assert one is not None and one.contrast(DIFFERENT) is None and one.omnibus() is None
    single = fit({"a": {0: 1.0, 1: 2.0, 2: 2.5}, "b": {0: 2.0, 1: 2.8, 2: 4.0}, "c": {1: 5.0}})
    assert single is not None
    assert single.contrast({"c": 1.0, "a": -1.0}) is None
    assert single.contrast(DIFFERENT) is not None
    equal = fit({"a": {0: 1.0, 1: 2.0}, "b": {0: 2.0, 1: 3.0}})
    assert equal is not None and equal.contrast(DIFFERENT) is None


def test_the_variance_is_that_of_the_contrast_on_average() -> None:
    generator = np.random.default_rng(2)
    estimates, variances = [], []
    for _ in range(600):
        found = fit(table(generator.normal(size=(6, 3)))).contrast({"arm-1": 1.0, "arm-0": -1.0})  # type: ignore[union-attr]
        assert found is not None
        estimates.append(found.value)
        variances.append(found.error**2)
    assert np.mean(variances) == pytest.approx(2 / 3, rel=0.08)
    assert np.var(estimates) == pytest.approx(2 / 3, rel=0.15)
