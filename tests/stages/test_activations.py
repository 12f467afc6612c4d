"""The activations stage: the right tensor of the right tokens in the right places, and equal bytes after any kill."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from stages import activations as stage
from stages.lib.activations import extract as extraction
from stages.lib.activations.permutation import Permutation
from stages.lib.activations.store import SPLITS, open_store
from stages.lib.io.errors import UserError
from stages.lib.io.files import read_json, write_json
from stages.lib.language.extraction import plan
from stages.lib.language.model import MODEL, load_model
from stages.lib.language.windows import TOKENS, WindowWriter, read_windows
from stages.lib.run.log import Log
from tests.extraction import BOS, D_IN, N_CTX, configure, model_of, snapshot, write_model, write_tokens
from tests.toy import ROOT


@pytest.fixture
def loaded(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the models once, for tests that run the stage many times."""
    kept = {revision: load_model(revision, "cpu") for revision in ("main", "untrained")}
    monkeypatch.setattr(extraction, "load_model", lambda revision, device, dtype: kept[revision])


def hidden_states(model: PreTrainedModel, split: str) -> torch.Tensor:
    """What `transformers` says is the residual stream after layer 1, for every window: [window * n_ctx, d_in]."""
    with torch.inference_mode():
        states = model(read_windows(split).tokens.long(), output_hidden_states=True).hidden_states
    return states[2].reshape(-1, D_IN)


def test_plan_by_hand() -> None:
    # Windows of 3, 0, 5 and 2 tokens in the order 2, 1, 0, 3: their first rows are 0, 5, 5 and 8.
    work = plan(np.array([3, 0, 5, 2]), np.array([2, 1, 0, 3]), 10)
    assert work.window.tolist() == [2, 0, 3, 1]  # longest first
    assert work.first.tolist() == [0, 5, 8, 5]
    assert work.rows.tolist() == [5, 3, 2, 0]
    # With 6 rows wanted, window 0 gives only its first token and window 3 is not needed.
    work = plan(np.array([3, 0, 5, 2]), np.array([2, 1, 0, 3]), 6)
    assert work.window.tolist() == [2, 0, 1]
    assert work.rows.tolist() == [5, 1, 0]


def test_rows_are_hugging_faces_hidden_states_of_the_text_tokens(workspace: Path) -> None:
    stage.main()
    for seed, revision in enumerate(["main", "untrained"]):
        store = open_store(revision, verify=SPLITS)
        assert (store.hook_name, store.layer, store.d_in) == ("blocks.1.hook_resid_post", 1, D_IN)
        for split in ("train", "fit", "validation", "test"):
            positions = store.positions(split)
            valid = np.flatnonzero(read_windows(split).valid().numpy().ravel())
            expected = hidden_states(model_of("gpt2", seed), split)[positions]
            assert torch.allclose(store.rows(split, 0, len(positions)), expected, atol=1e-6)
            if split == "train":
                assert store.n_rows(split) == 120 == len(np.unique(positions)) < len(valid)
                assert np.isin(positions, valid).all()
            else:  # all tokens, in the order of the text
                assert np.array_equal(positions, valid)
        rows = store.rows("train", 0, 120).double()
        assert torch.allclose(store.mean.double(), rows.mean(0), rtol=1e-6)
        assert ((rows - rows.mean(0)) / store.scale).square().sum(1).mean().item() == pytest.approx(1, rel=1e-9)
    assert np.array_equal(open_store("main").positions("train"), open_store("untrained").positions("train"))
    assert not list(Path("data/.resume/activations").iterdir())


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_other_architectures(workspace: Path, kind: str) -> None:
    write_model(kind)
    configure(revisions=["main"], layer=-2)  # the second layer from the end is layer 1 of 3
    stage.main()
    store = open_store("main")
    assert store.hook_name == "blocks.1.hook_resid_post"
    expected = hidden_states(model_of(kind, 0), "test")[store.positions("test")]
    assert torch.allclose(store.rows("test", 0, len(expected)), expected, atol=1e-6)


def test_training_rows_are_shuffled_globally(workspace: Path) -> None:
    write_tokens(200)
    configure(n_tokens=2000, revisions=["main"], shard_rows=500, batch_windows=32)
    stage.main()
    store = open_store("main")
    positions = store.positions("train")
    # Two random tokens of 2,000 are of the same window of 7 with probability 0.003: 6 of 2,000 neighbours on average.
    assert (np.diff(positions // N_CTX) == 0).sum() < 25
    assert abs(np.corrcoef(positions, np.arange(2000))[0, 1]) < 0.1
    # The recipe in the index leads back from a place to the order in which the windows were taken.
    original = Permutation.from_recipe(store.index["permutation"]).inverse(np.arange(2000))
    in_order = positions[np.argsort(original)]
    assert (np.diff(in_order) == 1).sum() > 1500


def test_batch_size_of_the_model_does_not_move_rows(loaded: None) -> None:
    configure(revisions=["main"], batch_windows=1)
    stage.main()
    one = open_store("main")
    rows, positions = one.rows("train", 0, 120), one.positions("train")
    configure(revisions=["main"], batch_windows=64)
    stage.main()
    many = open_store("main")
    assert np.array_equal(many.positions("train"), positions)
    assert torch.allclose(many.rows("train", 0, 120), rows, atol=1e-6)


def test_every_setting_changes_the_result(loaded: None) -> None:
    configure(revisions=["main"])
    stage.main()
    reference = snapshot()
    stage.main()
    assert snapshot() == reference  # equal settings, equal bytes
    changes: list[dict[str, Any]] = [
        {"layer": 2},
        {"site": "hook_mlp_out"},
        {"revisions": ["untrained"]},
        {"n_tokens": 119},
        {"dtype": "bfloat16"},
        {"compute": "bfloat16"},
        {"shard_rows": 63},
        {"seed": 1},
    ]
    for change in changes:
        configure(**{"revisions": ["main"], **change})
        stage.main()
        assert snapshot() != reference, change


def test_what_is_no_longer_asked_for_goes_away(loaded: None) -> None:
    stage.main()
    configure(revisions=["main"], n_tokens=60)
    stage.main()
    assert sorted(path.name for path in Path("data/activations").iterdir()) == ["main"]
    assert len(list(Path("data/activations/main").glob("train-*"))) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"site": "hook_resid_pots"}, r"activations.site is 'hook_resid_pots': .*did you mean 'hook_resid_post'\?"),
        ({"layer": 3}, r"activations.layer is 3: the model has 3 layers, so -3 to 2"),
        ({"revisions": ["main", "mian"]}, r"no revision 'mian'; did you mean 'main'\? \(known: main, untrained\)"),
        ({"revisions": ["main", "main"]}, r"activations.revisions names a revision twice: main, main"),
        ({"revisions": []}, r"params.yaml: activations.revisions is \[\]"),
        (
            {"revisions": ["main", "main+blocks.0.hook_mlp_ou"]},
            r"has 'main\+blocks.0.hook_mlp_ou': no such hook as 'blocks.0.hook_mlp_ou'; "
            r"did you mean 'blocks.0.hook_mlp_out'\?",
        ),
        ({"revisions": ["main+mlp"]}, r"no such hook as 'mlp' \(known: blocks.1.hook_attn_out, "),
        (
            {"revisions": ["main+blocks.3.hook_mlp_out"]},
            r"\+blocks.3.hook_mlp_out', layer 3: the model has 3 layers",
        ),
        ({"compute": "float16"}, r"params.yaml: activations.compute is 'float16': .*'float32' or 'bfloat16'"),
        ({"dtype": "float8"}, r"params.yaml: activations.dtype is 'float8': .*'float32', 'bfloat16' or 'float16'"),
        ({"n_tokens": 0}, r"params.yaml: activations.n_tokens is 0"),
        ({"shard_row": 1}, r"unknown key activations.shard_row; did you mean 'shard_rows'\?"),
        (
            {"n_tokens": 10**6},
            r"n_tokens is 1,000,000, but data/tokens/train.safetensors has \d+ tokens: .*corpus.split.sae_train",
        ),
    ],
)
def test_settings_that_cannot_be(workspace: Path, change: dict[str, Any], message: str) -> None:
    configure(**change)
    with pytest.raises(UserError, match=message):
        stage.main()


def test_a_site_that_the_architecture_lacks(workspace: Path) -> None:
    write_model("neox")
    configure(site="hook_resid_mid")
    with pytest.raises(UserError, match=r"activations.site is 'hook_resid_mid', which this model's blocks lack"):
        stage.main()


def test_a_split_without_tokens(workspace: Path) -> None:
    with WindowWriter(TOKENS / "fit.safetensors", n_ctx=N_CTX, bos_id=BOS, pad_id=BOS):
        pass
    facts = read_json(TOKENS / "tokens.json")
    facts["splits"]["fit"] = {"windows": 0, "tokens": 0, "documents": []}
    write_json(TOKENS / "tokens.json", facts)
    with pytest.raises(UserError, match=r"data/tokens/fit.safetensors has no tokens of text"):
        stage.main()


def test_values_that_are_not_finite_name_the_document(workspace: Path) -> None:
    model = model_of("gpt2", 0)
    windows = read_windows("train")
    window = int(windows.length.argmax())
    model.get_input_embeddings().weight.data[windows.tokens[window, 1]] = float("nan")
    model.save_pretrained(MODEL)
    configure(n_tokens=int(windows.valid().sum()))
    with pytest.raises(
        UserError, match=r"document 'train/\d+.py' \(window \d+\) has activations at .* not finite as float32"
    ):
        stage.main()
    assert not Path("data/activations").exists()


def test_overflow_of_float16_is_not_stored(workspace: Path) -> None:
    model = model_of("gpt2", 0)
    model.transformer.wpe.weight.data[5] = 1e5  # beyond 65,504
    model.save_pretrained(MODEL)
    configure(dtype="float16")
    with pytest.raises(UserError, match=r"not finite as float16: choose another activations.dtype"):
        stage.main()
    configure(dtype="bfloat16")
    stage.main()


class Crash(BaseException):
    """What ends a run in the middle of a batch."""


def test_resumes_after_a_crash_in_any_batch(loaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "RECORD_SECONDS", 0.0)
    configure(batch_windows=20)
    advance, calls = Log.advance, [0]

    def count(log: Log, units: int = 1, **facts: float | str) -> None:
        calls[0] += 1
        advance(log, units, **facts)

    monkeypatch.setattr(Log, "advance", count)
    stage.main()
    reference, n_batches = snapshot(), calls[0]

    for crash_at in range(1, n_batches, 5):
        calls[0] = 0

        def crash(log: Log, units: int = 1, at: int = crash_at, **facts: float | str) -> None:
            if calls[0] == at:
                raise Crash
            calls[0] += 1

        monkeypatch.setattr(Log, "advance", crash)
        with pytest.raises(Crash):
            stage.main()
        monkeypatch.setattr(Log, "advance", count)
        calls[0] = 0
        stage.main()
        # The batch that crashed was not recorded; of those before it, none is run again.
        assert calls[0] == n_batches - crash_at
        assert snapshot() == reference


KILLER = """
import os, random, signal, sys, time
import transformer_lens.model_bridge
import stages.activations as stage
from stages.lib.activations import extract

extract.RECORD_SECONDS = 0.02
moments = random.Random(0)
killed = 0
while killed < 5:
    child = os.fork()
    if child == 0:
        stage.main()
        os._exit(0)
    time.sleep(moments.uniform(0.05, 0.2 + 0.2 * killed))
    os.kill(child, signal.SIGKILL)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
    killed += 1
stage.main()
sys.stdout.write(str(killed))
"""


def run(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_no_byte(workspace: Path) -> None:
    write_tokens(20)
    configure(n_tokens=200, batch_windows=5, shard_rows=70)
    stage.main()
    reference = snapshot()
    assert len(reference) > 10
    assert int(run("-c", KILLER)) >= 3
    assert snapshot() == reference


def test_hooks_of_one_pass_are_those_of_a_pass_each(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = ["main+blocks.0.hook_attn_out", "main+blocks.2.hook_resid_post"]
    passes = [0]
    extract = extraction.extract

    def count(*arguments: Any) -> Any:
        passes[0] += 1
        return extract(*arguments)

    monkeypatch.setattr(extraction, "extract", count)
    configure(revisions=["main", *others, "untrained+blocks.0.hook_resid_pre"])
    stage.main()
    together, n_passes = snapshot(), passes[0]
    for name, hook in (
        ("main", "blocks.1.hook_resid_post"),
        *((other, other.removeprefix("main+")) for other in others),
    ):
        store = open_store(name, verify=SPLITS)
        assert (store.hook_name, store.index["revision"]) == (hook, "main")
    assert open_store("untrained+blocks.0.hook_resid_pre").index["revision"] == "untrained"
    passes[0] = 0
    configure(revisions=["main"])
    stage.main()
    assert n_passes == 2 * passes[0]  # two revisions, however many hooks
    first = snapshot()
    configure(revisions=["main"], layer=-1)
    stage.main()
    for alone, name in ((first, "main"), (snapshot(), others[1])):
        for path, content in alone.items():
            if path.endswith("safetensors"):
                assert content == together[path.replace("main/", f"{name}/")], path


def test_computing_in_bfloat16_is_near(workspace: Path) -> None:
    configure(revisions=["main"])
    stage.main()
    exact = open_store("main").rows("test", 0, 60)
    configure(revisions=["main"], compute="bfloat16")
    stage.main()
    store = open_store("main")
    found = store.rows("test", 0, 60)
    assert store.index["settings"]["compute"] == "bfloat16"
    assert not torch.equal(found, exact)
    assert torch.equal(found, found.bfloat16().float())  # a bfloat16 number, kept as float32
    assert ((found - exact).norm() / exact.norm()).item() < 0.02


@pytest.mark.parametrize("kib", [20, 60])
def test_a_full_disk_is_said_and_work_goes_on_when_there_is_room(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, kib: int
) -> None:
    """On a file system of a few KiB: too small for the shards, or for them and the records."""
    stage.main()
    reference = snapshot()
    disk = tmp_path_factory.mktemp("disk")
    options = f"size={kib}k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here: not root")
    try:
        (Path("data") / ".resume").rename("data/.resume-before")
        (Path("data") / ".resume").symlink_to(disk)
        shutil.rmtree("data/activations")
        with pytest.raises(UserError, match=r"No space left on device.*(free|make) .*space"):
            stage.main()
        assert not Path("data/activations").exists()
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        stage.main()
        assert snapshot() == reference
    finally:
        subprocess.run(["umount", disk], check=True)
