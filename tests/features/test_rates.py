"""The distribution of firing rates and which SAEs they are compared with, by hand."""

import numpy as np

from stages.lib.features.rates import EDGES, histogram, neighbours


def test_the_histogram_counts_every_living_feature_in_range() -> None:
    found = histogram(np.array([0.0, 1e-3, 1.05e-3, 0.5, 1e-7]))
    assert found["n_features"].sum() == 3
    assert len(found) == len(EDGES) - 1
    assert found.loc[np.isclose(found["log10_rate"], -3), "n_features"].item() == 2


def test_the_next_seed_and_the_next_level_are_neighbours() -> None:
    keys = [(level, seed) for level in (0, 1) for seed in (3, 5)]
    assert neighbours((0, 3), keys) == {"cross_seed": (0, 5), "cross_level": (1, 3)}
    # The last seed is followed by the first; there is no level above the last.
    assert neighbours((1, 5), keys) == {"cross_seed": (1, 3)}
    assert neighbours((0, 3), [(0, 3)]) == {}
