"""What may drive the order of emergence, by hand and against SciPy."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stages.lib.emergence import drivers
from stages.lib.emergence.families import label_correlation
from stages.lib.io.errors import UserError


def test_contrast_by_hand() -> None:
    x = np.array([[1.0, 0], [3, 0], [0, 1], [0, -1]])
    got = drivers.contrast(x, np.array([[True], [True], [False], [False]]))
    # delta = (2, 0); p (1 - p) 4 = 1; within variance along it: (1 + 1 + 0 + 0) / 4.
    assert got.magnitude == pytest.approx([2.0])
    assert got.variance_share == pytest.approx([1.0])
    assert got.separability == pytest.approx([4 / 0.5])


def test_redundancy_is_with_more_prevalent_concepts() -> None:
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0], [1, 1, 0]], bool)
    got = drivers.redundancy(label_correlation(labels), labels.mean(axis=0))
    assert got[0] == 0
    assert got[1] == pytest.approx(stats.pearsonr(labels[:, 0], labels[:, 1]).statistic)


def test_lexicality_of_a_token_and_of_chance() -> None:
    tokens = np.array([3, 3, 4, 5] * 10)
    one = drivers.Ids(tokens, np.stack([tokens == 3, np.arange(40) % 8 < 4], axis=1))
    got = drivers.lexicality(one, one, one, 6)
    assert got[0] == 1
    assert got[1] == pytest.approx(2 / 3)  # all tokens, half of them positive


def test_predictors_are_columns_or_their_logarithms() -> None:
    table = pd.DataFrame({"prevalence": [1.0, np.e], "lexicality": [0.5, 0.0]})
    assert drivers.predictors(table, ["log_prevalence", "lexicality"]) == pytest.approx(np.array([[0, 0.5], [1, 0]]))


def test_unknown_predictors_are_refused() -> None:
    drivers.check_predictors(["log_prevalence", "redundancy"])
    with pytest.raises(UserError, match=r"emergence\.drivers has 'log_prevalance'.*did you mean 'log_prevalence'"):
        drivers.check_predictors(["log_prevalance"])
    with pytest.raises(UserError, match=r"emergence\.drivers is empty"):
        drivers.check_predictors([])
