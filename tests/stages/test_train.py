"""The stage on a tiny store: outputs as promised, the same bytes after any interruption, every refusal."""

import csv
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import train
from stages.lib.activations.parts import spread_rows
from stages.lib.activations.store import open_store
from stages.lib.io import tensors
from stages.lib.io.errors import UserError
from stages.lib.io.files import read_json
from stages.lib.run.resume import Resume
from stages.lib.sae import training
from stages.lib.sae.base import random_directions
from stages.lib.sae.members import more_members
from stages.lib.sae.penalty import n_active
from stages.lib.sae.saved import load_sae
from stages.lib.sae.schedule import Schedule, checkpoint_steps, history_steps
from stages.saes import topk
from tests.forked import run_training, start_training
from tests.settings import write_params
from tests.worlds import Rows, write_store

D_IN, D_SAE, ROWS = 8, 16, 900
TRAIN = {
    "seeds": [0, 1],
    "more_seeds": [2, 5],
    "d_sae": D_SAE,
    "epochs": 1,
    "batch_size": 30,
    "lr": 0.003,
    "encoder": "float32",
    "lr_warm_up": 0.02,
    "lr_decay": 0.2,
    "sparsity_warm_up": 0.1,
    "dead_tokens": 100,
    "dead_share": 0.08,
    "follow_level": 1,
    "n_checkpoints": 6,
}
SAES = {
    "topk": {"variant": "topk", "activations": "main", "k": [2, 4], "aux_coefficient": 0.03125},
    "batch": {"variant": "batch_topk", "activations": "main", "k": [2, 4], "aux_coefficient": 0.03125},
    "gated": {"variant": "gated", "activations": "main", "l1_coefficient": [0.05, 0.2]},
    "anneal": {"variant": "p_anneal", "activations": "main", "l1_coefficient": [0.05, 0.2], "p_end": 0.2},
    "frozen": {"variant": "frozen_decoder", "activations": "main", "k": [2, 4], "aux_coefficient": 0.03125},
    "relu": {"variant": "relu", "activations": "main", "l1_coefficient": [0.02, 0.1], "lr": 0.01},
    "jump": {
        "variant": "jump_relu",
        "activations": "main",
        "l0_coefficient": [0.002, 0.01],
        "bandwidth": 0.1,
        "initial_threshold": 0.05,
    },
    "nested": {"variant": "matryoshka", "activations": "main", "k": [2, 4], "aux_coefficient": 0.1, "groups": [0.25]},
    "soft": {"variant": "soft_frozen", "activations": "main", "k": [2, 4], "aux_coefficient": 0.1, "min_cosine": 0.8},
    "pca": {"variant": "pca_topk", "activations": "main", "k": [2, 4]},
    "led": {
        "variant": "relu",
        "activations": "main",
        "l0": [4.0, 6.0],
        "decoder_norm": "free",
        "resample_at": [0.3, 0.6],
    },
    "quadratic": {
        "variant": "jump_relu",
        "activations": "main",
        "l0": [2.0, 4.0],
        "loss": "quadratic",
        "bandwidth": 0.1,
        "initial_threshold": 0.05,
    },
    "tanh": {
        "variant": "jump_relu",
        "activations": "main",
        "l0_coefficient": [0.002, 0.01],
        "loss": "tanh",
        "bandwidth": 0.1,
        "initial_threshold": 0.05,
        "pre_act_coefficient": 0.1,
    },
}


@pytest.fixture
def project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with settings and a store."""
    for name in ("DVC_ROOT", "EXPLORING_SAES_DEVICE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    configure()
    rng = np.random.default_rng(0)
    x = (rng.random((ROWS, 12)) < 0.2) @ rng.standard_normal((12, D_IN)) * 3 + 5
    rows = torch.from_numpy(x).float()
    splits = {split: Rows(rows[:n], np.arange(1, n + 1)) for split, n in (("train", ROWS), ("validation", 100))}
    write_store(splits, hook_name="blocks.2.hook_resid_post", n_ctx=64, shard_rows=400)
    return project


def configure(**changes: Any) -> None:
    """Write `params.yaml`; a change is named as section__key."""
    document: dict[str, Any] = {"train": dict(TRAIN), "saes": {arm: dict(section) for arm, section in SAES.items()}}
    for name, value in changes.items():
        section, *keys = name.split("__")
        node = document[section]
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value
    write_params(document)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "history.csv").open() as handle:
        return list(csv.DictReader(handle))


# Schedules


def test_rates_by_hand() -> None:
    schedule = Schedule(100, 0.01, lr_warm_up=0.04, lr_decay=0.2, sparsity_warm_up=0.1)
    assert [schedule.lr_at(step) for step in (0, 1, 3, 50, 80, 90, 99)] == pytest.approx(
        [0.0025, 0.005, 0.01, 0.01, 0.01, 0.005, 0.0005]
    )
    assert [schedule.sparsity_at(step) for step in (0, 5, 10, 99)] == pytest.approx([0, 0.5, 1, 1])
    plain = Schedule(100, 0.01, 0, 0, 0)
    assert [plain.lr_at(0), plain.lr_at(99), plain.sparsity_at(1)] == [0.01, 0.01, 1.0]


def test_checkpoints_are_on_a_logarithmic_grid() -> None:
    assert checkpoint_steps(16, 6) == [0, 1, 2, 4, 8, 16]
    assert checkpoint_steps(5, 6) == [0, 1, 2, 3, 4, 5]
    for n_steps, n in ((977, 24), (100, 30), (1, 2), (3, 3)):
        steps = checkpoint_steps(n_steps, n)
        assert len(steps) == n and steps[0] == 0 and steps[-1] == n_steps
        assert steps == sorted(set(steps))


def test_history_ends_at_the_last_step() -> None:
    assert history_steps(3) == {1, 2, 3}
    found = history_steps(977)
    assert len(found) == 150 and max(found) == 977


# Outputs


@pytest.mark.parametrize("arm", SAES)
def test_writes_what_it_promises(arm: str, project: Path) -> None:
    train.main(arm, "0")
    directory = project / "data/train" / arm / "seed-0"
    steps = ROWS // 30
    checkpoints = [f"level-1/checkpoints/step-{step:08d}.safetensors" for step in checkpoint_steps(steps, 6)]
    files = [f"level-{level}/{name}" for level in (0, 1) for name in ("cfg.json", "sae_weights.safetensors")]
    assert sorted(contents(directory)) == sorted([*checkpoints, *files, "history.csv", "train.json"])
    section = SAES[arm]
    name = next(key for key in section if isinstance(section[key], list) and key != "resample_at")
    facts = read_json(directory / "train.json")
    held_out, shift = facts.pop("validation_l0"), facts.pop("shift")
    assert len(shift) == 2 and (arm in ("led", "quadratic") or shift == [0, 0])
    assert len(held_out) == 2 and all(0 < l0 <= D_SAE for l0 in held_out)
    assert facts == {
        "arm": arm,
        "variant": section["variant"],
        "activations": "main",
        "seed": 0,
        "levels": section[name],
        "sparsity_name": name,
        "n_tokens": ROWS,
        "steps": steps,
        "follow_level": 1,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "batch_size": 30,
        "lr": section.get("lr", TRAIN["lr"]),
    }
    table = rows(directory)
    losses = ["loss", "sparsity_loss", "auxiliary_loss"]
    assert list(table[0]) == ["arm", "level", "seed", "step", "tokens", "fvu", "l0", "dead_fraction", *losses, "lr",
                              "coefficient", "n_resampled"]  # fmt: skip
    assert [(int(row["level"]), int(row["step"])) for row in table] == [
        (level, step) for level in (0, 1) for step in range(1, steps + 1)
    ]
    assert [int(row["tokens"]) for row in table[:steps]] == [30 * step for step in range(1, steps + 1)]
    assert (float(table[steps - 1]["fvu"]) < float(table[0]["fvu"])) == (arm != "pca")
    for row in table:
        parts = [float(row[name]) for name in ("fvu", "sparsity_loss", "auxiliary_loss")]
        assert float(row["loss"]) == pytest.approx(sum(parts), rel=1e-4)
        assert 0 <= float(row["dead_fraction"]) <= 1 and 0 <= float(row["l0"]) <= D_SAE
    assert not (project / "data/.resume" / f"train@{arm}-0").exists() or not any(
        (project / "data/.resume" / f"train@{arm}-0").iterdir()
    )
    extra = load_sae(directory / "level-1").extra
    assert extra["sparsity"] == section[name][1] and extra["level"] == 1 and extra["step"] == steps
    assert extra["mean_l0"] == pytest.approx(float(table[-1]["l0"]), rel=1e-4)


@pytest.mark.parametrize("arm", SAES)
def test_last_checkpoint_is_the_sae_before_folding(arm: str, project: Path) -> None:
    train.main(arm, "0")
    directory = project / "data/train" / arm / "seed-0/level-1"
    path = directory / f"checkpoints/step-{ROWS // 30:08d}.safetensors"
    assert tensors.describe(path) == {"step": ROWS // 30, "tokens": ROWS}
    last, sae, store = tensors.load(path), load_sae(directory), open_store("main")
    assert all(tensor.dtype == torch.float16 for tensor in last.values())
    assert torch.equal(last["W_dec"], sae.W_dec.half())
    assert torch.allclose(last["b_dec"].float() * store.scale + store.mean, sae.b_dec, atol=0.01)
    assert ("threshold" in last) == (arm in ("jump", "batch", "gated", "nested", "quadratic", "tanh"))


def test_loss_on_all_data_is_its_fvu(project: Path) -> None:
    train.main("topk", "0")
    store = open_store("main")
    x = store.rows("train", 0, ROWS)
    x_tilde = (x - store.mean) / store.scale
    assert float(x_tilde.square().sum(1).mean()) == pytest.approx(1, rel=1e-3)
    sae = load_sae(project / "data/train/topk/seed-0/level-1")
    fvu = (x - sae.decode(sae.encode(x))).square().sum() / (x - x.mean(0)).square().sum()
    last = [row for row in rows(project / "data/train/topk/seed-0") if row["level"] == "1"][-5:]
    assert float(fvu) == pytest.approx(np.mean([float(row["fvu"]) for row in last]), rel=0.25)


def test_arms_and_levels_of_a_seed_start_alike_and_seeds_do_not(project: Path) -> None:
    first = []
    for arm, seed in (("topk", "0"), ("relu", "0"), ("topk", "1")):
        train.main(arm, seed)
        path = project / "data/train" / arm / f"seed-{seed}" / "level-1/checkpoints/step-00000000.safetensors"
        first.append(tensors.load(path)["W_dec"])
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    prepared = train.prepare(train.settings("relu", "0"), 0, torch.zeros(4, D_IN), 30)
    assert torch.equal(prepared.saes[0].W_enc, prepared.saes[1].W_enc)


@pytest.mark.parametrize("arm", ["topk", "jump"])
def test_more_seeds_are_the_followed_level_of_a_whole_training(arm: str, project: Path) -> None:
    train.main(arm, "more")
    more = project / "data/train" / arm / "more"
    assert read_json(more / "seeds.json") == [2, 5]
    train.main(arm, "5")
    whole, alone = contents(project / "data/train" / arm / "seed-5"), contents(more / "seed-5")
    for name in (
        "level-1/sae_weights.safetensors",
        "level-1/cfg.json",
        "level-1/checkpoints/step-00000000.safetensors",
    ):
        assert alone[name] == whole[name], name
    assert not any(name.startswith("level-0") for name in alone)
    assert {row["level"] for row in rows(more / "seed-5")} == {"1"}
    assert rows(more / "seed-5") == [
        row for row in rows(project / "data/train" / arm / "seed-5") if row["level"] == "1"
    ]
    found = more_members(arm, [2, 5], project / "data/train")
    assert [(one.seed, one.level, one.sparsity) for one in found] == [
        (2, 1, whole_level(arm)),
        (5, 1, whole_level(arm)),
    ]
    assert not [*(project / "data/.resume").glob("*/*")]


def whole_level(arm: str) -> float:
    return next(float(value[1]) for value in SAES[arm].values() if isinstance(value, list))


Work = list[tuple[training.Training, list[torch.Tensor]]]
RUN_TOGETHER = training.run_together


def recorded(done: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Note the steps that each training has done before every stretch."""

    def run_together(work: Work) -> None:
        done.append([one.done for one, _ in work])
        RUN_TOGETHER(work)

    monkeypatch.setattr(training, "run_together", run_together)


def test_further_seeds_that_were_kept_at_different_steps_go_on_exactly(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.main("topk", "more")
    directory = project / "data/train/topk/more"
    expected = contents(directory)
    shutil.rmtree(directory)
    n_stretches: list[int] = []
    save = Resume.save

    def killed(self: Resume, state: dict, name: str = "state") -> None:
        """Not for the second seed any more, once something was kept of both."""
        n_stretches.append(name == "state")
        if sum(n_stretches) == 4:
            raise KeyboardInterrupt
        save(self, state, name)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Resume, "save", killed)
        patched.setenv("EXPLORING_SAES_SAVE_SECONDS", "0")
        train.main("topk", "more")
    assert not directory.exists()
    done: list[list[int]] = []
    recorded(done, monkeypatch)
    train.main("topk", "more")
    assert 0 < done[0][1] < done[0][0] < 30
    assert {len(both) for both in done} == {1, 2}  # the first seed ends before the other
    assert contents(directory) == expected


def test_checkpoints_have_the_wanted_l0_from_the_start(project: Path) -> None:
    train.main("led", "0")
    train.main("quadratic", "0")
    store = open_store("main")
    x = spread_rows(store, "validation")
    x = (x - store.mean) / store.scale
    for arm in ("led", "quadratic"):
        for step in checkpoint_steps(ROWS // 30, 6):
            path = project / "data/train" / arm / f"seed-0/level-1/checkpoints/step-{step:08d}.safetensors"
            weights = {name: tensor.float() for name, tensor in tensors.load(path).items()}
            assert float(n_active(weights, x)) == pytest.approx(SAES[arm]["l0"][1], rel=0.03), (arm, step)


# Interruptions


def test_same_settings_give_the_same_bytes(project: Path) -> None:
    train.main("jump", "0")
    first = contents(project / "data/train/jump/seed-0")
    train.main("jump", "0")
    assert contents(project / "data/train/jump/seed-0") == first


def interrupted(arm: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM in the stretch of steps that holds step `at`."""

    def signalling(work: Work) -> None:
        if any(one.done < at <= one.done + len(batches) for one, batches in work):
            os.kill(os.getpid(), signal.SIGTERM)
        RUN_TOGETHER(work)

    with monkeypatch.context() as patch:
        patch.setattr(training, "run_together", signalling)
        with pytest.raises(SystemExit) as stop:
            train.main(arm, "0")
    assert stop.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("arm", SAES)
def test_a_terminated_run_goes_on_exactly(arm: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train.main(arm, "0")
    directory = project / "data/train" / arm / "seed-0"
    whole = contents(directory)
    for path in sorted(directory.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    monkeypatch.setattr(training, "LONGEST_STRETCH", 5)
    interrupted(arm, 6, monkeypatch)
    interrupted(arm, 17, monkeypatch)
    assert not contents(directory)
    done: list[list[int]] = []
    recorded(done, monkeypatch)
    train.main(arm, "0")
    assert [17 <= one < 22 for one in done[0]] == [True]  # the stretch was finished first
    assert contents(directory) == whole


def interrupt(arm: str, number: int, seconds: float, state: Callable[[], int]) -> None:
    """Send a signal to a training so long after it has saved a state that was not there."""
    before, deadline = state(), time.monotonic() + 120
    process = start_training(arm, "0", EXPLORING_SAES_SAVE_SECONDS="0")
    while process.is_alive() and state() == before and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(seconds)
    assert process.is_alive(), "it ended before the signal"
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode in (-number, 128 + number)


@pytest.mark.slow
@pytest.mark.parametrize("arm", SAES)
def test_a_killed_process_goes_on_to_the_same_bytes(arm: str, project: Path) -> None:
    """SIGKILL and then SIGTERM, each at a random moment of the training."""
    configure(train__epochs=30)
    directory, resume = project / "data/train" / arm / "seed-0", project / "data/.resume" / f"train@{arm}-0"

    def state() -> int:
        """When the last state was saved, or 0."""
        return max((path.stat().st_mtime_ns for path in resume.glob("*/state.resume")), default=0)

    run_training(arm, "0")
    expected = contents(directory)
    shutil.rmtree(directory)
    random_moment = random.Random(arm)
    for number in (signal.SIGKILL, signal.SIGTERM):
        interrupt(arm, number, random_moment.uniform(0.0, 0.15), state)
        assert state() and not directory.exists()
    run_training(arm, "0")
    assert contents(directory) == expected
    assert not state()


LOAD = Resume.load


def test_saves_as_often_as_the_environment_says(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    save = Resume.save

    def counting(self: Resume, state: dict, name: str = "state") -> None:
        saved.append(name)
        save(self, state, name)

    monkeypatch.setattr(Resume, "save", counting)
    monkeypatch.setattr(training, "LONGEST_STRETCH", 1)
    train.main("topk", "0")
    assert saved.count("state") == 1
    monkeypatch.setenv("EXPLORING_SAES_SAVE_SECONDS", "0")
    train.main("topk", "1")
    assert saved.count("state") == 1 + 30 + 1


# Settings


def test_every_setting_of_the_section_changes_the_outcome(project: Path) -> None:
    train.main("relu", "0")
    whole = contents(project / "data/train/relu/seed-0")
    changes = {
        "d_sae": 20, "epochs": 2, "batch_size": 25, "lr_warm_up": 0.5, "lr_decay": 0.5, "sparsity_warm_up": 0.9,
        "follow_level": 0, "n_checkpoints": 7,
    }  # fmt: skip
    for name, value in changes.items():
        configure(**{f"train__{name}": value})
        train.main("relu", "0")
        assert contents(project / "data/train/relu/seed-0") != whole, name
    configure()
    train.main("topk", "0")
    whole = contents(project / "data/train/topk/seed-0")
    configure(train__dead_tokens=1, train__dead_share=0.0)
    train.main("topk", "0")
    assert contents(project / "data/train/topk/seed-0") != whole
    configure(train__dead_share=0.9, train__dead_tokens=1)
    few = train.prepare(train.settings("topk", "0"), 0, torch.zeros(4, D_IN), 30)
    assert {sae.dead_tokens for sae in few.saes} == {810}
    configure(train__lr=0.1)
    lrs = [train.prepare(train.settings(arm, "0"), 0, torch.zeros(4, D_IN), 30).schedule.lr for arm in ("topk", "relu")]
    assert lrs == [0.1, 0.01]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"saes__topk__k": [4, 99]}, r"^saes\.topk\.k must be whole numbers between 1 and d_sae = 16, not 99$"),
        ({"saes__topk__k": [0, 4]}, r"^saes\.topk\.k must be whole numbers between 1 and d_sae = 16, not 0$"),
        ({"saes__topk__k": []}, r"saes\.topk\.k is \[\]: list should have at least 1 item"),
        ({"saes__topk__k": [4]}, r"train\.follow_level must be below the 1 levels of saes\.topk\.k, not 1"),
        ({"saes__topk__variant": "tok"}, r"saes\.topk\.variant is 'tok', but stages/saes/ .* did you mean 'topk'\?"),
        ({"saes__topk__variant": 3}, r"saes\.topk\.variant is 3: input should be a valid string"),
        ({"saes__topk": "topk"}, r"saes\.topk\.variant is None"),
        ({"saes__topk__aux_coeff": 1.0}, r"unknown key saes\.topk\.aux_coeff; did you mean 'aux_coefficient'\?"),
        ({"saes__topk__lr": 0.0}, r"saes\.topk\.lr.*greater than 0"),
        ({"train__batch_size": 0}, r"train\.batch_size is 0: input should be greater than 0"),
        ({"train__lr_decay": 1.5}, r"train\.lr_decay is 1\.5: input should be less than or equal to 1"),
        ({"train__n_checkpoints": 1}, r"train\.n_checkpoints is 1"),
    ],
)
def test_refuses_settings_before_it_reads_data(changes: dict, message: str, project: Path) -> None:
    (project / "data/activations/main/index.json").unlink()
    configure(**changes)
    with pytest.raises(UserError, match=message):
        train.main("topk", "0")


@pytest.mark.parametrize(("arm", "name", "value"), [("frozen", "k", [2, 17]), ("jump", "l0_coefficient", [0.1, -1.0])])
def test_refuses_levels_of_the_others(arm: str, name: str, value: list, project: Path) -> None:
    configure(**{f"saes__{arm}__{name}": value})
    with pytest.raises(UserError, match=rf"saes\.{arm}\.{name}"):
        train.main(arm, "0")


@pytest.mark.parametrize("seed", ["-1", "x", "1.5", ""])
def test_refuses_a_seed_that_is_no_number(seed: str, project: Path) -> None:
    with pytest.raises(UserError, match="the seed must be a whole number from 0 on"):
        train.settings("topk", seed)


def test_refuses_what_does_not_fit_the_data(project: Path) -> None:
    configure(train__batch_size=901)
    with pytest.raises(UserError, match=r"train\.batch_size must be at most the 900 training activations, not 901"):
        train.main("topk", "0")
    configure(train__n_checkpoints=40)
    with pytest.raises(UserError, match=r"train\.n_checkpoints must be at most 31, one more than the steps, not 40"):
        train.main("topk", "0")


def test_says_so_when_training_diverges(project: Path) -> None:
    configure(saes__relu__lr=1e30)
    with pytest.raises(UserError, match=r"training diverged at step \d+ of level \d: lower the learning rate"):
        train.main("relu", "0")


def test_stretches_are_as_long_as_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    own = topk.SAEParams(variant="topk", activations="main", k=[2], aux_coefficient=0.0)
    sae = topk.Variant(own, 2, random_directions(D_SAE, D_IN, torch.Generator()), 100)
    whole = training.Training([sae], Schedule(30, 0.01, 0.0, 0.0, 0.0), 0, 5, torch.zeros(4, D_IN))
    for n_numbers, expected in ((2**22, [1, 16, 13]), (7 * 4 * D_IN, [1, 7, 7, 7, 7, 1]), (1, [1] * 30)):
        monkeypatch.setattr(training, "STRETCH_NUMBERS", n_numbers)
        batches = iter(torch.zeros(30, 4, D_IN).unbind())
        assert [len(stretch) for stretch in training.stretches(whole, batches)] == expected


def test_batch_topk_is_saved_with_the_threshold_that_gives_its_l0_on_validation(project: Path) -> None:
    train.main("batch", "0")
    for level, k in enumerate((2, 4)):
        sae = load_sae(project / f"data/train/batch/seed-0/level-{level}")
        feature_acts = sae.encode(open_store("main").rows("validation", 0, 100))
        assert float((feature_acts > 0).float().sum(1).mean()) == pytest.approx(k, abs=0.02)
