"""Ranks against SciPy's."""

import numpy as np
import pytest
from scipy.stats import rankdata

from stages.lib.stats.correlation import mean_ranks


@pytest.mark.parametrize("shape", [(0,), (1,), (50,), (3, 40), (2, 3, 7)])
@pytest.mark.parametrize("n_different", [1, 4, 10**6])
def test_ranks_are_scipys(shape: tuple[int, ...], n_different: int) -> None:
    values = np.random.default_rng(0).integers(0, n_different, shape).astype(float)
    assert np.array_equal(mean_ranks(values), rankdata(values, axis=-1))
