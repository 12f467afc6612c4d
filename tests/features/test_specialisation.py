"""Specialisation measures and their relation to frequency: hand-worked values and the artefacts they are to avoid."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.sparse import csr_matrix

from stages.lib.detectors.firings import firings
from stages.lib.features.relation import (
    COVARIATES,
    MEASURES,
    MIN_SPECIALISED,
    correlation,
    decades,
    frequency_auroc,
    halves,
    partial_spearman,
    relation,
)
from stages.lib.features.specialisation import Tally, plugin_entropy, purity, rarefied_entropy
from stages.lib.stats.correlation import spearman


def tally(acts: np.ndarray, tokens: np.ndarray, d_vocab: int, n_parts: int = 1) -> Tally:
    """The sums over some batches."""
    found = Tally(acts.shape[1], d_vocab)
    for x, ids in zip(np.array_split(acts, n_parts), np.array_split(tokens, n_parts), strict=True):
        found.add(firings(torch.from_numpy(x.astype(np.float32))), ids)
    return found


@pytest.mark.parametrize("n_parts", [1, 4])
def test_moments_are_those_of_the_firings(n_parts: int) -> None:
    generator = np.random.default_rng(0)
    acts = np.maximum(generator.standard_normal((400, 5)), 0).astype(np.float32)
    acts[:, 4] = 0
    found = tally(acts, generator.integers(0, 9, 400), 9, n_parts)
    for i in range(4):
        own = acts[acts[:, i] > 0, i].astype(np.float64)
        assert found.n_firings[i] == len(own)
        assert found.maximum[i] == own.max().astype(np.float32)
        assert found.mean()[i] == pytest.approx(own.mean())
        assert found.kurtosis()[i] == pytest.approx(stats.kurtosis(own, fisher=False))
    assert found.n_firings[4] == 0 and np.isnan(found.mean()[4]) and np.isnan(found.kurtosis()[4])


def test_a_constant_activation_has_no_kurtosis() -> None:
    assert np.isnan(tally(np.full((30, 1), 0.3), np.zeros(30, int), 1).kurtosis()[0])


def test_token_counts() -> None:
    acts = np.array([[1.0, 0.0], [1.0, 2.0], [0.0, 1.0]])
    assert tally(acts, np.array([2, 0, 2]), 3).tokens.toarray().tolist() == [[1, 0, 1], [1, 0, 1]]


def test_plugin_entropy_by_hand() -> None:
    entropy = plugin_entropy(csr_matrix(np.array([[5, 5, 0], [0, 7, 0], [0, 0, 0]])))
    assert entropy[0] == pytest.approx(np.log(2)) and entropy[1] == 0 and np.isnan(entropy[2])


def test_rarefied_entropy_by_hand() -> None:
    # Two draws of two a and two b: the pairs differ with probability 4/6, and then have entropy ln 2.
    assert rarefied_entropy(csr_matrix([[2, 2]]), 2)[0] == pytest.approx(4 / 6 * np.log(2))


def test_rarefied_entropy_of_all_firings_is_the_plugin() -> None:
    counts = csr_matrix(np.array([[3, 4, 3], [1, 9, 0]]))
    assert rarefied_entropy(counts, 10) == pytest.approx(plugin_entropy(counts))


def test_rarefied_entropy_is_the_mean_over_subsamples() -> None:
    counts = np.array([30, 10, 5, 1])
    generator = np.random.default_rng(0)
    drawn = generator.multivariate_hypergeometric(counts, 20, size=20_000)
    expected = plugin_entropy(csr_matrix(drawn)).mean()
    assert rarefied_entropy(csr_matrix(counts[None]), 20)[0] == pytest.approx(expected, abs=0.005)


def test_too_few_firings_have_no_rarefied_entropy() -> None:
    assert np.isnan(rarefied_entropy(csr_matrix([[3, 4]]), 8)[0])


def test_equal_token_distributions_correlate_with_frequency_only_in_the_plugin() -> None:
    """400 features that fire on the same distribution of tokens, at different rates: none is more specialised."""
    generator = np.random.default_rng(0)
    share = 1 / np.arange(1, 1001) ** 1.3
    n = np.geomspace(60, 20_000, 400).astype(int)
    counts = csr_matrix(np.stack([generator.multinomial(total, share / share.sum()) for total in n]))
    log_n = np.log10(n)
    plugin, rarefied = plugin_entropy(counts), rarefied_entropy(counts, 50)
    normalised = plugin / np.log(np.minimum(1000, n))
    assert (spearman(log_n, plugin) or 0) > 0.95
    assert (spearman(log_n, normalised) or 0) < -0.4
    assert abs(spearman(log_n, rarefied) or 1) < 0.15


def test_purity_by_hand() -> None:
    # The first fires 10 times, 7 of them on a concept with prevalence .2: (.7 - .2) / .8. The second never fires.
    found = purity(np.array([[7], [0]]), np.array([10, 0]), np.array([20]), 100)
    assert found[:, 0] == pytest.approx([0.625, 0])


def test_a_correlation_leaves_out_missing_numbers() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal(60)
    y = x + generator.standard_normal(60)
    y[:10] = np.nan
    found = correlation(x, y, 200, generator)
    assert found is not None and found.interval is not None
    assert found.n == 50 and found.value == pytest.approx(stats.spearmanr(x[10:], y[10:]).statistic)
    assert found.interval.low < found.value < found.interval.high


def test_a_partial_correlation_removes_a_common_cause() -> None:
    generator = np.random.default_rng(0)
    cause = generator.standard_normal(800)
    x, y = cause + 0.5 * generator.standard_normal((2, 800))
    assert (spearman(x, y) or 0) > 0.7
    assert abs(partial_spearman(x, y, cause[:, None]) or 1) < 0.2
    assert partial_spearman(x, y, generator.standard_normal((800, 1))) == pytest.approx(spearman(x, y), abs=0.01)


def test_a_partial_correlation_needs_more_features_than_covariates() -> None:
    assert partial_spearman(np.arange(5.0), np.arange(5.0), np.ones((5, 2))) is None


def test_frequency_tells_features_of_a_middle_rate() -> None:
    log_rate = np.random.default_rng(0).uniform(-5, -1, 400)
    assert (frequency_auroc(log_rate, np.abs(log_rate + 3) < 0.4) or 0) > 0.95


def test_frequency_tells_nothing_about_labels_at_random() -> None:
    generator = np.random.default_rng(0)
    found = frequency_auroc(generator.uniform(-5, -1, 1000), generator.random(1000) < 0.3)
    assert found == pytest.approx(0.5, abs=0.07)


def test_the_least_number_of_specialised_features_is_that_of_a_useful_auroc() -> None:
    """Labels at random move it by 0.05 or less from `MIN_SPECIALISED` on, and by more with the 36 of a dictionary."""
    generator = np.random.default_rng(0)
    log_rate = generator.normal(-1.7, 0.4, 512)

    def spread(n: int) -> float:
        labels = (generator.permutation(512) < n for _ in range(100))
        return float(np.std([area for one in labels if (area := frequency_auroc(log_rate, one)) is not None]))

    assert spread(MIN_SPECIALISED) <= 0.05 < 0.058 < spread(36)


def test_halves_tell_a_turn_from_a_slope() -> None:
    generator = np.random.default_rng(0)
    x = generator.uniform(-4, -1, 400)
    turns = halves(x, -np.abs(x - np.median(x)) + 0.3 * generator.normal(size=400), 200, generator)
    assert turns["below"].interval.low > 0 > turns["above"].interval.high  # type: ignore[union-attr]
    slope = halves(x, x + generator.normal(size=400), 200, generator)
    assert slope["below"].value > 0 and slope["above"].value > 0
    assert (slope["below"].n, slope["above"].n) == (200, 200)
    expected = stats.spearmanr(x[x <= np.median(x)], (x**2)[x <= np.median(x)]).statistic
    assert halves(x, x**2, 10, generator)["below"].value == pytest.approx(expected)
    assert halves(np.zeros(0), np.zeros(0), 10, generator) == {}


def test_a_monotone_relation_is_seldom_called_a_turn() -> None:
    """Type I: both halves have to be established, with opposite signs."""
    generator = np.random.default_rng(1)
    called = 0
    for _ in range(150):
        x = generator.normal(size=100)
        found = halves(x, 0.1 * x + generator.normal(size=100), 60, generator)
        low, high = (found[side].interval for side in ("below", "above"))
        assert low is not None and high is not None
        called += low.low > 0 > high.high or high.low > 0 > low.high
    assert called / 150 <= 0.05


@pytest.mark.parametrize("specialised", [np.zeros(20, bool), np.ones(20, bool)])
def test_no_auroc_of_one_kind(specialised: np.ndarray) -> None:
    assert frequency_auroc(np.linspace(-4, -1, 20), specialised) is None


def test_decades_by_hand() -> None:
    rows = decades(np.array([-2.5, -2.1, -2.9, -1.2]), np.array([1.0, 2.0, 3.0, 9.0]), 50, np.random.default_rng(0))
    assert [(row["decade"], row["median"], row["n"]) for row in rows] == [(-3, 2.0, 3), (-2, 9.0, 1)]
    assert rows[0]["low"] <= 2 <= rows[0]["high"] and rows[1]["low"] == rows[1]["high"] == 9


def features(n: int) -> pd.DataFrame:
    """Features whose calibrated MCC grows with the rate; the rest is noise."""
    generator = np.random.default_rng(0)
    columns = [*MEASURES.values(), *COVARIATES, "mcc_validation", "mcc_p", "design_effect"]
    table = pd.DataFrame({name: generator.random(n) for name in columns})
    table["rate"] = 10 ** generator.uniform(-4, -1, n)
    table["rate_validation"] = table["rate"] * generator.uniform(0.9, 1.1, n)
    table["mcc_calibrated"] = 0.2 * np.log10(table["rate"]) + 1 + 0.1 * generator.random(n)
    table["mcc"] = table["mcc_validation"] + 0.1 * generator.random(n)
    return table


def test_the_relation_has_all_numbers() -> None:
    found = relation(features(300), 0.5, 100, np.random.default_rng(0))
    assert set(MEASURES) < set(found)
    assert found["spec_spearman"].value > 0.9 and found["auroc_frequency"].value > 0.9
    expected = found["spec_spearman"].value / (found["spec_reliability"].value * 0.999) ** 0.5
    assert found["spec_spearman_disattenuated"].value == pytest.approx(min(1.0, expected), abs=0.02)
    assert found["spec_partial_spearman"].value == pytest.approx(found["spec_spearman"].value, abs=0.05)
    assert {f"spec_spearman_entropy_{side}" for side in ("below", "above")} < set(found)
    table = features(300)
    assert found["n_specialised"].value == (table["mcc_calibrated"] >= 0.5).sum() >= MIN_SPECIALISED
    assert found["beyond_chance_fraction"].value == pytest.approx((table["mcc_p"] <= 0.05).mean())
    assert found["log_rate_sd"].value == pytest.approx(np.log10(table["rate"]).std(ddof=0))


def test_few_specialised_features_have_no_auroc() -> None:
    table = features(300)
    table["mcc_calibrated"] -= np.sort(table["mcc_calibrated"])[-MIN_SPECIALISED + 1] - 0.5
    found = relation(table, 0.5, 10, np.random.default_rng(0))
    assert found["n_specialised"].value == MIN_SPECIALISED - 1 and "auroc_frequency" not in found


def test_the_relation_of_no_features_is_empty() -> None:
    assert relation(features(0), 0.5, 10, np.random.default_rng(0)) == {}
