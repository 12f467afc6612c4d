"""AuxK over pairs and in dense products, against PyTorch's gradient of its formula in double precision."""

import pytest
import torch

from stages.lib.run import parallel
from stages.lib.run.parallel import over_rows
from stages.lib.sae import auxk as module
from stages.lib.sae.auxk import add_auxk_gradients, auxk, keep_largest_of_pairs_, keep_largest_of_rows_
from stages.lib.sae.base import SAE
from stages.lib.sae.topk import keep_top_k
from tests.dictionaries import D_IN, batch, build, directions, perturb


@pytest.mark.parametrize("shift", [-9.0, 0.0, 9.0])
@pytest.mark.parametrize("k", [1, 7, 23])
def test_codes_of_dead_features_are_the_largest_of_each_row(k: int, shift: float) -> None:
    z = (3 * torch.randn(40, 23, generator=torch.Generator().manual_seed(5))).round() + shift  # with ties
    codes, of_pairs = z.clone(), z.clone()
    over_rows(keep_largest_of_rows_, codes.numpy(), k)
    assert torch.equal(codes, keep_top_k(z, k))
    first = torch.arange(0, 40 * 23 + 1, 23)
    over_rows(keep_largest_of_pairs_, of_pairs.flatten().numpy(), k, first.numpy(), n_rows=40)
    assert torch.equal(of_pairs, codes)
    over_rows(keep_largest_of_rows_, codes.fill_(torch.nan).numpy(), k)
    assert codes.isnan().all()


def example(name: str, dtype: torch.dtype | None, bias: float, double: bool) -> SAE:
    decoder = directions().double() if double else directions()
    sae = build(name, decoder, dead_tokens=1, encoder_dtype=None if double else dtype)
    perturb(sae)
    with torch.no_grad():
        sae.b_enc.add_(bias)
        sae.tokens_since_fired[2:19] = 1  # more than d_in / 2
    return sae


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("name", ["topk", "frozen_decoder"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("bias", [-2.0, -0.4, 0.0, 2.0])  # none, few, half or all of the pre-activations are positive
@pytest.mark.parametrize("two_threads", [False, True])
def test_gradient_is_that_of_the_formula(
    few: bool, name: str, dtype: torch.dtype | None, bias: float, two_threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "DENSE_FROM", 1.0 if few else -1.0)
    if two_threads:
        monkeypatch.setattr(parallel, "PARALLEL_FROM", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    fast, plain = example(name, dtype, bias, False), example(name, None, bias, True)
    x, error = batch(), batch(seed=7) + 0.1
    with torch.no_grad():
        found = add_auxk_gradients(fast, x, -error, 0.5)
    z = plain.hidden_pre(x.double())
    loss = auxk(plain, z, error.double(), plain.dead())
    for weight in plain.trained:
        getattr(plain, weight).grad.zero_()
    (0.5 * loss).backward()
    assert float(found) == pytest.approx(float(loss.detach()), rel=1e-5)
    for weight in plain.trained:
        mine, theirs = getattr(fast, weight).grad, getattr(plain, weight).grad
        assert torch.allclose(mine.double(), theirs, atol=1e-5 * float(theirs.abs().max()) + 1e-9), weight
        assert bool((theirs.abs() > 1e-9).any()) == (bias > -2 and weight != "b_dec"), weight


@torch.no_grad()
def test_both_ways_leave_features_alone_without_a_dead_one_or_variation() -> None:
    sae = example("topk", None, 0.0, False)
    assert float(add_auxk_gradients(sae, batch(), torch.ones(60, D_IN), 0.5)) == 0
    sae.tokens_since_fired.zero_()
    assert float(add_auxk_gradients(sae, batch(), batch(seed=7), 0.5)) == 0
    assert not any(getattr(sae, weight).grad.any() for weight in sae.trained)


@torch.no_grad()
def test_pairs_are_used_where_they_are_few_and_products_large(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for way in ("_of_pairs", "_of_products"):
        own = getattr(module, way)
        monkeypatch.setattr(module, way, lambda *inputs, own=own, way=way: (taken.append(way), own(*inputs))[1])
    for small in (0, module.SMALL):
        monkeypatch.setattr(module, "SMALL", small)
        for bias in (-0.5, 0.5):
            add_auxk_gradients(example("topk", None, bias, False), batch(), batch(seed=7), 0.5)
    assert taken == ["_of_pairs", "_of_products", "_of_products", "_of_products"]
