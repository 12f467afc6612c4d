"""The SAEs' mathematics: values by hand, selection against a stable sort, thresholds against a density, recovery."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.lib.features.matching import match
from stages.lib.io import plugins
from stages.lib.io.errors import UserError
from stages.lib.io.params import check
from stages.lib.run import parallel
from stages.lib.run.seeds import integer, numpy_generator
from stages.lib.sae.auxk import auxk
from stages.lib.sae.base import random_directions, remove_radial_
from stages.lib.sae.selection import above, top_k
from stages.lib.sae.topk import topk_gradients, topk_losses
from tests.dictionaries import D_IN, build, directions

EYE = torch.eye(2)


def generator(*names: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(integer(0, *names))


# Selection


def test_top_k_by_hand() -> None:
    z = torch.tensor([[3.0, -1.0, 5.0, 4.0], [0.0, 2.0, 2.0, 2.0], [-4.0, -2.0, -3.0, -1.0], [7.0, 7.0, 7.0, 7.0]])
    assert top_k(z, 2).tolist() == [[2, 3], [1, 2], [1, 3], [0, 1]]
    assert top_k(z, 1).tolist() == [[2], [1], [3], [0]]
    assert top_k(z, 4).tolist() == [[0, 1, 2, 3]] * 4


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 1e-30, 1.0, 1e30]), st.data())
def test_top_k_is_the_stable_sort(width: int, seed: int, step: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, width))
    z = np.random.default_rng(seed).standard_normal((5, width)).astype(np.float32)
    z = torch.from_numpy(np.round(z / 0.3) * np.float32(step) if step else z)
    expected = torch.sort(z, dim=1, stable=True, descending=True).indices[:, :k].sort(1).values
    assert torch.equal(top_k(z, k), expected)


def test_top_k_of_nan_stays_within_the_row() -> None:
    z = torch.full((2, 5), torch.nan)
    z[1, 2] = 1.0
    chosen = top_k(z, 3)
    assert ((chosen >= 0) & (chosen < 5)).all()


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_selection_does_not_depend_on_threads(n_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(67, 30, generator=generator("threads"))
    monkeypatch.setattr(parallel, "PARALLEL_FROM", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    assert torch.equal(top_k(z, 7), torch.topk(z, 7).indices.sort(1).values)
    first, feature, value = above(z, torch.zeros(30))
    column = (z > 0).nonzero()[:, 1]
    assert torch.equal(feature, column) and torch.equal(value, z[z > 0])
    assert first.tolist() == [0, *torch.cumsum((z > 0).sum(1), 0).tolist()]


# Losses by hand: W_enc = W_dec = identity, so z = x


def test_topk_by_hand() -> None:
    sae = build("topk", EYE, k=[1])
    with torch.no_grad():
        losses = topk_losses(sae, torch.tensor([[3.0, 1.0], [-1.0, -2.0]]), 1, 0.03125)
    # Token 0: f = (3, 0), error (0, 1). Token 1: its largest is -1, so nothing fires: error (-1, -2).
    assert float(losses.fvu) == (1 + 5) / 2
    assert float(losses.l0) == 0.5
    assert losses.fired.tolist() == [True, False]


def test_topk_gradient_leaves_alone_what_was_chosen_without_firing() -> None:
    sae = build("topk", EYE, k=[2])
    with torch.no_grad():
        topk_gradients(sae, torch.tensor([[3.0, 0.0], [2.0, -1.0]]), 2, 0.03125)
    # Feature 1 is chosen with z = 0 and z = -1.
    assert not sae.W_enc.grad[:, 1].any() and not sae.b_enc.grad[1] and not sae.W_dec.grad[1].any()
    # Token 0 is exact. In token 1 the error x_hat - x is (0, 1): dL/dW_dec[0] = f 2 (0, 1) / 2 = (0, 2).
    assert sae.W_dec.grad[0].tolist() == [0.0, 2.0]


def test_ties_give_equal_gradients() -> None:
    x = torch.tensor([[2.0, 2.0], [1.0, 1.0]])
    sae = build("topk", EYE, k=[1])
    with torch.no_grad():
        topk_gradients(sae, x, 1, 0.03125)
    fast = sae.W_dec.grad.clone()
    sae.W_dec.grad.zero_()
    topk_losses(sae, x, 1, 0.03125).fvu.backward()
    assert torch.allclose(fast, sae.W_dec.grad) and fast[0].any() and not fast[1].any()


def test_relu_by_hand() -> None:
    with torch.no_grad():
        losses = build("relu", EYE, l1_coefficient=[0.5]).losses(torch.tensor([[3.0, -1.0], [2.0, 1.0]]), 0.5)
    assert float(losses.fvu) == 0.5  # only the -1 is lost
    assert float(losses.sparsity) == 0.5 * 0.5 * (3 + 3) / 2
    assert float(losses.l0) == 1.5


def test_l1_shrinks_a_code_by_half_its_coefficient() -> None:
    # At z = x - 0.1 the gradient of (x - z)^2 + 0.2 z is -2 * 0.1 + 0.2 = 0.
    sae = build("relu", EYE, l1_coefficient=[0.2])
    with torch.no_grad():
        sae.b_enc.fill_(-0.1)
        sae.gradients(torch.tensor([[3.0, 2.0]]), 1.0)
    assert torch.allclose(sae.b_enc.grad, torch.zeros(2), atol=1e-6)


def test_jump_relu_by_hand() -> None:
    sae = build("jump_relu", EYE, l0_coefficient=[0.5], bandwidth=0.4, initial_threshold=1.0)
    with torch.no_grad():
        losses = sae.losses(torch.tensor([[3.0, 0.9], [1.1, -5.0]]), 1.0)
    # f = (3, 0), (1.1, 0): what passes the threshold is kept whole.
    assert float(losses.fvu) == pytest.approx((0.81 + 25) / 2)
    assert float(losses.sparsity) == 0.5 * 1.0
    with torch.no_grad():
        sae.gradients(torch.tensor([[3.0, 0.9], [1.1, -5.0]]), 1.0)
    # In the windows are z = 1.1 of feature 0, whose error is 0, and z = .9 of feature 1, where dL/df = 2 (-.9) / 2:
    # -(1 / .4) (1 * 0 + .5 / 2) and -(1 / .4) (1 * -.9 + .5 / 2).
    assert sae.threshold.grad.tolist() == pytest.approx([-0.625, 1.625])


def test_threshold_gradient_of_the_step_is_the_density() -> None:
    # d/dt P(z > t) = -p(t) for Gaussian z, whose density at t = .3 is known.
    jump = plugins.load("saes", "jump_relu", "saes.x.variant")
    z = torch.randn(1_000_000, 1, generator=generator("density"))
    threshold = torch.tensor([0.3], requires_grad=True)
    jump.Step.apply(z, threshold, 0.2).mean().backward()
    assert float(threshold.grad) == pytest.approx(-np.exp(-0.045) / np.sqrt(2 * np.pi), rel=0.02)


def test_threshold_gradient_of_the_code_is_that_of_its_expectation() -> None:
    # d/dt E[z H(z - t)] = -t p(t).
    jump = plugins.load("saes", "jump_relu", "saes.x.variant")
    z = torch.randn(1_000_000, 1, generator=generator("density"))
    threshold = torch.tensor([0.5], requires_grad=True)
    jump.JumpReLU.apply(z, threshold, 0.2, False).mean().backward()
    assert float(threshold.grad) == pytest.approx(-0.5 * np.exp(-0.125) / np.sqrt(2 * np.pi), rel=0.02)


def test_threshold_stays_positive() -> None:
    sae = build("jump_relu", EYE, initial_threshold=0.001)
    for _ in range(5):
        sae.step(torch.tensor([[0.01, 0.02]]), 0.5, 0.0)
    assert (sae.threshold >= 1e-6).all()


def test_thresholds_start_where_the_wanted_l0_is() -> None:
    sample = torch.randn(4000, D_IN, generator=generator("sample")) * torch.linspace(0.2, 2, D_IN)
    for l0 in (2.0, 5.5):
        sae = build("jump_relu", directions(), l0_coefficient=None, l0=[l0], initial_threshold=None)
        sae.look_at(sample)
        assert len(sae.threshold.unique()) == 1
        z = sae.hidden_pre(sample)
        assert float((z > sae.threshold).sum() / len(z)) == pytest.approx(l0, rel=0.02)  # of every other token
    given = build("jump_relu", directions(), l0_coefficient=None, l0=[2.0], initial_threshold=0.07)
    given.look_at(sample)
    assert given.threshold.unique().tolist() == pytest.approx([0.07])


def test_thresholds_need_a_start() -> None:
    own = {"variant": "jump_relu", "activations": "main", "l0_coefficient": [0.01], "bandwidth": 0.1}
    params = check("saes.x", own, plugins.load("saes", "jump_relu", "saes.x.variant").SAEParams)
    with pytest.raises(UserError, match=r"saes\.x has no wanted l0 that its thresholds could start at"):
        params.check("x", 24)


@torch.no_grad()
def test_auxk_by_hand() -> None:
    sae = build("topk", torch.eye(4)[:3], k=[1])
    x = torch.tensor([[4.0, 2.0, 0.0, 1.0], [4.0, 0.0, 2.0, 0.0]])
    z = sae.hidden_pre(x).detach()
    error = x - torch.tensor([[4.0, 0, 0, 0]])  # (0, 2, 0, 1), (0, 0, 2, 0)
    # Features 1 and 2 are dead and explain all but the 1; about the mean (0, 1, 1, .5) the error varies by 2 + 2 + .5.
    loss = auxk(sae, z, error, torch.tensor([False, True, True]))
    assert float(loss) == pytest.approx(1 / 4.5)
    assert float(auxk(sae, z, error, torch.zeros(3, dtype=torch.bool))) == 0
    assert float(auxk(sae, z, torch.ones(2, 4), torch.tensor([False, True, True]))) == 0  # no variation: not a number


def test_auxk_touches_dead_features_only() -> None:
    decoder = random_directions(24, 12, generator("auxk"))
    x = torch.randn(50, 12, generator=generator("auxk", "x")) / 12**0.5
    with_aux, without = build("topk", decoder, 1), build("topk", decoder, 1)
    for sae in (with_aux, without):
        sae.tokens_since_fired[4:9] = 1
    with torch.no_grad():
        topk_gradients(with_aux, x, 4, 0.5)
        topk_gradients(without, x, 4, 0.0)
    for name, axis in (("W_enc", 0), ("W_dec", 1)):
        changed = (getattr(with_aux, name).grad - getattr(without, name).grad).abs().sum(axis) > 0
        assert changed.nonzero()[:, 0].tolist() == [4, 5, 6, 7, 8], name
    assert ((with_aux.b_enc.grad != without.b_enc.grad).nonzero()[:, 0]).tolist() == [4, 5, 6, 7, 8]
    assert torch.equal(with_aux.b_dec.grad, without.b_dec.grad)


def test_radial_component_by_hand() -> None:
    gradient = torch.tensor([[3.0, 4.0], [1.0, 2.0]])
    remove_radial_(gradient, torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    # 1 * .6 + 2 * .8 = 2.2; (1, 2) - 2.2 (.6, .8) = (-.32, .24).
    assert torch.allclose(gradient, torch.tensor([[0.0, 4.0], [-0.32, 0.24]]))


def test_k_never_exceeded_and_reached_where_enough_are_positive() -> None:
    sae = build("topk", random_directions(40, 10, generator("k")), k=[6])
    with torch.no_grad():
        sae.b_enc.fill_(5.0)
        assert float(sae.gradients(torch.randn(30, 10, generator=generator("x")), 1.0).l0) == 6
        sae.b_enc.fill_(0.0)
        assert float(sae.gradients(torch.randn(30, 10, generator=generator("x")), 1.0).l0) <= 6


def test_loss_is_the_fraction_of_variance_unexplained() -> None:
    raw = torch.randn(4000, 10, generator=generator("raw")) * torch.linspace(0.5, 4, 10) + 3
    mean = raw.double().mean(0)
    scale = (raw.double() - mean).square().sum(1).mean().sqrt()
    x = ((raw - mean) / scale).float()
    sae = build("relu", random_directions(20, 10, generator("init")))
    with torch.no_grad():
        losses = sae.losses(x, 1.0)
        x_hat = sae.decode(sae.hidden_pre(x).relu()) * scale + mean
    fvu = (raw - x_hat).square().sum() / (raw - mean).square().sum()
    assert float(losses.fvu) == pytest.approx(float(fvu), rel=1e-4)


# Recovery of a known dictionary


def data(dictionary: torch.Tensor, n: int, rng: np.random.Generator) -> torch.Tensor:
    """Four of the directions at a time on average, with strengths in [.5, 1.5], normalised."""
    m = len(dictionary)
    strength = (rng.random((n, m)) < 4 / m) * (0.5 + rng.random((n, m)))
    x = torch.from_numpy(strength).float() @ dictionary
    x = x - x.mean(0)
    return x / x.square().sum(1).mean().sqrt()


@pytest.mark.parametrize(
    ("name", "own", "least"),
    [
        ("topk", {"k": [4]}, 0.93),
        ("relu", {"l1_coefficient": [0.2]}, 0.93),
        ("jump_relu", {"l0_coefficient": [0.03], "bandwidth": 0.2, "initial_threshold": 0.1}, 0.93),
        ("batch_topk", {"k": [4]}, 0.93),
        ("matryoshka", {"k": [4], "groups": [0.25, 0.25]}, 0.9),
        ("gated", {"l1_coefficient": [0.4]}, 0.93),
        ("p_anneal", {"l1_coefficient": [0.2]}, 0.93),
        ("frozen_decoder", {"k": [4]}, 0.0),
    ],
)
def test_recovers_an_orthogonal_dictionary(name: str, own: dict, least: float) -> None:
    n_steps, d = (5 if name == "frozen_decoder" else 500), 32
    dictionary = torch.linalg.qr(torch.randn(d, d, generator=generator("dictionary"))).Q
    x = data(dictionary, 16384, numpy_generator(0, "data"))
    sae = build(name, random_directions(d, d, generator("initialisation")), 10000, **own)
    chance = [match(random_directions(d, d, generator("chance", i)), dictionary).mcc for i in range(20)]
    start = match(sae.W_dec.detach(), dictionary).mcc
    assert abs(start - np.mean(chance)) < 3 * np.std(chance)
    for step in range(n_steps):
        part = 256 * step % len(x)
        lr = 3e-3 * min(1.0, (step + 1) / 10, (n_steps - step) / 100)
        sae.advance(step / n_steps)
        sae.step(x[part : part + 256], lr, min(1.0, step / 50))
    end = match(sae.W_dec.detach(), dictionary).mcc
    assert end > least
    if name == "frozen_decoder":
        assert end == start


# Settings


def test_numbers_of_levels_are_read_as_written(tmp_path) -> None:
    from ruamel.yaml import YAML

    raw = YAML(typ="safe", pure=True).load(
        "{variant: jump_relu, activations: main, l0_coefficient: [3e-3, 1e-2], bandwidth: 0.1,"
        " initial_threshold: 0.05, lr: 1e-3}"
    )
    params = check("saes.jump_relu", raw, plugins.load("saes", "jump_relu", "saes.jump_relu.variant").SAEParams)
    assert params.l0_coefficient == [0.003, 0.01] and params.lr == 0.001
