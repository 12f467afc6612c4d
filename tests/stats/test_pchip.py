"""Monotone interpolation gives SciPy's numbers to the last bit."""

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from stages.lib.stats.pchip import interpolate, slopes


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_values_are_those_of_scipy(n: int) -> None:
    generator = np.random.default_rng(n)
    for digits in (0, 1, 8):  # with few digits some neighbours are equal
        x, y = np.sort(generator.normal(size=n)), generator.normal(size=n).round(digits)
        expected, slope = PchipInterpolator(x, y), slopes(x.tolist(), y.tolist())
        for at in [*x.tolist(), *generator.uniform(x[0], x[-1], 20).tolist()]:
            assert interpolate(x.tolist(), y.tolist(), slope, at) == float(expected(at))


def test_three_points_by_hand() -> None:
    # 1 / ((3 / 1 + 3 / 2) / 6) = 4 / 3 inside; (3 * 1 - 2) / 2 = 1 / 2 at the first end.
    assert slopes([0.0, 1.0, 2.0], [0.0, 1.0, 3.0]) == pytest.approx([1 / 2, 4 / 3, 5 / 2])
