"""The active features of trained SAEs: against the plain formula, with near-ties, and with one product or another."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.lib.run import parallel
from stages.lib.sae import exact, exact_loops
from stages.lib.sae.exact import active, coarse
from stages.lib.sae.selection import Active

DTYPES = [torch.bfloat16, torch.float32]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(found: Active, d_sae: int) -> torch.Tensor:
    acts = torch.zeros(len(found.first) - 1, d_sae)
    acts[torch.repeat_interleave(found.first.diff()), found.feature] = found.value
    return acts


def weights(d_in: int, d_sae: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return numbers(d_in, d_sae, seed=seed), numbers(d_sae, seed=seed + 1), 3 * numbers(d_in, seed=seed + 2)


def largest(z: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest above 0 of each row, the first of equals."""
    chosen = torch.sort(z, dim=1, stable=True, descending=True).indices[:, :k]
    return torch.zeros_like(z).scatter(1, chosen, z.gather(1, chosen).relu())


def equal(one: Active, two: Active) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 90), st.integers(0, 2**32 - 4), st.sampled_from([1e-3, 1.0, 1e4]), st.data())
def test_the_k_largest_are_those_of_the_formula(
    dtype: torch.dtype, d_in: int, d_sae: int, seed: int, size: float, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, d_sae))
    W_enc, b_enc, b_dec = weights(d_in, d_sae, seed)
    x = size * numbers(7, d_in, seed=seed + 3)
    found = active(coarse(W_enc, b_enc, b_dec, None, k, dtype), x)
    z = (x.double() - b_dec) @ W_enc.double() + b_enc
    acts, expected = dense(found, d_sae).double(), largest(z, k)
    rounding = 1e-5 * (1 + z.abs().max())
    assert torch.allclose(acts, expected, atol=float(rounding), rtol=0) or d_sae > k
    assert found.first.diff().max() <= k and (found.value > 0).all()
    # What was left out is not above what was kept, but for the rounding of float32.
    kept = acts > 0
    least = torch.where(kept, acts, torch.inf).amin(1, keepdim=True)
    full = kept.sum(1, keepdim=True) == k
    assert (torch.where(kept, -torch.inf, z) <= torch.where(full, least, 0) + rounding).all()
    assert torch.allclose(acts[kept], z[kept], atol=float(rounding), rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 90), st.integers(0, 2**32 - 5), st.sampled_from([1e-3, 1.0, 1e4]))
def test_what_is_above_its_threshold_is_that_of_the_formula(
    dtype: torch.dtype, d_in: int, d_sae: int, seed: int, size: float
) -> None:
    W_enc, b_enc, b_dec = weights(d_in, d_sae, seed)
    x, threshold = size * numbers(7, d_in, seed=seed + 3), size * numbers(d_sae, seed=seed + 4)
    found = active(coarse(W_enc, b_enc, b_dec, threshold, None, dtype), x)
    z = (x.double() - b_dec) @ W_enc.double() + b_enc
    acts, limit = dense(found, d_sae).double(), threshold.clamp_min(0)
    rounding = float(1e-5 * (1 + z.abs().max()))
    clear = (z - limit).abs() > rounding
    assert torch.equal((acts > 0)[clear], (z > limit)[clear])
    assert torch.allclose(acts[acts > 0], z[acts > 0], atol=rounding, rtol=0)


def grid(*shape: int, seed: int, bits: int) -> torch.Tensor:
    """Whole numbers that all sums of their products are exact with, many of them not those of bfloat16."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-(2**bits), 2**bits, shape)).float()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=80, deadline=None)
@given(st.integers(1, 8), st.integers(2, 60), st.integers(0, 2**32 - 4), st.sampled_from([2, 9]), st.data())
def test_of_equal_and_nearly_equal_numbers_the_right_ones_are_chosen(
    dtype: torch.dtype, d_in: int, d_sae: int, seed: int, bits: int, data: st.DataObject
) -> None:
    # Whole numbers are exact in float32, so the choice has to be that of the formula; features that differ in the last
    # bit of one weight are the same in bfloat16.
    k = data.draw(st.integers(1, d_sae))
    W_enc = grid(d_in, 1, seed=seed, bits=bits).repeat(1, d_sae)
    W_enc[0] += grid(d_sae, seed=seed + 1, bits=1)
    b_enc, b_dec, x = torch.zeros(d_sae), grid(d_in, seed=seed + 2, bits=2), grid(6, d_in, seed=seed + 3, bits=bits)
    found = active(coarse(W_enc, b_enc, b_dec, None, k, dtype), x)
    z = (x - b_dec) @ W_enc
    assert torch.equal(dense(found, d_sae), largest(z, k))
    assert equal(found, active(coarse(W_enc, b_enc, b_dec, None, k, torch.float32), x))
    threshold = z.median(0).values
    found = active(coarse(W_enc, b_enc, b_dec, threshold, None, dtype), x)
    assert torch.equal(dense(found, d_sae), torch.where(z > threshold.clamp_min(0), z, 0.0))


@pytest.mark.parametrize("k", [None, 1, 5, 37])
@pytest.mark.parametrize(("d_in", "d_sae"), [(5, 37), (192, 100), (67, 515)])
def test_any_product_and_any_number_of_threads_give_the_same_bits(
    k: int | None, d_in: int, d_sae: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    W_enc, b_enc, b_dec = weights(d_in, d_sae)
    x = b_dec + numbers(300, d_in, seed=9)
    x[1] = b_dec  # every z is a bias
    threshold = None if k else numbers(d_sae, seed=8)
    found = [active(coarse(W_enc, b_enc, b_dec, threshold, k, dtype), x) for dtype in DTYPES]
    assert equal(*found)
    monkeypatch.setattr(parallel, "PARALLEL_FROM", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(exact, "N_NUMBERS", 1)
    monkeypatch.setattr(exact, "LEAST_ROWS", 7)  # in many parts
    assert equal(found[0], active(coarse(W_enc, b_enc, b_dec, threshold, k), x))
    one_by_one = [active(coarse(W_enc, b_enc, b_dec, threshold, k), row[None]) for row in x[:20]]
    assert torch.equal(torch.cat([one.value for one in one_by_one]), found[0].value[: found[0].first[20]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bound_holds_for_every_product(dtype: torch.dtype) -> None:
    # Far from the centre and with norms that differ a thousandfold, where a bound has most to go wrong.
    d_in, d_sae = 192, 300
    W_enc, b_enc, b_dec = weights(d_in, d_sae)
    W_enc *= 10 ** (3 * torch.rand(d_sae, generator=torch.Generator().manual_seed(7)))
    x = 50 + numbers(200, d_in, seed=3)
    encoder = coarse(W_enc, b_enc, b_dec, None, 4, dtype)
    centred, rounded = np.empty((200, d_in), np.float32), np.empty((200, d_in), np.int16)
    room = rounded if dtype == torch.bfloat16 else rounded[:, :0]
    length, lost = np.empty((2, 200), np.float32)
    exact_loops.centre(x.numpy(), encoder.b_dec, 0, 200, centred, room, length, lost)
    near = torch.from_numpy(rounded).view(torch.bfloat16) if dtype == torch.bfloat16 else torch.from_numpy(centred)
    assert torch.equal(torch.from_numpy(centred), x - b_dec)
    if dtype == torch.bfloat16:
        assert torch.equal(near, (x - b_dec).bfloat16())
    p = (near @ encoder.W).view(torch.int16 if dtype == torch.bfloat16 else torch.int32).numpy()
    biases, z = encoder.biases_for(length, lost), (x.double() - b_dec) @ W_enc.double() + b_enc
    bits, lower = np.empty(d_sae, np.int32), np.empty(d_sae, np.float32)
    widths = []
    for r in range(200):
        exact_loops.bounds(p[r], biases, length[r], bits, bits.view(np.float32), lower)
        upper = bits.view(np.float32).astype(np.float64)
        assert (lower <= z[r].numpy()).all() and (z[r].numpy() <= upper).all()
        widths.append((upper - lower) / (W_enc.norm(dim=0) * (x[r] - b_dec).norm()).numpy())
    assert np.max(widths) < (0.02 if dtype == torch.bfloat16 else 0.001)  # and says something


@pytest.mark.parametrize("k", [None, 4])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_tokens_beside_one_that_is_no_number_are_as_without_it(k: int | None, number: float) -> None:
    W_enc, b_enc, b_dec = weights(9, 30)
    x = numbers(3, 9, seed=4)
    encoder = coarse(W_enc, b_enc, b_dec, None, k)
    expected = dense(active(encoder, x[[0, 2]]), 30)
    x[1, 3] = number
    found = active(encoder, x)
    assert torch.equal(dense(found, 30)[[0, 2]], expected)
    assert number == torch.inf or found.first[1] == found.first[2]


def test_no_tokens_have_no_features() -> None:
    found = active(coarse(*weights(4, 6), None, 2), torch.empty(0, 4))
    assert found.first.tolist() == [0] and not len(found.feature) and not len(found.value)
