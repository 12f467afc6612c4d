"""The answer to question 5: its sentences follow the declared endpoint, its test, the lookups and the ceiling."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from stages.lib.io.summary import COLUMNS
from stages.lib.report.answers.interpretability import interpretability
from stages.lib.report.figures.interpretability import coverage
from stages.lib.report.page import Block, Note, Table, Text
from stages.lib.report.results import Results
from stages.lib.stats.arms import contrasts, differences
from stages.lib.stats.equal_l0 import matched_values, means

ARMS, CONTROLS, SEEDS, L0 = ["relu", "topk", "gated", "untrained"], ["untrained"], [0, 1, 2, 3], [8.0, 16.0, 32.0]
ENDPOINT = "cc_beyond_ngrams"
BESIDE = {"coverage_token": 0.42, "coverage_bigram": 0.55, "coverage_trigram": 0.59, "cc_coverage_trigram": 0.5,
          "coverage_contextual_trigram": 0.4}  # fmt: skip
PROBE = {"coverage_probe": 0.61, f"{ENDPOINT}_probe": 0.1, "n_beyond_ngrams_probe": 40.0}


def rows_of(effect: dict[str, float], noise: float, untrained_ceiling: float) -> pd.DataFrame:
    """Rows of the summaries: an arm's value of the endpoint is 0.05 and its effect, at every level."""
    generator, rows = np.random.default_rng(0), []
    for arm in ARMS:
        for seed in SEEDS:
            for level, l0 in enumerate(L0):
                own = (0.001 if arm in CONTROLS else 0.05) + effect.get(arm, 0.0) + noise * generator.normal()
                values = {"l0": l0, ENDPOINT: own, "cc_coverage": 0.3, "coverage": 0.4, "coverage_contextual": 0.3,
                          "n_beyond_ngrams": 15.0, f"{ENDPOINT}_over_probe": own / 0.1}  # fmt: skip
                rows += [
                    (arm, level, seed, name, value, np.nan, np.nan, {ENDPOINT: 75, "cc_coverage": 212}.get(name))
                    for name, value in values.items()
                ]
        probe = PROBE if arm != "untrained" else {"coverage_probe": 0.3, f"{ENDPOINT}_probe": untrained_ceiling}
        rows += [
            (arm, 1, 0, name, value, value - 0.01, value + 0.01, 212.0) for name, value in (BESIDE | probe).items()
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def results(effect: dict[str, float], noise: float = 0.001, ceiling: float = 0.002, **variance: object) -> Results:
    rows = rows_of(effect, noise, ceiling)
    metrics, margins = [ENDPOINT, "cc_coverage", "coverage", "n_beyond_ngrams"], {ENDPOINT: 0.1}
    values = matched_values(rows, L0)
    compare = {
        "matched": means(values, metrics, L0),
        "differences": differences(values, [ENDPOINT], [16.0], "topk", CONTROLS, margins),
        "contrasts": contrasts(values, [ENDPOINT], [16.0], ARMS[:3]),
        "variance": dict(variance),
    }
    return Results(ARMS, CONTROLS, "topk", SEEDS, L0, 16.0, compare, {"interpret": rows, "evaluate": rows}, (), margins)


def text_of(blocks: list[Block]) -> str:
    return " ".join(block.text for block in blocks if isinstance(block, Text | Note))


def tables_of(blocks: list[Block]) -> list[Table]:
    return [block for block in blocks if isinstance(block, Table)]


def test_the_first_sentence_follows_the_endpoint_and_its_test() -> None:
    text = text_of(interpretability(results({"relu": 0.02})))
    assert text.startswith("**At L0 16 the mean chance-corrected F1 beyond token, bigram and trigram, 75 contextual")
    assert "concepts, is 0.050" in text and "That is 50% of what a dense probe" in text
    assert "`relu` (+0.020, p < 0.001) differs; `gated`" in text and "equal within ±0.005 (10% of its mean" in text
    assert "highest for `relu`" in text and "(told from every other arm, all pairs)" in text


@pytest.mark.parametrize("claim", ["no better interpretability", "matters more", "drives"])
def test_without_a_difference_nothing_is_claimed(claim: str) -> None:
    text = text_of(interpretability(results({}, noise=0.02)))
    assert "are undecided: with 80 % power the test finds a difference of" in text and "can't be told from" in text
    assert "explains" not in text and claim not in text


def test_what_the_mechanism_explains_is_said_only_where_it_is_established() -> None:
    sure = {"mean": 0.5, "null_high": 0.2, "p": 0.001, "least": 0.3, "most": 0.6, "worst_p": 0.01}
    unsure = sure | {"p": 0.3}
    said = interpretability(results({}, **{ENDPOINT: {"l0": unsure, "arm": sure}}))
    assert "the mechanism alone explains 0.50" in text_of(said)
    assert "explains" not in text_of(interpretability(results({}, **{ENDPOINT: {"l0": unsure, "arm": unsure}})))


def test_columns_say_what_they_are_and_the_lookups_stand_beside() -> None:
    arms, beside = tables_of(interpretability(results({})))
    beyond = "mean chance-corrected F1 beyond token, bigram and trigram, 75 contextual concepts"
    assert {"mean F1, 212 concepts", "mean chance-corrected F1, 212 concepts", beyond} <= {*arms.header}
    assert "share of the dense probe's" in arms.header
    assert not any("concepts found" in name for name in arms.header)
    assert arms.rows[0][list(arms.header).index("share of these concepts above 0")].startswith("0.200")
    assert [row[0] for row in beside.rows] == ["token lookup", "bigram lookup", "trigram lookup",
                                               "dense probe (activations of `topk`)",
                                               "dense probe (activations of `untrained`)"]  # fmt: skip
    assert beside.rows[2][1] == "0.590 [0.580, 0.600]" and beside.rows[0][4] == "–"
    assert beside.rows[3][-1].startswith("0.533")  # 40 of 75


def test_a_control_with_little_to_find_is_said_to_have_little() -> None:
    text = text_of(interpretability(results({})))
    assert "even a dense probe finds 0.002 (0.100 in those of `topk`)" in text
    assert "even a dense probe" not in text_of(interpretability(results({}, ceiling=0.09)))


def test_what_was_not_measured_is_said() -> None:
    own = results({})
    empty = replace(own, compare={name: {} for name in own.compare})
    assert text_of(interpretability(empty)) == "Concept coverage beyond n-grams at L0 16: not measured in this run."


def test_the_caveat_says_in_how_much_text_the_tables_were_counted() -> None:
    seen = {"all": {"test": {"trigram": 0.9}}, "half": {"test": {"trigram": 0.8466}}}
    text = text_of(interpretability(results({}), {"n_tokens": 11012977, "seen": seen}))
    assert "on 11,012,977 tokens, which have 90.0% of the test tokens' trigrams (half of that text: 84.7%)" in text
    assert "were counted on" not in text_of(interpretability(results({})))


def test_the_figure_names_the_lookups() -> None:
    figure = coverage(results({}))
    assert figure.png[:4] == b"\x89PNG" and "4 seeds" in figure.caption and "`topk`" in figure.caption
    none = results({})
    figure = coverage(replace(none, rows=none.rows | {"interpret": none.rows["interpret"].iloc[:0]}))
    assert figure.png[:4] == b"\x89PNG"
