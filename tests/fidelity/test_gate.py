"""Which SAEs keep a results table from being made."""

import pandas as pd
import pytest

from stages.lib.fidelity.gate import gate, sanity_failures
from stages.lib.io.errors import UserError

SOUND = {"fvu": 0.3, "density": 0.05, "fvu_unigram": 0.6, "fvu_pca": 0.5}


def test_a_sound_sae_passes_the_gate() -> None:
    assert sanity_failures("topk", SOUND) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fvu": 0.95, "fvu_unigram": 1.0, "fvu_pca": 1.0}, "topk: test FVU 0.950 is not below 0.95"),
        ({"density": 0.51}, "topk: 51% of the features are active at a token, more than 50%"),
        ({"fvu_unigram": 0.3}, "topk: test FVU 0.300 does not beat the mean activation by token, 0.300"),
        ({"fvu_pca": 0.2}, "topk: test FVU 0.300 does not beat PCA of the rank of its L0, 0.200"),
    ],
)
def test_the_gate_says_what_is_wrong(change: dict[str, float], message: str) -> None:
    assert sanity_failures("topk", SOUND | change) == [message]


def test_the_gate_stops_the_table_of_a_dense_code_that_explains_nothing() -> None:
    # FVU .987 at 27.87 % zeros, and FVU 1.043.
    dense = {"fvu": 0.987, "density": 0.7213, "fvu_unigram": 0.9, "fvu_pca": 0.9}
    assert len(sanity_failures("relu", dense)) == 4
    assert len(sanity_failures("topk", dense | {"fvu": 1.043, "density": 0.02})) == 3


def rows(records: list[tuple[str, int, int, str, float]]) -> pd.DataFrame:
    return pd.DataFrame(records, columns=["arm", "level", "seed", "metric", "value"])


def gated(fvu: list[float], density: float = 0.04, unigram: float = 0.5) -> pd.DataFrame:
    return rows(
        [
            ("a", level, 0, metric, value)
            for level, x in enumerate(fvu)
            for metric, value in (("fvu", x), ("density", density), ("fvu_unigram", unigram), ("fvu_pca", 0.8))
        ]
    )


def test_gate_passes_if_one_level_beats_the_baselines() -> None:
    gate(gated([0.6, 0.4]), [])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (gated([0.97, 0.3]), "no results table: a level 0 seed 0: test FVU 0.970 is not below 0.95"),
        (gated([0.3], density=0.6), "60% of the features"),
        (gated([0.6, 0.55]), "does not beat the mean activation by token.*saes.a or list it in compare.controls"),
    ],
)
def test_gate_refuses(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(UserError, match=message):
        gate(table, [])
    gate(table, ["a"])
