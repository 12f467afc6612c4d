"""The jackknife over seeds: by hand, and its coverage for numbers that are made of pairs of runs."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from stages.lib.stats.seeds import jackknife


def test_the_jackknife_of_a_mean_is_the_t_interval() -> None:
    values = [1.0, 2.0, 6.0, 3.0]
    found = jackknife(lambda seeds: float(np.mean([values[s] for s in seeds])), range(4))
    # mean 3, sd sqrt(14 / 3) = 2.1602, t(.975, 3) = 3.1824: 3 -+ 3.1824 * 1.0801
    assert found == pytest.approx((3 - 3.4373, 3 + 3.4373), abs=1e-3)


def test_it_takes_three_seeds_and_a_number_without_each() -> None:
    assert jackknife(lambda seeds: 1.0, [0, 1]) is None
    assert jackknife(lambda seeds: 1.0 if 0 in seeds else None, [0, 1, 2]) is None


def ratio(own: np.ndarray, other: np.ndarray, both: np.ndarray, seeds: Sequence[int]) -> float:
    off = ~np.eye(len(seeds), dtype=bool)
    one, two, mixed = (matrix[np.ix_(seeds, seeds)][off].mean() for matrix in (own, other, both))
    return float(mixed / (one * two) ** 0.5)


@pytest.mark.parametrize(("n", "least"), [(3, 0.96), (6, 0.95)])
def test_intervals_of_a_disattenuated_agreement_cover(n: int, least: float) -> None:
    # M of two runs is the product of their qualities, which differ by seed, and noise of the pair; D is 0.9. The
    # jackknife takes the noise of a pair for noise of its seeds, twice: it covers more than it says, and is wider.
    generator, covered, widths, numbers = np.random.default_rng(n), 0, [], []
    for _ in range(500):
        a, b = 0.8 + 0.02 * generator.normal(size=n), 0.75 + 0.02 * generator.normal(size=n)
        noise = 0.005 * generator.normal(size=(3, n, n))
        own, other = np.outer(a, a) + noise[0] + noise[0].T, np.outer(b, b) + noise[1] + noise[1].T
        both = 0.9 * np.outer(a, b) + noise[2]
        found = jackknife(lambda seeds, x=own, y=other, z=both: ratio(x, y, z, seeds), range(n))  # type: ignore[misc]
        assert found is not None
        covered += found.low <= 0.9 <= found.high
        widths.append(found.high - found.low)
        numbers.append((found.low + found.high) / 2)
    assert least <= covered / 500
    ideal = 2 * stats.t.ppf(0.975, n - 1) * np.std(numbers)
    assert 1 < np.mean(widths) / ideal < {3: 3.5, 6: 2.0}[n]
