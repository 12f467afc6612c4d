"""The model as later stages see it: hooks against what transformers computes, and what is refused."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

from stages.lib.io.errors import UserError
from stages.lib.language.model import (
    SITES,
    Limits,
    check_hook,
    limits,
    load_model,
    load_tokenizer,
    model_path,
    resolve_hook,
)
from tests.hub import D_VOCAB, write_tiny

KINDS = ["gpt2", "llama", "neox"]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A project root for each kind of model."""
    roots = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, root in roots.items():
        write_tiny(kind, root / "data/model")
    write_tiny("gpt2", roots["gpt2"] / "data/model/revisions/untrained", seed=1)
    (roots["gpt2"] / "data/model/model.json").write_text(json.dumps({"revisions": ["main", "untrained"]}))
    return roots


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(D_VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_give_what_transformers_computes(
    kind: str, directories: dict[str, Path], tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directories[kind])
    reference = AutoModelForCausalLM.from_pretrained("data/model", attn_implementation="eager").eval()
    seen: dict[str, list[torch.Tensor]] = {"attn": [], "mlp": []}
    for module_name, module in reference.named_modules():
        part = {"attn": "attn", "self_attn": "attn", "attention": "attn", "mlp": "mlp"}.get(module_name.split(".")[-1])
        if part:
            module.register_forward_hook(
                lambda _module, _inputs, out, part=part: seen[part].append(out[0] if isinstance(out, tuple) else out)
            )
    with torch.no_grad():
        expected = reference(tokens, output_hidden_states=True)
        model = load_model("main", "cpu")
        logits, cache = model.run_with_cache(tokens)
    same = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(logits, expected.logits, **same)
    for layer in range(3):
        pre, post = (cache[resolve_hook(layer, site, 3)] for site in ("hook_resid_pre", "hook_resid_post"))
        torch.testing.assert_close(pre, expected.hidden_states[layer], **same)
        if layer < 2:  # transformers' last hidden state is after the final norm
            torch.testing.assert_close(post, expected.hidden_states[layer + 1], **same)
        attn, mlp = (cache[resolve_hook(layer, site, 3)] for site in ("hook_attn_out", "hook_mlp_out"))
        torch.testing.assert_close(attn, seen["attn"][layer], **same)
        torch.testing.assert_close(mlp, seen["mlp"][layer], **same)
        torch.testing.assert_close(pre + attn + mlp, post, **same)
        if kind != "neox":
            torch.testing.assert_close(cache[resolve_hook(layer, "hook_resid_mid", 3)], pre + attn, **same)


@pytest.mark.parametrize("kind", KINDS)
def test_norms_worked_out_once_change_no_bit(
    kind: str, directories: dict[str, Path], tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directories[kind])
    plain = TransformerBridge.boot_transformers("data/model", device="cpu", dtype=torch.float32).eval()
    model = load_model("main", "cpu")
    with torch.no_grad():
        assert torch.equal(model(tokens), plain(tokens))
        seen: list[torch.Tensor] = []
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.ln1.hook_scale", lambda x, hook: seen.append(x))])
    assert bool(seen) == (kind == "gpt2")  # whose norms TransformerLens works out itself, and once


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_stops_above_the_hook_gives_the_same_activations_bit_for_bit(
    kind: str, directories: dict[str, Path], tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directories[kind])
    model = load_model("main", "cpu")
    name = resolve_hook(1, "hook_resid_post", model.cfg.n_layers)
    _, whole = model.run_with_cache(tokens)
    _, part = model.run_with_cache(tokens, names_filter=[name], stop_at_layer=2)
    assert torch.equal(whole[name], part[name])


def test_loading_is_offline_silent_and_gives_a_frozen_float32_model(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(directories["gpt2"])

    def refuse(*_: object) -> None:
        raise AssertionError("a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    half = directories["gpt2"] / "data/model/revisions/half"
    shutil.copytree("data/model", half, ignore=shutil.ignore_patterns("revisions"))
    AutoModelForCausalLM.from_pretrained("data/model", dtype=torch.float16).save_pretrained(half)
    capfd.readouterr()
    model = load_model("half", "cpu")
    tokenizer = load_tokenizer()
    assert capfd.readouterr() == ("", "")
    assert isinstance(model, TransformerBridge)
    assert not model.training
    parameters = list(model.parameters())
    assert parameters
    assert {(parameter.dtype, parameter.requires_grad) for parameter in parameters} == {(torch.float32, False)}
    assert tokenizer.is_fast


def test_revisions_are_different_models_and_unknown_ones_are_refused(
    directories: dict[str, Path], tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directories["gpt2"])
    assert model_path() == Path("data/model")
    assert model_path("untrained") == Path("data/model/revisions/untrained")
    main, untrained = (load_model(revision, "cpu")(tokens) for revision in ("main", "untrained"))
    assert not torch.allclose(main, untrained)
    with pytest.raises(UserError, match="data/model has no revision 'untrain'; did you mean 'untrained'"):
        load_model("untrain", "cpu")


def test_a_missing_model_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (model_path, limits, load_tokenizer, lambda: load_model("main", "cpu")):
        with pytest.raises(UserError, match=r"data/model/config.json is missing; `dvc checkout model`"):
            call()


@pytest.mark.parametrize("kind", KINDS)
def test_limits_come_from_the_configuration(
    kind: str, directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directories[kind])
    assert limits() == Limits(n_positions=32, d_vocab=D_VOCAB)


def test_layers_count_from_either_end() -> None:
    assert resolve_hook(0, "hook_resid_post", 3) == "blocks.0.hook_resid_post"
    assert resolve_hook(-1, "hook_mlp_out", 3) == "blocks.2.hook_mlp_out"
    assert resolve_hook(-3, "hook_attn_out", 3) == "blocks.0.hook_attn_out"


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_beyond_the_model_is_refused(layer: int) -> None:
    with pytest.raises(UserError, match=f"activations.layer is {layer}: the model has 3 layers, so -3 to 2"):
        resolve_hook(layer, "hook_resid_post", 3)


def test_an_unknown_site_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"activations.site is 'resid_post'.*did you mean 'hook_resid_post'"):
        resolve_hook(0, "resid_post", 3)


def test_a_site_that_the_architecture_lacks_is_refused(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directories["gpt2"])
    model = load_model("main", "cpu")
    for site in SITES:
        check_hook(model, resolve_hook(1, site, 3))
    monkeypatch.chdir(directories["neox"])
    parallel = load_model("main", "cpu")
    with pytest.raises(UserError, match=r"site is 'hook_resid_mid', which this model's blocks lack.*hook_resid_pre"):
        check_hook(parallel, "blocks.1.hook_resid_mid")
