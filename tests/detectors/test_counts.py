"""Counts and scores against values worked out by hand and scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn import metrics

from stages.lib.detectors import counts
from stages.lib.detectors.counts import Confusion, Predictions, detect, f1, joint_counts, mcc
from stages.lib.detectors.firings import N_LEVELS, PART, encoded_firings, firings, largest, level_of, maxima
from stages.lib.detectors.label_sums import in_words, members

GENERATOR = np.random.default_rng(0)


def identity(x: torch.Tensor) -> torch.Tensor:
    """An encoder that changes nothing."""
    return x


def random_case(n: int = 300, d_sae: int = 7, n_concepts: int = 4) -> tuple[torch.Tensor, np.ndarray]:
    """Sparse activations and labels."""
    acts = np.maximum(GENERATOR.standard_normal((n, d_sae)) - 0.5, 0).astype(np.float32)
    return torch.from_numpy(acts), GENERATOR.random((n, n_concepts)) < 0.3


def count(acts: torch.Tensor, labels: np.ndarray, maximum: np.ndarray, n_parts: int = 1) -> Confusion:
    """The counts of some batches."""
    confusion = Confusion(acts.shape[1], labels.shape[1])
    for x, y in zip(acts.tensor_split(n_parts), np.array_split(labels, n_parts), strict=True):
        found = firings(x)
        confusion.add(found.row, found.feature, level_of(found.activation, maximum[found.feature]), y)
    return confusion


def test_f1_by_hand() -> None:
    # 3 true positives, 1 false positive, 2 false negatives: 2 * 3 / (2 * 3 + 1 + 2)
    assert f1(np.array([3]), np.array([4]), np.array([5]))[0] == pytest.approx(6 / 9)


def test_f1_of_nothing_is_0() -> None:
    assert f1(np.array([0]), np.array([0]), np.array([0]))[0] == 0


def test_mcc_by_hand() -> None:
    # TP 3, FP 1, FN 2, TN 4: (3 * 4 - 1 * 2) / sqrt(4 * 5 * 5 * 6)
    assert mcc(np.array([3]), np.array([4]), np.array([5]), 10)[0] == pytest.approx(10 / 600**0.5)


@pytest.mark.parametrize(("fired", "positives"), [(0, 5), (10, 5), (5, 0), (5, 10)])
def test_mcc_of_a_constant_is_0(fired: int, positives: int) -> None:
    both = np.array([min(fired, positives)])
    assert mcc(both, np.array([fired]), np.array([positives]), 10)[0] == 0


def test_scores_agree_with_scikit_learn() -> None:
    for _ in range(20):
        predicted, label = GENERATOR.random((2, 50)) < GENERATOR.random((2, 1))
        counts = np.array([(predicted & label).sum()]), np.array([predicted.sum()]), np.array([label.sum()])
        assert f1(*counts)[0] == pytest.approx(metrics.f1_score(label, predicted, zero_division=0.0))
        assert mcc(*counts, 50)[0] == pytest.approx(metrics.matthews_corrcoef(label, predicted))


def test_mcc_does_not_overflow_at_a_billion_tokens() -> None:
    n = 10**9
    assert mcc(np.array([n // 2]), np.array([n // 2]), np.array([n // 2]), n)[0] == pytest.approx(1)


def test_levels_by_hand() -> None:
    activation = np.array([0.01, 0.1, 0.11, 0.5, 0.95, 1.0, 3.0], np.float32)
    maximum = np.ones(7, np.float32)
    assert level_of(activation, maximum).tolist() == [0, 0, 1, 4, 9, 9, 9]


def test_a_feature_that_was_never_seen_to_fire_passes_every_threshold() -> None:
    assert level_of(np.array([0.2], np.float32), np.zeros(1, np.float32)).tolist() == [9]


def test_firings_are_the_nonzero_entries_in_order() -> None:
    found = firings(torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 3.0]]))
    assert found.row.tolist() == [0, 2, 2]
    assert found.feature.tolist() == [1, 0, 1]
    assert found.activation.tolist() == [2.0, 1.0, 3.0]


def test_parts_do_not_show() -> None:
    acts, _ = random_case(PART + 10)
    for whole, parts in zip(firings(acts), encoded_firings(identity, acts), strict=True):
        assert np.array_equal(whole, parts)


def test_largest_activations_are_those_of_the_dense_code() -> None:
    acts, _ = random_case(PART + 10)
    acts[:, 3] = 0
    for found in (largest(firings(acts), 7), maxima(identity, acts, 7)):
        assert np.array_equal(found, acts.numpy().max(0))


def test_totals_are_the_counts_at_the_lowest_level() -> None:
    acts, labels = random_case()
    confusion = count(acts, labels, acts.numpy().max(0))
    table, totals = confusion.table(), confusion.totals()
    assert np.array_equal(totals.both[:, 0], table.both[:, 0]) and np.array_equal(totals.fired[:, 0], table.fired[:, 0])


def test_joint_counts_by_hand() -> None:
    labels = in_words(np.array([[True, False], [True, True]]))
    counts = joint_counts(members(np.array([0, 0, 1]), np.array([0, 2, 2]), 3), labels)
    assert counts.tolist() == [[1, 0], [0, 0], [2, 1]]


def test_counts_of_many_rows_do_not_overflow() -> None:
    n = 70_000
    keys = members(np.arange(n), np.zeros(n, np.int64), 1)
    counts = joint_counts(keys, in_words(np.ones((n, 1), bool)))
    assert counts.tolist() == [[n]]


@pytest.mark.parametrize("n_parts", [1, 3])
def test_streamed_counts_are_those_of_every_threshold(n_parts: int) -> None:
    acts, labels = random_case()
    maximum = acts.numpy().max(0)
    table = count(acts, labels, maximum, n_parts).table()
    for level in range(10):
        fires = (acts.numpy() > 0) & (10 * acts.numpy() / maximum > level)
        assert np.array_equal(table.fired[:, level], fires.sum(0))
        assert np.array_equal(table.both[:, level], fires.T.astype(int) @ labels)
    assert np.array_equal(table.positives, labels.sum(0))
    assert table.n == len(labels)


def test_counts_without_levels() -> None:
    acts, labels = random_case()
    confusion = Confusion(7, 4, n_levels=1)
    found = firings(acts)
    confusion.add(found.row, found.feature, None, labels)
    assert np.array_equal(confusion.table().both[:, 0], (acts.numpy() > 0).T.astype(int) @ labels)


def test_the_best_detector_is_the_best_of_all() -> None:
    acts, labels = random_case()
    maximum = acts.numpy().max(0)
    choice = count(acts, labels, maximum).best_detectors()
    for concept in range(4):
        scores = np.array(
            [
                [metrics.f1_score(labels[:, concept], level_of(a, np.full_like(a, m)) * (a > 0) >= max(level, 0.5))
                 if level else metrics.f1_score(labels[:, concept], a > 0) for level in range(10)]
                for a, m in zip(acts.numpy().T, maximum, strict=True)
            ]
        )  # fmt: skip
        assert choice.score[concept] == pytest.approx(scores.max(), rel=1e-6)
        assert scores[choice.feature[concept], choice.level[concept]] == pytest.approx(scores.max())


def test_detection_agrees_with_the_counts() -> None:
    acts, labels = random_case()
    maximum = acts.numpy().max(0)
    choice = count(acts, labels, maximum).best_detectors()
    predicted = detect(identity, acts, choice, maximum)
    predictions = Predictions(2, 4)
    predictions.add(predicted, labels, np.repeat([0, 1], 150))
    assert predictions.f1() == pytest.approx(choice.score, rel=1e-6)
    expected = [metrics.matthews_corrcoef(labels[:, c], predicted[:, c]) for c in range(4)]
    assert predictions.mcc() == pytest.approx(expected)


def test_resampled_f1_repeats_documents() -> None:
    predicted, labels = GENERATOR.random((2, 90, 3)) < 0.5
    documents = np.repeat([0, 1, 2], 30)
    predictions = Predictions(3, 3)
    for part in np.array_split(np.arange(90), 4):
        predictions.add(predicted[part], labels[part], documents[part])
    rows = np.concatenate([np.flatnonzero(documents == d) for d in (0, 0, 2)])
    expected = [metrics.f1_score(labels[rows, c], predicted[rows, c]) for c in range(3)]
    assert predictions.resampled_f1(np.array([[2, 0, 1]]))[0] == pytest.approx(expected)
    assert predictions.resampled_f1(np.ones((1, 3), int))[0] == pytest.approx(predictions.f1())


def test_counts_do_not_depend_on_how_many_batches_are_added_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    batches = []
    for n in (40, 1, 70):
        row, feature = (generator.random((n, 5)) < 0.4).nonzero()
        level = generator.integers(0, N_LEVELS, len(row)).astype(np.uint8)
        batches.append((row, feature, level, generator.random((n, 70)) < 0.3))
    tables = []
    for at_once in (1, 60, 10**6):
        monkeypatch.setattr(counts, "AT_ONCE", at_once)
        confusion = Confusion(5, 70)
        for batch in batches:
            confusion.add(*batch)
        tables.append(confusion.table())
        assert confusion.table().n == 111  # nothing is counted twice
    for other in tables[1:]:
        for mine, theirs in zip(tables[0], other, strict=True):
            assert np.array_equal(mine, theirs)
