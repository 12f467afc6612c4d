"""Patched runs: exact where nothing changes, the same by both ways, and untouched where they must be."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.lib.fidelity.ablations import Batch, Site, measure_ablations, spread
from stages.lib.fidelity.cross_entropy import Sums, joined, window_sums
from stages.lib.io.errors import UserError
from stages.lib.language import patching
from stages.lib.language.copies import Copies
from stages.lib.language.patching import (
    WindowLoss,
    check_resumption,
    index_batches,
    kl_divergence,
    next_token_nll,
    next_token_surprisal,
    random_error,
    run_clean,
    run_from,
    scored,
    substitute,
)
from stages.lib.language.windows import Windows
from stages.lib.run.parallel import side_by_side
from stages.lib.sae.saved import SAE
from tests.toy_data import D_IN, D_VOCAB, HOOK, N_CTX, write_model

HOOKS = ["blocks.0.hook_resid_pre", HOOK, "blocks.2.hook_resid_post", "blocks.1.hook_mlp_out"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Llama model of three layers."""
    from transformer_lens.model_bridge import TransformerBridge

    path: Path = tmp_path_factory.mktemp("model")
    write_model(path)
    yield TransformerBridge.boot_transformers(str(path), device="cpu").eval().requires_grad_(False)


@pytest.fixture
def tokens() -> torch.Tensor:
    """Three windows of random tokens."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, D_VOCAB, (3, N_CTX), generator=generator, dtype=torch.int32)


@pytest.fixture
def valid() -> torch.Tensor:
    """Windows of 12, 7 and 2 tokens."""
    pos = torch.arange(N_CTX)
    return (pos > 0) & (pos < torch.tensor([12, 7, 2])[:, None])


def identity() -> SAE:
    """An SAE whose reconstruction is exact: each coordinate and its opposite."""
    both = torch.cat([torch.eye(D_IN), -torch.eye(D_IN)])
    zeros = torch.zeros(2 * D_IN), torch.zeros(D_IN)
    return SAE("standard", both.T.contiguous(), zeros[0], both, zeros[1], None, None, {})


def sums_of(
    model: Any, tokens: torch.Tensor, valid: torch.Tensor, saes: list[SAE], mean: torch.Tensor | None = None
) -> Sums:
    """The sums of some windows as one batch."""
    site = Site(Copies(model), HOOK, torch.zeros(D_IN) if mean is None else mean)
    return window_sums(site, Batch(np.arange(len(tokens)), tokens, valid), saes, torch.Generator())


def windows_of(tokens: torch.Tensor) -> Windows:
    """The windows of 12, 7 and 2 tokens as a split of one document."""
    length = torch.tensor([12, 7, 2], dtype=torch.int32)
    rest = {name: torch.zeros_like(tokens) for name in ("start", "end")}
    document = torch.zeros(3, dtype=torch.int32)
    return Windows(
        tokens=tokens, document=document, length=length, n_ctx=N_CTX, document_ids=["0"], bos="t1", bos_id=1, pad_id=2,
        **rest,
    )  # fmt: skip


@pytest.mark.parametrize("hook_name", HOOKS)
def test_putting_the_clean_activation_back_changes_nothing(model: Any, tokens: torch.Tensor, hook_name: str) -> None:
    clean = run_clean(model, tokens, hook_name)
    torch.testing.assert_close(run_from(model, tokens, hook_name, clean.x), clean.logits, rtol=0, atol=1e-5)
    check_resumption(model, tokens, hook_name)


@pytest.mark.parametrize("hook_name", HOOKS)
def test_running_the_upper_blocks_equals_hooking_the_whole_model(
    model: Any, tokens: torch.Tensor, hook_name: str
) -> None:
    x = torch.randn(3, N_CTX, D_IN, generator=torch.Generator().manual_seed(1)).requires_grad_()
    logits = run_from(model, tokens, hook_name, x)
    hooked = model.run_with_hooks(tokens.long(), fwd_hooks=[(hook_name, lambda activation, hook: x)])
    torch.testing.assert_close(logits, hooked, rtol=1e-5, atol=1e-5)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    gradients = [torch.autograd.grad((result * weights).sum(), x)[0] for result in (logits, hooked)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    assert gradients[0].abs().max() > 0


def test_the_model_is_whole_again_after_a_partial_run(model: Any, tokens: torch.Tensor) -> None:
    before = model(tokens.long())
    run_from(model, tokens, HOOK, torch.zeros(3, N_CTX, D_IN))
    assert torch.equal(model(tokens.long()), before)


def test_a_model_that_cannot_be_patched_is_refused(
    model: Any, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patching, "run_from", lambda *_: torch.zeros(3, N_CTX, D_VOCAB))
    with pytest.raises(UserError, match=r"clean activation back at blocks.1.hook_resid_post moves a logit by .*site"):
        check_resumption(model, tokens, HOOK)


def test_substitute_leaves_the_first_position_and_padding(valid: torch.Tensor) -> None:
    x = torch.zeros(3, N_CTX, 2)
    replacement = torch.arange(1.0, valid.sum() + 1)[:, None].expand(-1, 2)
    put = substitute(x, replacement, valid)
    assert (put[~valid] == 0).all()
    assert torch.equal(put[valid], replacement)


def test_scored_predictions_by_hand(valid: torch.Tensor) -> None:
    # Position t counts if t and t + 1 are tokens of the text; position 0 never does.
    assert scored(valid).nonzero().tolist() == [[0, t] for t in range(1, 11)] + [[1, t] for t in range(1, 6)]


def test_next_token_nll_by_hand() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0], [5.0, 1.0]]])
    nll = next_token_nll(logits, torch.tensor([[0, 1, 0]], dtype=torch.int32))
    # 3/4 for token 1, then 1/2 for token 0; nothing follows the last.
    assert nll[0].tolist() == pytest.approx([-math.log(0.75), math.log(2), 0])


def test_next_token_nll_equals_cross_entropy(tokens: torch.Tensor) -> None:
    logits = torch.randn(3, N_CTX, D_VOCAB, generator=torch.Generator().manual_seed(3))
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten().long())
    assert next_token_nll(logits, tokens).sum() / (3 * (N_CTX - 1)) == pytest.approx(expected.item(), rel=1e-5)
    surprisal = next_token_surprisal(logits.log_softmax(-1), tokens)
    torch.testing.assert_close(surprisal, next_token_nll(logits, tokens), rtol=1e-5, atol=1e-5)


def test_kl_by_hand_and_its_direction() -> None:
    clean, patched = torch.tensor([[[math.log(3.0), 0.0]]]), torch.tensor([[[0.0, 0.0]]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)

    def kl(one: torch.Tensor, other: torch.Tensor) -> float:
        return kl_divergence(one.log_softmax(-1), other.log_softmax(-1), one.softmax(-1)).item()

    assert kl(clean, patched) == pytest.approx(expected)
    assert kl(patched, clean) != pytest.approx(expected)
    assert kl(clean, clean + 4) == pytest.approx(0, abs=1e-7)


def test_random_error_has_the_length_of_the_error() -> None:
    generator = torch.Generator().manual_seed(4)
    x, x_hat, direction = (torch.randn(9, 5, generator=generator) for _ in range(3))
    moved = random_error(x, x_hat, direction) - x
    torch.testing.assert_close(moved.norm(dim=1), (x - x_hat).norm(dim=1))
    cosine = torch.nn.functional.cosine_similarity(moved, direction)
    torch.testing.assert_close(cosine, torch.ones(9))


def test_spread_takes_windows_evenly() -> None:
    assert spread(11, 3).tolist() == [0, 5, 10]
    assert spread(2, 5).tolist() == [0, 1]


def test_index_batches() -> None:
    assert [rows.tolist() for rows in index_batches(5, 2)] == [[0, 1], [2, 3], [4]]


def test_an_exact_reconstruction_costs_nothing(model: Any, tokens: torch.Tensor, valid: torch.Tensor) -> None:
    sums = sums_of(model, tokens, valid, [identity()])
    assert sums.n.tolist() == [10, 5, 0]
    np.testing.assert_allclose(sums.sae[0], sums.clean, atol=1e-4)
    np.testing.assert_allclose(sums.random_error[0], sums.clean, atol=1e-4)
    np.testing.assert_allclose(sums.kl, 0, atol=1e-4)
    assert sums.token_nll.sum() == pytest.approx(sums.clean.sum(), rel=1e-5)
    assert sums.token_l0[0].tolist() == [D_IN] * 15


def test_sums_equal_a_run_with_hooks(model: Any, tokens: torch.Tensor, valid: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(D_IN, 8, generator=generator)
    one = SAE("topk", weights, torch.zeros(8), weights.T.contiguous(), torch.ones(D_IN), None, 2, {})
    sums = sums_of(model, tokens, valid, [identity(), one])

    def replaced(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        result = one.decode(one.encode(activation))
        result[:, 0] = activation[:, 0]
        return result

    logits = model.run_with_hooks(tokens.long(), fwd_hooks=[(HOOK, replaced)])
    log = logits.log_softmax(-1)
    # The model is causal, so what stands on padding cannot matter.
    for window, length in enumerate((12, 7)):
        targets = tokens[window, 2:length].long()
        expected = -log[window, torch.arange(1, length - 1), targets].sum()
        assert sums.sae[1, window] == pytest.approx(expected.item(), rel=1e-5)


def test_ablations_equal_runs_with_hooks(model: Any, tokens: torch.Tensor, valid: torch.Tensor) -> None:
    site = Site(Copies(model), HOOK, torch.linspace(-1, 1, D_IN))
    chosen = np.array([0, 1])
    found = measure_ablations(site, windows_of(tokens), chosen, 2)
    assert found.n.tolist() == [10, 5, 0]
    for name, vector in (("clean", None), ("zero", torch.zeros(D_IN)), ("mean", site.mean)):

        def replaced(activation: torch.Tensor, hook: Any, vector: torch.Tensor | None = vector) -> torch.Tensor:
            return activation if vector is None else substitute(activation, vector.expand(int(valid.sum()), -1), valid)

        log = model.run_with_hooks(tokens.long(), fwd_hooks=[(HOOK, replaced)]).log_softmax(-1)
        for window, length in enumerate((12, 7)):
            own = log[window, torch.arange(1, length - 1), tokens[window, 2:length].long()]
            assert getattr(found, name)[window] == pytest.approx(-own.sum().item(), rel=1e-5)
    again = measure_ablations(site, windows_of(tokens), chosen, 1)
    np.testing.assert_allclose(again.clean, found.clean, rtol=1e-5)
    assert len(found.zero) == len(found.mean) == 2


def test_copies_share_weights_and_run_at_once(model: Any, tokens: torch.Tensor) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        copies = Copies(model)

        def loss_at(scale: float) -> torch.Tensor:
            with copies.one() as own:
                return run_from(own, tokens, HOOK, torch.full((3, N_CTX, D_IN), scale))

        scales = [0.1 * step for step in range(8)]
        together = side_by_side(loss_at, scales)
        with copies.one() as first, copies.one() as second:
            assert first is not second
            both = [{one.data_ptr() for one in own.parameters()} for own in (first, second)]
            assert both[0] == both[1]
    finally:
        torch.set_num_threads(before)
    for scale, logits in zip(scales, together, strict=True):
        torch.testing.assert_close(logits, run_from(model, tokens, HOOK, torch.full((3, N_CTX, D_IN), scale)))


def test_joined_batches_equal_one(model: Any, tokens: torch.Tensor, valid: torch.Tensor) -> None:
    whole = sums_of(model, tokens, valid, [identity()])
    parts = [sums_of(model, tokens[rows], valid[rows], [identity()]) for rows in index_batches(3, 2)]
    for name, values in joined(parts)._asdict().items():
        if name != "random_error":  # other directions, as the batches draw others
            np.testing.assert_allclose(values, getattr(whole, name), rtol=1e-5, atol=1e-4)


def test_window_loss_is_zero_at_the_clean_activation(model: Any, tokens: torch.Tensor, valid: torch.Tensor) -> None:
    loss = WindowLoss(Copies(model), HOOK, tokens, valid, batch=2)
    assert loss(loss.x, torch.arange(3)).abs().max() < 1e-4
    found = measure_ablations(Site(Copies(model), HOOK, torch.zeros(D_IN)), windows_of(tokens), np.arange(3), 2)
    x = substitute(loss.x, torch.zeros(int(valid.sum()), D_IN), valid)
    np.testing.assert_allclose(loss(x, torch.arange(3)), found.zero - found.clean, atol=1e-4)


def test_a_change_moves_no_earlier_position(model: Any, tokens: torch.Tensor, valid: torch.Tensor) -> None:
    loss = WindowLoss(Copies(model), HOOK, tokens, valid, batch=3)
    x = loss.x[:1].clone()
    x[0, 6] += 1
    change = loss.by_position(x, torch.tensor([0]))[0]
    assert change[:6].abs().max() < 1e-5
    assert change[6:11].abs().max() > 1e-3
    assert change[11] == 0
