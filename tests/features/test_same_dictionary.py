"""Agreement divided by that of seeds: by hand, on dictionaries whose answer is known, and what intervals allow."""

from itertools import combinations

import pandas as pd
import pytest
import torch

from stages.lib.features.agreement import Dictionary, pairs
from stages.lib.features.same_dictionary import (
    Agreements,
    cell_of,
    disattenuated,
    own_agreement,
    same_dictionary,
    same_group,
    share_alike,
)
from tests import fake_tree

COLUMNS = ["arm", "seed", "other_arm", "other_seed", "mcc"]


def test_by_hand_and_without_pairs_of_equal_seeds() -> None:
    table = pd.DataFrame([("a", 0, "a", 1, 0.6), ("a", 0, "b", 0, 0.99), ("a", 0, "b", 1, 0.5), ("a", 1, "b", 0, 0.58),
                          ("a", 1, "b", 1, 0.99), ("b", 0, "b", 1, 0.8)], columns=COLUMNS)  # fmt: skip
    found = Agreements(table)
    assert found.mean("a", "b", [0, 1]) == pytest.approx(0.54)
    assert found.mean("a", "b", [0]) is None
    assert found.disattenuated("a", "b", [0, 1]) == pytest.approx(0.54 / (0.6 * 0.8) ** 0.5)
    assert disattenuated(found) == {"a": {"b": {"mean": pytest.approx(0.54 / 0.48**0.5)}}}  # two seeds: no interval
    assert own_agreement(found) == {"a": {"mean": 0.6}, "b": {"mean": 0.8}}


def dictionary(arm: str, seed: int, truth: torch.Tensor, noise: float) -> Dictionary:
    number = 1000 * sum(map(ord, arm)) + seed
    decoder = truth + noise * fake_tree.unit(len(truth), number)
    alive = torch.ones(len(truth), dtype=torch.bool)
    return Dictionary(arm, seed, torch.nn.functional.normalize(decoder, dim=1), alive, None)


@pytest.fixture(scope="module")
def learned() -> dict[str, object]:
    """Two arms that learn one dictionary with different noise, and one that learns a third of it differently."""
    truth, other = fake_tree.unit(8, 1), fake_tree.unit(8, 1).clone()
    other[:3] = fake_tree.unit(3, 99)
    arms = {"clean": (truth, 0.3), "noisy": (truth, 0.7), "else": (other, 0.3)}
    runs = [dictionary(arm, seed, *what) for arm, what in arms.items() for seed in range(6)]
    return same_dictionary(pd.DataFrame(pairs(runs)), ["clean", "noisy"], [], 0.95)


def test_noise_of_seeds_is_divided_out(learned: dict[str, dict]) -> None:  # type: ignore[type-arg]
    own, table = learned["own"], learned["disattenuated"]
    assert (
        own["clean"]["mean"] > own["noisy"]["mean"] + 0.1
    )  # raw agreement: the noisy arm agrees less, even with itself
    assert cell_of(table, "noisy", "clean")["mean"] == pytest.approx(1.0, abs=0.03)  # type: ignore[index]
    assert cell_of(table, "clean", "else")["high"] < 0.95  # type: ignore[index]
    assert list(learned["group"]) == ["clean", "noisy"]
    assert learned["share_alike"] == {"mean": 1.0, "n_pairs": 1, "low": 1.0, "high": 1.0}


def cell(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def test_a_group_takes_every_interval() -> None:
    arms = ["a", "b", "c", "d"]
    table = {one: {other: cell(0.99, 0.02) for other in arms if other > one} for one in arms}
    assert same_group(table, arms, 0.95) == arms
    table["a"]["d"] = cell(0.99, 0.06)  # not established
    assert same_group(table, arms, 0.95) == ["a", "b", "c"]
    table["b"]["d"] = cell(1.01, 0.01)  # b, c and d agree better than a, b and c
    assert same_group(table, arms, 0.95) == ["b", "c", "d"]
    assert same_group(table, arms, 0.999) == ["b", "d"]
    assert same_group({one: {two: {"mean": 0.99} for two in arms if two > one} for one in arms}, arms, 0.95) == []
    counts = share_alike(table, arms, 0.95)
    assert counts == {"mean": 1.0, "n_pairs": 6, "low": pytest.approx(5 / 6), "high": 1.0}
    assert share_alike(table, ["a"], 0.95) is None
    assert len(list(combinations(arms, 2))) == 6
