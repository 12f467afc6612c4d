"""Cosines, speeds, settling, births and deaths, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.emergence import trajectories as t

QUARTER = np.pi / 2


def turning(*degrees: float) -> np.ndarray:
    """One feature in the plane at the given angles: [step, 1, 2]."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)[:, None, :]


def test_cosine_to_reference() -> None:
    W_dec = np.array([[[3.0, 0], [0, 2]], [[1, 1], [0, 0]]])
    got = t.cosine_to(W_dec, np.array([[2.0, 0], [0, -1]]))
    assert got == pytest.approx(np.array([[1, -1], [np.sqrt(0.5), 0]]))


def test_angles_are_exact_where_the_arc_cosine_is_not() -> None:
    tiny, right, straight = (t.angles(*turning(0, degrees))[0] for degrees in (1e-7, 90, 180))
    assert tiny == pytest.approx(np.radians(1e-7), rel=1e-6)
    assert right == pytest.approx(QUARTER)
    assert straight == pytest.approx(np.pi)


def test_angular_speed_is_per_e_fold() -> None:
    # 90 degrees from step 1 to 2, then 90 degrees back from step 2 to 8: ln 2 and ln 4 e-folds.
    speed = t.angular_speed(turning(0, 90, 0), np.array([1, 2, 8]))
    assert speed[:, 0] == pytest.approx([QUARTER / np.log(2), QUARTER / np.log(4)])


def test_step_0_has_no_speed() -> None:
    with pytest.raises(AssertionError, match="step 0 has no logarithm"):
        t.angular_speed(turning(0, 90), np.array([0, 1]))


def unit_rows(n: int, d_in: int, generator: np.random.Generator) -> np.ndarray:
    rows = generator.normal(size=(n, d_in))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_own_start_rank_by_hand() -> None:
    start = np.array([[1.0, 0], [0, 1], [-1, 0]])
    end = np.array([[0.8, 0.6], [1.0, 0], [0.6, 0.8]])
    # The first is nearest its own; the second is nearer to one other start; the third to both others.
    assert t.own_start_rank(start, end).tolist() == [0, 1, 2]


def test_forgotten_starts_are_recognised_as_often_as_chance() -> None:
    generator, n = np.random.default_rng(0), 64
    found = [
        (t.own_start_rank(unit_rows(n, 24, generator), unit_rows(n, 24, generator)) == 0).sum() for _ in range(400)
    ]
    assert np.mean(found) == pytest.approx(1, abs=0.16)  # n features at 1 / n; 3 standard errors


def test_starts_that_left_a_trace_are_recognised() -> None:
    generator, n = np.random.default_rng(1), 512
    start, new = unit_rows(n, 192, generator), unit_rows(n, 192, generator)
    end = new + 0.3 * start  # cosine about 0.29: far from 0.8, and yet
    end /= np.linalg.norm(end, axis=1, keepdims=True)
    assert np.median(t.cosine_to(end[None], start)) < 0.32
    assert (t.own_start_rank(start, end) == 0).mean() > 0.7


def test_relative_movement() -> None:
    start = np.array([[1.0, 0], [0, 1]])
    assert t.relative_movement(start, start) == 0
    assert t.relative_movement(start, start[::-1]) == pytest.approx(np.sqrt(2))


def test_coherence_is_over_pairs_of_different_features() -> None:
    # Cosines 0, -0.6 and 0.8.
    assert t.coherence(np.array([[1.0, 0], [0, 1], [-0.6, 0.8]])) == pytest.approx((0 + 0.6 + 0.8) / 3)


def test_births_and_deaths() -> None:
    alive = np.array([[0, 1, 1], [1, 1, 0], [0, 1, 1]], dtype=bool)
    assert t.births(alive).tolist() == [[True, False, False], [False, False, True]]
    assert t.deaths(alive).tolist() == [[False, False, True], [True, False, False]]


def test_hazard_is_events_over_exposure() -> None:
    alive = np.array([[1, 1], [0, 1], [0, 1]], dtype=bool)
    # At risk of death: 2 features for 10 steps, then 1 for 30: one death in 50.
    assert t.hazard(t.deaths(alive), alive[:-1], np.array([0, 10, 40])) == pytest.approx(1 / 50)
    assert t.hazard(t.births(alive[:2]), ~alive[:1], np.array([0, 10])) is None


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=2, max_size=8))
def test_births_less_deaths_is_the_change_in_number(rows: list[list[bool]]) -> None:
    alive = np.array(rows)
    change = int(alive[-1].sum()) - int(alive[0].sum())
    assert int(t.births(alive).sum()) - int(t.deaths(alive).sum()) == change
