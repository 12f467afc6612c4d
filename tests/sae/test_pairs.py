"""Sums over active pairs, against dense operations in double precision."""

import pytest
import torch

from stages.lib.run import parallel
from stages.lib.sae import pairs as module
from stages.lib.sae.base import SAE
from stages.lib.sae.batch_topk import guessed_least, largest, largest_of_batch
from stages.lib.sae.pairs import (
    Pairs,
    decoded,
    encoder,
    largest_of,
    largest_pairs,
    nested,
    pairs_above,
    write_gradients,
)
from tests.dictionaries import D_SAE, batch, build, directions, perturb

N = 60


def example(name: str = "relu", encoder_dtype: torch.dtype | None = None, **own) -> SAE:
    sae = build(name, directions(), encoder_dtype=encoder_dtype, **own)
    perturb(sae)
    return sae


def dense(found: Pairs, values: torch.Tensor) -> torch.Tensor:
    code = torch.zeros(len(found.first) - 1, D_SAE, dtype=torch.float64)
    token = torch.repeat_interleave(torch.arange(len(code)), found.first.diff())
    code[token, found.feature] = values.double()
    return code


def close(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.allclose(mine.double(), theirs.double(), atol=2e-6)


@pytest.fixture(params=["sparse", "dense", "two threads"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Over pairs, by dense products of some tokens at a time, and over pairs by two threads."""
    if request.param == "dense":
        monkeypatch.setattr(module, "DENSE_FROM", 0.0)
        monkeypatch.setattr(module, "DENSE_NUMBERS", 17 * D_SAE)
    else:
        monkeypatch.setattr(module, "DENSE_FROM", 1.0)
    if request.param == "two threads":
        monkeypatch.setattr(parallel, "PARALLEL_FROM", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return request.param


@pytest.mark.parametrize("encoder_dtype", [None, torch.bfloat16])
@torch.no_grad()
def test_all_pairs_above_a_threshold_are_found_with_exact_values(way: str, encoder_dtype: torch.dtype | None) -> None:
    sae, threshold = example("relu", encoder_dtype), torch.linspace(-0.2, 0.4, D_SAE)
    z = sae.hidden_pre(batch())
    found = pairs_above(sae, batch(), threshold)
    mask = dense(found, torch.ones_like(found.z)).bool()
    assert mask[z > threshold].all()
    assert (z - threshold)[mask].min() > -0.1  # and few others
    assert close(found.z, z[mask])


@pytest.mark.parametrize("share", [0.1, 0.9])
@pytest.mark.parametrize("n", [1, N])
@torch.no_grad()
def test_errors_slopes_and_gradients_are_those_of_a_dense_code(way: str, share: float, n: int) -> None:
    sae, x = example(), batch(n)
    found = pairs_above(sae, x, torch.full((D_SAE,), -9.0))
    assert len(found.z) == n * D_SAE
    generator = torch.Generator().manual_seed(4)
    codes, hidden = (found.z * (torch.rand(len(found.z), generator=generator) < share) for _ in range(2))
    error, slope = decoded(sae, x, found, codes)
    F, H, W_dec = dense(found, codes), dense(found, hidden), sae.W_dec.double()
    E = F @ W_dec + sae.b_dec - x
    assert close(error, E)
    assert close(slope, (E @ W_dec.T).flatten())
    write_gradients(sae, x, found, codes, hidden, error)
    b_enc = H.sum(0)
    assert close(sae.b_enc.grad, b_enc)
    assert close(sae.W_dec.grad, F.T @ E * 2 / n)
    assert close(sae.W_enc.grad, (x - sae.b_dec).double().T @ H)
    assert close(sae.b_dec.grad, E.sum(0) * 2 / n - sae.W_enc.double() @ b_enc)


@torch.no_grad()
def test_both_ways_in_the_number_of_threads_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "PARALLEL_FROM", 1)
    gradients = []
    for n_threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n_threads: n)
        for name in ("topk", "batch_topk", "matryoshka"):
            sae = example(name, torch.bfloat16)
            sae.gradients(batch(), 1.0)
            gradients.append([getattr(sae, weight).grad.clone() for weight in sae.trained])
    for one, two in zip(gradients[:3], gradients[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@torch.no_grad()
def test_nested_errors_are_summed_over_larger_dictionaries() -> None:
    sae, x, ends = example(), batch(), [3, 10, D_SAE]
    found = pairs_above(sae, x, torch.zeros(D_SAE))
    codes = found.z.relu()
    errors, squares, slope = nested(sae, x, found, codes, ends)
    F, W_dec = dense(found, codes), sae.W_dec.double()
    single = [F[:, :end] @ W_dec[:end] + sae.b_dec - x for end in ends]
    assert close(squares, torch.stack([error.square().sum() for error in single]))
    sums = [single[0] + single[1] + single[2], single[1] + single[2], single[2]]
    assert all(close(mine, theirs) for mine, theirs in zip(errors, sums, strict=True))
    expected = torch.cat([s @ W_dec[a:b].T for s, a, b in zip(sums, [0, *ends], ends, strict=False)], 1)[
        dense(found, torch.ones_like(codes)).bool()
    ]
    assert close(slope, expected)


@pytest.mark.parametrize("k", [1, 4, D_SAE])
@pytest.mark.parametrize("encoder_dtype", [None, torch.bfloat16])
@torch.no_grad()
def test_the_largest_pairs_of_a_token_ascend_and_are_exact(k: int, encoder_dtype: torch.dtype | None) -> None:
    sae, x = example("topk", encoder_dtype), batch(1 if k == 1 else N)
    z = sae.hidden_pre(x)
    chosen = z.topk(k).indices.sort(1).values
    found = largest_pairs(sae, x, k)
    assert torch.equal(found.feature.view(chosen.shape), chosen)
    assert close(found.z, z.gather(1, chosen).flatten())


def test_the_first_of_equal_pairs_are_kept() -> None:
    z = torch.tensor([2.0, 1.0, 1.0, 3.0, 1.0, -1.0])
    found = Pairs(torch.tensor([0, 2, 3, 6]), torch.arange(6), z)
    for n in range(1, 7):
        kept = largest(z, n)
        own = largest_of(found, n)
        assert torch.equal(own.feature, found.feature[kept]) and torch.equal(own.z, z[kept])
        assert own.first.tolist() == [0, *(int(kept[:end].sum()) for end in (2, 3, 6))]
    assert len(largest_of(found._replace(z=torch.full((6,), torch.nan)), 3).z) <= 6


@pytest.mark.parametrize("encoder_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("guess", [0.0, 0.2, 100.0])
@torch.no_grad()
def test_what_is_kept_of_a_batch_does_not_depend_on_the_guess(
    guess: float, encoder_dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, x = example("batch_topk", encoder_dtype), batch()
    expected, codes = largest_of_batch(sae, x, 4)
    assert len(codes) == 4 * N and 0 < guessed_least(encoder(sae), x, 4) < float(codes.min())
    monkeypatch.setattr("stages.lib.sae.batch_topk.guessed_least", lambda *_: guess)
    found, _ = largest_of_batch(sae, x, 4)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@torch.no_grad()
def test_all_positive_ones_are_kept_where_they_are_fewer() -> None:
    sae, x = example("batch_topk"), batch()
    sae.b_enc.fill_(-1.0)
    z = sae.hidden_pre(x)
    found, codes = largest_of_batch(sae, x, 20)
    assert torch.equal(found.feature, (z > 0).nonzero()[:, 1]) and (codes > 0).all()


@torch.no_grad()
def test_a_nan_is_no_crash_and_shows_in_the_loss() -> None:
    for name in ("topk", "batch_topk", "relu", "matryoshka"):
        sae, x = example(name, torch.bfloat16), batch()
        x[3, 2] = torch.nan
        assert sae.gradients(x, 1.0).fvu.isnan()
