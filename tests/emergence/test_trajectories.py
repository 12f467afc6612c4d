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


def test_settling_is_the_last_passage() -> None:
    cos_final = np.array([[0.95, 0.1, 0.95], [0.95, 0.95, 0.95], [0.2, 0.95, 0.95], [1.0, 1.0, 1.0]])
    assert t.settling_index(cos_final[:, [0, 1, 2]], 0.9).tolist() == [3, 1, 0]


def test_one_checkpoint_is_settled() -> None:
    assert t.settling_index(np.ones((1, 3)), 0.9).tolist() == [0, 0, 0]


def test_lazy_fraction() -> None:
    assert t.lazy_fraction(np.array([0.9, 0.8, 0.1, 0.85]), 0.8) == 0.5


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
