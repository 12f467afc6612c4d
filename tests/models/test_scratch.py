import itertools
import json

import numpy as np
import pytest
import torch

from stages.lib.io import params
from stages.lib.io.errors import UserError
from stages.lib.language.documents import Document, to_line
from stages.models import scratch

TINY = {
    "d_vocab": 280, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_mlp": 32, "n_ctx": 16, "steps": 12, "batch_size": 4,
    "lr": 3e-3, "matrix_lr": 0.02, "weight_decay": 0.1, "warmup": 0.1, "decay": 0.5, "precision": "bfloat16",
    "revisions": [5], "n_heldout": 400, "threads": 1,
}  # fmt: skip


def tiny(**changes):
    return params.check("model.scratch", {**TINY, **changes}, scratch.ModelParams)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    corpus = tmp_path / "data/corpus"
    corpus.mkdir(parents=True)
    words = ["return", "self", "value", "for", "in", "range", "def", "class", "\n    "]
    rng = np.random.default_rng(0)
    for split, n in (("lm_train", 20), ("test", 4)):
        texts = [" ".join(rng.choice(words, 120)) for _ in range(n)]
        lines = "".join(to_line(Document(f"{split}{i}", text, "python")) for i, text in enumerate(texts))
        (corpus / f"{split}.jsonl").write_text(lines)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def test_rate_warms_up_stays_and_falls_to_zero():
    own = tiny(steps=100, warmup=0.1, decay=0.5, revisions=[])
    factors = [scratch.rate(own, step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:51] == [1.0] * 42
    assert factors[75] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.02)


def test_an_epoch_shows_every_window_once_and_the_next_in_another_order():
    own = tiny(batch_size=3, n_ctx=5)
    stream = torch.arange(1, 100)
    per_epoch = ((99 - 4) // 4) // 3
    first, second = (
        torch.cat([scratch.batch(stream, own, 0, epoch * per_epoch + i) for i in range(per_epoch)]) for epoch in (0, 1)
    )
    for epoch in (first, second):
        assert (epoch[:, 0] == scratch.END_ID).all()
        assert len(torch.unique(epoch[:, 1:])) == epoch[:, 1:].numel()
        assert all((torch.diff(row[1:]) == 1).all() for row in epoch)
    assert not torch.equal(first, second)
    assert torch.equal(scratch.batch(stream, own, 0, 2), scratch.batch(stream, own, 0, 2))
    assert not torch.equal(scratch.batch(stream, own, 0, 2), scratch.batch(stream, own, 1, 2))


def test_the_tokenizer_loses_no_character():
    text = "def f(x):\n\treturn 'ü🎉' + \"\\n\"  # <|end\r\n"
    tokenizer = scratch.train_tokenizer(iter([text * 5]), 300, 16)
    ids = tokenizer.backend_tokenizer.encode(text).ids
    assert tokenizer.backend_tokenizer.decode(ids) == text
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == scratch.END_ID


def test_loss_of_a_uniform_model_is_the_log_of_the_vocabulary():
    own = tiny()
    model = scratch.initial_model(own, 0)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    tokens = torch.randint(0, own.d_vocab, (2, own.n_ctx))
    assert scratch.loss(model, tokens, "float32").item() == pytest.approx(np.log(own.d_vocab), rel=1e-5)
    assert scratch.heldout_loss(model, tokens.flatten(), own) == pytest.approx(np.log(own.d_vocab), rel=1e-5)


def test_muon_gets_the_matrices_of_the_blocks_and_adam_the_rest():
    model = scratch.initial_model(tiny(), 0)
    muon, adam = scratch.optimizers(model, tiny())
    shapes = {tuple(p.shape) for p in muon.param_groups[0]["params"]}
    assert shapes == {(16, 16), (32, 16), (16, 32)}
    assert {tuple(p.shape) for p in adam.param_groups[0]["params"]} == {(280, 16), (16,)}


def bytes_of(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_build_writes_the_model_its_revisions_and_what_it_is_worth(workspace):
    facts = scratch.build(None, None, tiny(steps=60), 0, workspace / "a")
    assert facts["revisions"] == ["main", "untrained", "step-5"]
    assert facts["tokens_seen"] == 60 * 4 * 15
    loss = facts["nats_per_token"]
    assert loss["model"] < loss["untrained"]
    assert loss["untrained"] == pytest.approx(np.log(280), abs=0.2)
    ratio = facts["nats_per_character"]["unigram"] / loss["unigram"]
    assert ratio == pytest.approx(1 / facts["characters_per_token"], rel=1e-3)
    assert (workspace / "a/training.csv").read_text().startswith("step,tokens,loss\n1,60,")
    config = json.loads((workspace / "a/config.json").read_text())
    assert (config["hidden_size"], config["bos_token_id"]) == (16, 0)
    assert not (workspace / "data/.resume/model").exists() or not list((workspace / "data/.resume/model").iterdir())


def test_a_killed_training_ends_in_the_same_bytes(workspace, monkeypatch):
    scratch.build(None, None, tiny(), 0, workspace / "whole")
    monkeypatch.setattr(scratch, "SAVE_INTERVAL", 0.0)
    real, steps = scratch.step, itertools.count()

    def dying(*arguments):
        if next(steps) == 7:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(scratch, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        scratch.build(None, None, tiny(), 0, workspace / "killed")
    resumed = []
    monkeypatch.setattr(scratch, "step", lambda *a: resumed.append(1) or real(*a))
    scratch.build(None, None, tiny(), 0, workspace / "killed")
    assert len(resumed) == 5
    assert bytes_of(workspace / "killed") == bytes_of(workspace / "whole")


def test_another_seed_is_another_model(workspace):
    models = [scratch.initial_model(tiny(), seed).model.embed_tokens.weight for seed in (0, 0, 1)]
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 18, "n_heads": 6}, "d_model is 18: it must be an even multiple of n_heads = 6"),
        ({"revisions": [12]}, "revisions has 12: it must be below steps = 12"),
        ({"batch_size": 4000}, "needs 64016 training and 16 held-out tokens, the corpus has"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training(workspace, changes, message):
    with pytest.raises(UserError, match=message):
        scratch.build(None, None, tiny(**changes), 0, workspace / "a")


def test_a_name_belongs_to_a_pretrained_model(workspace):
    with pytest.raises(UserError, match="with scratch they must be null"):
        scratch.build("gpt2", None, tiny(), 0, workspace / "a")
