"""The joint model of the order of emergence: against refits, and against simulated families whose answer is known."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression

from stages.lib.emergence import order as o

N_FAMILIES, N_CONCEPTS, WITHIN = 45, 100, 0.5


def world(
    beta: list[float], generator: np.random.Generator, within: float = WITHIN
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Properties, places in the order and families; `within` is the correlation inside a family, of all of them.

    Families differ in size as those of labels do, and two of the properties are correlated at 0.6.
    """
    family = np.concatenate([np.arange(N_FAMILIES), generator.integers(0, N_FAMILIES, N_CONCEPTS - N_FAMILIES)])

    def drawn(n: int) -> np.ndarray:
        shared, own = generator.normal(size=(N_FAMILIES, n))[family], generator.normal(size=(N_CONCEPTS, n))
        return np.sqrt(within) * shared + np.sqrt(1 - within) * own

    x = drawn(len(beta))
    x[:, 1] = 0.6 * x[:, 0] + 0.8 * x[:, 1]
    return x, x @ np.array(beta) + drawn(1)[:, 0], family


def ranks(y: np.ndarray) -> np.ndarray:
    return np.asarray(stats.rankdata(y))


def test_c_index_by_hand() -> None:
    # Pairs at different places: (0,1) right, (0,2) right, (1,3) equal prediction, (2,3) wrong, (0,3) right.
    assert o.c_index(np.array([1.0, 2, 4, 2]), np.array([1.0, 2, 2, 3])) == pytest.approx(3.5 / 5)
    assert o.c_index(np.array([1.0, 2]), np.array([1.0, 1])) == 0.5


def test_left_out_is_a_refit_without_the_row() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(12, 2)), generator.normal(size=12)
    got = o.left_out(o.hat_matrix(x), y)
    for row in range(12):
        others = np.arange(12) != row
        assert got[row] == pytest.approx(LinearRegression().fit(x[others], y[others]).predict(x[row : row + 1])[0])


def test_vif_is_that_of_the_regression_on_the_others() -> None:
    x, _, _ = world([0.0, 0.0, 0.0], np.random.default_rng(1))
    r2 = LinearRegression().fit(x[:, 1:], x[:, 0]).score(x[:, 1:], x[:, 0])
    assert o.vif(x)[0] == pytest.approx(1 / (1 - r2))
    assert o.vif(x[:, :1]) == pytest.approx([1])


def test_coefficients_are_those_of_scikit_learn() -> None:
    x, y, family = world([0.5, 0.0, -0.3], np.random.default_rng(2))
    got = o.joint_model(x, ranks(y), family, 20, np.random.default_rng(0))
    assert got is not None
    fit = LinearRegression().fit(o.z_scores(x), o.z_scores(ranks(y)))
    assert [one.value for one in got.coefficients] == pytest.approx(fit.coef_)
    assert got.r2 == pytest.approx(fit.score(o.z_scores(x), o.z_scores(ranks(y))))
    without = [
        LinearRegression().fit(o.z_scores(x)[keep], o.z_scores(ranks(y))[keep]).coef_[0]
        for keep in (family != one for one in range(N_FAMILIES))
    ]
    error = np.sqrt((N_FAMILIES - 1) / N_FAMILIES * ((np.array(without) - fit.coef_[0]) ** 2).sum())
    half = stats.t.ppf(0.975, N_FAMILIES - 1) * error
    assert got.coefficients[0].interval.high == pytest.approx(fit.coef_[0] + half)
    assert got.coefficients[0].p == pytest.approx(2 * stats.t.sf(abs(fit.coef_[0]) / error, N_FAMILIES - 1))


@pytest.mark.parametrize("within", [0.5, 0.9])
def test_joint_test_and_intervals_hold_their_level_with_families(within: float) -> None:
    generator, rejected, covered = np.random.default_rng(3), 0, 0
    for _ in range(200):
        x, y, family = world([0.0, 0.0, 0.0, 0.0], generator, within)
        got = o.joint_model(x, ranks(y), family, 39, generator)
        assert got is not None
        rejected += got.p <= 0.05
        covered += sum(one.interval.low <= 0 <= one.interval.high for one in got.coefficients)
    assert rejected / 200 < 0.1  # 0.05 + 3 standard errors
    assert covered / 800 == pytest.approx(0.95, abs=0.025)


def test_intervals_cover_a_slope_and_the_tests_find_it() -> None:
    """With y = x beta + e of unit spread, the slope in standard deviations is beta sd(x) / sd(y)."""
    generator, covered, found, joint = np.random.default_rng(4), 0, 0, 0
    beta = [0.8, 0.0, -0.4, 0.0]
    spread = np.sqrt(0.8**2 + 0.4**2 + 1)
    for _ in range(200):
        x, y, family = world(beta, generator)
        # On the scale of the simulation, not of ranks, so that the true slope is known.
        estimate = o.joint_model(x, y, family, 40, generator)
        assert estimate is not None
        scaled = [b / spread for b in beta]
        covered += sum(
            one.interval.low <= true <= one.interval.high
            for one, true in zip(estimate.coefficients, scaled, strict=True)
        )
        found += estimate.coefficients[0].p < 0.05 / 4
        joint += estimate.p <= 0.05
    assert covered / 800 == pytest.approx(0.95, abs=0.03)
    assert found / 200 > 0.95
    assert joint / 200 > 0.85


def test_correlation_holds_its_level_and_agrees_with_scipy() -> None:
    generator, rejected = np.random.default_rng(5), 0
    for _ in range(300):
        x, y, family = world([0.0, 0.0], generator)
        got = o.correlation(x[:, 0], y, family)
        assert got is not None
        rejected += got.p < 0.05
    assert got.value == pytest.approx(stats.spearmanr(x[:, 0], y).statistic)
    assert rejected / 300 < 0.09


def test_independent_concepts_would_be_the_wrong_unit() -> None:
    generator, rejected = np.random.default_rng(7), 0
    for _ in range(200):
        x, y, _ = world([0.0, 0.0], generator, within=0.9)
        rejected += stats.spearmanr(x[:, 0], y).pvalue < 0.05
    assert rejected / 200 > 0.12


def test_what_cannot_be_told_is_none() -> None:
    generator = np.random.default_rng(6)
    x, y, family = world([0.0, 0.0], generator)
    assert o.joint_model(x, np.ones(N_CONCEPTS), family, 10, generator) is None
    assert o.joint_model(x * [1, 0], y, family, 10, generator) is None
    assert o.joint_model(x, y, family % 4, 10, generator) is None
    assert o.joint_model(x[:0], y[:0], family[:0], 10, generator) is None
    assert o.correlation(x[:, 0], y, family % 3) is None
    assert o.correlation(np.ones(N_CONCEPTS), y, family) is None
