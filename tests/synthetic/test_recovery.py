"""Recovery of known dictionaries: values by hand, properties, and agreement with SciPy and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from sklearn.metrics import f1_score, precision_score, recall_score
from sklearn.metrics.pairwise import cosine_similarity

from stages import train
from stages.lib.features.matching import random_directions
from stages.lib.io import params
from synthetic import generate
from synthetic.recovery import Families, Firings, directions, frequency_groups
from synthetic.truth import REVISION
from synthetic.world import draw_truth
from tests.settings import parsed, working_directory
from tests.toy import ROOT


def random(n: int, d_in: int, seed: int) -> torch.Tensor:
    return random_directions(n, d_in, torch.Generator().manual_seed(seed))


def test_directions_by_hand() -> None:
    true = torch.eye(3)
    learned = torch.tensor([[0.6, 0.8, 0.0], [0.0, 1.0, 0.0]])
    found = directions(learned, true)
    # Best pairs: 0.6 of the first with axis 0 and 1 of the second with axis 1; 0.8 + 0 would be less.
    assert found.mcc == pytest.approx(0.8)
    assert (found.learned.tolist(), found.true.tolist()) == ([0, 1], [0, 1])
    assert found.best.tolist() == pytest.approx([0.6, 1.0, 0.0])
    assert found.mmcs_true == pytest.approx(1.6 / 3)
    assert found.mmcs_learned == pytest.approx(0.9)
    assert found.recovered_fraction == pytest.approx(1 / 3)
    assert found.unique_fraction == pytest.approx(0.5)  # both are nearest to axis 1
    assert {*found.numbers()} == {"mcc", "mmcs_true", "mmcs_learned", "recovered_fraction", "unique_fraction"}


def test_a_permuted_truth_is_recovered_and_its_mirror_image_is_not() -> None:
    true = random(20, 6, 0)
    learned = true[torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    assert list(directions(learned, true).numbers().values()) == pytest.approx([1.0] * 5, abs=1e-6)
    mirrored = directions(-learned, true)
    assert mirrored.mcc < 0.9 and mirrored.recovered_fraction == 0


def test_the_order_of_features_does_not_matter() -> None:
    learned, true = random(12, 6, 0), random(20, 6, 1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    assert directions(learned[order], true).numbers() == pytest.approx(directions(learned, true).numbers())


def test_mcc_agrees_with_an_independent_matching() -> None:
    learned, true = random(12, 6, 3), random(20, 6, 4)
    similarity = cosine_similarity(learned.numpy(), true.numpy())
    rows, columns = min_weight_full_bipartite_matching(csr_array(similarity + 2), maximize=True)  # a 0 is no edge
    assert directions(learned, true).mcc == pytest.approx(float(similarity[rows, columns].mean()), abs=1e-6)


def test_chance_is_far_from_zero_and_higher_without_signs() -> None:
    # 256 random directions against 512 of low coherence in 64 dimensions; without signs 0.389 and 0.369, as another
    # program measured.
    truth, signed, unsigned = draw_truth(default_settings(), 0).dictionary, [], []
    for seed in range(3):
        learned = random(256, 64, seed)
        found, similarity = directions(learned, truth), (learned @ truth.T).abs().numpy()
        signed.append((found.mcc, found.mmcs_true))
        unsigned.append((similarity[linear_sum_assignment(similarity, maximize=True)].mean(), similarity.max(0).mean()))
    assert np.mean(unsigned, axis=0) == pytest.approx([0.389, 0.369], abs=0.005)
    assert np.mean(signed, axis=0) == pytest.approx([0.370, 0.345], abs=0.005)


def default_settings() -> generate.GenerateParams:
    raw = parsed((ROOT / "synthetic/params.yaml").read_text())["generate"]
    return params.check("generate", raw, generate.GenerateParams)


def test_saes_begin_at_chance() -> None:
    # An initialisation that shared its random numbers with the truth would look like a recovery.
    seed = 0
    with working_directory(ROOT / "synthetic"):
        own, chosen = generate.settings(), train.settings("topk", str(seed))
    truth = draw_truth(own, seed)
    assert chosen.arm.activations == REVISION
    start = train.prepare(chosen, seed, torch.zeros(4, own.d_in), 10).saes[0].W_dec.detach()
    levels = [directions(random(len(start), own.d_in, 100 + i), truth.dictionary).mcc for i in range(20)]
    assert abs(directions(start, truth.dictionary).mcc - np.mean(levels)) < 3 * np.std(levels, ddof=1)
    # What the check is there to find: the first directions of the truth, before they were spread out.
    shared = directions(truth.dictionary[: len(start)], truth.dictionary).mcc
    assert shared - np.mean(levels) > 30 * np.std(levels, ddof=1)


def test_frequency_groups_are_equal_and_ordered() -> None:
    frequency = np.random.default_rng(0).permutation(np.linspace(0.01, 0.3, 25))
    group = frequency_groups(frequency, 4)
    assert sorted(np.bincount(group)) == [6, 6, 6, 7]
    for low in range(3):
        assert frequency[group == low].max() < frequency[group == low + 1].min()


def test_firing_by_hand_in_two_batches() -> None:
    pairs = directions(torch.eye(2), torch.eye(2).flip(0))  # learned 0 with true 1, learned 1 with true 0
    fires = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 0], [0, 0]], dtype=torch.bool)
    on = torch.tensor([[0, 1], [0, 1], [0, 0], [0, 1], [1, 0]], dtype=torch.bool)
    counts = Firings(pairs)
    counts.add(fires[:2], on[:2])
    counts.add(fires[2:], on[2:])
    assert counts.precision() == pytest.approx([2 / 3, np.nan], nan_ok=True)
    assert counts.recall() == pytest.approx([2 / 3, 0])
    assert counts.f1() == pytest.approx([2 / 3, 0])


def test_firing_agrees_with_sklearn() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = directions(random(5, 4, 0), random(7, 4, 1))
    fires, on = torch.rand(400, 5, generator=generator) < 0.3, torch.rand(400, 7, generator=generator) < 0.4
    counts = Firings(pairs)
    counts.add(fires, on)
    for metric, found in ((precision_score, counts.precision()), (recall_score, counts.recall()),
                         (f1_score, counts.f1())):  # fmt: skip
        expected = [metric(on[:, j], fires[:, i]) for i, j in zip(pairs.learned, pairs.true, strict=True)]
        assert found == pytest.approx(expected)


def family(*children: list[int]) -> np.ndarray:
    return np.array(children)


def test_absorption_by_hand() -> None:
    # True features: parent 0 with children 1 and 2; learned feature 1 is the parent's.
    on = torch.tensor([[1, 0, 0]] * 4 + [[1, 1, 0]] * 4 + [[1, 0, 1]] * 2 + [[0, 0, 0]] * 3, dtype=torch.bool)
    silent = {3, 4, 5, 6}  # fires on 3 of 4 alone, 1 of 4 with the first child, both with the second
    fires = torch.tensor([[0, token not in silent] for token in range(13)], dtype=torch.bool)
    counts = Families(np.array([1]), np.array([0]), np.array([0]), family([1, 2]))
    counts.add(fires[:6], on[:6])
    counts.add(fires[6:], on[6:])
    assert counts.n.tolist() == [10] and counts.n_child.tolist() == [[[4, 2]]]
    assert counts.absorption() == pytest.approx([1 - (3 / 6) / (3 / 4)])
    assert counts.by_child()[0, 0] == pytest.approx([1 - (1 / 4) / (3 / 4), 1 - 1 / (3 / 4)])


def test_absorption_ignores_what_happens_without_the_parent() -> None:
    on = torch.tensor([[1, 0], [1, 1], [0, 1]], dtype=torch.bool)
    for last in (False, True):
        counts = Families(np.array([0]), np.array([0]), np.array([0]), family([1]))
        counts.add(torch.tensor([[True], [False], [last]]), on)
        assert counts.absorption() == pytest.approx([1.0])


def test_absorption_is_undefined_without_tokens_or_firings() -> None:
    on = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
    counts = Families(np.array([0, 1]), np.array([0, 2]), np.array([0, 1]), family([1], [3]))
    counts.add(torch.tensor([[True, False], [False, False], [False, True]]), on)
    assert np.isnan(counts.absorption()).all() and np.isnan(counts.by_child()[counts.is_own()]).all()


def test_children_of_others_are_told_from_own_ones() -> None:
    # Parents 0 and 1 with children 2 and 3; learned features 0 and 1. The first is absorbed, the second never.
    generator = torch.Generator().manual_seed(0)
    on = torch.rand(20000, 4, generator=generator) < 0.5
    on[:, 2] &= on[:, 0]
    on[:, 3] &= on[:, 1]
    fires = on[:, :2].clone()
    fires[:, 0] &= ~on[:, 2] | (torch.rand(20000, generator=generator) < 0.25)
    counts = Families(np.array([0, 1]), np.array([0, 1]), np.array([0, 1]), family([2], [3]))
    counts.add(fires, on)
    assert counts.is_own().tolist() == [[True, False], [False, True]]
    assert counts.by_child()[:, :, 0] == pytest.approx(np.array([[0.75, 0.0], [0.0, 0.0]]), abs=0.03)
    assert counts.absorption() == pytest.approx([0.75, 0.0], abs=0.03)
    # A parent alone, whose family is the second of two.
    single = Families(np.array([1]), np.array([1]), np.array([1]), family([2], [3]))
    single.add(fires, on)
    assert single.is_own().tolist() == [[False, True]]
    assert single.by_child()[0] == pytest.approx(counts.by_child()[1])


def test_families_can_be_none() -> None:
    nobody = np.zeros(0, np.int64)
    counts = Families(nobody, nobody, nobody, np.zeros((0, 0), np.int64))
    counts.add(torch.ones(3, 2, dtype=torch.bool), torch.ones(3, 4, dtype=torch.bool))
    assert counts.absorption().size == counts.by_child().size == 0
