"""Fidelity numbers by hand, their invariances, and agreement with scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score

from stages.lib.fidelity.measures import (
    Fidelity,
    Moments,
    PrincipalComponents,
    TokenMeans,
    effective_dictionary,
    gini,
    hoyer,
    l0_statistics,
    mean,
    products,
    squared_distance,
    thinned,
)
from stages.lib.sae.selection import above


def sums(x: torch.Tensor, x_hat: torch.Tensor, acts: torch.Tensor | None = None, size: int = 1000) -> Fidelity:
    """The sums of a stream cut into batches of `size`, in blocks of two tokens."""
    acts = torch.ones(len(x), 3) if acts is None else acts
    blocks = np.arange(len(x)) // 2
    own = Fidelity(acts.shape[1], int(blocks.max()) + 1, x.mean(0))
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        own.add(x[part], x_hat[part], above(acts[part], torch.zeros(acts.shape[1])), blocks[part])
    return own


def fvu(x: torch.Tensor, x_hat: torch.Tensor, size: int = 1000) -> float:
    return sums(x, x_hat, size=size).fvu(squared_distance(x, x.double().mean(0)))


def test_fvu_by_hand() -> None:
    # Mean (2, 0); deviations 4 + 4; errors 1 + 0 -> 1/8.
    x = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    assert fvu(x, torch.tensor([[0.0, 1.0], [4.0, 0.0]])) == 1 / 8
    assert fvu(x, x) == 0
    assert fvu(x, x.mean(0).expand_as(x)) == 1


def test_fvu_is_no_mean_of_ratios() -> None:
    # Token errors 1 of 1 and 0 of 9 about the mean: a mean of ratios would be 1/2.
    x = torch.tensor([[-1.0], [-1.0], [-1.0], [3.0]])
    x_hat = x.clone()
    x_hat[0] = 0.0
    assert fvu(x, x_hat) == pytest.approx(1 / 12)


def test_fvu_keeps_the_bias_of_the_error() -> None:
    # A constant shift of the reconstruction has no variance but is an error (a bug elsewhere).
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    assert fvu(x, x + 1) == pytest.approx(5 * 200 / squared_distance(x, x.double().mean(0)).sum(), rel=1e-6)


@pytest.mark.parametrize("size", [1, 7, 64, 300])
def test_fvu_does_not_depend_on_the_batch_size(size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, x_hat = torch.randn(300, 8, generator=generator), torch.randn(300, 8, generator=generator)
    assert fvu(x, x_hat, size) == pytest.approx(fvu(x, x_hat), rel=1e-12)


def test_fvu_is_invariant_to_scale_and_offset() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(300, 8, generator=generator, dtype=torch.float64)
    x_hat = x + 0.3 * torch.randn(300, 8, generator=generator, dtype=torch.float64)
    assert fvu(1e3 * x + 1e4, 1e3 * x_hat + 1e4) == pytest.approx(fvu(x, x_hat), rel=1e-9)


def test_fvu_is_one_minus_the_variance_weighted_r2() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(300, 8, generator=generator) * torch.arange(1, 9) + 5
    x_hat = x + torch.randn(300, 8, generator=generator)
    expected = 1 - r2_score(x.double().numpy(), x_hat.double().numpy(), multioutput="variance_weighted")
    assert fvu(x, x_hat) == pytest.approx(expected, rel=1e-5)


def test_squared_errors_are_kept_by_block() -> None:
    x = torch.zeros(5, 2)
    x_hat = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    assert sums(x, x_hat, size=2).squared_error.tolist() == [5.0, 9.0, 2.0]


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_relative_bias_and_cosine_of_a_scaled_reconstruction(factor: float) -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(4)) + 3
    own = sums(x, x.mean(0) + factor * (x - x.mean(0)))
    assert own.relative_bias() == pytest.approx(factor, rel=1e-5)
    assert own.cosine() == pytest.approx(1, rel=1e-5)


def test_relative_bias_is_undefined_without_a_common_direction() -> None:
    x = torch.tensor([[1.0], [-1.0]])
    own = sums(x, torch.zeros(2, 1))
    assert own.relative_bias() is None
    assert own.cosine() == 0


def test_firings_and_l0_counts_by_hand() -> None:
    acts = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    own = sums(torch.zeros(4, 2), torch.zeros(4, 2), acts, size=3)
    assert own.firings.tolist() == [1, 0, 3]
    assert own.rates().tolist() == [0.25, 0.0, 0.75]
    assert own.l0_counts.tolist() == [1, 2, 1, 0]


def test_l0_statistics_by_hand() -> None:
    # 1 token of L0 0, 17 of L0 2, 2 of L0 5.
    numbers = l0_statistics(np.array([1, 0, 17, 0, 0, 2]))
    values = np.repeat([0, 2, 5], [1, 17, 2])
    assert numbers == pytest.approx({"l0": 2.2, "l0_sd": values.std(), "l0_p5": 0, "l0_p95": 5})


def test_hoyer_and_gini_by_hand() -> None:
    codes = torch.tensor([[0.0, 0.0, 5.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 4.0]])
    # One active: 1 and 1 - 1/h. Equal: 0. Zeros are left out. (3, 4): L1 = 7, L2 = 5, h = 4.
    assert hoyer(codes, 4).tolist() == pytest.approx([1, 0, (2 - 7 / 5) / (2 - 1)])
    # Ranks 3 and 4: weights 1.5/4 and .5/4.
    assert gini(codes, 4).tolist() == pytest.approx([3 / 4, 0, 1 - 2 * (3 / 7 * 1.5 / 4 + 4 / 7 * 0.5 / 4)])


def test_indices_of_codes_that_are_all_zero_are_absent() -> None:
    own = sums(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(4, 3))
    assert own.hoyer() is None
    assert own.gini() is None


def test_zeros_that_are_not_given_count_as_zeros() -> None:
    codes = torch.randn(64, 9, generator=torch.Generator().manual_seed(0)).relu()
    codes[16] = 0
    given = thinned(above(codes, torch.zeros(9)), 16)
    assert given.shape[1] < 9
    assert gini(given, 9).tolist() == pytest.approx(gini(codes[::16], 9).tolist())
    assert hoyer(given, 9).tolist() == pytest.approx(hoyer(codes[::16], 9).tolist())


def test_codes_without_any_active_feature_have_no_sparseness() -> None:
    given = thinned(above(torch.zeros(20, 5), torch.zeros(5)), 16)
    assert len(hoyer(given, 5)) == len(gini(given, 5)) == 0


def test_products_of_a_token() -> None:
    x, x_hat = torch.randn(2, 3000, 64, generator=torch.Generator().manual_seed(0))
    mean = torch.linspace(-1, 1, 64, dtype=torch.float64)
    a, b = x.double() - mean, x_hat.double() - mean
    expected = torch.stack([(a - b).square().sum(1), b.square().sum(1), (a * b).sum(1), a.square().sum(1)])
    assert torch.allclose(products(x, x_hat, mean), expected, rtol=1e-12)


def test_gini_equals_half_the_relative_mean_difference() -> None:
    code = torch.rand(1, 40, generator=torch.Generator().manual_seed(5))
    differences = (code.T - code).abs().mean().item()
    assert gini(code, code.shape[1]).item() == pytest.approx(differences / (2 * code.mean().item()), rel=1e-5)


def test_effective_dictionary_by_hand() -> None:
    assert effective_dictionary(np.array([0.2, 0.2, 0.2, 0.2, 0.0])) == pytest.approx(4)
    q = np.array([0.75, 0.25])
    assert effective_dictionary(np.array([0.3, 0.1])) == pytest.approx(math.exp(-(q * np.log(q)).sum()))


def test_the_mean_of_a_stream_is_that_of_its_moments() -> None:
    x = 100 + torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mean(x.split(13)), Moments(x.split(13)).mean)


def test_moments_equal_numpy_whatever_the_offset() -> None:
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64) + 1e6
    moments = Moments(x.split(13))
    assert moments.n == 100
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(x.numpy().T, bias=True), rtol=1e-7)


def test_principal_components_equal_scikit_learn_at_every_rank() -> None:
    generator = torch.Generator().manual_seed(7)
    mixing = torch.randn(6, 6, generator=generator)
    train, test = (torch.randn(n, 6, generator=generator) @ mixing + 2 for n in (200, 50))
    errors = PrincipalComponents(Moments(train.split(64))).squared_error(test)
    assert len(errors) == 7
    for rank in range(1, 7):
        pca = PCA(rank).fit(train.double().numpy())
        restored = pca.inverse_transform(pca.transform(test.double().numpy()))
        assert errors[rank] == pytest.approx(((restored - test.numpy()) ** 2).sum(), rel=1e-6, abs=1e-8)
    assert errors[0] == pytest.approx(squared_distance(test, train.double().mean(0)).sum())


def test_token_means_by_hand_with_back_off() -> None:
    means = TokenMeans(4, 1)
    means.add(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0], dtype=torch.int32))
    means.add(torch.tensor([[8.0]]), torch.tensor([2], dtype=torch.int32))
    # Tokens 1 and 3 were never seen: the mean of all three rows.
    assert means.table().flatten().tolist() == [2.0, 4.0, 8.0, 4.0]
