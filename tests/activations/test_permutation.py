"""The permutation: a bijection of any range, invertible, different for different seeds, and well mixed."""

import numpy as np
import pytest

from stages.lib.activations.permutation import METHOD, Permutation
from stages.lib.io.errors import UserError
from stages.lib.run import seeds


def make(n: int, seed: int = 0) -> Permutation:
    return Permutation.from_seed(n, seeds.sequence(seed, "test"))


def test_network_of_two_bits_by_hand() -> None:
    # Keys 0: mix(0) = 0, and mix(1) is odd or even as its definition, worked out with Python's integers, says.
    mask = 2**64 - 1
    value = 1
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & mask
    bit = (value ^ value >> 31) & 1
    # One round leaves the low bit, and adds mix(low) to the high one: 0 -> 0, 1 -> 1 + 2 bit, 2 -> 2, 3 -> 3 - 2 bit.
    assert Permutation(4, (0,))(np.arange(4)).tolist() == [0, 1 + 2 * bit, 2, 3 - 2 * bit]
    # A second round adds mix(high) to the low bit of that.
    expected = [index ^ (bit if index >= 2 else 0) for index in [0, 1 + 2 * bit, 2, 3 - 2 * bit]]
    assert Permutation(4, (0, 0))(np.arange(4)).tolist() == expected


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 13, 31, 64, 97, 1000, 4096, 4097, 65537, 10**6 + 3])
def test_is_a_bijection_with_its_inverse(n: int) -> None:
    index = np.arange(n)
    image = make(n)(index)
    assert image.dtype == np.int64
    assert np.array_equal(np.bincount(image, minlength=n), np.ones(n))
    assert np.array_equal(make(n).inverse(image), index)


def test_needs_no_memory_proportional_to_n() -> None:
    n = 10**15
    some = np.array([0, 1, 12345678901234, n - 1])
    image = make(n)(some)
    assert (image < n).all()
    assert np.array_equal(make(n).inverse(image), some)


def test_subsets_agree_with_the_whole() -> None:
    whole = make(1000)(np.arange(1000))
    assert np.array_equal(make(1000)(np.array([999, 3, 500])), whole[[999, 3, 500]])
    assert make(1000)(np.array([], np.int64)).shape == (0,)


def test_seeds_give_unrelated_permutations() -> None:
    n = 10007
    first, second = make(n, 0)(np.arange(n)), make(n, 1)(np.arange(n))
    # Two random permutations agree in one place on average; more than 10 has probability 1e-8.
    assert (first == second).sum() <= 10
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.parametrize("n", [2**14, 10007])
@pytest.mark.parametrize("seed", range(3))
def test_neighbours_are_scattered(n: int, seed: int) -> None:
    image = make(n, seed)(np.arange(n)).astype(float)
    assert abs(np.corrcoef(image, np.arange(n))[0, 1]) < 5 / np.sqrt(n)
    # The distance of two places drawn at random has mean n / 3 and standard deviation n / sqrt(18).
    assert abs(np.abs(np.diff(image)).mean() / n - 1 / 3) < 5 / np.sqrt(18 * n)


def test_small_permutations_are_near_uniform() -> None:
    """Each of 5 indices goes to each of 5 places in a fifth of 2,000 seeds, within 6 standard errors."""
    counts = np.zeros((5, 5))
    for seed in range(2000):
        counts[np.arange(5), make(5, seed)(np.arange(5))] += 1
    assert np.abs(counts / 2000 - 0.2).max() < 6 * np.sqrt(0.2 * 0.8 / 2000)


def test_recipe_rebuilds_it() -> None:
    original = make(97, 5)
    assert Permutation.from_recipe(original.recipe()) == original
    assert original.recipe() == {"method": METHOD, "n": 97, "keys": list(original.keys)}


def test_recipe_of_another_method_is_refused() -> None:
    with pytest.raises(UserError, match=r"permutation recipe of method 'shuffle', not 'feistel-splitmix64'"):
        Permutation.from_recipe({"method": "shuffle", "n": 3, "keys": []})


def test_indices_outside_are_a_bug() -> None:
    with pytest.raises(AssertionError, match=r"outside range\(3\)"):
        make(3)(np.array([3]))
