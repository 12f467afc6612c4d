"""What is said of clusters, attribution, errors and the evaluated text follows the numbers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.lib.report.answers import setting, structure
from stages.lib.report.figures import structure as figures
from stages.lib.report.results import Results
from tests.report.made import ARMS, SEEDS, results, rows, said

CORPUS = {"source": "made", "splits": {"test": {"documents": 3, "characters": 900}}, "dropped": {"short": 1145}}
TOKENS: dict[str, Any] = {"n_ctx": 16, "splits": {"test": {
    "tokens": 300, "documents": ["a", "b", "c"], "dropped": {"empty": 0, "not_drawn": 7}}}}  # fmt: skip
NOTHING = rows("topk", 0, {}).astype({"value": float})


def facts(p: float, edge: str = "lowest", n_null: int = 199) -> dict[str, Any]:
    """The numbers of one arm's directions; `p` is that of the silhouette."""
    near = {"value": 0.26, "null": 0.22, "p": 0.005, "p_holm": 0.015}
    return {"n_clusters": 2, "edge": edge, "n_null": n_null, "pair_cosine": 0.5, "nearest": near, "opposite": near,
            "silhouette": {"value": 0.02, "null": 0.02, "p": p / 3, "p_holm": p},
            "close_pairs": {"value": 9, "null": 0.1}, "antipodal_pairs": {"value": 7, "null": 0.0},
            "stability": {"value": 0.3, "null": 0.2}}  # fmt: skip


def test_clusters_are_claimed_by_the_corrected_p_alone() -> None:
    own = results(NOTHING)
    none = said(structure.clusters(own, dict.fromkeys(ARMS, facts(0.06))))
    assert "In none of 2 arms do decoder directions form clusters beyond chance" in none
    some = said(structure.clusters(own, {"relu": facts(0.04), "topk": facts(0.06), "frozen_decoder": facts(0.04)}))
    assert "form clusters beyond chance in `relu`, of 2 arms" in some
    assert "corrected for 3 arms and never below 0.015" in some
    # The control is told apart, not counted.
    assert "`frozen_decoder` silhouette p 0.04, nearest p 0.015" in some


def test_no_claim_is_made_where_none_could_be_reached() -> None:
    text = said(structure.clusters(results(NOTHING), dict.fromkeys(ARMS, facts(0.01, n_null=20))))
    assert "is not decided" in text
    assert "beyond chance" not in text


def test_neighbours_and_the_edge_of_the_candidates_are_said() -> None:
    found = {"relu": facts(0.5, "inside"), "topk": facts(0.5)}
    found["relu"]["antipodal_pairs"] = {"value": 8, "null": 0.0}
    found["relu"]["nearest"] = {"value": 0.2, "null": 0.22, "p": 1.0, "p_holm": 1.0}
    text = said(structure.clusters(results(NOTHING), found))
    assert (
        "nearest neighbour is closer than chance in `topk`; its most opposite direction is more opposite in `relu`"
        in text
    )
    assert "Antipodal pairs (cosine at most -0.5): 7 to 8 an arm, by chance at most 0 on average." in text
    assert "9 (0.1)" in text
    assert "the lowest tried in `topk`, which prefers no number" in text
    assert "2 (lowest tried)" in text
    assert "-0.260 (-0.220; p 0.015)" in text


def attributed(slope: tuple[float, float, float]) -> Results:
    """Results with the attribution of two arms."""
    parts = [rows(arm, seed, {"spearman": 0.9, "slope": slope}) for arm in ("relu", "topk") for seed in SEEDS]
    pooled = {"spearman_pooled": (0.9, 0.85, 0.95), "slope_pooled": slope, "min_score": 0.01,
              "spearman_magnitude_pooled": 0.8, "spearman_naive_pooled": 0.03}  # fmt: skip
    parts += [rows(arm, 0, pooled, n=1200) for arm in ("relu", "topk")]
    own = results(NOTHING)
    return replace(own, rows=own.rows | {"attribution": pd.concat(parts)})


@pytest.mark.parametrize(
    ("slope", "words"),
    [
        ((0.9, 0.85, 0.95), "the gradient overstates the median effect"),
        ((1.2, 1.1, 1.3), "the gradient understates the median effect"),
        ((1.0, 0.9, 1.1), "which is not told from 1"),
    ],
)
def test_the_slope_is_read_off_its_interval(slope: tuple[float, float, float], words: str) -> None:
    text = said(structure.attribution(attributed(slope)))
    assert words in text
    assert f"moves the loss by {slope[0]:.3f} [{slope[1]:.3f}, {slope[2]:.3f}] times" in text
    assert "1,200 nodes with |grad×act| > 0.01 nats" in text
    assert "the sizes of effects alone, grad×act reaches 0.800, a score that knows no token 0.030." in text


def test_attribution_that_was_not_measured() -> None:
    own = results(NOTHING)
    text = said(structure.attribution(replace(own, rows=own.rows | {"attribution": NOTHING})))
    assert text == "Attribution of `topk`: not measured in this run."


def evaluated(ratio: tuple[float, float, float]) -> Results:
    """Results with the losses of three arms; the control has no ratio."""
    parts = []
    for arm in ARMS:
        found: dict[str, float | tuple[float, float, float]] = {
            "l0": 16.0, "delta_ce": 0.4, "delta_ce_random_error": 0.2, "fvu": (0.24, 0.23, 0.25), "fvu_train": 0.2,
            "ce_clean": (1.87, 1.7, 2.05), "ce_clean_test": (1.85, 1.75, 1.95),
        }  # fmt: skip
        parts += [
            rows(arm, s, found | ({} if arm == "frozen_decoder" else {"random_error_ratio": ratio})) for s in SEEDS
        ]
    own = results(NOTHING)
    return replace(own, rows=own.rows | {"evaluate": pd.concat(parts)})


def test_the_error_is_said_to_cost_more_where_its_interval_says_so() -> None:
    text = said(structure.errors(evaluated((0.5, 0.4, 0.6))))
    assert "adds less than the SAE's own error to the loss: 0.200 [0.200, 0.200] against 0.400 [0.400, 0.400]" in text
    assert "over test documents, all seeds: 0.40 to 0.60" in text
    assert "in 2 of 2 arms; in `frozen_decoder` the SAE's error costs too little for a ratio." in text
    assert "adds as much, as far as known, as the SAE's own" in said(structure.errors(evaluated((0.9, 0.8, 1.1))))
    assert "adds more than the SAE's own" in said(structure.errors(evaluated((1.5, 1.2, 1.9))))


def test_the_evaluated_text_stands_beside_the_models_loss() -> None:
    model = {"nats_per_token": {"model": 1.671, "bigram": 3.8}, "heldout_tokens": 201076}
    text = said(setting.setting(model, CORPUS, TOKENS, evaluated((0.5, 0.4, 0.6))))
    assert "Its loss is 1.850 [1.750, 1.950] on 40 predictions, all of the test tokens that are used here (3" in text
    assert "1.870 [1.700, 2.050] on 40 of them" in text
    assert "held-out loss, 1.671 on 201,076 tokens" in text
    assert "0.240 [0.240, 0.240] on test documents and 0.200 [0.200, 0.200] on activations" in text
    assert "outside the interval of the former over documents [0.230, 0.250]): +20% on documents" in text


def test_model_of_unknown_loss_and_what_was_left_out() -> None:
    own = evaluated((0.5, 0.4, 0.6))
    text = said(setting.setting({"source": "pretrained", "name": "gpt2"}, CORPUS, TOKENS, own))
    assert "Language model: pretrained gpt2; its held-out loss is not recorded." in text
    assert "own held-out loss" not in text
    assert "Documents left out: 1,145 short, 7 not drawn (test)." in text


def test_figures_draw_with_and_without_numbers() -> None:
    generator = np.random.default_rng(0)
    near = generator.uniform(0.2, 0.4, 60)
    table = pd.DataFrame({"arm": np.repeat(ARMS, 20), "nearest": near, "nearest_null": near - 0.02,
                          "opposite": -near, "opposite_null": 0.02 - near})  # fmt: skip
    own = attributed((0.9, 0.8, 1.0))
    effect = generator.normal(size=30)
    nodes = pd.DataFrame({"stratum": "random", "grad_x_act": effect, "ig": effect, "ablation": effect, "seed": 0})
    for figure in (
        figures.embedding(own, table, ARMS),
        figures.embedding(own, table.iloc[:0], ARMS),
        figures.attribution(own, {"topk": nodes}),
        figures.attribution(own, {}),
    ):
        assert figure.png[:4] == b"\x89PNG"
    assert "20 features of `topk`" in figures.embedding(own, table, ARMS).caption
