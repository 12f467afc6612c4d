"""Which cross-entropies a summary has, and what their intervals and that of the FVU hold."""

from pathlib import Path

import numpy as np
import pytest

from stages.lib.fidelity.ablations import Ablations
from stages.lib.fidelity.cross_entropy import Sums
from stages.lib.fidelity.summary_rows import ce_rows, clean_row
from stages.lib.sae.members import Member
from stages.lib.stats.intervals import Interval, ratio_interval, resample_counts


def sums(clean: float, mean: float) -> tuple[Sums, Ablations]:
    """One window of two predictions and one SAE."""
    one, both = np.array([[2.0]]), np.zeros((1, 2), dtype=np.int64)
    n, loss = np.array([2]), np.array([clean])
    return Sums(n, loss, one, one, one, np.zeros(2), both), Ablations(n, loss, np.array([4.0]), np.array([mean]))


def test_recovered_ce_is_absent_where_ablation_costs_little() -> None:
    member = Member("toy", 0, 0, Path(), 1.0)
    counts = resample_counts(1, 5, np.random.default_rng(0))

    def names(clean: float, mean: float) -> set[str]:
        rows = ce_rows(member, *sums(clean, mean), 0, np.array([0]), counts)
        return {row.metric for row in rows}

    # .045 and .055 nats a prediction.
    assert "ce_recovered_mean" not in names(1.0, 1.09)
    assert "ce_recovered_mean" in names(1.0, 1.11)
    assert "ce_recovered_zero" in names(1.0, 1.09)


def rows_of(
    some: Sums, documents: list[int], counts: np.ndarray
) -> dict[str, tuple[float, float | None, float | None]]:
    """The cross-entropies of the one SAE, by name."""
    far = np.full(len(documents), 900.0)
    found = ce_rows(
        Member("toy", 0, 0, Path(), 1.0), some, Ablations(some.n, some.clean, far, far), 0, np.array(documents), counts
    )
    return {row.metric: (row.value, row.low, row.high) for row in found}


def test_the_added_losses_by_hand() -> None:
    # Three windows of 2, 2 and 4 predictions; the first two are of one document.
    n, clean = np.array([2, 2, 4]), np.array([2.0, 4.0, 4.0])
    sae, random = np.array([[4.0, 6.0, 8.0]]), np.array([[3.0, 4.0, 7.0]])
    some = Sums(n, clean, sae, random, sae, np.arange(8.0), np.arange(8)[None])
    got = rows_of(some, [0, 0, 1], np.array([[1, 1], [2, 0], [0, 2]]))
    assert got["ce_clean"][0] == 10 / 8
    assert got["delta_ce"][0] == 8 / 8  # added: 2, 2, 4
    assert got["delta_ce_random_error"][0] == 4 / 8  # 1, 0, 3
    assert got["random_error_ratio"][0] == 4 / 8
    # By document: 4 of 4 predictions and 1 of 4; 4 of 4 and 3 of 4. Resamples: 4/8, 1/4, 3/4.
    low, high = np.quantile([4 / 8, 1 / 4, 3 / 4], [0.025, 0.975])
    assert got["delta_ce_random_error"][1:] == pytest.approx((low, high))
    assert got["delta_ce"][1:] == (1.0, 1.0)


def test_the_ratio_is_absent_where_the_sae_costs_nothing() -> None:
    n, clean = np.array([100]), np.array([100.0])
    for added, there in ((4.0, False), (6.0, True)):
        sae = np.array([[100.0 + added]])
        some = Sums(n, clean, sae, sae + 1, sae, np.arange(100.0), np.arange(100)[None])
        assert ("random_error_ratio" in rows_of(some, [0], np.ones((3, 1), int))) == there


def test_the_clean_loss_of_a_split_by_hand() -> None:
    none = np.zeros(0)
    clean = Ablations(np.array([2, 2, 4]), np.array([2.0, 4.0, 4.0]), none, none)
    counts = np.array([[1, 1], [2, 0], [0, 2]])
    row = clean_row(Member("toy", 0, 0, Path(), 1.0), clean, np.array([0, 0, 1]), counts)
    assert (row.value, row.n) == (10 / 8, 8)
    assert (row.low, row.high) == pytest.approx(tuple(np.quantile([10 / 8, 6 / 4, 4 / 4], [0.025, 0.975])))


def coverage(by_document: bool) -> float:
    """How often the interval of a ratio of sums holds the population's, with 49 documents of unlike size and level."""
    hits = 0
    for repeat in range(200):
        generator = np.random.default_rng(repeat)
        size = generator.integers(200, 2000, 49)
        # FVU by document around 0.24, variance by document around 1, both unlike between documents.
        total = size * np.exp(0.2 * generator.normal(size=49))
        error = 0.24 * total * np.exp(0.15 * generator.normal(size=49) - 0.15**2 / 2)
        blocks = np.repeat(np.arange(49), size // 100) if not by_document else np.arange(49)
        share = 1 if by_document else 100 / size
        above, below = (error * share)[blocks], (total * share)[blocks]
        found = ratio_interval(above, below, resample_counts(len(blocks), 200, generator))
        assert isinstance(found, Interval)
        hits += found.low <= 0.24 <= found.high
    return hits / 200


def test_the_interval_over_documents_covers_and_one_over_tokens_does_not() -> None:
    assert 0.91 <= coverage(by_document=True) <= 0.98
    assert coverage(by_document=False) < 0.6
