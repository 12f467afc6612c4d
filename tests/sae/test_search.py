"""The search for active features, against plain operations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.lib.run import parallel
from stages.lib.sae import search
from stages.lib.sae.search import Encoder, above, largest, nth_largest, reached_by


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(z: torch.Tensor, k: int) -> torch.Tensor:
    return torch.sort(z, dim=1, stable=True, descending=True).indices[:, :k].sort(1).values


def identity(d: int, dtype: torch.dtype = torch.float32) -> Encoder:
    """With which the input itself is z."""
    return Encoder(torch.eye(d, dtype=dtype), torch.zeros(d))


def test_a_number_that_k_reach_by_hand() -> None:
    values = np.array([3, 1, 5, 4, 1], np.float32)
    assert 3 < reached_by(values, 5, 2) <= 4
    assert reached_by(values, 5, 5) == 1 == reached_by(values, 5, 4)  # two are 1
    assert reached_by(values, 2, 1) > 1  # of the first two


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 400), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.25, 1.0]), st.data())
def test_the_nth_largest_number_and_the_next(size: int, seed: int, step: float, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, size - 1))
    values = numbers(size, seed=seed % 1000)
    values = (values / step).round() * step if step else values
    expected = values.sort(descending=True).values
    before = search.N_SAMPLED
    search.N_SAMPLED = data.draw(st.sampled_from([1, 7, 50, 2**17]))
    found = nth_largest(values, n)
    search.N_SAMPLED = before
    assert found == (float(expected[n - 1]), float(expected[n]))


def test_the_nth_largest_of_many_numbers_whatever_the_sample_says() -> None:
    values = numbers(300_000)
    misleading = values.clone()
    misleading[:: len(values) // search.N_SAMPLED | 1] -= 3
    for one in (values, misleading, torch.full((300_000,), 2.0)):
        expected = one.sort(descending=True).values
        for n in (1, 3000, 299_999):
            assert nth_largest(one, n) == (float(expected[n - 1]), float(expected[n]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.25, 1.0, 2.0**60]), st.data())
def test_the_largest_are_those_of_the_stable_sort(
    dtype: torch.dtype, d: int, seed: int, step: float, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, d))
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((5, d)).astype(np.float32))
    x = (torch.round(x / 0.3) * step if step else x).to(dtype).float()  # with a step, there are ties
    encoder = identity(d, dtype)._replace(bias=torch.arange(d) % 3 * 0.5)
    z = x + encoder.bias
    feature, value = largest(encoder, x, k)
    assert torch.equal(feature, plain(z, k))
    assert torch.equal(value, z.gather(1, feature))


def test_of_nans_the_features_stay_within_the_row_and_the_values_are_nan() -> None:
    x = numbers(3, 70)
    x[1] = torch.nan
    x[2, 5] = torch.nan
    feature, value = largest(identity(70), torch.nan_to_num(x), 9)
    assert ((feature >= 0) & (feature < 70)).all() and not value.isnan().any()
    feature, value = largest(identity(70), x, 9)
    assert ((feature >= 0) & (feature < 70)).all()
    assert value[1].isnan().all() and torch.equal(feature[0], plain(x[:1], 9)[0])
    found = above(identity(70), x, torch.zeros(70), torch.zeros(3), torch.zeros(70))
    assert found is not None and found.first[2] == found.first[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("n", [1, 37])
def test_what_lies_above_does_not_depend_on_threads_or_parts(
    dtype: torch.dtype, n_threads: int, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "PARALLEL_FROM", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    monkeypatch.setattr(search, "N_NUMBERS", 500)  # 37 tokens in three parts
    x, d = numbers(n, 50).to(dtype).float(), 50
    encoder = identity(d, dtype)._replace(bias=numbers(d, seed=1))
    z, threshold = x + encoder.bias, numbers(d, seed=2)
    found = above(encoder, x, threshold - encoder.bias, x.new_zeros(n), torch.zeros(d))
    assert found is not None
    expected = x > threshold - encoder.bias
    assert found.first.tolist() == [0, *expected.sum(1).cumsum(0).tolist()]
    assert torch.equal(found.feature, expected.nonzero()[:, 1])
    assert torch.equal(found.value, z[expected])
    feature, _ = largest(encoder, x, 11)
    assert torch.equal(feature, plain(z, 11))


def test_the_margin_of_token_and_feature_lowers_the_threshold() -> None:
    x = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    found = above(identity(2), x, torch.full((2,), 1.5), torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.4]))
    assert found is not None
    assert found.first.tolist() == [0, 0, 1] and found.feature.tolist() == [1]  # only 1 + 2 * 0.4 > 1.5


def test_gives_up_where_too_many_lie_above() -> None:
    x, zeros = torch.tensor([[1.0, -1.0, 1.0, -1.0]]), torch.zeros(4)
    assert above(identity(4), x, zeros, torch.zeros(1), zeros, 0.4) is None
    found = above(identity(4), x, zeros, torch.zeros(1), zeros, 0.5)
    assert found is not None and found.feature.tolist() == [0, 2]
