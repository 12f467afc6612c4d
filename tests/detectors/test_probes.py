"""Token lookup and probes against values worked out by hand and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from stages.lib.detectors.firings import firings
from stages.lib.detectors.probes import (
    N_BINS,
    ProbabilityHistogram,
    accepted_ids,
    fit_dense,
    lookup,
)
from stages.lib.detectors.sparse_probes import (
    balanced_examples,
    draw_examples,
    fit_sparse,
    fit_sparse_probes,
    largest_differences,
)


def test_lookup_by_hand() -> None:
    found = lookup(np.array([[3, 0], [0, 0], [0, 0]]), np.array([3, 1, 0]))
    assert found.tolist() == [[(3 + 1.5) / 5, 0], [1.5 / 3, 0], [0.75, 0]]


def test_accepted_ids_by_hand() -> None:
    # By falling probability 2, 0, 1. F1: {2} 8/(5+10), {2, 0} 16/(15+10), all 20/(115+10).
    probability = np.array([[0.5], [0.1], [0.9]])
    positives, totals = np.array([[4], [2], [4]]), np.array([10, 100, 5])
    assert accepted_ids(probability, positives, totals)[:, 0].tolist() == [True, False, True]


def test_equal_probabilities_are_taken_together() -> None:
    probability = np.array([[0.5], [0.5], [0.1]])
    positives, totals = np.array([[0], [9], [1]]), np.array([10, 10, 500])
    assert accepted_ids(probability, positives, totals)[:, 0].tolist() == [True, True, False]


def test_accepted_ids_are_the_best_of_all_thresholds() -> None:
    generator = np.random.default_rng(0)
    totals = generator.integers(0, 40, 30)
    positives = generator.binomial(totals[:, None], generator.random((30, 5)) ** 3)
    probability = lookup(generator.binomial(50, generator.random((30, 5))), np.full(30, 50))
    accepted = accepted_ids(probability, positives, totals)
    for c in range(5):

        def score(ids: np.ndarray, c: int = c) -> float:
            return float(2 * positives[ids, c].sum() / (totals[ids].sum() + positives[:, c].sum()))

        best = max(score(probability[:, c] >= threshold) for threshold in probability[:, c])
        assert score(accepted[:, c]) == pytest.approx(best)


def test_the_dense_probe_is_scikit_learns_on_whitened_inputs() -> None:
    generator = np.random.default_rng(0)
    n, l2 = 3000, 1e-2
    x = torch.from_numpy(generator.standard_normal((n, 6)) @ generator.standard_normal((6, 6)) + 3).float()
    labels = 1 / (1 + np.exp(-(x.numpy() @ generator.standard_normal((6, 2))) + 2)) > generator.random((n, 2))
    found = fit_dense(x, labels, l2).probability(x)
    centred = x.numpy() - x.numpy().mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / n)
    for c in range(2):
        reference = LogisticRegression(C=1 / (n * l2), tol=1e-8).fit(centred @ (vectors / values**0.5), labels[:, c])
        expected = reference.predict_proba(centred @ (vectors / values**0.5))[:, 1]
        assert np.abs(found[:, c] - expected).max() < 1e-3


def test_directions_without_variance_do_no_harm() -> None:
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 1
    probe = fit_dense(x, (x[:, :1] > 0).numpy(), 1e-2)
    assert torch.isfinite(probe.weights).all()
    assert ((probe.probability(x)[:, 0] > 0.5) == (x[:, 0] > 0).numpy()).mean() > 0.95


def test_sparse_probes_are_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((3, 400, 2))
    labels = x.sum(2) + generator.standard_normal((3, 400)) > 0.5
    weights, bias = fit_sparse(torch.from_numpy(x).float(), labels, 1e-2)
    for c in range(3):
        reference = LogisticRegression(C=1 / (400 * 1e-2), tol=1e-8).fit(x[c], labels[c])
        assert weights[c].numpy() == pytest.approx(reference.coef_[0], abs=0.01)
        assert float(bias[c]) == pytest.approx(reference.intercept_[0], abs=0.01)


def test_histogram_thresholds_are_the_best_bin_edges() -> None:
    generator = np.random.default_rng(0)
    labels = generator.random((400, 2)) < 0.2
    p = np.clip(0.3 * labels + generator.random((400, 2)) * 0.7, 0, 1)
    histogram = ProbabilityHistogram(2)
    for part in np.array_split(np.arange(400), 3):
        histogram.add(p[part].astype(np.float32), labels[part])
    for c, threshold in enumerate(histogram.thresholds()):
        scores = [f1_score(labels[:, c], p[:, c].astype(np.float32) >= edge / N_BINS) for edge in range(N_BINS)]
        assert f1_score(labels[:, c], p[:, c].astype(np.float32) >= threshold) == pytest.approx(max(scores), abs=1e-6)


def test_a_probability_of_1_has_a_bin() -> None:
    histogram = ProbabilityHistogram(1)
    histogram.add(np.array([[1.0], [0.0]], np.float32), np.array([[True], [False]]))
    assert histogram.thresholds()[0] > 0


def test_examples_are_half_positive() -> None:
    labels = np.random.default_rng(0).random((100, 3)) < [0.05, 0.5, 0.9]
    rows = balanced_examples(labels, 40, np.random.default_rng(1))
    examples = draw_examples(labels, 40, np.random.default_rng(1))
    assert np.array_equal(rows, examples.rows)
    assert (examples.positive[:, :20]).all() and not examples.positive[:, 20:].any()
    assert all(labels[rows[c, :20], c].all() for c in range(3))


def test_features_are_ranked_by_difference_of_means() -> None:
    acts = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 2.0], [0.0, 1.0, 2.0], [0.0, 0.0, 2.0]])
    labels = np.array([[True], [True], [False], [False]])
    assert largest_differences(firings(acts), csr_array(labels), 2, 3).tolist() == [[0, 1]]


def test_one_feature_that_is_the_concept_ranks_perfectly_and_noise_does_not() -> None:
    generator = np.random.default_rng(0)
    labels = generator.random((2, 600, 2)) < 0.3
    acts = [torch.from_numpy(np.maximum(generator.standard_normal((600, 8)), 0)).float() for _ in range(2)]
    for split in range(2):
        acts[split][:, 3] = torch.from_numpy(labels[split][:, 0]) * (1 + acts[split][:, 3])
    examples = [draw_examples(y, 200, generator) for y in labels]
    fit, test = map(firings, acts)
    ranked = largest_differences(fit, csr_array(labels[0]), 3, 8)
    scores = fit_sparse_probes(fit, ranked, examples[0], [1, 3], 1e-3).aurocs(test, examples[1])
    assert list(scores) == [1, 3]
    for found in scores.values():
        assert found[0] == pytest.approx(1, abs=0.01)
        assert found[1] == pytest.approx(0.5, abs=0.15)


def test_features_that_lower_the_odds_count_too() -> None:
    generator = np.random.default_rng(0)
    labels = generator.random((2, 400, 1)) < 0.5
    acts = [torch.from_numpy((~y).astype(np.float32)) for y in labels]
    examples = [draw_examples(y, 100, generator) for y in labels]
    fit, test = map(firings, acts)
    probes = fit_sparse_probes(fit, torch.tensor([[0]]), examples[0], [1], 1e-3)
    assert probes.aurocs(test, examples[1])[1][0] == pytest.approx(1)
