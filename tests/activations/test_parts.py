"""Parts of a split: whole windows, at random."""

import numpy as np

from stages.lib.activations.parts import draw_rows


def test_drawn_rows_are_whole_windows_in_order() -> None:
    windows = np.repeat(np.arange(10), [5, 3] * 5)
    rows = draw_rows(windows, 12, np.random.default_rng(0))
    assert (np.diff(rows) > 0).all()
    chosen = np.unique(windows[rows])
    assert len(rows) == np.isin(windows, chosen).sum() >= 12
    assert len(rows) - 5 < 12
    np.testing.assert_array_equal(draw_rows(windows, 999, np.random.default_rng(0)), np.arange(40))
