"""The answer to question 3: sentences that follow the declared rule, the ladder and the controls."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.lib.io.summary import COLUMNS
from stages.lib.report.answers.frequency import MEASURES, frequency
from stages.lib.report.answers.ladder import RUNGS, graded
from stages.lib.report.figures.frequency import LABELS, forest, medians, rates
from stages.lib.report.page import Block, Figure, Table
from stages.lib.report.results import Results
from tests.features.test_indicator import OWN

ARMS = ["topk", "relu", "random", "pca"]
SEEDS = [0, 1, 2]


def cell(mean: float, rho: float, half: float = 0.1) -> dict[str, float]:
    """A difference to the random decoder with the arm's correlation."""
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 3, "rho": rho, "rho_random": rho - mean,
            "features": 400.0}  # fmt: skip


def compared(endpoint: dict[str, float], sign: int = 0, **changes: Any) -> dict[str, Any]:
    """What `compare` would write for the entropy, with a purity and a stability in the reference arm."""
    ruled = OWN.model_dump(exclude={"n_resamples", "seed"}) | {"n_tested": 2, "n_up": 0, "n_down": 0, "sign": sign}
    arms = {"topk": endpoint, "relu": endpoint, "pca": cell(0.0, 0.2)}
    others = {"purity": {"topk": cell(-0.4, -0.3)}, "mcc_calibrated": {"topk": cell(-0.2, 0.2)},
              "stability": {"topk": cell(0.05, 0.0)}}  # fmt: skip
    return {"differences": {"entropy_rarefied": arms} | others, "common_range": {"entropy_rarefied": {**arms}},
            "verdict": ruled | changes}  # fmt: skip


def rows(stage: str, numbers: dict[str, float], n: int = 300) -> pd.DataFrame:
    """The same numbers for every arm and seed at one level, a little apart between seeds."""
    found = [
        (arm, 0, seed, metric, value + 0.001 * seed, np.nan, np.nan, n)
        for arm in ARMS for seed in SEEDS for metric, value in numbers.items()
    ]  # fmt: skip
    return pd.DataFrame(found, columns=COLUMNS).assign(stage=stage)


NUMBERS = {f"{rung}_icc": 0.95 - 0.1 * place for place, rung in enumerate(RUNGS)} | {
    "cross_seed_matched_fraction": 0.5, "n_specialised": 36.0, "unresolved_fraction": 0.1, "spec_spearman_below": 0.3,
    "spec_spearman_above": -0.3, "beyond_chance_fraction": 0.97, "spec_spearman_chance": 0.0, "log_rate_sd": 0.3,
}  # fmt: skip


def results(found: dict[str, Any], numbers: dict[str, float] = NUMBERS) -> Results:
    """Results with nothing but what the answer is made from."""
    tables = {"evaluate": rows("evaluate", {"l0": 16.0}), "frequency": rows("frequency", numbers)}
    return Results(ARMS, ["random", "pca"], "topk", SEEDS, [16.0], 16.0, {"frequency": found}, tables)


def text_of(blocks: list[Block]) -> str:
    return " ".join(getattr(block, "text", "") for block in blocks)


def test_the_first_sentence_follows_the_declared_rule() -> None:
    blocks = frequency(results(compared(cell(0.4, 0.6), sign=1, n_up=2)))
    first = text_of(blocks[:1])
    assert first.startswith("**By token entropy, rarefied, the declared measure, firing frequency is a reliable sign")
    assert "frequent features are less particular about tokens than rare ones.**" in first
    assert "is 0.60, in the random decoder (`random`) 0.20: difference +0.40 [+0.30, +0.50]" in first
    assert "in 2 arms that are no controls; it holds with + in 2 and with − in 0 of 2" in first
    falling = text_of(frequency(results(compared(cell(-0.4, -0.6), sign=-1, n_down=2)))[:1])
    assert "frequent features are more particular about tokens than rare ones.**" in falling
    none = text_of(frequency(results(compared(cell(0.2, 0.4))))[:1])
    assert "firing frequency is not a reliable sign of specialisation.**" in none


def test_a_difference_without_a_relation_of_its_own_is_no_sign() -> None:
    first = text_of(frequency(results(compared(cell(0.4, 0.0), sign=1, n_up=2)))[:1])
    assert "only because the relation that is there at random is missing.**" in first and "reliable" not in first


def test_too_few_arms_decide_nothing() -> None:
    first = text_of(frequency(results(compared(cell(0.4, 0.6), n_tested=2, least_arms=5)))[:1])
    assert "is not decided: the rule asks for 5 arms, and 2 were trained.**" in first


def test_the_verdict_is_at_equal_rates_and_all_rates_stand_beside_it() -> None:
    found = compared(cell(0.35, 0.5), sign=1, n_up=2)
    found["differences"]["entropy_rarefied"] = {"topk": cell(0.4, 0.6), "relu": cell(0.2, 0.4), "pca": cell(0.1, 0.2)}
    first = text_of(frequency(results(found))[:1])
    assert "difference +0.35 [+0.25, +0.45], over the rates that both have" in first
    assert "the difference is +0.40 [+0.30, +0.50], and 1 of 2 arms meet the limits, no control does." in first
    found["differences"]["entropy_rarefied"]["pca"] = cell(0.5, 0.7)
    assert "1 of 2 arms meet the limits, but so does `pca`." in text_of(frequency(results(found))[:1])


def test_other_measures_are_told_apart_by_what_they_show() -> None:
    text = text_of(frequency(results(compared(cell(0.4, 0.6), sign=1, n_up=2))))
    assert "frequent features are, beyond the random decoder's, less pure (-0.40)" in text
    assert "weaker or missing for calibrated MCC (ρ 0.20 against 0.40)" in text
    assert "no difference can be told by largest cosine in other seeds." in text


def test_every_rung_has_a_word_of_its_own() -> None:
    blocks = frequency(results(compared(cell(0.4, 0.6))))
    text = text_of(blocks)
    assert "halves 0.95 (excellent); documents 0.85 (good); threshold 0.75 (good)" in text
    assert "seed, same of the 50% with a counterpart 0.65 (moderate)" in text and "level, all 0.35 (poor)" in text
    tables = [block for block in blocks if isinstance(block, Table)]
    assert [row[0] for row in tables[1].rows] == list(RUNGS.values())
    assert tables[1].rows[0][-1] == "300"  # features
    assert [row[0] for row in tables[2].rows] == ["`topk`", "`relu`", "`random` (control)", "`pca` (control)"]


@pytest.mark.parametrize(
    ("icc", "word"), [(0.95, "excellent"), (0.9, "excellent"), (0.89, "good"), (0.74, "moderate"), (0.49, "poor")]
)
def test_words_of_reliability(icc: float, word: str) -> None:
    assert graded(icc) == word


def test_a_turn_and_a_missing_auroc_are_said() -> None:
    text = text_of(frequency(results(compared(cell(0.4, 0.6)))))
    assert "for calibrated MCC the relation turns (ρ 0.30" in text
    assert "36 features a seed of `topk` count as specialised by calibrated MCC: too few for an AUROC" in text
    with_area = text_of(frequency(results(compared(cell(0.4, 0.6)), NUMBERS | {"auroc_frequency": 0.6})))
    assert "frequency alone tells them with an AUROC of 0.601" in with_area


def test_what_was_not_measured_is_said() -> None:
    assert "not measured in this run" in text_of(frequency(results({}, {})))
    text = text_of(frequency(results({})))
    assert "halves 0.95 (excellent)" in text and "declared measure" not in text
    assert "ICC" not in text_of(frequency(results(compared(cell(0.4, 0.6)), {})))


def features(n: int = 200) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    columns = {name: generator.random(n) for name in ("mcc_calibrated", "entropy_rarefied")}
    return pd.DataFrame(columns | {"rate": 10 ** generator.uniform(-3, -1, n)})


@pytest.mark.parametrize("found", [{}, compared(cell(0.4, 0.6), sign=1)])
def test_the_figure_is_drawn_with_and_without_differences(found: dict[str, Any]) -> None:
    figure = rates(results(found), {arm: features() for arm in ARMS})
    assert isinstance(figure, Figure) and figure.png[:4] == b"\x89PNG"
    bare = rates(results(found), {"topk": pd.DataFrame({"rate": [0.1, 0.2]})})
    assert bare.png != figure.png


def test_the_forest_puts_every_difference_at_its_place() -> None:
    from stages.lib.report.draw import canvas

    found = compared(cell(0.4, 0.6))
    with canvas(4.0, 4.0) as (_, (axes,)):
        forest(axes, found["differences"], results(found))
        assert [label.get_text() for label in axes.get_yticklabels()][:2] == [
            LABELS["entropy_rarefied"],
            LABELS["purity"],
        ]
        assert len(axes.containers) == 3  # topk, relu and pca
        points = axes.containers[0].lines[0]
        assert list(points.get_xdata()) == pytest.approx([0.4, -0.4, -0.2, 0.05])
        heights = list(points.get_ydata())
        assert heights == sorted(heights, reverse=True) and heights[0] == pytest.approx(3.36)


def test_medians_by_hand() -> None:
    x = np.repeat([-2.1, -1.9, -1.0], (10, 11, 9))
    middles, values = medians(x, np.arange(30.0))
    # Thirds of a unit from -2 1/3 and from -2; the nine features at -1 are too few.
    assert middles == pytest.approx([-6.5 / 3, -5.5 / 3]) and values.tolist() == [4.5, 15.0]


def test_the_page_and_the_figure_know_the_same_measures() -> None:
    assert list(LABELS) == list(MEASURES)
