"""Shares of variance: what only one factor makes, what chance makes, and what one arm alone makes."""

import numpy as np
import pandas as pd
import pytest

from stages.lib.stats.variance import established, grid, shares, variance_shares

ARMS = ["a", "b", "c", "d", "e", "f"]
L0 = [8.0, 16.0, 32.0]


def rows(value: np.ndarray) -> pd.DataFrame:
    """Tidy rows of a metric [arm, level, seed]."""
    records = []
    for (arm, level, seed), one in np.ndenumerate(value):
        key = (ARMS[arm], level, seed)
        records += [(*key, "l0", L0[level] * (1 + 0.01 * arm)), (*key, "m", float(one))]
    return pd.DataFrame(records, columns=["arm", "level", "seed", "metric", "value"])


def share(value: np.ndarray, n: int = 199) -> dict[str, dict[str, float | int]]:
    return variance_shares(rows(value), "m", ARMS, n, np.random.default_rng(0))


def test_what_one_factor_makes_alone_is_its_share() -> None:
    noise = 0.01 * np.random.default_rng(0).normal(size=(6, 3, 3))
    by_arm = share(np.arange(6.0)[:, None, None] + noise)
    assert by_arm["arm"]["mean"] > 0.99 and abs(by_arm["l0"]["mean"]) < 0.01
    assert established(by_arm["arm"]) and by_arm["arm"]["n"] == 3
    by_l0 = share(np.log(L0)[None, :, None] + np.log1p(0.01 * np.arange(6))[:, None, None] + noise)
    assert by_l0["l0"]["mean"] > 0.98 and abs(by_l0["arm"]["mean"]) < 0.02
    assert established(by_l0["l0"]) and not established(by_l0["arm"])


def test_omega_squared_by_hand() -> None:
    # Two arms with the same four L0: the sums of squares of a balanced design, with 3 columns for L0 and its square.
    y = np.array([[1.0, 2.0, 4.0, 5.5], [2.0, 2.5, 5.5, 6.0]])
    x = np.log([4.0, 8.0, 16.0, 32.0])
    design = np.stack([np.ones(8), np.tile(x, 2), np.tile(x**2, 2), np.repeat([0.0, 1.0], 4)], axis=1)
    left = [float(np.linalg.lstsq(design[:, c], y.ravel(), rcond=None)[1][0]) for c in ([0, 1, 2, 3], [0, 1, 2])]
    mse, total = left[0] / 4, float(((y - y.mean()) ** 2).sum())
    records = [(arm, level, 0, metric, value) for i, arm in enumerate("ab") for level in range(4)
               for metric, value in (("l0", float(np.exp(x[level]))), ("m", y[i, level]))]  # fmt: skip
    table = pd.DataFrame(records, columns=["arm", "level", "seed", "metric", "value"])
    names, found = grid(table, "m", ["a", "b"])
    assert names == ["a", "b"]
    assert shares(found, 9, np.random.default_rng(0))["arm"].seeds == pytest.approx(
        [(left[1] - left[0] - mse) / (total + mse)]
    )


def test_a_share_without_any_effect_is_seldom_established_and_zero_on_average() -> None:
    generator = np.random.default_rng(1)
    reached, means = [], []
    for _ in range(60):
        # Every arm has a level at which it happens to be good, in all seeds alike: no effect of the arm as such.
        value = generator.normal(size=(6, 3, 1)) + 0.1 * generator.normal(size=(6, 3, 3))
        _, found = grid(rows(value), "m", ARMS)
        whole = shares(found, 99, generator)
        reached.append([whole[name].p < 0.05 for name in ("arm", "l0")])
        means.append(np.mean(whole["arm"].seeds))
    assert (np.mean(reached, axis=0) < 0.12).all()
    assert abs(np.mean(means)) < 0.08


def test_an_effect_of_one_arm_alone_is_not_the_mechanism() -> None:
    noise = 0.3 * np.random.default_rng(2).normal(size=(6, 3, 3))
    noise[:5] -= noise[:5].mean(axis=(0, 1, 2))
    found = share(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 3.0])[:, None, None] + noise)["arm"]
    assert found["p"] < 0.05 < found["worst_p"]
    assert found["least"] < 0.3 < found["mean"]
    assert not established(found)


def test_seeds_with_one_level_are_left_out_and_too_little_gives_nothing() -> None:
    value = np.random.default_rng(3).normal(size=(6, 3, 3))
    table = rows(value)
    assert variance_shares(table[table["level"] < 1], "m", ARMS, 9, np.random.default_rng(0)) == {}
    assert variance_shares(table, "other", ARMS, 9, np.random.default_rng(0)) == {}
    more = rows(np.random.default_rng(4).normal(size=(6, 3, 5)))
    more = more[(more["seed"] > 2) & (more["level"] == 1)]
    one, two = (variance_shares(t, "m", ARMS, 9, np.random.default_rng(0)) for t in (table, pd.concat([table, more])))
    assert one == two
