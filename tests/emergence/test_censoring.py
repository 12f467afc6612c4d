"""Times between checkpoints: by hand, and against simulated features whose times are known."""

import numpy as np
import pytest
from scipy import stats

from stages.lib.emergence import censoring as c

GRID = np.array([0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 29, 37, 48, 62, 80, 104, 135, 174, 226, 291, 377, 488])


def test_persistent_is_the_last_passage() -> None:
    reached = np.array([[1, 0, 1, 0], [1, 1, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0]], dtype=bool)
    assert c.persistent(reached).tolist() == [3, 1, 0, 4]


def test_crossing_by_hand() -> None:
    steps = np.array([0, 3, 15])
    values = np.array([[0.0, 0.9, 0.2], [0.5, 0.95, 0.3], [1.0, 1.0, 0.4]])
    level = np.array([0.75, 0.9, 0.9])
    got = c.crossing(values, level, c.persistent(values >= level), steps)
    # Half of the way from log 4 to log 16 is log 8; there from the start; never.
    np.testing.assert_allclose(got, [7, 0, np.nan])


def test_crossing_lies_in_its_interval() -> None:
    values = np.random.default_rng(0).random((len(GRID), 200)).cumsum(axis=0)
    level = values[-1] * 0.8
    index = c.persistent(values >= level)
    time = c.crossing(values, level, index, GRID)
    assert (time <= GRID[index]).all()
    assert (time > GRID[index - 1]).all()


def test_share_and_bracket_by_hand() -> None:
    index, steps = np.array([1, 1, 2, 2, 4]), np.array([0, 1, 3, 7])
    assert c.share_by(index, 4).tolist() == [0, 0.4, 0.8, 0.8]
    got = c.median_bracket(index, steps)
    assert got is not None
    # A quarter of the way from log 2 to log 4.
    assert (got.after, got.by, got.middle) == (1, 3, pytest.approx(2 * 2**0.25 - 1))
    assert c.median_bracket(np.array([4, 4, 4, 1]), steps) is None
    assert c.median_bracket(np.zeros(3, dtype=int), steps) == (-1, 0, 0.0)


def test_share_is_the_estimate_of_scipy_where_all_is_known_at_checkpoints() -> None:
    index = np.random.default_rng(1).integers(0, 9, 60)
    data = stats.CensoredData(uncensored=index[index < 8], right=np.full((index == 8).sum(), 7.5))
    assert c.share_by(index, 8) == pytest.approx(stats.ecdf(data).cdf.evaluate(np.arange(8)))


def simulated(median: float, slope: float, n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cosines [step, feature] that rise as a logistic in log time and pass 0.9 at known times, and those times."""
    time = np.exp(np.log(median) + 0.4 * generator.normal(size=n))
    level = np.log((0.9 - 0.2) / (1 - 0.9))
    with np.errstate(divide="ignore"):
        log_step = np.log(GRID.astype(float))
    return 0.2 + 0.8 / (1 + np.exp(-(slope * (log_step[:, None] - np.log(time)) + level))), time


def test_interpolated_angles_find_the_median_and_the_grid_does_not() -> None:
    generator = np.random.default_rng(2)
    errors = []
    for median in np.geomspace(150, 280, 40):
        cosine, time = simulated(median, 3.0, 512, generator)
        index = c.persistent(cosine >= 0.9)
        found = c.crossing(-np.arccos(cosine), np.full(1, -np.arccos(0.9)), index, GRID)
        bracket = c.median_bracket(index, GRID)
        assert bracket is not None
        # A feature that has not settled by the end stays beyond it, so the median is that of all.
        found = np.where(np.isnan(found), np.inf, found)
        true = np.median(time)
        errors.append([np.log(np.median(found) / true), np.log(bracket.middle / true), np.log(bracket.by / true)])
        assert bracket.after < true <= bracket.by
    interpolated, turnbull, grid = np.sqrt((np.array(errors) ** 2).mean(axis=0))
    assert interpolated < turnbull < 0.012
    assert grid > 0.1  # the next checkpoint, as if events were at checkpoints


def test_interval_over_seeds_covers_and_stays_inside() -> None:
    generator, last, covered = np.random.default_rng(3), 488, 0
    true = 400.0
    centre = np.log(np.log1p(true) / np.log1p(last) / (1 - np.log1p(true) / np.log1p(last)))
    for _ in range(400):
        z = centre + 0.6 * generator.normal(size=3)
        found = c.over_seeds([float(np.expm1(np.log1p(last) / (1 + np.exp(-one)))) for one in z], last)
        assert found.interval is not None
        assert 0 < found.interval.low < found.value < found.interval.high < last
        covered += found.interval.low <= true <= found.interval.high
    assert covered / 400 == pytest.approx(0.95, abs=0.03)


def test_no_interval_where_there_is_no_scale() -> None:
    assert c.over_seeds([0.0, 0.0, 0.0], 488) == (0.0, None)
    assert c.over_seeds([20.0], 488).interval is None
