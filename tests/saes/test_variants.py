"""What single methods promise beyond the contract of all (`test_saes.py`)."""

import pytest
import torch

from stages.lib.io.errors import UserError
from stages.lib.sae.base import SAE
from stages.lib.sae.batch_topk import active_share_threshold, keep_largest, largest
from stages.saes import matryoshka
from stages.saes.soft_frozen import into_cone_
from tests.dictionaries import D_IN, D_SAE, batch, build, directions, perturb


def test_the_largest_of_a_batch_by_hand() -> None:
    z = torch.tensor([[3.0, -1.0, 2.0], [0.5, 0.25, -2.0]])
    assert keep_largest(z, 1).tolist() == [[3.0, 0.0, 2.0], [0.0, 0.0, 0.0]]  # two in all, both of the first token
    assert keep_largest(z, 2).tolist() == [[3.0, 0.0, 2.0], [0.5, 0.25, 0.0]]  # only four are positive
    assert largest(torch.tensor([1.0, 2.0, 1.0, 1.0]), 2).tolist() == [True, True, False, False]


@pytest.mark.parametrize("coarse", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_a_batch_has_exactly_k_active_features_a_token(name: str, coarse: torch.dtype | None) -> None:
    sae = build(name, directions(), encoder_dtype=coarse)
    perturb(sae)
    with torch.no_grad():
        assert float(sae.gradients(batch(), 1.0).l0) == 4.0


def test_the_threshold_of_inference_leaves_k_features_a_token() -> None:
    z = torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    threshold = active_share_threshold(z, 8)
    assert int((z > threshold).sum()) == 8 * 500
    ordered = z.flatten().sort(descending=True).values
    assert threshold == pytest.approx(float(ordered[3999] + ordered[4000]) / 2)
    assert active_share_threshold(z, 39) == 0.0  # not so many are positive
    assert active_share_threshold(z, 40) == 0.0


def test_settling_does_not_touch_training() -> None:
    one, other = build("batch_topk", directions()), build("batch_topk", directions())
    for i in range(5):
        one.step(batch(seed=i), 3e-3, 1.0)
        other.step(batch(seed=i), 3e-3, 1.0)
        other.settle(batch(seed=99))
    assert torch.equal(one.W_enc, other.W_enc)
    assert float(other.threshold[0]) > 0 == float(one.threshold[0])
    assert other.threshold.unique().numel() == 1


def test_the_loss_of_matryoshka_is_the_mean_over_its_dictionaries() -> None:
    sae = build("matryoshka", directions(), groups=[0.25, 0.25])
    assert matryoshka.sizes([0.25, 0.25], D_SAE) == [6, 12, 24]
    perturb(sae)
    x = batch()
    with torch.no_grad():
        acts = keep_largest(sae.hidden_pre(x), 4)
        by_group = [(x - sae.b_dec - acts[:, :end] @ sae.W_dec[:end]).square().sum(1).mean() for end in (6, 12, 24)]
        losses = sae.losses(x, 1.0)
    assert float(losses.fvu) == pytest.approx(float(by_group[2]), rel=1e-5)
    assert float(losses.fvu + losses.auxiliary) == pytest.approx(float(sum(by_group)) / 3, rel=1e-5)


@pytest.mark.parametrize("groups", [[0.5, 0.5], [0.001], [0.9, 0.2]])
def test_matryoshka_refuses_groups_that_are_none(groups: list[float]) -> None:
    own = matryoshka.SAEParams(variant="matryoshka", activations="main", k=[4], aux_coefficient=0.0, groups=groups)
    with pytest.raises(UserError, match=r"^saes\.nested\.groups must be shares of the 24 features .*, not \["):
        own.check("nested", D_SAE)


def test_the_gate_learns_from_the_penalty_and_the_frozen_decoder_alone() -> None:
    sae, x = build("gated", directions(), l1_coefficient=[1e-9]), batch()
    perturb(sae)
    sae.losses(x, 1.0).fvu.backward()
    assert not sae.b_enc.grad.any()  # no gradient passes the Heaviside function
    assert sae.b_mag.grad.any() and sae.r_mag.grad.any()
    for weight in sae.trained:
        getattr(sae, weight).grad.zero_()
    sae.losses(x, 1.0).auxiliary.backward()
    assert sae.b_enc.grad.any() and sae.W_enc.grad.any()
    assert not sae.W_dec.grad.any() and not sae.b_mag.grad.any()


def test_a_gated_sae_is_the_jump_relu_that_is_saved() -> None:
    sae, x = build("gated", directions()), batch()
    perturb(sae)
    weights = sae.export()
    with torch.no_grad():
        pi = sae.hidden_pre(x)
        own = (pi > 0) * (sae.r_mag.exp() * (pi - sae.b_enc) + sae.b_mag).relu()
        z = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
        saved = z * (z > weights["threshold"])
    assert torch.allclose(own, saved, atol=1e-6)
    assert (weights["threshold"] == 0).any() and (weights["threshold"] > 0).any()


def test_p_falls_in_ten_steps_after_a_fifth() -> None:
    sae = build("p_anneal", directions())
    seen = []
    for step in range(100):
        sae.advance(step / 100)
        seen.append(sae.exponent(sae.n_falls))
        sae.step(batch(seed=step), 1e-3, 1.0)
    assert seen[:20] == [1.0] * 20
    assert seen[20] == pytest.approx(0.92)
    assert seen[-1] == pytest.approx(0.2)
    assert len(set(seen)) == 11


def test_the_penalty_stays_what_it_was_when_p_falls() -> None:
    sae = build("p_anneal", directions())
    x = batch()
    with torch.no_grad():
        before = float(sae.gradients(x, 1.0).sparsity)
        sae.advance(0.2)
        assert sae.exponent(sae.n_falls) == pytest.approx(0.92)
        assert float(sae.gradients(x, 1.0).sparsity) == pytest.approx(before, rel=1e-5)


def test_annealing_goes_on_exactly() -> None:
    def train(sae: SAE, steps: range) -> None:
        for step in steps:
            sae.advance(step / 40)
            sae.step(batch(seed=step), 3e-3, 1.0)

    whole, part, resumed = (build("p_anneal", directions()) for _ in range(3))
    train(whole, range(40))
    train(part, range(23))
    resumed.restore(part.state())
    train(resumed, range(23, 40))
    assert torch.equal(whole.W_enc, resumed.W_enc)
    assert float(whole.coefficient) == float(resumed.coefficient) != 0.05


def test_directions_are_turned_onto_their_cone_by_hand() -> None:
    axes = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    rows = torch.tensor([[0.6, 0.8], [0.96, 0.28]])
    into_cone_(rows, axes, 0.8)
    assert torch.allclose(rows, torch.tensor([[0.8, 0.6], [0.96, 0.28]]))


def test_a_soft_frozen_decoder_moves_but_not_far() -> None:
    sae = build("soft_frozen", directions())
    for i in range(60):
        sae.step(batch(seed=i), 3e-2, 1.0)
    cosine = (sae.W_dec.detach() * directions()).sum(1)
    assert float(cosine.min()) == pytest.approx(0.8, abs=1e-5)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-5)
    assert sae.W_dec.shape == (D_SAE, D_IN)
