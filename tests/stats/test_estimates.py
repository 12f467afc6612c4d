import pytest

from stages.lib.stats.intervals import estimate, possible


def test_a_t_interval_by_hand():
    # mean 2, sd 1, t(.975, 2) = 4.302653: 2 -+ 4.302653 / sqrt(3)
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    assert found.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)


def test_an_interval_ends_where_the_metric_does():
    assert estimate([0.1, 0.5, 0.9], "auroc_frequency")[1:3] == (0.0, 1.0)
    assert estimate([0.1, 0.5, 0.9], "probe_k1_auroc")[1:3] == (0.0, 1.0)
    assert estimate([0.5, 0.9, 0.95], "split_half_icc").high == 1.0
    assert estimate([0.0, 0.0, 3.0], "births").low == 0.0
    assert estimate([0.9, 1.0, 1.1], "spec_spearman_disattenuated").high > 1.0
    assert possible("relative_bias") == (-float("inf"), float("inf"))


def test_one_seed_has_no_interval():
    assert estimate([0.5]) == (0.5, None, None, 1)
