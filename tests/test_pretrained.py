"""Fetching models: the real hub client against a hub on 127.0.0.1, and what can go wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, PretrainedConfig

from stages.lib.errors import UserError
from stages.models.pretrained import ModelParams, Origin, build, initial_model, locate, read_config, read_tokenizer
from tests.hub import Hub, tiny_config, tiny_model, tiny_tokenizer, write_tiny

FLOAT32 = ModelParams(dtype="float32")

# The hub's address is read when its library is imported, so all cases run in one process of their own.
CLIENT = """
import json, os, sys, urllib.request
from pathlib import Path
from stages.lib.errors import UserError
from stages.models.pretrained import ModelParams, build
results = {}
for label, name, revision in json.loads(sys.argv[1]):
    if name == "stop":
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/_stop").close()
        continue
    try:
        results[label] = build(name, revision, ModelParams(dtype="float32"), 0, Path(sys.argv[2], label))
    except UserError as error:
        results[label] = str(error)
print(json.dumps(results))
"""
CASES = [
    ("alias", "gpt2-small", None),
    ("revision", "EleutherAI/pythia-70m", "step1"),
    ("default", "EleutherAI/pythia-70m", None),
    ("old_weights", "org/old", None),
    ("missing_repo", "gpt2-smal", None),
    ("impossible", "no such name", None),
    ("missing_revision", "gpt2", "step9"),
    ("gated", "meta-llama/Llama-2-7b-hf", None),
    ("no_weights", "org/empty", None),
    ("server_error", "org/broken", None),
    ("stop", "stop", None),
    ("refused", "EleutherAI/pythia-160m", None),
    ("cached", "gpt2-small", None),
]


class Answers:
    """What the client process returned, and where it wrote."""

    def __init__(self, results: dict[str, Any], root: Path, hub: Hub) -> None:
        self.results, self.root, self.hub = results, root, hub


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    root = tmp_path_factory.mktemp("hub")
    with Hub() as hub:
        hub.add("gpt2", write_tiny("gpt2", root / "gpt2"))
        hub.add("EleutherAI/pythia-70m", write_tiny("neox", root / "neox", seed=1))
        hub.add("EleutherAI/pythia-70m", write_tiny("neox", root / "neox-step1", seed=2), "step1")
        hub.add("meta-llama/Llama-2-7b-hf", write_tiny("llama", root / "llama"))
        hub.gated.add("meta-llama/Llama-2-7b-hf")
        old = write_tiny("gpt2", root / "old")
        torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
        (old / "model.safetensors").unlink()
        hub.add("org/old", old)
        empty = write_tiny("gpt2", root / "empty")
        (empty / "model.safetensors").unlink()
        hub.add("org/empty", empty)
        hub.failing.add("org/broken")
        env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(root / "cache")}
        env |= {"HF_HUB_DISABLE_XET": "1", "no_proxy": "127.0.0.1"}
        command = [sys.executable, "-c", CLIENT, json.dumps(CASES), str(root / "out")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return Answers(json.loads(done.stdout.splitlines()[-1]), root, hub)


def same_weights(a: Path, b: Path) -> bool:
    left, right = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_an_alias_resolves_and_the_weights_arrive_unchanged(answers: Answers) -> None:
    facts = answers.results["alias"]
    assert facts["name"] == "gpt2-small"
    assert facts["repository"] == "gpt2"
    assert facts["commit"] == answers.hub.commit("gpt2", "main")
    assert facts["revisions"] == ["main", "untrained"]
    assert facts["n_parameters"] == tiny_model("gpt2").num_parameters()
    assert same_weights(answers.root / "out/alias", answers.root / "gpt2")
    for directory in (answers.root / "out/alias", answers.root / "out/alias/revisions/untrained"):
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in directory.iterdir()}


def test_the_written_files_name_no_place_on_this_machine(answers: Answers) -> None:
    texts = [path.read_text() for path in (answers.root / "out/alias").rglob("*.json")]
    assert texts
    assert not any(str(answers.root) in text for text in texts)


def test_a_revision_is_fetched_and_its_commit_recorded(answers: Answers) -> None:
    assert answers.results["revision"]["commit"] == answers.hub.commit("EleutherAI/pythia-70m", "step1")
    assert same_weights(answers.root / "out/revision", answers.root / "neox-step1")
    assert same_weights(answers.root / "out/default", answers.root / "neox")
    assert not same_weights(answers.root / "out/default", answers.root / "neox-step1")


def test_the_untrained_control_is_the_same_for_every_revision_and_not_the_model(answers: Answers) -> None:
    out = answers.root / "out"
    assert same_weights(out / "revision/revisions/untrained", out / "default/revisions/untrained")
    assert not same_weights(out / "default/revisions/untrained", out / "default")


def test_weights_in_the_old_pytorch_form_are_taken_where_there_are_no_others(answers: Answers) -> None:
    assert same_weights(answers.root / "out/old_weights", answers.root / "gpt2")


def test_a_fetched_model_can_be_had_again_without_the_hub(answers: Answers) -> None:
    assert answers.results["cached"] == answers.results["alias"]


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        ("missing_repo", ["model.name is 'gpt2-smal'", "has no such model", "did you mean 'gpt2-small'?"]),
        ("impossible", ["model.name is 'no such name', which is neither a directory nor a possible hub id"]),
        ("missing_revision", ["model.revision is 'step9': gpt2 has no such branch, tag or commit"]),
        ("gated", ["model.name is 'meta-llama/Llama-2-7b-hf', which is gated", "set HF_TOKEN"]),
        ("no_weights", ["model.name is 'org/empty', which has no weights"]),
        ("server_error", ["model.name is 'org/broken'", "answers", "500"]),
        ("refused", ["model.name is 'EleutherAI/pythia-160m'", "cannot be reached", "check the network"]),
    ],
)
def test_what_the_hub_refuses_is_one_clear_line(answers: Answers, label: str, parts: list[str]) -> None:
    message = answers.results[label]
    assert isinstance(message, str)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_local_directory_is_stored_in_the_dtype_asked_for(tmp_path: Path, dtype: str) -> None:
    source = write_tiny("llama", tmp_path / "source")
    facts = build(str(source), None, ModelParams(dtype=dtype), 0, tmp_path / "out")  # type: ignore[arg-type]
    assert facts["commit"] is None
    stored = load_file(tmp_path / "out/model.safetensors")
    original = load_file(source / "model.safetensors")
    assert all(torch.equal(stored[name], original[name].to(getattr(torch, dtype))) for name in original)
    control = load_file(tmp_path / "out/revisions/untrained/model.safetensors")
    assert {tensor.dtype for tensor in control.values()} == {getattr(torch, dtype)}


def test_the_initial_model_depends_on_the_seed_alone() -> None:
    config = tiny_config("gpt2")
    torch.manual_seed(1)
    first = initial_model(config, 0).state_dict()
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    again, other = initial_model(config, 0).state_dict(), initial_model(config, 1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())
    # GPT-2 draws its embedding from N(0, 0.02^2): 280 x 16 numbers, so the standard error of the deviation is 0.0002.
    assert first["transformer.wte.weight"].std().item() == pytest.approx(0.02, abs=0.001)


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        (None, None, "model.name is null"),
        ("./nowhere", None, "model.name is './nowhere': no such directory"),
        ("a/b/c", None, "model.name is 'a/b/c': no such directory"),
    ],
)
def test_names_that_cannot_be_are_refused(name: str | None, revision: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        build(name, revision, FLOAT32, 0, tmp_path / "out")


def test_a_directory_has_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.revision is 'step1', but model.name '.*' is a directory"):
        locate(str(tmp_path), "step1")


def origin(path: Path) -> Origin:
    return Origin("here", path, None)


def test_what_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.name is 'here', which has no config.json"):
        read_config(origin(tmp_path))
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=20, **shape)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model.name is 'here', a BertForMaskedLM: not a causal language model"):
        read_config(origin(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "novel", "architectures": ["NovelForCausalLM"]}))
    with pytest.raises(UserError, match="of an architecture that transformers or TransformerLens does not know"):
        read_config(origin(tmp_path))


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    config = {"model_type": "novel", "auto_map": {"AutoConfig": "novel.Config"}, "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "novel.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(UserError, match="of an architecture that transformers or TransformerLens does not know"):
        read_config(origin(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_model_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_config("gpt2").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model.name is 'here', which has no fast tokenizer"):
        read_tokenizer(origin(tmp_path))
    # CTRL's tokenizer exists in Python only.
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "<unk>": 1}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CTRLTokenizer"}))
    with pytest.raises(UserError, match=r"model.name is 'here', which has no fast tokenizer"):
        read_tokenizer(origin(tmp_path))


def test_missing_weights_are_refused_not_made_up(tmp_path: Path) -> None:
    source = write_tiny("gpt2", tmp_path / "source")
    model = tiny_model("gpt2")
    weights = {name: tensor for name, tensor in model.state_dict().items() if "h.1.mlp" not in name}
    model.save_pretrained(source, state_dict=weights)
    with pytest.raises(UserError, match=r"whose weights lack 4 tensors such as transformer.h.1.mlp"):
        build(str(source), None, FLOAT32, 0, tmp_path / "out")
    (source / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.name is '.*', which has no weights"):
        build(str(source), None, FLOAT32, 0, tmp_path / "out")


def test_sampling_settings_that_would_not_save_do_not_matter(tmp_path: Path) -> None:
    source = write_tiny("gpt2", tmp_path / "source")
    (source / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.5, "top_p": 0.1}))
    build(str(source), None, FLOAT32, 0, tmp_path / "out")
    assert same_weights(source, tmp_path / "out")
    assert PretrainedConfig.from_pretrained(tmp_path / "out").vocab_size == len(tiny_tokenizer().get_vocab())
