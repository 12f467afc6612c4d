"""Blocks without the bridge around them: the same bits in float32, and no worse in bfloat16."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from stages.lib.language.direct import Direct, depth_of, direct
from stages.lib.language.direct_loops import gate_bits, look_up, norm_bits, turn, turn_bits
from stages.lib.language.extraction import Hook, capture, runners
from stages.lib.language.model import load_model
from tests.hub import D_VOCAB, tiny_tokenizer, write_tiny

HOOKS = [Hook("blocks.0.hook_resid_pre", 0), Hook("blocks.2.hook_resid_post", 2), Hook("blocks.1.hook_resid_post", 1)]


def shared_keys() -> LlamaForCausalLM:
    """A Llama whose four query heads share two keys, with biases and another activation function."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=D_VOCAB,
        max_position_embeddings=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        mlp_bias=True,
        hidden_act="gelu",
    )
    return LlamaForCausalLM(config)


@pytest.fixture(params=["gpt2", "llama", "shared keys"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with such a model."""
    if request.param == "shared keys":
        shared_keys().save_pretrained(tmp_path / "data/model")
        tiny_tokenizer().save_pretrained(tmp_path / "data/model")
    else:
        write_tiny(request.param, tmp_path / "data/model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def some_tokens() -> torch.Tensor:
    return torch.randint(D_VOCAB, (300, 8), generator=torch.Generator().manual_seed(0))  # more than one chunk


def test_the_bits_are_those_of_the_bridge(home: Path) -> None:
    model = load_model("main", "cpu")
    [ours, again] = runners(model, HOOKS, 2)
    assert isinstance(ours, Direct) and ours is again
    for found, expected in zip(capture(ours, some_tokens(), HOOKS), capture(model, some_tokens(), HOOKS), strict=True):
        assert torch.equal(found, expected)


def test_bfloat16_is_as_near_to_float32_as_the_bridge_is(home: Path) -> None:
    exact = capture(load_model("main", "cpu"), some_tokens(), HOOKS)
    model = load_model("main", "cpu", torch.bfloat16)
    [ours] = runners(model, HOOKS, 1)
    assert isinstance(ours, Direct)

    def errors(found: list[torch.Tensor]) -> list[float]:
        return [((x.float() - y).norm() / y.norm()).item() for x, y in zip(found, exact, strict=True)]

    for found, theirs in zip(
        errors(capture(ours, some_tokens(), HOOKS)), errors(capture(model, some_tokens(), HOOKS)), strict=True
    ):
        assert found <= 1.02 * theirs < 0.02


def test_what_only_the_bridge_can_do_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny("gpt2", tmp_path / "data/model")
    monkeypatch.chdir(tmp_path)
    model = load_model("main", "cpu")
    assert not isinstance(runners(model, [Hook("blocks.0.hook_attn_out", 0), *HOOKS], 1)[0], Direct)
    assert isinstance(runners(model, HOOKS, 1)[0], Direct)
    # Something in the model that the direct way does not know of.
    monkeypatch.setattr(
        Direct, "_attend", lambda self, query, key, value, scale, positions: value.transpose(1, 2).flatten(2)
    )
    assert not isinstance(runners(model, HOOKS, 1)[0], Direct)
    write_tiny("neox", tmp_path / "data/model")
    assert direct(load_model("main", "cpu")) is None


def test_depths_by_hand() -> None:
    names = [
        "blocks.0.hook_resid_pre",
        "blocks.0.hook_resid_post",
        "blocks.11.hook_resid_pre",
        "blocks.1.hook_attn_out",
    ]
    assert [depth_of(name) for name in names] == [0, 1, 11, None]


def bits(x: torch.Tensor) -> np.ndarray:
    return x.view(torch.uint16).numpy()


def test_rotary_positions_are_those_of_transformers() -> None:
    torch.manual_seed(0)
    x, cos, sin = torch.randn(2, 5, 3, 8), torch.randn(5, 8), torch.randn(5, 8)
    expected = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cos[None], sin[None])[0]
    out = torch.empty(2, 3, 5, 8)
    turn(x.numpy(), cos.numpy(), sin.numpy(), out.numpy())
    assert torch.equal(out, expected)
    rounded, out = x.bfloat16(), torch.empty(2, 3, 5, 8, dtype=torch.bfloat16)
    turn_bits(bits(rounded), cos.numpy(), sin.numpy(), bits(out))
    turned = rounded.float().transpose(1, 2)
    assert torch.equal(out, apply_rotary_pos_emb(turned, turned, cos[None], sin[None])[0].bfloat16())


@pytest.mark.parametrize("d_in", [7, 16, 40])
def test_norms_are_rounded_once(d_in: int) -> None:
    torch.manual_seed(0)
    x, weight, out = torch.randn(20, d_in).bfloat16(), torch.randn(d_in), torch.empty(20, d_in, dtype=torch.bfloat16)
    norm_bits(bits(x), weight.numpy(), 1e-5, bits(out))
    exact = torch.nn.functional.rms_norm(x.double(), (d_in,), weight.double(), 1e-5)
    assert ((out.double() - exact).abs() <= (2**-8 + 1e-6) * exact.abs()).all()  # half of bfloat16's last place


def test_activation_functions_of_all_numbers() -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    some = every[every.isfinite()][None].clone()
    up = torch.randn(some.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    table = torch.nn.functional.silu(every.float())
    found = some.clone()
    gate_bits(bits(found), table.numpy(), bits(up))
    assert torch.equal(found, (torch.nn.functional.silu(some.float()) * up.float()).bfloat16())
    found = some.clone()
    look_up(bits(found), bits(table.bfloat16()))
    assert torch.equal(found, torch.nn.functional.silu(some.float()).bfloat16())
