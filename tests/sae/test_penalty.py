"""Penalties led to a wanted L0, and dead features that get new weights."""

import math

import numpy as np
import pytest
import torch

from stages.lib.io import plugins
from stages.lib.io.errors import UserError
from stages.lib.io.params import check
from stages.lib.run.seeds import integer, numpy_generator
from stages.lib.sae.base import Losses, random_directions
from stages.lib.sae.penalty import ENCODER_SHARE, FASTEST, SMOOTHING, SPEED, PenaltySAE, hidden_pre, n_active
from tests.dictionaries import D_IN, D_SAE, OWN, batch, build, directions, perturb

LED = {
    "relu": {"l1_coefficient": None},
    "relu with free norms": {"l1_coefficient": None},
    "p_anneal": {"l1_coefficient": None},
    "gated": {"l1_coefficient": None},
    "jump_relu": {"l0_coefficient": None},
    "jump_relu with a quadratic loss": {},
    "jump_relu with a tanh loss": {"l0_coefficient": None},
}


def losses(l0: float) -> Losses:
    zero = torch.zeros(())
    return Losses(zero, zero, zero, torch.tensor(l0), torch.zeros(D_SAE, dtype=torch.bool))


def data(n: int, *names: str) -> torch.Tensor:
    """Sums of three of forty directions on average."""
    rng = numpy_generator(0, "penalty", *names)
    dictionary = random_directions(40, 16, torch.Generator().manual_seed(integer(0, "penalty", "dictionary")))
    strength = (rng.random((n, 40)) < 3 / 40) * (0.5 + rng.random((n, 40)))
    x = torch.from_numpy(strength).float() @ dictionary
    return (x - 0.19 * dictionary.sum(0) * 3 / 7.5) / 2


# Wanted L0


@pytest.mark.parametrize(("name", "wanted"), [*((name, 6.0) for name in LED), ("relu", 3.0), ("jump_relu", 3.0)])
def test_a_wanted_l0_is_reached_on_held_out_activations(name: str, wanted: float) -> None:
    x, validation, test = (data(n, str(n)) for n in (30_000, 16_384, 40_000))
    scale = x.square().sum(1).mean().sqrt()
    x, validation, test = x / scale, validation / scale, test / scale
    n_steps, size = 600, 200
    decoder = random_directions(48, 16, torch.Generator().manual_seed(3))
    sae = build(name, decoder, l0=[wanted], **LED[name])
    sae.look_at(validation)
    for step in range(n_steps):
        warm_up, part = min(1.0, step / 60), step * size % len(x)
        sae.advance(step / n_steps)
        lr = 3e-3 * min(1.0, (step + 1) / 12, (n_steps - step) / 120)
        sae.lead(sae.step(x[part : part + size], lr, warm_up), lr, warm_up)
    sae.finish(validation)
    assert float(n_active(sae.shifted(), validation)) == pytest.approx(wanted, abs=2e-3)
    assert float(n_active(sae.shifted(), test)) == pytest.approx(wanted, rel=0.03)
    z = hidden_pre(sae.export(), test)
    assert abs(sae.shift) < 0.2 * float(z[z > 0].mean())  # what is left for it is little


def test_the_weight_follows_l0_by_hand() -> None:
    sae = build("relu", directions(), l1_coefficient=None, l0=[4.0])
    start = sae.usual_coefficient * 16 / 4
    assert float(sae.coefficient) == pytest.approx(start)
    sae.lead(losses(8.0), 1e-3, 0.9)  # not before the warm-up is over
    assert float(sae.coefficient) == pytest.approx(start)
    sae.lead(losses(8.0), 1e-3, 1.0)
    assert float(sae.coefficient) == pytest.approx(start * math.exp(SPEED * 1e-3 * math.log(2)))
    sae.lead(losses(1000.0), 1.0, 1.0)  # no more than a factor of e at once, and no faster than the limit
    assert float(sae.coefficient) == pytest.approx(start * math.exp(SPEED * 1e-3 * math.log(2) + FASTEST))
    sae.lead(losses(0.0), 0.0, 1.0)
    assert float(sae.coefficient) == pytest.approx(start * math.exp(SPEED * 1e-3 * math.log(2)))


def test_more_may_be_active_early() -> None:
    sae = build("relu", directions(), l1_coefficient=None, l0=[4.0])
    sae.advance(0.5)
    sae.lead(losses(4.5), 1e-3, 1.0)  # 4 (1 + .5^3) = 4.5
    assert float(sae.coefficient) == pytest.approx(sae.usual_coefficient * 16 / 4)
    sae.lead(losses(4.0), 1e-3, 1.0)
    assert float(sae.coefficient) < sae.usual_coefficient * 16 / 4


def test_the_target_of_the_quadratic_loss_is_led() -> None:
    sae = build("jump_relu with a quadratic loss", directions())
    sae.lead(losses(10.0), 1.0, 1.0)
    assert float(sae.coefficient) == 1.0
    assert float(sae.target) == pytest.approx(5 * math.exp(-FASTEST * math.log(2)))


def test_the_ratio_to_held_out_activations_is_smoothed() -> None:
    sae = build("relu", directions(), l1_coefficient=None, l0=[4.0])
    sae.look_at(batch(4096))
    first, second = (float((batch(4096)[turn::2] @ sae.W_enc > 0).sum()) / 2048 for turn in (0, 1))
    for step in range(11):
        sae.lead(losses(4.0), 0.0, 1.0)
        if step < 10:
            assert float(sae.log_ratio) == pytest.approx(SMOOTHING * math.log(first / 4), rel=1e-4)
    expected = SMOOTHING * math.log(second / 4) + (1 - SMOOTHING) * SMOOTHING * math.log(first / 4)
    assert float(sae.log_ratio) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["relu of a wanted L0", "jump_relu with a quadratic loss"])
def test_a_wanted_l0_that_is_far_is_not_feigned(name: str) -> None:
    sae, x = build(name, directions()), batch(500)
    found = float(n_active(sae.export(), x))
    assert found > 6
    sae.finish(x)
    assert sae.shift == 0
    assert float(n_active(sae.shifted(), x)) == found
    sae.level = 1.05 * found
    sae.finish(x)
    assert float(n_active(sae.shifted(), x)) == pytest.approx(1.05 * found, abs=2e-3) and sae.shift < 0


@pytest.mark.parametrize("name", LED)
def test_a_weight_that_is_given_stays(name: str) -> None:
    if name == "jump_relu with a quadratic loss":
        pytest.skip("has no weight")
    sae = build(name, directions())
    sae.lead(losses(20.0), 1.0, 1.0)
    own = OWN[name].get("l1_coefficient") or OWN[name].get("l0_coefficient") or [sae.usual_coefficient]
    assert float(sae.coefficient) == pytest.approx(own[0])


@pytest.mark.parametrize("name", plugins.names("saes"))
def test_levels_are_wanted_l0_or_the_methods_own_and_not_both(name: str) -> None:
    module = plugins.load("saes", name, "saes.x.variant")
    own = {key: value for key, value in OWN[name].items() if not isinstance(value, list) or key == "groups"}
    raw = {"variant": name, "activations": "main", **own}
    assert check("saes.x", raw | {"l0": [3, 4]}, module.SAEParams).levels == [3, 4]
    for levels in ({}, {"l0": [3], module.SAEParams.own_level: [4]}):
        with pytest.raises(UserError, match=r"saes\.x: has to list its levels in either l0 or \w+, not in [02] of"):
            check("saes.x", raw | levels, module.SAEParams)
    with pytest.raises(UserError, match=r"^saes\.x\.l0 must be (whole numbers between 1 and|below) d_sae = 24, not"):
        check("saes.x", raw | {"l0": [24.5]}, module.SAEParams).check("x", 24)


def test_the_quadratic_loss_needs_wanted_l0() -> None:
    module = plugins.load("saes", "jump_relu", "saes.x.variant")
    own = {**OWN["jump_relu"], "loss": "quadratic", "variant": "jump_relu", "activations": "main"}
    with pytest.raises(UserError, match=r"^saes\.x\.loss is quadratic, which needs wanted L0: give l0"):
        check("saes.x", own, module.SAEParams).check("x", 24)


# Free norms


def test_long_directions_do_not_evade_the_weighed_penalty() -> None:
    sae, x = build("relu with free norms", directions()), batch()
    perturb(sae)
    with torch.no_grad():
        before = sae.losses(x, 1.0)
        scale = torch.linspace(0.1, 10, D_SAE)
        sae.W_enc.div_(scale)
        sae.b_enc.div_(scale)
        sae.W_dec.mul_(scale[:, None])
        after = sae.losses(x, 1.0)
    for mine, theirs in zip(before[:4], after[:4], strict=True):
        assert float(mine) == pytest.approx(float(theirs), rel=1e-4)


def test_free_norms_are_moved_into_the_code_that_is_saved() -> None:
    sae, x = build("relu with free norms", directions()), batch()
    for i in range(20):
        sae.step(batch(seed=i), 3e-3, 1.0)
    assert sae.W_dec.norm(dim=1).std() > 0.001
    weights = sae.export()
    assert torch.allclose(weights["W_dec"].norm(dim=1), torch.ones(D_SAE), atol=1e-6)
    with torch.no_grad():
        own = sae.decode(sae.hidden_pre(x).relu())
        z = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
        assert torch.allclose(own, z.relu() @ weights["W_dec"] + weights["b_dec"], atol=1e-6)


# Resampling


@pytest.mark.parametrize("name", ["relu", "relu with free norms", "gated", "p_anneal", "jump_relu"])
def test_dead_features_get_weights_from_inputs_of_their_own(name: str) -> None:
    sae = build(name, directions(), dead_tokens=1000, resample_at=[0.5])
    for i in range(3):
        sae.step(batch(seed=i), 3e-3, 1.0)
    sae.tokens_since_fired[:] = 0
    sae.tokens_since_fired[4:9] = 1000
    before = {weight: getattr(sae, weight).detach().clone() for weight in sae.names}
    x = batch(seed=8)
    sae.resample(x)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[4:9] = True
    for weight in sae.names:
        axis = 1 if weight == "W_enc" else 0
        now, then = (value.transpose(0, axis) for value in (getattr(sae, weight).detach(), before[weight]))
        if weight != "b_dec":
            assert torch.equal(now[~dead], then[~dead]), weight
            for moment in sae.moments(weight):
                assert not moment.transpose(0, axis)[dead].any() and moment.transpose(0, axis)[~dead].any(), weight
    candidates = torch.nn.functional.normalize(x - sae.b_dec.detach(), dim=1)
    cosine = torch.nn.functional.normalize(sae.W_dec.detach()[dead], dim=1) @ candidates.T
    assert torch.allclose(cosine.max(1).values, torch.ones(5), atol=1e-5)
    assert cosine.argmax(1).unique().numel() == 5  # none is given twice
    norms = before["W_enc"][:, ~dead].norm(dim=0).mean()
    assert torch.allclose(sae.W_enc.detach()[:, dead].norm(dim=0), ENCODER_SHARE * norms.expand(5), atol=1e-5)
    if "threshold" in sae.names:  # 0.1 at the start, of encoders of norm 1
        assert torch.allclose(sae.threshold.detach()[dead], 0.1 * ENCODER_SHARE * norms.expand(5), atol=1e-6)
    assert not sae.b_enc[dead].any() and not sae.tokens_since_fired.any()
    assert sae.n_resampled == 5


def test_inputs_are_drawn_by_the_square_of_their_squared_error() -> None:
    drawn = np.zeros(3)
    x = torch.cat([torch.zeros(1, 12), torch.eye(12)[:1], 2**0.5 * torch.eye(12)[1:2]])  # squared errors 0, 1, 2
    for event in range(400):
        sae = build("relu", directions(), dead_tokens=1)
        with torch.no_grad():
            sae.b_enc.fill_(-9.0)
        sae.tokens_since_fired[0] = 1
        sae.n_resamplings = event
        sae.resample(x)
        drawn[int((sae.W_dec.detach()[0] @ x.T / x.norm(dim=1).clamp_min(1e-9)).argmax())] += 1
    assert drawn[0] == 0
    assert drawn[2] / 400 == pytest.approx(4 / 5, abs=0.06)


def test_more_dead_features_than_inputs_stay_dead() -> None:
    sae = build("relu", directions(), dead_tokens=1)
    sae.tokens_since_fired.fill_(1)
    with torch.no_grad():
        sae.b_enc.fill_(-9.0)
    sae.resample(batch(5))
    assert sae.n_resampled == 5 and int(sae.dead().sum()) == D_SAE - 5
    sae.resample(torch.zeros(4, D_IN))  # nothing is reconstructed badly
    assert sae.n_resampled == 5


def test_resampling_happens_once_at_each_share_and_goes_on_exactly() -> None:
    def run(sae: PenaltySAE, steps: range) -> list[int]:
        seen = []
        for step in steps:
            sae.advance(step / 40)
            sae.tokens_since_fired[2:5] = 99
            sae.step(batch(seed=step), 3e-3, 1.0)
            seen.append(sae.n_resampled)
        return seen

    whole, part, resumed = (build("relu", directions(), 99, resample_at=[0.25, 0.5]) for _ in range(3))
    assert run(whole, range(40)) == [0] * 10 + [3] * 10 + [6] * 20
    run(part, range(15))
    resumed.restore(part.state())
    run(resumed, range(15, 40))
    assert torch.equal(whole.W_enc, resumed.W_enc) and torch.equal(whole.W_dec, resumed.W_dec)
    assert resumed.n_resampled == 6


# Principal directions


def test_principal_directions_by_hand() -> None:
    sae = build("pca_topk", random_directions(6, 2, torch.Generator().manual_seed(0)), k=[1])
    sae.look_at(torch.tensor([[3.0, 3.0], [-3.0, -3.0], [1.0, -1.0], [-1.0, 1.0]]))
    half = 0.5**0.5
    assert torch.allclose(sae.W_dec[:2], torch.tensor([[half, half], [-half, -half]]))
    assert torch.allclose(sae.W_dec[2:4].abs(), torch.full((2, 2), half))
    assert torch.equal(sae.W_dec[2], -sae.W_dec[3]) and not sae.W_enc[:, 4:].any()
    found = sae.step(torch.tensor([[2.0, 2.0], [-1.0, 0.0]]), 1.0, 1.0)
    # The second token is half on each axis, of which one is kept.
    assert float(found.fvu) == pytest.approx(0.5 / 2)
    assert float(found.l0) == 1.0
    assert found.fired[0] and not found.fired[4:].any()
