"""The answer to question 1: its sentences follow the declared endpoint, the intervals and the learning rates."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.lib.features.same_dictionary import same_dictionary
from stages.lib.io.summary import COLUMNS
from stages.lib.report.answers.activation_functions import fidelity
from stages.lib.report.answers.words import best_text, documents, listed, p_text, table, variance_text
from stages.lib.report.figures import activation_functions as figures
from stages.lib.report.results import Results
from stages.lib.stats.arms import contrasts, differences
from stages.lib.stats.equal_l0 import add_document_widths, matched_values, means
from tests.report.made import said

ARMS, CONTROLS, TARGETS = ["relu", "gated", "jump_relu", "topk", "random"], ["random"], [8.0, 16.0, 32.0]
SEEDS, MORE = [0, 1, 2], [3, 4, 5]
FVU = {"relu": 0.28, "gated": 0.2402, "jump_relu": 0.2425, "topk": 0.24, "random": 0.67}


def rows(noise: Mapping[str, float]) -> pd.DataFrame:
    """The rows of evaluate: three seeds at three levels, three further ones at the middle level."""
    generator, records = np.random.default_rng(0), []
    for arm in ARMS:
        for seed in [*SEEDS, *MORE]:
            for level, l0 in enumerate((7.0, 16.3, 36.0)):
                if seed in MORE and level != 1:
                    continue
                value = FVU[arm] * (l0 / 16) ** -0.4 + noise.get(arm, 0.0003) * generator.normal()
                records += [(arm, level, seed, "l0", l0, None, None),
                            (arm, level, seed, "relative_bias", 0.99, None, None),
                            (arm, level, seed, "fvu", value, value - 0.006, value + 0.006)]  # fmt: skip
    table = pd.DataFrame([(*one, 1000) for one in records], columns=COLUMNS)
    return table.astype({"low": float, "high": float})


def pairs(quality: Mapping[str, float], shift: Mapping[str, float]) -> pd.DataFrame:
    """Agreement of runs: the product of two arms' qualities, less what one of two different arms shifts."""
    generator, records = np.random.default_rng(1), []
    runs = [(arm, seed) for arm in quality for seed in [*SEEDS, *MORE]]
    for i, (arm, seed) in enumerate(runs):
        for other, other_seed in runs[i + 1 :]:
            apart = max(shift.get(arm, 0.0), shift.get(other, 0.0)) if arm != other else 0.0
            mcc = quality[arm] * quality[other] * (1 - apart) + 0.002 * generator.normal()
            records.append((arm, seed, other, other_seed, mcc))
    return pd.DataFrame(records, columns=["arm", "seed", "other_arm", "other_seed", "mcc"])


QUALITY = {"relu": 0.91, "gated": 0.84, "jump_relu": 0.78, "topk": 0.81, "random": 0.45}


def results(
    noise: Mapping[str, float] | None = None, shift: Mapping[str, float] | None = None, rate: float | None = None
) -> Results:
    found = rows(noise or {})
    values = matched_values(found, TARGETS)
    matched = means(values, ["fvu"], TARGETS)
    add_document_widths(matched, found, TARGETS)
    shift = {"relu": 0.06, "random": 0.3} if shift is None else shift
    agreement = same_dictionary(pairs(QUALITY, shift), ["gated", "jump_relu", "topk"], CONTROLS, 0.95)
    agreement |= {"random": {"mean": 0.21, "n": 3}, "arms": {}}
    agreement["rates"] = {arm: rate or 0.01 * (1 + i) for i, arm in enumerate(ARMS)}
    compare: dict[str, dict[str, Any]] = {
        "matched": matched, "agreement": agreement, "missing": {}, "variance": {},
        "differences": differences(values, ["fvu"], TARGETS, "topk", CONTROLS, {"fvu": 0.02}),
        "contrasts": contrasts(values, ["fvu"], TARGETS, ARMS[:4]),
    }  # fmt: skip
    return Results(ARMS, CONTROLS, "topk", SEEDS, TARGETS, 16.0, compare, {"evaluate": found}, MORE, {"fvu": 0.02})


def test_the_endpoint_says_what_differs_what_is_equal_and_what_is_open() -> None:
    first = said(fidelity(results({"jump_relu": 0.012}))[:1])
    assert "the FVU (share of variance left unexplained, test documents) is 0.240 [0.240, 0.241] for `topk`" in first
    assert "(95 % over 6 SAE seeds, one LM; documents ±0.0060)" in first
    assert "`relu` (+0.03" in first and ", p < 0.001) differs" in first
    assert "is equal within ±0.0048 (2% of its mean, two one-sided tests)" in first
    assert (
        "`jump_relu` (+0.00" in first and "is undecided: with 80 % power the test finds a difference of 0.00" in first
    )
    assert "(seeds as blocks, corrected for 3 arms)" in first


def test_best_is_only_what_is_told_from_the_others() -> None:
    own = results({"jump_relu": 0.012})
    assert best_text(own, "fvu", lower=True).startswith("It is lowest for `topk` (")
    assert "which can't be told from `gated`" in best_text(own, "fvu", lower=True)
    assert best_text(own, "fvu", lower=False).startswith("It is highest for `relu`: ")
    assert "told from every other arm" in best_text(own, "fvu", lower=False)
    assert best_text(own, "other", lower=True) == ""


def test_arms_learn_the_same_only_if_their_intervals_say_so() -> None:
    text = said(fidelity(results())[1:2])
    assert "**`gated`, `jump_relu` and `topk` learn the same dictionary up to what another seed changes: 1.00**" in text
    assert "`relu` by 0.94 (apart, every interval below 0.95)" in text
    assert "Of the 3 pairs of arms that limit how many features are active, declared before, 3 reach 0.95" in text
    apart = said(fidelity(results(shift=dict.fromkeys(QUALITY, 0.2)))[1:2])
    assert "No two arms are established to learn the same dictionary" in apart and "0 reach 0.95" in apart


def test_raw_agreement_orders_methods_only_at_equal_rates() -> None:
    warning = "these numbers do not order the methods"
    assert warning in said(fidelity(results())[1:2])
    assert warning not in said(fidelity(results(rate=0.01))[1:2])
    assert "`relu` 0.83 (rate 0.01)" in said(fidelity(results(rate=0.01))[1:2])


def test_controls_show_where_the_scale_begins() -> None:
    text = said(fidelity(results()))
    assert "of the controls with `topk`: `random` 0.70" in text


def test_tables_say_n_and_documents() -> None:
    own = results()
    cells = own.matched("fvu")
    found = table(own, {"FVU": {**cells, "relu": {**cells["relu"], "n": 2}}}, "")
    assert found.header == ["arm", "FVU (documents ±0.0060)"]
    assert [row[1].endswith("(n 2)") for row in found.rows] == [True, False, False, False, False]
    assert documents(own, {"random": {"mean": 1.0, "documents": 0.5}}) == ""
    text = said(fidelity(own))
    assert "95 % over 3 to 6 SAE seeds, one LM" in text  # 6 at L0 16, 3 elsewhere


def test_what_was_not_measured_is_said() -> None:
    own = results()
    empty: dict[str, Any] = {name: {} for name in own.compare} | {"agreement": {"arms": {}, "random": {"mean": 0.3}}}
    text = said(fidelity(replace(own, compare=empty)))
    assert "FVU at L0 16: not measured" in text
    assert "Agreement of dictionaries within and between arms" in text


@pytest.mark.parametrize(("p", "worst", "said_so"), [(0.004, 0.02, False), (0.004, 0.3, True), (0.2, 0.3, True)])
def test_a_share_counts_only_beyond_chance_and_without_any_arm(p: float, worst: float, said_so: bool) -> None:
    cell = {"mean": 0.5, "null_high": 0.3, "p": p, "least": 0.1, "most": 0.6, "worst_p": worst}
    other = cell | {"p": 0.0004, "worst_p": 0.01}
    own = replace(results(), compare=results().compare | {"variance": {"fvu": {"arm": cell, "l0": other}}})
    text = variance_text(own, "fvu")
    assert ("the mechanism alone explains 0.50 (chance: up to 0.30" in text) and "p < 0.001; without one arm" in text
    assert ("which is not established" in text) == said_so
    assert variance_text(own, "other") == ""


def test_small_words() -> None:
    assert p_text(0.0123) == "p 0.012" and p_text(1e-7) == "p < 0.001"
    assert listed([]) == "none" and listed(["a"]) == "`a`" and listed(["a", "b", "c"]) == "`a`, `b` and `c`"


def test_figures_are_drawn_from_what_there_is() -> None:
    own = results()
    records = [(arm, i, s, l0, FVU[arm] * (16 / l0) ** 0.4, 0.5) for arm in ARMS for s in SEEDS
               for i, l0 in enumerate(TARGETS)]  # fmt: skip
    frontier = pd.DataFrame(records, columns=["arm", "level", "seed", "l0", "fvu", "delta_ce"])
    drawn = figures.frontiers(own, frontier)
    assert "3 seeds, and 3 further ones at the middle level" in drawn.caption
    curves = pd.DataFrame({"arm": "topk", "tokens": [10.0, 100.0], "fvu": [0.5, 0.3], "fvu_low": 0.2, "fvu_high": 0.6,
                           "l0": [16.0, 15.9], "dead_fraction": 0.0, "wanted_l0": 16.0})  # fmt: skip
    assert "Dotted: warm-up ends; the wanted L0" in figures.training_curves(own, curves, {"warm-up ends": 0.1}).caption
    shared = pd.DataFrame([(kind, "topk", t, 1 - t) for kind in ("same", "other", "random") for t in (0.2, 0.6)],
                          columns=["kind", "arm", "threshold", "fraction"])  # fmt: skip
    assert figures.agreement(own, shared).png[:4] == b"\x89PNG"
