"""Question 2 says what its tests allow."""

import numpy as np
import pandas as pd
import pytest

from stages.lib.report.answers import emergence as answer
from stages.lib.report.figures import emergence as figure
from stages.lib.report.page import Note, Table
from tests.report.made import ARMS, SEEDS, Found, results, rows, said

NAMES = ("log_prevalence", "log_magnitude")


def order(p: dict[str, tuple[float, float]], joint: tuple[float, float] = (0.001, 0.001)) -> Found:
    """The numbers of an arm: p of each property with all concepts and with those that emerge; p of both models."""
    found: Found = {"n_emerged": 20.0, "kendall_w": 0.8, "kendall_w_p": 0.001, "l0_outside_fraction": 0.0,
                    "emergence_step": (30.0, 20.0, 40.0)}  # fmt: skip
    for at, model in enumerate(("joint", "joint_emerged")):
        found |= {f"{model}_p": joint[at], f"{model}_c_index": 0.8, f"{model}_c_index_null": 0.6}
        for name in NAMES:
            found |= {f"{model}_{name}": (-0.5, -0.7, -0.3), f"{model}_{name}_p": p[name][at],
                      f"{model}_vif_{name}": 1.5}  # fmt: skip
    for name, value in (("prevalence", 0.02), ("magnitude", 1e-5)):
        found |= {f"driver_{name}": (-0.3, -0.5, -0.1), f"driver_{name}_p": value}
    return found


def made(found: Found, others: Found | None = None) -> pd.DataFrame:
    by_arm = {arm: found if arm == "topk" else others or found for arm in ARMS}
    per_seed = {name: found[name] for name in ("n_emerged", "l0_outside_fraction")}
    return pd.concat([
        *(rows(arm, 0, own) for arm, own in by_arm.items()),
        *(rows(arm, seed, per_seed) for arm in ARMS for seed in SEEDS[1:]),
    ])  # fmt: skip


def times() -> dict[str, pd.DataFrame]:
    """`a` is there from the start in one seed; `a` and `b` emerge in every seed, in the control only `a` does."""
    found = {}
    for arm in ARMS:
        emerging = {"a", "b"} if arm == "topk" else {"a"}
        records = [(seed, name, name not in emerging, name == "a" and seed == 1) for seed in SEEDS for name in "abc"]
        found[arm] = pd.DataFrame(records, columns=["seed", "concept", "censored", "at_start"])
    return found


BOTH = {"log_prevalence": (0.5, 0.5), "log_magnitude": (1e-4, 1e-4)}


def test_a_driver_is_established_if_both_models_say_so() -> None:
    text = said(answer.drivers(results(made(order(BOTH))), times())[:1])
    assert "seeds agree on the order in which concepts emerge (Kendall's W 0.80" in text
    assert "jointly, the order goes with `log magnitude`, an observation in which nothing was intervened on" in text


@pytest.mark.parametrize(
    "p",
    [
        {"log_prevalence": (0.5, 0.5), "log_magnitude": (1e-4, 0.3)},  # only with the concepts that never emerge
        {"log_prevalence": (0.5, 0.5), "log_magnitude": (0.3, 1e-4)},  # only among the survivors
        {"log_prevalence": (0.5, 0.5), "log_magnitude": (0.03, 0.03)},  # not when two properties are tested
    ],
)
def test_otherwise_none_is(p: dict[str, tuple[float, float]]) -> None:
    text = said(answer.drivers(results(made(order(p))), times())[:1])
    assert "jointly, of 2 declared properties, no driver is established" in text


def test_no_driver_without_the_joint_test() -> None:
    found = order(BOTH, joint=(0.2, 0.001))
    assert answer.established({name: {"mean": v if isinstance(v, float) else v[0]} for name, v in found.items()}) == []
    assert "no driver is established" in said(answer.drivers(results(made(found)), times())[:1])


def test_seeds_that_do_not_agree() -> None:
    text = said(answer.drivers(results(made(order(BOTH) | {"kendall_w_p": 0.3})), times()))
    assert "seeds cannot be said to agree on the order" in text


def test_concepts_that_tell_little_are_named() -> None:
    text = said(answer.drivers(results(made(order(BOTH))), times()))
    assert "20.0 [20.0, 20.0] of 40 concepts emerge" in text
    assert "half of them by step 30 [20, 40]" in text
    assert "At half of their final score at step 0 already, in a seed or more: 1, `a`." in text
    assert "Of the 2 that emerge in every seed, 1 do so in `frozen_decoder` too: `a`." in text


def test_one_by_one_is_corrected_over_all_cells() -> None:
    tables = [b for b in answer.drivers(results(made(order(BOTH))), times()) if isinstance(b, Table)]
    marginal = tables[-1]
    assert "over the 6 cells" in marginal.caption
    # Holm: the three smallest p are 1e-5 x 6, 5, 4; then 0.02 x 3 = 0.06.
    assert [cell.endswith("*") for cell in marginal.rows[0][1:]] == [False, True]


def test_variance_inflation_is_said() -> None:
    high = order(BOTH) | {"joint_vif_log_magnitude": 7.0}
    text = said(answer.drivers(results(made(high)), times()))
    assert "The largest variance inflation is 7.0: the effects of `log magnitude` cannot be told apart." in text


def test_another_sparsity_over_training_is_said() -> None:
    frame = made(order(BOTH))
    frame.loc[(frame["metric"] == "l0_outside_fraction") & (frame["arm"] == "relu"), "value"] = 0.5
    caveat = [block.text for block in answer.drivers(results(frame), times()) if isinstance(block, Note)][-1]
    assert "L0 is not that of the last one, so that their scores are not comparable: `relu` 50%." in caveat
    same = [block.text for block in answer.drivers(results(made(order(BOTH))), times()) if isinstance(block, Note)][-1]
    assert "At every checkpoint of every arm L0 is that of the last one" in same


def test_nothing_measured() -> None:
    assert "not measured in this run" in said(answer.drivers(results(made(order(BOTH)).iloc[:0]), {}))


def curves() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Twelve concepts of three kinds; the score of c<i> ends at i / 12."""
    names, kinds = [f"c{i}" for i in range(12)], ["lexical"] * 6 + ["contextual"] * 4 + ["positional"] * 2
    records = [(0, step, name, step / 64 * i / 12) for step in (0, 8, 64) for i, name in enumerate(names)]
    known = pd.DataFrame({"concept": names, "kind": kinds, "rank": np.arange(12.0)[::-1], "lexicality": 0.4,
                          "f1_chance": 0.1})  # fmt: skip
    return pd.DataFrame(records, columns=["seed", "step", "concept", "cc_f1"]), known


def test_concepts_of_the_figure_are_of_every_kind_and_not_the_easiest() -> None:
    table, known = curves()
    wide = figure.stratified(table, known, rows=9)
    # Three a kind, from the best to the worst of it; positional has two.
    kinds = known.set_index("concept")["kind"][wide.index]
    assert kinds.value_counts().to_dict() == {"lexical": 3, "contextual": 3, "positional": 2}
    assert {"c0", "c5", "c6", "c9", "c10", "c11"} <= set(wide.index)
    ranks = known.set_index("concept")["rank"][wide.index]
    assert all(ranks[kinds == kind].is_monotonic_increasing for kind in kinds.unique())


def test_the_figure_is_drawn_with_and_without_curves() -> None:
    table, known = curves()
    ends = {"lr warm-up ends": 0.02, "lr decay begins": 0.8}
    drawn = figure.emergence(results(made(order(BOTH))), {"topk": table}, known, ends)
    assert drawn.png[:4] == b"\x89PNG"
    assert "lr warm-up ends, lr decay begins" in drawn.caption
    assert figure.emergence(results(made(order(BOTH))), {}, known, ends).png[:4] == b"\x89PNG"
