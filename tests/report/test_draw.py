"""Figures: one look per arm, bytes that do not change, and what is drawn is what the data say."""

import numpy as np
import pandas as pd
import pytest

from stages.lib.report import draw
from stages.lib.report.draw import LOOKS, SPARE, canvas, look, png


def frontier_table() -> pd.DataFrame:
    records = [
        (arm, level, seed, 4.0 * 2**level, 0.5 / (1 + level) + 0.01 * seed)
        for arm in ("relu", "mine")
        for level in range(3)
        for seed in range(2)
    ]
    return pd.DataFrame(records, columns=["arm", "level", "seed", "l0", "value"])


def test_no_two_arms_look_alike() -> None:
    every = [*LOOKS.values(), *SPARE]
    assert len({one.colour for one in every}) == len({one.marker for one in every}) == len(every)


def test_an_unknown_arm_takes_a_spare_look_by_its_place() -> None:
    arms = ["relu", "mine", "yours"]
    assert look("relu", arms) == LOOKS["relu"]
    assert look("mine", arms) == SPARE[0]
    assert look("yours", arms) == SPARE[1]


def test_same_data_same_bytes_and_no_metadata() -> None:
    def picture() -> bytes:
        with canvas(3.0, 2.0) as (figure, (axes,)):
            draw.frontier(axes, frontier_table(), ["relu", "mine"], "FVU", True)
            draw.legend(figure, axes)
            return png(figure)

    first = picture()
    assert first == picture()
    assert b"Software" not in first
    assert b"matplotlib" not in first


def test_frontier_draws_seeds_and_their_mean() -> None:
    with canvas(3.0, 2.0) as (_, (axes,)):
        draw.frontier(axes, frontier_table(), ["relu", "mine"], "FVU", False)
        mean = next(line for line in axes.lines if line.get_label() == "relu")
        assert len(axes.lines) == 2 * (2 + 1)
        assert mean.get_ydata()[0] == pytest.approx(0.505)
        assert axes.get_xscale() == "log"


def test_densities_leave_out_features_that_never_fired() -> None:
    with canvas(3.0, 2.0) as (_, (axes,)):
        draw.densities(axes, {"relu": np.array([0.0, 0.0, 0.01, 0.01, 0.1])}, ["relu"])
        (patch,) = axes.patches
        assert patch.get_data().values.max() == pytest.approx(0.85)  # two of the three at 10^-2
        median = axes.lines[0].get_xdata()
        assert median[0] == pytest.approx(-2)


def test_curves_leave_out_what_has_no_logarithm() -> None:
    table = pd.DataFrame({"arm": "relu", "step": [0, 1, 10], "cc": [0.1, 0.2, 0.3], "cc_low": 0.0, "cc_high": 0.4})
    with canvas(3.0, 2.0) as (_, (axes,)):
        draw.curves(axes, table, ["relu", "topk"], "cc", "step", ("step", "cc"))
        (line,) = axes.lines
        assert list(line.get_xdata()) == [1, 10]
        assert len(axes.collections) == 1  # the band


def test_heat_map_of_signed_values_is_symmetric() -> None:
    with canvas(3.0, 2.0) as (_, (axes,)):
        draw.heat_map(axes, draw.Matrix(np.array([[-0.2, 0.5]]), ["a"], ["b", "c"], "cosine"), diverging=True)
        assert axes.images[0].get_clim() == (-0.5, 0.5)
        draw.annotate(axes, np.array([[-0.2, np.nan]]))
        assert [text.get_text() for text in axes.texts] == ["-0.20"]


def test_binned_medians_by_hand() -> None:
    x = np.repeat([-1.9, -0.9], 11)
    y = np.concatenate([np.arange(11.0), np.arange(11.0) + 5])
    with canvas(3.0, 2.0) as (_, (axes,)):
        draw.binned(axes, x, y, ("x", "y"), "#000000")
        assert axes.lines[0].get_ydata().tolist() == [5, 10]


def test_against_has_equal_axes_and_the_line_of_equality() -> None:
    with canvas(3.0, 3.0) as (_, (axes,)):
        draw.against(axes, np.array([-1.0, 0.5, 0.0]), np.array([-0.8, 0.4, 0.1]), ("score", "effect"), "#000000")
        assert axes.get_xlim() == axes.get_ylim() == pytest.approx((-1.3, 1.3))
        draw.against(axes, np.zeros(2), np.zeros(2), ("score", "effect"), "#000000")


def test_shared_features_are_drawn_by_kind() -> None:
    table = pd.DataFrame({"arm": "relu", "kind": ["same", "other", "random"] * 2, "threshold": [0.3] * 3 + [0.5] * 3,
                          "fraction": [1.0, 0.8, 0.2, 0.9, 0.4, 0.0]})  # fmt: skip
    with canvas(3.0, 2.0) as (figure, (axes,)):
        draw.shared_features(axes, table, ["relu", "topk"])
        same, other, chance = axes.lines
        assert (same.get_label(), same.get_ydata().tolist()) == ("relu", [1.0, 0.9])
        assert (other.get_linestyle(), other.get_ydata().tolist()) == ("--", [0.8, 0.4])
        assert (chance.get_label(), chance.get_ydata().tolist()) == ("random directions", [0.2, 0.0])
        assert png(figure).startswith(b"\x89PNG")


def test_shared_features_divided_by_those_of_seeds() -> None:
    table = pd.DataFrame({"arm": "relu", "kind": ["same", "other"] * 3, "threshold": [0.3, 0.3, 0.5, 0.5, 0.9, 0.9],
                          "fraction": [1.0, 0.8, 0.5, 0.3, 0.01, 0.01]})  # fmt: skip
    with canvas(3.0, 2.0) as (_, (axes,)):
        draw.shared_ratio(axes, table, ["relu", "topk"])
        ratio = axes.lines[0]
        assert ratio.get_xdata().tolist() == [0.3, 0.5]  # at 0.9 hardly a feature has a counterpart at all
        assert ratio.get_ydata().tolist() == pytest.approx([0.8, 0.6])


def test_a_frontier_framed_by_some_arms_names_what_is_beyond() -> None:
    table = frontier_table()
    table.loc[table["arm"] == "mine", "value"] += 5
    with canvas(3.0, 2.0) as (_, (axes,)):
        draw.frontier(axes, table, ["relu", "mine"], "FVU", False, framed=["relu"])
        assert axes.get_ylim() == pytest.approx((0.0, 0.51 * 1.12))
        assert axes.texts[0].get_text() == "above:\nmine: 5.2 to 5.5"


def test_a_forest_has_the_margin_the_intervals_and_no_difference() -> None:
    cells = {"relu": {"mean": 2.0, "low": 1.0, "high": 3.0}, "topk": {"mean": 0.1}}
    with canvas(3.0, 2.0) as (_, (axes,)):
        draw.forest(axes, cells, ["relu", "gated", "topk"], "difference", 0.5)
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["topk", "relu"]
        assert axes.patches[0].get_x() == -0.5 and axes.patches[0].get_width() == 1.0
        assert [1.0, 3.0] in [list(line.get_xdata()) for line in axes.lines]
        draw.marks(axes, {"warm-up ends": 0.2})
        assert axes.texts[0].get_text() == "warm-up ends"


def test_bars_have_the_length_of_the_mean_and_an_interval_where_there_is_one() -> None:
    values = {"relu": {"mean": 0.5, "low": 0.4, "high": 0.6}, "topk": {"mean": 0.1}}
    with canvas(3.0, 2.0) as (figure, (axes,)):
        draw.bars(axes, values, ["relu", "gated", "topk"], "ρ")
        assert [label.get_text() for label in axes.get_yticklabels()] == ["topk", "relu"]  # the first is on top
        assert [patch.get_width() for patch in axes.patches] == [0.1, 0.5]
        (interval,) = axes.lines
        assert (list(interval.get_xdata()), list(interval.get_ydata())) == ([0.4, 0.6], [1, 1])
        assert png(figure).startswith(b"\x89PNG")


def test_ridges_stand_above_one_another_scaled_to_their_own_maximum() -> None:
    groups = [("step 0", np.array([-1.2, -2.0, -2.0])), ("step 9", np.array([-0.3] * 40)), ("none", np.array([5.0]))]
    with canvas(3.0, 2.0) as (figure, (axes,)):
        draw.ridgeline(axes, groups, np.linspace(-3, 0, 7), "log rate")
        found = [patch.get_data() for patch in axes.patches]
        assert [data.baseline for data in found] == [0, 1, 2]
        assert [data.values.max() - data.baseline for data in found] == pytest.approx([0.9, 0.9, 0.0])
        assert found[0].values.tolist() == pytest.approx([0, 0, 0.9, 0.45, 0, 0])
        assert [label.get_text() for label in axes.get_yticklabels()] == ["step 0", "step 9", "none"]
        assert png(figure).startswith(b"\x89PNG")


def test_empty_axes_say_why() -> None:
    with canvas(3.0, 2.0) as (figure, (axes,)):
        draw.empty(axes, "nothing was measured")
        assert [text.get_text() for text in axes.texts] == ["nothing was measured"]
        assert not len(axes.get_xticks()) and not len(axes.get_yticks())
        assert png(figure).startswith(b"\x89PNG")


def test_a_baseline_is_a_named_horizontal_line() -> None:
    with canvas(3.0, 2.0) as (figure, (axes,)):
        draw.baseline(axes, 0.5, "unigram")
        (line,) = axes.lines
        assert list(line.get_ydata()) == [0.5, 0.5]
        assert [text.get_text() for text in axes.texts] == ["unigram"]
        assert png(figure).startswith(b"\x89PNG")
