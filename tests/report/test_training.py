"""Question 4 says what its numbers allow."""

import numpy as np
import pandas as pd
import pytest

from stages.lib.report.answers import training as answer
from stages.lib.report.answers.pooled import pooled
from stages.lib.report.figures import training as figure
from tests.report.made import ARMS, SEEDS, Found, results, rows, said


def made(excess: list[float], best_mcc: float = 0.9) -> pd.DataFrame:
    pool: Found = {"settling_step": (259.0, 245.0, 272.0), "settling_after": 174.0, "settling_by": 291.0}
    own = [
        {"churn_excess_last_decade": excess[seed], "start_identified_fraction": 0.37 + 0.01 * seed,
         "icc_log_rate": 0.93 + 0.001 * seed, "icc_best_mcc": best_mcc + 0.001 * seed, "births": 3.0}
        for seed in SEEDS
    ]  # fmt: skip
    return pd.concat([
        *(rows(arm, 0, pool) for arm in ARMS), *(rows(arm, seed, own[seed], n=512) for arm in ARMS for seed in SEEDS),
    ])  # fmt: skip


def test_the_lead_follows_the_numbers() -> None:
    text = said(answer.training(results(made([0.06, 0.061, 0.062])))[:1])
    assert "half of the features have settled by step 259 [245, 272]" in text
    assert "the checkpoints alone say: after 174 and by 291" in text
    assert "features still change their best concept in the last decade of steps" in text
    assert "0.380 [0.355, 0.405] still points more to its own start than to any other, chance 0.002" in text


def test_change_that_cannot_be_told_from_noise() -> None:
    text = said(answer.training(results(made([-0.02, 0.01, 0.03])))[:1])
    assert "no change of best concepts beyond noise can be told" in text
    assert "still change" not in text


def test_channels_are_sorted_by_their_reliability() -> None:
    text = said(answer.training(results(made([0.06, 0.061, 0.062], best_mcc=0.6))))
    assert "in `topk` for `firing rate` and not shown to be for `best MCC`." in text
    both = said(answer.training(results(made([0.06, 0.061, 0.062]))))
    assert "for `firing rate` and `best MCC`." in both


def test_other_seeds_are_quoted_if_they_were_measured() -> None:
    frequency = pd.concat([rows("topk", seed, {"cross_seed_icc": 0.87}) for seed in SEEDS])
    text = said(answer.training(results(made([0.06, 0.061, 0.062]), frequency)))
    assert "Between matched features of two seeds the firing rate has 0.870 [0.870, 0.870]." in text


def test_the_table_has_the_step_of_settling_with_its_own_interval() -> None:
    table = answer.training(results(made([0.06, 0.061, 0.062])))[-3]
    assert table.header[:2] == ["arm", "settled by step"]  # type: ignore[union-attr]
    assert [row[1] for row in table.rows] == ["259 [245, 272]"] * 3  # type: ignore[union-attr]


def test_pooled_numbers_are_those_of_the_first_seed() -> None:
    own = pooled(results(made([0.05, 0.06, 0.07])), "emergence")["topk"]
    assert own["settling_step"] == {"mean": 259, "low": 245, "high": 272, "n": 40}
    assert own["churn_excess_last_decade"] == {"mean": 0.05, "n": 512}


def test_nothing_measured() -> None:
    text = said(answer.training(results(made([0.0, 0.0, 0.0]).iloc[:0])))
    assert "Trajectories of the features of `topk`: not measured in this run." in text


def tables() -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    generator, steps = np.random.default_rng(0), [0, 1, 8, 64]
    features = pd.DataFrame([
        (seed, step, f, 10 ** generator.normal(-2, 0.3), min(1.0, step / 64))
        for seed in SEEDS for step in steps for f in range(20)
    ], columns=["seed", "step", "feature", "rate", "cos_other_seed"])  # fmt: skip
    checkpoints = pd.DataFrame(
        [(seed, step, step / 64, np.nan if step == 0 else 0.1 * seed) for seed in SEEDS for step in steps],
        columns=["seed", "step", "settled_fraction", "churn_excess"],
    )
    return dict.fromkeys(ARMS, features), dict.fromkeys(ARMS, checkpoints)


def test_over_seeds_by_hand() -> None:
    got = figure.over_seeds(tables()[1], "churn_excess")
    assert got["step"].min() == 1  # nothing changes before the first checkpoint
    first = got.iloc[0]
    assert (first["value"], first["value_low"], first["value_high"]) == (pytest.approx(0.1), 0.0, pytest.approx(0.2))
    assert figure.over_seeds({}, "churn_excess").empty


def test_the_figure_is_drawn_with_and_without_another_seed() -> None:
    features, checkpoints = tables()
    own = results(made([0.06, 0.061, 0.062]))
    assert figure.trajectories(own, features, checkpoints).png[:4] == b"\x89PNG"
    alone = {arm: table.assign(cos_other_seed=np.nan) for arm, table in features.items()}
    assert figure.trajectories(own, alone, checkpoints).png[:4] == b"\x89PNG"
    assert figure.trajectories(own, {}, {}).png[:4] == b"\x89PNG"
