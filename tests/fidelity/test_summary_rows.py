"""Which cross-entropies a summary has."""

from pathlib import Path

import numpy as np

from stages.lib.fidelity.cross_entropy import Sums
from stages.lib.fidelity.summary_rows import ce_rows
from stages.lib.sae.members import Member
from stages.lib.stats.intervals import resample_counts


def sums(clean: float, mean: float) -> Sums:
    """One window of two predictions and one SAE."""
    one, both = np.array([[2.0]]), np.zeros((1, 2), dtype=np.int64)
    return Sums(np.array([2]), np.array([clean]), np.array([4.0]), np.array([mean]), one, one, one, np.zeros(2), both)


def test_recovered_ce_is_absent_where_ablation_costs_little() -> None:
    member = Member("toy", 0, 0, Path(), 1.0)
    counts = resample_counts(1, 5, np.random.default_rng(0))

    def names(clean: float, mean: float) -> set[str]:
        rows = ce_rows(member, sums(clean, mean), 0, np.array([0]), counts)
        return {row.metric for row in rows}

    # .045 and .055 nats a prediction.
    assert "ce_recovered_mean" not in names(1.0, 1.09)
    assert "ce_recovered_mean" in names(1.0, 1.11)
    assert "ce_recovered_zero" in names(1.0, 1.09)
