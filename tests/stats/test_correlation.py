"""Statistics of all resamples at once against the same statistic of each."""

from collections.abc import Callable

import numpy as np
import pytest

from stages.lib.stats.correlation import (
    pearson,
    resampled_pearson,
    resampled_sign_agreement,
    resampled_slope,
    sign_agreement,
    slope,
)
from stages.lib.stats.intervals import resample_counts


@pytest.mark.parametrize(
    ("resampled", "statistic"),
    [(resampled_pearson, pearson), (resampled_slope, slope), (resampled_sign_agreement, sign_agreement)],
)
def test_a_resample_is_its_rows(resampled: Callable, statistic: Callable) -> None:
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 6)).round(1)
    a[:3], b[4] = 0.3, 0
    counts = np.concatenate([resample_counts(6, 50, generator), [[2, 3, 1, 0, 0, 0], [0, 0, 0, 0, 6, 0]]])
    each = [statistic(np.repeat(a, drawn), np.repeat(b, drawn)) for drawn in counts]
    expected = [value for value in each if value is not None]
    assert len(expected) < len(counts)
    np.testing.assert_allclose(resampled(a, b, counts), expected, rtol=1e-9)
