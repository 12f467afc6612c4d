"""Frequency as an indicator against a random decoder: worked values, and worlds whose answer is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stages.lib.features.indicator import (
    IndicatorParams,
    Sample,
    against_random,
    common_range,
    contrast,
    direction,
    feature_tables,
    interval,
    read_indicator_params,
    samples,
    seed_difference,
    verdict,
)
from stages.lib.io.errors import UserError
from stages.lib.io.tables import write_parquet
from tests.settings import write_params

OWN = IndicatorParams(
    random_decoder="random", endpoint="entropy_rarefied", least_difference=0.3, least_arms=2, n_resamples=40, seed=0
)


def related(n: int, rho: float, generator: np.random.Generator, spread: float = 1.0) -> Sample:
    """Features whose log rate and score are normal with correlation `rho`."""
    x, noise = generator.normal(size=(2, n))
    return Sample(-2 + spread * x, rho * x + (1 - rho**2) ** 0.5 * noise)


def rank_correlation(rho: float) -> float:
    """Spearman's correlation of a bivariate normal (Kruskal 1958)."""
    return 6 / np.pi * float(np.arcsin(rho / 2))


def test_the_interval_by_hand() -> None:
    # Differences 0.1, 0.2, 0.3: s^2 = 0.01; v = 0.02; nu = 0.03^2 / (0.01^2 / 2) = 18; sqrt(0.03 / 3) = 0.1.
    low, high = interval(np.array([0.1, 0.2, 0.3]), np.array([0.01, 0.02, 0.03]))
    half = stats.t.ppf(0.975, 18) * 0.1
    assert (low, high) == pytest.approx((0.2 - half, 0.2 + half))


def test_the_interval_of_one_seed_is_that_of_its_features() -> None:
    low, high = interval(np.array([0.5]), np.array([0.04]))
    assert (low, high) == pytest.approx((0.5 - 1.959964 * 0.2, 0.5 + 1.959964 * 0.2), abs=1e-5)


def test_no_interval_leaves_what_a_difference_can_be() -> None:
    assert interval(np.array([-1.0, 1.0]), np.array([0.1, 0.1])) == (-2, 2)


@pytest.mark.parametrize(("between", "least"), [(0.0, 0.97), (1.0, 0.94), (3.0, 0.93), (10.0, 0.91)])
def test_the_interval_covers_seeds_and_features(between: float, least: float) -> None:
    """Three seeds whose own variance is so many times that of their features."""
    generator = np.random.default_rng(0)
    differences = generator.normal(0.3, (1 + between) ** 0.5, (3000, 3))
    variances = generator.chisquare(199, (3000, 3)) / 199
    covered = [low <= 0.3 <= high for low, high in (interval(0.1 * d + 0.27, 0.01 * v)
               for d, v in zip(differences, variances, strict=True))]  # fmt: skip
    assert np.mean(covered) >= least


def test_the_contrast_of_whole_dictionaries_covers_the_difference_of_their_correlations() -> None:
    """Features and seeds at once: three seeds with correlations of their own, against a decoder with fewer."""
    generator = np.random.default_rng(1)
    expected = np.mean([rank_correlation(r) for r in (0.55, 0.6, 0.65)]) - rank_correlation(0.2)
    covered = []
    for _ in range(150):
        own = {s: related(120, float(generator.choice([0.55, 0.6, 0.65])), generator) for s in range(3)}
        random = {s: related(120, 0.2, generator) for s in range(3)}
        cell = contrast(own, random, 40, generator)
        covered.append(cell["low"] <= expected <= cell["high"])
    assert np.mean(covered) >= 0.93


def test_a_contrast_is_paired_by_seed_and_of_the_seeds_that_both_have() -> None:
    generator = np.random.default_rng(0)
    own, random = (
        {s: related(80, rho, generator) for s in seeds} for rho, seeds in ((0.8, (0, 1, 2)), (0.1, (1, 2, 3)))
    )
    cell = contrast(own, random, 20, generator)
    rho = [stats.spearmanr(*own[s]).statistic - stats.spearmanr(*random[s]).statistic for s in (1, 2)]
    assert cell["n"] == 2 and cell["mean"] == pytest.approx(np.mean(rho)) and cell["features"] == 80
    assert cell["mean"] == pytest.approx(cell["rho"] - cell["rho_random"])
    assert contrast(own, {7: random[3]}, 20, generator) == {}


def test_a_measure_that_does_not_vary_has_no_difference() -> None:
    generator = np.random.default_rng(0)
    constant = Sample(generator.normal(size=30), np.ones(30))
    assert seed_difference(related(30, 0.5, generator), constant, 20, generator) is None


def test_the_common_range_takes_away_a_difference_that_is_one_of_range() -> None:
    """The same relation, but rates that vary three times less in the random decoder, as if cut out of the middle."""
    generator = np.random.default_rng(0)
    own = {s: related(3000, 0.7, generator) for s in range(3)}
    random = {s: related(9000, 0.7, generator).within(-2.5, -1.5) for s in range(3)}
    whole, inside = (contrast(*pair, 40, generator) for pair in ((own, random), common_range(own, random)))
    assert whole["mean"] > 0.25 and abs(inside["mean"]) < 0.06


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ((0.4, 0.1, 0.7), 1),
        ((-0.4, -0.7, -0.1), -1),
        ((0.29, 0.2, 0.4), 0),  # too small
        ((0.4, -0.1, 0.9), 0),  # 0 is inside
    ],
)
def test_the_direction_of_an_arm_by_hand(cell: tuple[float, float, float], expected: int) -> None:
    assert direction(dict(zip(("mean", "low", "high"), cell, strict=True)), 0.3) == expected


def test_the_verdict_asks_for_one_sign_in_enough_tested_arms() -> None:
    up, down = ({"mean": m, "low": m - 0.1, "high": m + 0.1} for m in (0.5, -0.5))
    assert verdict(OWN, {"a": up, "b": up, "c": down}, ["a", "b", "c"])["sign"] == 1
    assert verdict(OWN, {"a": up, "b": down}, ["a", "b"])["sign"] == 0
    assert verdict(OWN, {"a": down, "b": down, "control": up}, ["a", "b"])["sign"] == -1
    assert verdict(OWN, {"a": up, "control": up}, ["a"])["sign"] == 0
    assert verdict(OWN, {}, ["a"]) == {
        "endpoint": "entropy_rarefied", "random_decoder": "random", "least_difference": 0.3, "least_arms": 2,
        "n_tested": 1, "n_up": 0, "n_down": 0, "sign": 0,
    }  # fmt: skip


def world(rho: dict[str, float], generator: np.random.Generator, n: int = 200) -> dict[str, pd.DataFrame]:
    """Tables of arms whose entropy has these correlations with the log rate, three seeds each."""
    tables = {}
    for arm, one in rho.items():
        parts = []
        for seed in range(3):
            x, y = related(n, one, generator, 0.3)
            parts.append(pd.DataFrame({"seed": seed, "rate": 10**x, "entropy_rarefied": y}))
        tables[arm] = pd.concat(parts)
    return tables


def test_a_relation_that_random_directions_have_too_is_no_sign() -> None:
    """Type I: as strong in the arms as in the random decoder, and strong."""
    generator = np.random.default_rng(2)
    for _ in range(30):
        found = against_random(OWN, world(dict.fromkeys(("a", "b", "random"), 0.6), generator), ["a", "b"])
        assert found["verdict"]["sign"] == 0


def test_a_relation_that_random_directions_lack_is_found() -> None:
    """Power: correlations of 0.8 against 0.2."""
    generator = np.random.default_rng(3)
    signs = [
        against_random(OWN, world({"a": 0.8, "b": 0.8, "random": 0.2}, generator), ["a", "b"])["verdict"]["sign"]
        for _ in range(20)
    ]
    assert np.mean(signs) >= 0.9


def test_a_wider_range_of_rates_alone_is_no_sign() -> None:
    """The arm's score depends on the rate as the random decoder's does; its rates are spread three times as widely."""
    generator, tables = np.random.default_rng(4), {}
    for arm, spread in (("a", 0.6), ("random", 0.2)):
        x = generator.normal(-2, spread, (3, 400))
        y = x + generator.normal(0, 0.4, x.shape)
        parts = [pd.DataFrame({"seed": seed, "rate": 10 ** x[seed], "entropy_rarefied": y[seed]}) for seed in range(3)]
        tables[arm] = pd.concat(parts)
    found = against_random(OWN, tables, ["a"])
    assert found["differences"]["entropy_rarefied"]["a"]["low"] > 0.3  # over all rates it passes for one
    assert abs(found["common_range"]["entropy_rarefied"]["a"]["mean"]) < 0.15
    assert found["verdict"]["n_up"] == 0


def test_a_measure_that_an_arm_lacks_is_left_out() -> None:
    tables = world({"a": 0.5, "random": 0.1}, np.random.default_rng(0))
    tables["a"]["purity"] = 1.0
    found = against_random(OWN, tables, ["a"])
    assert set(found["differences"]) == {"entropy_rarefied"} and set(found["differences"]["entropy_rarefied"]) == {"a"}
    assert samples(tables["a"], "kurtosis") == {}


def test_the_tables_are_those_of_the_level_and_take_the_effects_of_the_attribution(project: Path) -> None:
    table = pd.DataFrame({
        "seed": [0, 0, 0, 0, 1], "level": [0, 1, 1, 1, 1], "feature": [0, 0, 1, 2, 0], "rate": 0.1,
        "resolved": [True, True, True, False, True],
    })  # fmt: skip
    effects = pd.DataFrame({
        "seed": [0, 0, 1], "level": 1, "feature": [0, 1, 0], "effect": [0.25, 0.5, 0.75], "n_firings": [90, 4, 5],
    })  # fmt: skip
    for arm in ("a", "b"):
        write_parquet(Path(f"data/frequency/{arm}/features.parquet"), table)
    write_parquet(Path("data/attribution/a/features.parquet"), effects)
    found = feature_tables(["a", "b"], {("a", 0): 1, ("a", 1): 1, ("b", 0): 0})
    assert found["a"][["seed", "feature"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0]]
    # Four firings are too few for a mean.
    assert found["a"]["effect"].tolist() == pytest.approx([0.25, np.nan, 0.75], nan_ok=True)
    assert "effect" not in found["b"] and len(found["b"]) == 1


SECTION = OWN.model_dump() | {"match_cosine": 0.7}


def test_the_declared_settings_are_read_without_the_others(project: Path) -> None:
    write_params({"frequency": SECTION})
    assert read_indicator_params(["topk", "random"]) == OWN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"random_decoder": "randon"}, r"frequency.random_decoder is 'randon', no arm of saes; did you mean 'random'"),
        ({"endpoint": "entropy"}, r"frequency.endpoint is 'entropy', no measure"),
        ({"least_difference": 0.0}, r"frequency.least_difference is 0.0: input should be greater than 0"),
        ({"least_arms": 0}, r"frequency.least_arms is 0: input should be greater than 0"),
    ],
)
def test_declared_settings_refuse(change: dict[str, object], message: str, project: Path) -> None:
    write_params({"frequency": SECTION | change})
    with pytest.raises(UserError, match=message):
        read_indicator_params(["topk", "random"])
