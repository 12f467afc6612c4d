"""Matching of dictionaries: values by hand, properties, and brute force over all assignments."""

from itertools import permutations

import numpy as np
import pytest
import torch

from stages.lib.features.matching import (
    best_cosines,
    contrast,
    match,
    random_directions,
    shared_fraction,
    stability,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_match_by_hand() -> None:
    # Rows of `right` are those of `left` swapped, one of them turned by 60 degrees: cosines 1 and 1/2.
    left = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    right = torch.tensor([[0.0, 1.0], [0.5, 3**0.5 / 2 * -1]])
    found = match(left, right)
    assert found.right.tolist() == [1, 0]
    assert found.cosines.tolist() == pytest.approx([0.5, 1.0])
    assert found.mcc == pytest.approx(0.75)


def test_match_is_signed() -> None:
    direction = torch.tensor([[1.0, 0.0]])
    assert match(direction, -direction).mcc == pytest.approx(-1.0)


def test_match_ignores_order_and_length() -> None:
    left = random_directions(12, 6, generator())
    shuffled = left[torch.randperm(12, generator=generator(1))] * 3
    assert match(left, shuffled).mcc == pytest.approx(1.0, abs=1e-6)


def test_match_of_different_sizes_pairs_the_smaller() -> None:
    assert len(match(random_directions(5, 4, generator()), random_directions(3, 4, generator(1))).cosines) == 3


def test_match_equals_brute_force() -> None:
    left, right = random_directions(5, 4, generator(2)), random_directions(5, 4, generator(3))
    similarity = (left @ right.T).numpy()
    best = max(np.mean([similarity[i, order[i]] for i in range(5)]) for order in permutations(range(5)))
    assert match(left, right).mcc == pytest.approx(float(best), abs=1e-6)


def test_random_dictionaries_score_well_above_zero() -> None:
    # Chance is no zero: 64 features in 16 dimensions.
    levels = [
        match(random_directions(64, 16, generator(i)), random_directions(64, 16, generator(50 + i))).mcc
        for i in range(5)
    ]
    assert min(levels) > 0.4 and max(levels) < 0.65
    assert np.std(levels) < 0.02


def test_best_cosine_and_shared_fraction_by_hand() -> None:
    left = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    best = best_cosines(left, torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    assert best.tolist() == pytest.approx([1.0, 0.8, -0.6])
    assert shared_fraction(best, [0.5, 0.9]) == pytest.approx([2 / 3, 1 / 3])


def test_stability_is_the_best_of_all_other_dictionaries() -> None:
    own, turned = torch.eye(2), torch.tensor([[0.8, 0.6], [-1.0, 0.0]])
    assert stability(own, [turned, -torch.eye(2)]).tolist() == pytest.approx([0.8, 0.6])
    assert np.isnan(stability(own, [])).all()


def matrix(within: float, between: float, arms: list[int]) -> np.ndarray:
    labels = np.array(arms)
    return np.where(labels[:, None] == labels[None, :], within, between).astype(np.float64)


def test_contrast_by_hand() -> None:
    arms, seeds = np.repeat(np.arange(3), 3), np.tile(np.arange(3), 3)
    found = contrast(matrix(0.8, 0.5, arms.tolist()), arms, seeds, 199, np.random.default_rng(0))
    assert found is not None
    assert (found.within, found.between) == pytest.approx((0.8, 0.5))
    # 36 distinct labellings up to renaming: about 1 permutation in 36 keeps the arms together.
    assert found.p < 0.1


def test_contrast_leaves_out_pairs_of_one_seed() -> None:
    arms, seeds = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    agreement = matrix(0.8, 0.5, arms.tolist())
    agreement[0, 2] = agreement[2, 0] = agreement[1, 3] = agreement[3, 1] = 0.99
    found = contrast(agreement, arms, seeds, 9, np.random.default_rng(0))
    assert found is not None
    assert found.between == pytest.approx(0.5)


def test_contrast_without_effect_has_p_one() -> None:
    arms, seeds = np.repeat(np.arange(3), 3), np.tile(np.arange(3), 3)
    found = contrast(np.full((9, 9), 0.6), arms, seeds, 49, np.random.default_rng(0))
    assert found is not None
    assert found.p == 1.0


def test_contrast_needs_two_arms_and_two_seeds() -> None:
    one_arm = contrast(np.ones((2, 2)), np.array([0, 0]), np.array([0, 1]), 9, np.random.default_rng(0))
    one_seed = contrast(np.ones((2, 2)), np.array([0, 1]), np.array([0, 0]), 9, np.random.default_rng(0))
    assert one_arm is None
    assert one_seed is None
