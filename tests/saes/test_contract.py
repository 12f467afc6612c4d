"""The contract of every file in `stages/saes/`: sparse non-negative codes, right gradients, exact files."""

from pathlib import Path

import pytest
import torch

from stages.lib.io import plugins
from stages.lib.io.tensors import load
from stages.lib.sae.base import SAE
from stages.lib.sae.saved import TENSORS, fold, load_sae, save_sae
from tests.dictionaries import D_IN, D_SAE, FORMS, OWN, TRAINED, batch, build, directions, perturb


def exported(sae: SAE, directory: Path, mean: torch.Tensor, scale: float):
    k = int(sae.level) if sae.architecture == "topk" else None
    save_sae(directory, sae.architecture, fold(sae.export(), mean, scale), k=k)
    return load_sae(directory)


def test_every_method_is_here() -> None:
    assert {own.get("variant", form) for form, own in OWN.items()} == set(plugins.names("saes"))


@pytest.mark.parametrize("name", [form for form in FORMS if form != "relu with free norms"])
def test_starts_tied_with_zero_biases(name: str) -> None:
    decoder = directions()
    sae = build(name, decoder)
    assert torch.equal(sae.W_dec, decoder)
    assert torch.equal(sae.W_enc, decoder.T)
    assert not sae.b_enc.any() and not sae.b_dec.any()


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("dead", ["none", "some", "all"])
@pytest.mark.parametrize("encoder_dtype", [None, torch.bfloat16])
def test_gradient_is_that_of_the_losses_in_double_precision(
    name: str, dead: str, encoder_dtype: torch.dtype | None
) -> None:
    fast, plain = build(name, directions(), 1, encoder_dtype), build(name, directions().double(), 1)
    for sae in (fast, plain):
        perturb(sae)
        sae.tokens_since_fired[{"none": slice(0, 0), "some": slice(3, 14), "all": slice(None)}[dead]] = 1
    with torch.no_grad():
        found = fast.gradients(batch(), 0.7)
    expected = SAE.gradients(plain, batch().double(), 0.7)
    for mine, theirs in zip(found[:4], expected[:4], strict=True):
        assert float(mine) == pytest.approx(float(theirs), rel=1e-5, abs=1e-7)
    assert torch.equal(found.fired, expected.fired)
    for weight in fast.trained:
        mine, theirs = getattr(fast, weight).grad, getattr(plain, weight).grad
        assert torch.allclose(mine.double(), theirs, atol=1e-5 * float(theirs.abs().max())), weight
        assert theirs.any(), f"{weight} gets no gradient"


@pytest.mark.parametrize("name", TRAINED)
def test_gradient_replaces_what_was_there(name: str) -> None:
    sae = build(name, directions())
    with torch.no_grad():
        sae.gradients(batch(seed=5), 1.0)
        sae.gradients(batch(), 1.0)
        again = {weight: getattr(sae, weight).grad.clone() for weight in sae.trained}
        fresh = build(name, directions())
        fresh.gradients(batch(), 1.0)
    for weight, gradient in again.items():
        assert torch.equal(gradient, getattr(fresh, weight).grad)


@pytest.mark.parametrize("name", TRAINED)
def test_gradient_where_nothing_is_active(name: str) -> None:
    fast, plain = build(name, directions(), dead_tokens=1), build(name, directions().double(), dead_tokens=1)
    for sae in (fast, plain):
        with torch.no_grad():
            sae.b_enc.fill_(-9.0)
        sae.tokens_since_fired.fill_(1)
    with torch.no_grad():
        found = fast.gradients(batch(), 1.0)
    SAE.gradients(plain, batch().double(), 1.0)
    assert float(found.l0) == 0
    assert float(found.fvu) == pytest.approx(float(batch().square().sum(1).mean()))
    assert not found.fired.any()
    for weight in fast.trained:
        mine, theirs = getattr(fast, weight).grad, getattr(plain, weight).grad
        assert torch.allclose(mine.double(), theirs, atol=1e-6), weight


@pytest.mark.parametrize("name", TRAINED)
def test_steps_lower_the_loss_and_keep_the_decoder_at_unit_norm(name: str) -> None:
    sae, x, fvu = build(name, directions()), batch(), []
    before = sae.W_dec.detach().clone()
    for _ in range(30):
        fvu.append(float(sae.step(x, 3e-3, 0.0).fvu))
        assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-5) == sae.unit_norm
    assert fvu[-1] < 0.9 * fvu[0]
    assert torch.equal(sae.W_dec, before) == ("W_dec" not in sae.trained)


@pytest.mark.parametrize("name", TRAINED)
def test_decoder_gradient_is_tangent_and_all_gradients_are_clipped(name: str) -> None:
    sae = build(name, directions())
    sae.step(100 * batch(), 1e-3, 1.0)
    gradients = [getattr(sae, weight).grad for weight in sae.trained]
    assert float(torch.cat([gradient.flatten() for gradient in gradients]).norm()) == pytest.approx(1.0, rel=1e-4)
    if "W_dec" in sae.trained and sae.unit_norm:
        tangent = build(name, directions())
        tangent.step(100 * batch(), 0.0, 1.0)
        assert torch.allclose((tangent.W_dec.grad * tangent.W_dec).sum(1), torch.zeros(D_SAE), atol=1e-6)


@pytest.mark.parametrize("name", TRAINED)
def test_counts_tokens_since_each_feature_fired(name: str) -> None:
    sae = build(name, directions(), dead_tokens=120)
    with torch.no_grad():
        sae.b_enc[:5] = -9.0
    for _ in range(2):
        losses = sae.step(batch(), 0.0, 1.0)
        assert not losses.fired[:5].any()
    assert sae.tokens_since_fired[:5].tolist() == [120] * 5
    assert torch.equal(sae.tokens_since_fired == 0, losses.fired)
    assert torch.equal(sae.dead(), sae.tokens_since_fired >= 120)


@pytest.mark.parametrize("name", FORMS)
def test_same_batches_give_the_same_bits_and_state_goes_on_exactly(name: str) -> None:
    whole, part = build(name, directions(), 100), build(name, directions(), 100)
    for i in range(10):
        whole.step(batch(seed=i), 3e-3, i / 10)
    for i in range(6):
        part.step(batch(seed=i), 3e-3, i / 10)
    resumed = build(name, directions(), 100)
    resumed.restore(part.state())
    for i in range(6, 10):
        resumed.step(batch(seed=i), 3e-3, i / 10)
    for weight in whole.names:
        assert torch.equal(getattr(whole, weight), getattr(resumed, weight)), weight
    assert torch.equal(whole.tokens_since_fired, resumed.tokens_since_fired)


@pytest.mark.parametrize("name", FORMS)
def test_file_holds_the_exact_tensors_and_gives_the_same_codes_on_raw_activations(name: str, tmp_path: Path) -> None:
    sae, mean, scale = build(name, directions()), torch.linspace(-3, 3, D_IN), 7.5
    for i in range(20):
        sae.step(batch(seed=i), 3e-3, 1.0)
    x = batch(seed=50)
    sae.settle(x)
    read = exported(sae, tmp_path, mean, scale)
    assert sorted(load(tmp_path / "sae_weights.safetensors")) == sorted(TENSORS[sae.architecture])
    raw = x * scale + mean
    feature_acts = read.encode(raw)
    assert feature_acts.shape == (len(x), D_SAE)
    assert (feature_acts >= 0).all() and float((feature_acts > 0).sum(1).float().mean()) < D_SAE
    with torch.no_grad():
        losses = sae.losses(x, 1.0)
    error = (raw - read.decode(feature_acts)) / scale
    assert float(error.square().sum(1).mean()) == pytest.approx(float(losses.fvu), rel=1e-4)
    assert float((feature_acts > 0).sum(1).float().mean()) == pytest.approx(float(losses.l0))
    assert torch.equal((feature_acts > 0).any(0), losses.fired)


@pytest.mark.parametrize("name", sorted({*FORMS} - {"matryoshka"}))  # whose features have an order
def test_permuting_features_permutes_the_result(name: str) -> None:
    order = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(9))
    one, other = build(name, directions(), 60), build(name, directions()[order], 60)
    for i in range(5):
        first, second = one.step(batch(seed=i), 3e-3, 1.0), other.step(batch(seed=i), 3e-3, 1.0)
    assert float(first.fvu) == pytest.approx(float(second.fvu), rel=1e-4)
    assert torch.allclose(one.W_dec[order], other.W_dec, atol=1e-4)
