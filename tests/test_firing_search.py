"""The search for active features finds what the exact encoder finds, however coarse it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.lib.encoder import Encoder
from stages.lib.firing_search import MARGIN, Search
from stages.lib.saelens import SAE

D_IN, D_SAE = 24, 64


def weights(seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return draw(D_IN, D_SAE), draw(D_SAE), draw(D_SAE, D_IN), draw(D_IN), 3 + 5 * draw(200, D_IN)


def sae(kind: str, seed: int) -> tuple[SAE, torch.Tensor]:
    W_enc, b_enc, W_dec, b_dec, x = weights(seed)
    threshold = b_enc.abs() * 3 if kind == "jumprelu" else None
    return SAE(kind, W_enc, b_enc, W_dec, b_dec, threshold, 5 if kind == "topk" else None, {}), x


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["standard", "topk", "jumprelu"]), st.integers(0, 99))
def test_what_is_found_is_what_is_active(kind: str, seed: int) -> None:
    one, x = sae(kind, seed)
    found, expected = Encoder(one).active(x), one.active(x)
    assert torch.equal(found.first, expected.first)
    assert torch.equal(found.feature, expected.feature)
    torch.testing.assert_close(found.value, expected.value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu"])
def test_how_coarse_the_search_is_changes_nothing(kind: str) -> None:
    one, x = sae(kind, 0)
    limit = torch.zeros(D_SAE) if one.threshold is None else one.threshold
    found = [Search(one.W_enc, one.b_enc, one.b_dec, one.k or limit, dtype)(x) for dtype in MARGIN]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)  # exactly, if they are integers


def test_where_rounding_decides_the_matrix_product_is_followed() -> None:
    one, x = sae("topk", 4)
    near = one.W_enc[:, :1] * (1 + 1e-7 * torch.arange(D_SAE))  # the same feature over and over, but for rounding
    close = SAE("topk", near, torch.zeros(D_SAE), one.W_dec, one.b_dec, None, 5, {})
    assert torch.equal(Encoder(close).active(x).feature, close.active(x).feature)


def test_of_equal_pre_activations_the_first_win() -> None:
    x, ones = torch.ones(2, D_IN), torch.ones(D_IN, D_SAE)
    found = Search(ones, torch.zeros(D_SAE), torch.zeros(D_IN), 3)(x)
    assert found.feature.tolist() == [0, 1, 2, 0, 1, 2]


def test_features_that_are_not_positive_are_not_active() -> None:
    one, x = sae("topk", 1)
    silent = Search(one.W_enc, one.b_enc - 1e6, one.b_dec, 5)(x)
    assert silent.first.tolist() == [0] * (len(x) + 1)


def test_no_tokens_have_no_features() -> None:
    one, x = sae("topk", 2)
    assert Encoder(one).active(x[:0]).first.tolist() == [0]


def test_as_many_as_there_are_features_may_be_active() -> None:
    one, x = sae("topk", 3)
    found = Search(one.W_enc, one.b_enc, one.b_dec, 2 * D_SAE)(x)
    assert torch.equal(found.first.diff(), (one.hidden_pre(x) > 0).sum(1))
