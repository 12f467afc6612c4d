"""Fetching models: the real hub client against a hub on 127.0.0.1, and what can go wrong."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM, PretrainedConfig

from stages.lib.io.errors import UserError
from stages.lib.io.files import write_json
from stages.lib.language import model as language_model
from stages.models.pretrained import ModelParams, Origin, build, initial_model, locate, read_config, read_tokenizer
from tests.hub import Client, Hub, tiny_config, tiny_model, tiny_tokenizer, write_tiny

KINDS = ["gpt2", "neox", "llama"]
FORMS = ["one", "sharded", "bin", "sharded_bin"]
SCRIPT = """
from pathlib import Path
from stages.lib.io.errors import UserError
from stages.models.pretrained import ModelParams, build

def answer(name, out, revision=None, revisions=(), dtype="float32"):
    try:
        return build(name, revision, ModelParams(dtype=dtype, revisions=list(revisions)), 0, Path(out))
    except UserError as error:
        return str(error)
"""


def params(dtype: str = "float32", revisions: list[str] | None = None) -> ModelParams:
    return ModelParams(dtype=dtype, revisions=revisions or [])  # type: ignore[arg-type]


class World:
    """A hub, a client of it, and what it serves: made once, since a client takes seconds to begin."""

    def __init__(self, root: Path, hub: Hub, client: Client) -> None:
        self.root, self.hub, self.client = root, hub, client

    def serve(self, repository: str, kind: str = "gpt2", revision: str = "main", seed: int = 0) -> Path:
        """A repository of its own for a test."""
        return self.add(repository, write_tiny(kind, self.root / repository / revision, seed), revision)

    def add(self, repository: str, directory: Path, revision: str = "main") -> Path:
        self.hub.add(repository, directory, revision)
        return directory

    def build(self, name: str, **question: Any) -> Any:
        """The facts, or the message; `out(name)` is what was written."""
        return self.client.ask(name=name, out=str(self.out(name)), **question)

    def out(self, name: str) -> Path:
        return self.root / "out" / name

    def line(self, name: str, **question: Any) -> str:
        """The message of what has to fail: one line, without a trace of the libraries' own."""
        message = self.build(name, **question)
        assert isinstance(message, str), message
        assert "\n" not in message and "Traceback" not in message
        assert not self.out(name).exists()
        return message


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("hub")
    with Hub() as hub, Client(SCRIPT, hub.url, root / "cache") as client:
        yield World(root, hub, client)
        assert client.errors() == ""  # nothing but what the stage itself says


def same_weights(a: Path, b: Path) -> bool:
    left, right = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def write_as(form: str, whole: Path, directory: Path) -> Path:
    """A copy of a Hugging Face directory with its weights in another form."""
    shutil.copytree(whole, directory)
    if form == "one":
        return directory
    if form.startswith("sharded"):
        (directory / "model.safetensors").unlink()
        model = AutoModelForCausalLM.from_pretrained(whole)
        model.save_pretrained(directory, max_shard_size="20KB")
        assert len(list(directory.glob("model-*.safetensors"))) > 2
    if form.endswith("bin"):
        for file in list(directory.glob("*.safetensors")):
            name = file.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
            torch.save(load_file(file), directory / name)
            file.unlink()
        for index in list(directory.glob("*.index.json")):
            text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
            (directory / "pytorch_model.bin.index.json").write_text(text)
            index.unlink()
    return directory


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_every_architecture_and_form_of_weights_arrives_unchanged(world: World, kind: str, form: str) -> None:
    name = f"org/{kind}-{form}"
    whole = write_tiny(kind, world.root / f"{name}-whole")
    world.add(name, write_as(form, whole, world.root / name))
    facts = world.build(name)
    assert facts == {
        "name": name,
        "repository": name,
        "revision": None,
        "commit": world.hub.commit(name, "main"),
        "n_parameters": tiny_model(kind).num_parameters(),
        "dtype": "float32",
        "revisions": ["main", "untrained"],
        "revision_commits": {},
    }
    assert same_weights(world.out(name), whole)
    for directory in (world.out(name), world.out(name) / "revisions/untrained"):
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in directory.iterdir()}
    assert AutoTokenizer.from_pretrained(world.out(name)).get_vocab() == tiny_tokenizer().get_vocab()


def test_an_alias_of_transformer_lens_is_the_repository_it_stands_for(world: World) -> None:
    served = world.serve("gpt2")
    facts = world.build("gpt2-small")
    assert (facts["name"], facts["repository"]) == ("gpt2-small", "gpt2")
    assert facts["commit"] == world.hub.commit("gpt2", "main")
    assert same_weights(world.out("gpt2-small"), served)


def test_the_written_files_name_no_place_on_this_machine(world: World) -> None:
    world.serve("org/place")
    world.build("org/place")
    texts = [path.read_text() for path in world.out("org/place").rglob("*.json")]
    assert texts
    assert not any(str(world.root) in text for text in texts)


def test_weights_are_fetched_in_one_form_and_nothing_is_fetched_from_folders(world: World) -> None:
    served = world.serve("org/both")
    torch.save(load_file(served / "model.safetensors"), served / "pytorch_model.bin")
    shutil.copy(served / "model.safetensors", served / "model-00001-of-00001.safetensors")
    (served / "onnx").mkdir()
    (served / "onnx/config.json").write_text("{}")
    world.build("org/both")
    fetched = {request.path for request in world.hub.requests if request.method == "GET" and "org/both" in request.path}
    names = {path.partition("/resolve/")[2].partition("/")[2] for path in fetched if "/resolve/" in path}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} | (
        names & {"tokenizer_config.json"}
    )


def test_a_revision_is_fetched_and_its_commit_recorded(world: World) -> None:
    main, step = world.serve("org/steps", "neox", seed=1), world.serve("org/steps", "neox", "step1", seed=2)
    for revision, served in ((None, main), ("step1", step), (world.hub.commit("org/steps", "step1"), step)):
        shutil.rmtree(world.out("org/steps"), ignore_errors=True)
        facts = world.build("org/steps", revision=revision)
        assert facts["revision"] == revision
        assert facts["commit"] == world.hub.commit("org/steps", revision or "main")
        assert same_weights(world.out("org/steps"), served)


def test_further_revisions_lie_where_later_stages_find_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    served = {
        name: world.serve("org/pythia", "neox", name, seed) for seed, name in enumerate(("main", "step0", "step512"))
    }
    facts = world.build("org/pythia", revisions=["step0", "step512"])
    assert facts["revisions"] == ["main", "untrained", "step0", "step512"]
    assert facts["revision_commits"] == {name: world.hub.commit("org/pythia", name) for name in ("step0", "step512")}
    write_json(world.out("org/pythia") / "model.json", facts)
    monkeypatch.setattr(language_model, "MODEL", world.out("org/pythia"))
    for name, directory in served.items():
        found = language_model.model_path(name)
        assert same_weights(found, directory)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(found), AutoTokenizer.from_pretrained(found)
        assert model.config.vocab_size == len(tokenizer.get_vocab())
    with pytest.raises(UserError, match=r"has no revision 'step51'; did you mean 'step512'"):
        language_model.model_path("step51")


def test_the_untrained_control_is_the_same_for_every_revision_and_not_the_model(world: World) -> None:
    world.serve("org/control", "neox", seed=1)
    world.serve("org/control", "neox", "step1", seed=2)
    world.build("org/control")
    shutil.move(world.out("org/control"), world.out("org/control-main"))
    world.build("org/control", revision="step1")
    one, other = world.out("org/control"), world.out("org/control-main")
    assert same_weights(one / "revisions/untrained", other / "revisions/untrained")
    assert not same_weights(one / "revisions/untrained", one)


@pytest.mark.parametrize(
    ("label", "change", "message"),
    [
        ("width", {"hidden_size": 32}, "has hidden_size 32, but the model 16"),
        ("words", {"vocab_size": 300}, "has vocab_size 300, but the model 280"),
        ("depth", {"num_hidden_layers": 2}, "has num_hidden_layers 2, but the model 3"),
        ("kind", {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "has model_type mistral, but the"),
        ("tokenizer", {}, "has another vocabulary than the model"),
    ],
)
def test_a_further_revision_that_is_another_model_is_refused_before_weights_are_fetched(
    world: World, label: str, change: dict[str, Any], message: str
) -> None:
    name = f"org/unlike-{label}"
    world.serve(name, "llama")
    odd = world.serve(name, "llama", "odd")
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | change))
    if label == "tokenizer":
        tiny_tokenizer(bos_token="<s>").save_pretrained(odd)
    world.hub.requests.clear()
    line = world.line(name, revisions=["odd"])
    assert line.startswith(f"model.pretrained.revisions: 'odd' of {name} {message}")
    assert not world.hub.fetched("model.safetensors")


def test_a_further_revision_needs_no_tokenizer_of_its_own(world: World) -> None:
    world.serve("org/bare", "neox")
    bare = world.serve("org/bare", "neox", "step1", seed=3)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    world.build("org/bare", revisions=["step1"])
    assert same_weights(world.out("org/bare") / "revisions/step1", bare)
    assert (world.out("org/bare") / "revisions/step1/tokenizer.json").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["refs/pr/1"], "'refs/pr/1' is no name for a directory"),
        ([".."], "'..' is no name for a directory"),
        ([""], "'' is no name for a directory"),
        (["main+blocks.0.hook_mlp_out"], "is no name for a directory"),
        (["main"], "'main' is the name of a revision that every model has"),
        (["untrained"], "'untrained' is the name of a revision that every model has"),
        (["step1", "Step1"], "two of ['step1', 'Step1'] are the same"),
    ],
)
def test_names_that_no_further_revision_can_have_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        params(revisions=names)
    assert message in str(caught.value)


def test_a_directory_has_no_further_revisions(tmp_path: Path) -> None:
    source = write_tiny("gpt2", tmp_path / "source")
    with pytest.raises(
        UserError, match=r"model.pretrained.revisions is \['step1'\], but model.name '.*' is a directory"
    ):
        build(str(source), None, params(revisions=["step1"]), 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_one_clear_line(world: World) -> None:
    world.serve("org/there")
    hub = world.hub.url
    private = "or it is private and HF_TOKEN has no token for it"
    assert world.line("gpt2-smal") == (
        f"model.name is 'gpt2-smal': {hub} has no such model, {private}; did you mean 'gpt2-small'?"
    )
    assert world.line("no such name") == (
        "model.name is 'no such name', which is neither a directory nor a possible hub id"
    )
    assert world.line("org/there", revision="step9") == (
        "model.revision: org/there has no branch, tag or commit 'step9'"
    )
    assert world.line("org/there", revisions=["step9"]) == (
        "model.pretrained.revisions: org/there has no branch, tag or commit 'step9'"
    )


def test_gated_and_private_models_are_for_those_with_the_right_token(world: World) -> None:
    served = world.serve("org/gated", "llama"), world.serve("org/private", "llama")
    world.hub.gated.add("org/gated")
    world.hub.private.add("org/private")
    hub = world.hub.url
    assert world.line("org/gated") == (
        f"model.name is 'org/gated', which is gated: accept its terms at {hub}/org/gated and set HF_TOKEN to a token "
        "of the account that did"
    )
    assert world.line("org/private") == (
        f"model.name is 'org/private': {hub} has no such model, or it is private and HF_TOKEN has no token for it"
    )
    for name in ("org/gated", "org/private"):
        assert world.line(name, token="wrong") == (
            f"model.name is '{name}': {hub} answers 401 Unauthorized: it does not know the token in HF_TOKEN (or that "
            "of `hf auth login`)"
        )
    for name, directory in zip(("org/gated", "org/private"), served, strict=True):
        assert world.build(name, token="right")["repository"] == name
        assert same_weights(world.out(name), directory)


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (403, "403 Forbidden"),
        (404, "404 Not Found"),
        (429, "429 Too Many Requests; try again later"),
        (500, "500 Internal Server Error; try again later"),
        (503, "503 Service Unavailable; try again later"),
    ],
)
def test_an_error_of_the_server_is_one_clear_line(world: World, status: int, answer: str) -> None:
    name = f"org/status-{status}"
    world.hub.status[name] = status
    assert world.line(name) == f"model.name is {name!r}: {world.hub.url} answers {answer}"


@pytest.mark.parametrize("status", [429, 503])
def test_an_error_of_the_server_at_the_weights_is_one_clear_line_and_then_made_good(world: World, status: int) -> None:
    name = f"org/late-{status}"
    served = world.serve(name)
    fetch_half(world, name)
    world.hub.status[name] = status
    assert f"{world.hub.url} answers {status}" in world.line(name, revision=world.hub.commit(name, "main"))
    del world.hub.status[name]
    world.build(name)
    assert same_weights(world.out(name), served)


def fetch_half(world: World, name: str) -> None:
    """Let the client have the configuration and tokenizer, and break off at the weights."""
    weights = f"{name}/model.safetensors"
    world.hub.cuts[weights] = [0] * 10
    assert "the download broke off" in world.line(name)
    del world.hub.cuts[weights]


def test_a_server_that_is_no_hub_is_one_clear_line(world: World) -> None:
    world.hub.status["org/page"] = 200
    assert world.line("org/page") == (
        f"model.name is 'org/page': what answers at {world.hub.url} is no Hugging Face hub; check HF_ENDPOINT"
    )


def test_a_hub_that_never_answers_is_given_up(world: World) -> None:
    world.hub.silent.add("org/silent")
    served = world.serve("org/stalls")
    world.hub.cuts["org/stalls/model.safetensors"] = [5000] + [0] * 9
    world.hub.stalls.add("org/stalls/model.safetensors")
    for name in ("org/silent", "org/stalls"):
        assert world.line(name, timeout=0.5) == (
            f"model.name is '{name}': {world.hub.url} did not answer in time; try again, or raise HF_HUB_ETAG_TIMEOUT "
            "and HF_HUB_DOWNLOAD_TIMEOUT (seconds)"
        )
    world.hub.cuts.clear()
    world.build("org/stalls")
    assert same_weights(world.out("org/stalls"), served)


def test_a_download_that_is_cut_goes_on_from_there(world: World) -> None:
    served = world.serve("org/cut", "neox")
    world.hub.cuts["org/cut/model.safetensors"] = [20_000, 10_000]
    world.hub.requests.clear()
    world.build("org/cut")
    # Chunks of 4096 bytes arrive whole or not at all: 4 of 20,000 bytes, then 2 of 10,000.
    assert [request.bytes for request in world.hub.fetched("model.safetensors")] == [
        None, f"bytes={4 * 4096}-", f"bytes={6 * 4096}-"
    ]  # fmt: skip
    assert same_weights(world.out("org/cut"), served)


def test_a_download_that_is_cut_for_good_is_one_clear_line_and_the_next_run_makes_it_good(world: World) -> None:
    served = world.serve("org/keeps-cutting")
    world.hub.cuts["org/keeps-cutting/model.safetensors"] = [10] * 10
    line = world.line("org/keeps-cutting")
    assert line.startswith(
        "model.name is 'org/keeps-cutting': the download broke off (RemoteProtocolError: peer closed"
    )
    assert line.endswith("files that had arrived are kept, so run it again")
    world.hub.cuts.clear()
    world.build("org/keeps-cutting")
    assert same_weights(world.out("org/keeps-cutting"), served)
    assert not list((world.root / "cache").rglob("*.incomplete"))


def test_a_missing_part_of_divided_weights_is_named(world: World) -> None:
    whole = write_tiny("gpt2", world.root / "org/part-whole")
    served = world.add("org/part", write_as("sharded", whole, world.root / "org/part"))
    part = sorted(served.glob("model-*.safetensors"))[1]
    part.unlink()
    assert world.line("org/part") == (
        f"model.name is 'org/part', whose weights lack {part.name}, which model.safetensors.index.json names"
    )


def test_a_repository_without_weights_is_one_clear_line(world: World) -> None:
    (world.serve("org/empty") / "model.safetensors").unlink()
    assert world.line("org/empty") == "model.name is 'org/empty', which has no weights (model.safetensors)"


def test_a_damaged_file_of_the_cache_is_named_and_fetched_again_when_it_is_deleted(world: World) -> None:
    served = world.serve("org/rotten")
    world.build("org/rotten")
    shutil.rmtree(world.out("org/rotten"))
    (file,) = (world.root / "cache").glob("hub/models--org--rotten/snapshots/*/model.safetensors")
    file.resolve().write_bytes(file.read_bytes()[:20_000])
    line = world.line("org/rotten")
    assert "model.safetensors is damaged in the cache (Error while deserializing header: incomplete metadata," in line
    assert line.endswith(f"; delete {file.resolve()} and run again")
    file.resolve().unlink()
    world.build("org/rotten")
    assert same_weights(world.out("org/rotten"), served)


def test_weights_come_from_xet_storage_too(world: World) -> None:
    served = world.serve("org/xet")
    world.hub.requests.clear()
    world.build("org/xet", xet=True)
    assert same_weights(world.out("org/xet"), served)
    assert not world.hub.fetched("model.safetensors")
    other = world.serve("org/xet-lost", seed=1)
    world.hub.loses_xet = True
    line = world.line("org/xet-lost", xet=True)
    assert line.startswith("model.name is 'org/xet-lost': the download broke off (")
    assert "404 Not Found" in line
    world.build("org/xet-lost")
    assert same_weights(world.out("org/xet-lost"), other)


@pytest.mark.slow
def test_what_was_fetched_can_be_had_again_without_the_hub(world: World) -> None:
    """With the connection refused, and offline on purpose; what was not fetched is one clear line."""
    world.serve("org/kept", "neox")
    world.serve("org/kept", "neox", "step1", seed=2)
    world.serve("org/half")
    first = world.build("org/kept", revisions=["step1"])
    fetch_half(world, "org/half")
    reach = "cannot be reached ([Errno 111] Connection refused) and the cache does not have all of it"
    with world.hub.away():
        assert world.build("org/kept", revisions=["step1"]) == first
        for name in ("org/half", "org/never"):
            assert world.line(name) == (
                f"model.name is '{name}': {world.hub.url} {reach}; check the network and HF_ENDPOINT"
            )
    with Client(SCRIPT, world.hub.url, world.root / "cache", HF_HUB_OFFLINE="1") as offline:
        out = str(world.root / "offline")
        world.hub.requests.clear()
        assert offline.ask(name="org/kept", revisions=["step1"], out=out) == first
        for name in ("org/half", "org/never"):
            assert offline.ask(name=name, out=out) == (
                f"model.name is '{name}': the cache does not have all of it, and HF_HUB_OFFLINE is set; unset it to "
                "fetch the model"
            )
        assert not world.hub.requests
        assert offline.errors() == ""
    assert same_weights(world.root / "offline/revisions/step1", world.out("org/kept") / "revisions/step1")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_local_directory_is_stored_in_the_dtype_asked_for(tmp_path: Path, dtype: str) -> None:
    source = write_tiny("llama", tmp_path / "source")
    facts = build(str(source), None, params(dtype), 0, tmp_path / "out")
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
        build(name, revision, params(), 0, tmp_path / "out")


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
        build(str(source), None, params(), 0, tmp_path / "out")
    (source / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.name is '.*', which has no weights"):
        build(str(source), None, params(), 0, tmp_path / "out")


@pytest.mark.parametrize(("key", "size"), [("n_embd", 32), ("vocab_size", 300)])
def test_weights_of_another_shape_than_the_configuration_says_are_refused(tmp_path: Path, key: str, size: int) -> None:
    source = write_tiny("gpt2", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {key: size}))
    with pytest.raises(UserError, match=r"whose weights do not fit it: transformer\..* is \[.*, but config.json .*"):
        build(str(source), None, params(), 0, tmp_path / "out")


SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"


@pytest.mark.parametrize(
    ("form", "file", "content", "why"),
    [
        ("one", SAFETENSORS, 20_000, "incomplete metadata, file not fully covered"),
        ("one", SAFETENSORS, b"", "header too small"),
        ("one", SAFETENSORS, b"<html>not found</html>", "header"),
        ("sharded", "model-00002-of-00004.safetensors", 100, "header"),
        ("sharded", "model.safetensors.index.json", b"{}", "no weight_map"),
        ("sharded", "model.safetensors.index.json", b'{"weight_map": ', "no weight_map"),
        ("bin", BIN, 20_000, "it is no PyTorch file"),
        ("bin", BIN, b"", "it is no PyTorch file"),
        ("bin", BIN, b"<html>not found</html>", "it is no PyTorch file"),
    ],
)
def test_a_damaged_file_of_weights_is_named(
    tmp_path: Path, form: str, file: str, content: bytes | int, why: str
) -> None:
    source = write_as(form, write_tiny("gpt2", tmp_path / "whole"), tmp_path / "source")
    whole = (source / file).read_bytes()
    (source / file).write_bytes(content if isinstance(content, bytes) else whole[:content])
    with pytest.raises(UserError) as caught:
        build(str(source), None, params(), 0, tmp_path / "out")
    assert f"{source / file} is damaged (" in str(caught.value)
    assert why in str(caught.value)
    assert str(caught.value).endswith("); get it again")
    assert not (tmp_path / "out").exists()


class Code:
    """What a pickle can hold besides tensors: something that is called when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_code_in_a_file_of_weights_is_not_run(tmp_path: Path) -> None:
    source = write_as("bin", write_tiny("gpt2", tmp_path / "whole"), tmp_path / "source")
    for content in ({"x": Code(tmp_path / "ran")}, [1, 2]):
        torch.save(content, source / BIN)
        with pytest.raises(UserError, match="it is no PyTorch file, or has more in it than tensors"):
            build(str(source), None, params(), 0, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_a_configuration_that_is_no_json_and_quantised_weights_are_refused(tmp_path: Path) -> None:
    source = write_tiny("gpt2", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UserError, match="whose weights are quantised; choose the model that it was made from"):
        build(str(source), None, params(), 0, tmp_path / "out")
    (source / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"whose config.json is not JSON: get it again"):
        build(str(source), None, params(), 0, tmp_path / "out")


def test_sampling_settings_that_would_not_save_do_not_matter(tmp_path: Path) -> None:
    source = write_tiny("gpt2", tmp_path / "source")
    (source / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.5, "top_p": 0.1}))
    build(str(source), None, params(), 0, tmp_path / "out")
    assert same_weights(source, tmp_path / "out")
    assert PretrainedConfig.from_pretrained(tmp_path / "out").vocab_size == len(tiny_tokenizer().get_vocab())
