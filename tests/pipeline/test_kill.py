"""`kill -9` at random moments of the long stages: the next run goes on from there and ends in the same bytes."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from tests import toy

pytestmark = pytest.mark.slow
N_KILLS = 2
DEADLINE = 300.0
"""Seconds until the first state must be there."""
DRIVER = """
import importlib, sys, time
from stages.lib.run import resume
save = resume.Resume.save
def slow(self, state, name="state"):
    save(self, state, name)
    time.sleep(0.02)
resume.Resume.save = slow
intervals = {
    "stages.model": ("stages.models.scratch", "SAVE_INTERVAL"),
    "stages.activations": ("stages.lib.activations.extract", "RECORD_SECONDS"),
}
if sys.argv[1] in intervals:
    module, constant = intervals[sys.argv[1]]
    setattr(importlib.import_module(module), constant, 0.0)
importlib.import_module(sys.argv[1]).main(*sys.argv[2:])
"""
"""Runs a stage that saves after every step, and slowly, so that there is time to kill it; neither changes a result."""


def outs(directory: Path) -> dict[str, list[Any]]:
    stages = YAML(typ="safe").load((directory / "dvc.lock").read_text())["stages"]
    return {name: stage["outs"] for name, stage in stages.items()}


def states(directory: Path, stage: str) -> dict[str, dict[str, Any]]:
    """What the resume directory of a stage holds, by the name of the state."""
    kept = {}
    for path in (directory / "data/.resume" / stage).glob("*/*.resume"):
        if not path.name.startswith("step-"):
            _, _, payload = path.read_bytes().partition(b"\n")
            (directory / "state").write_bytes(payload)
            kept[path.stem] = torch.load(directory / "state", weights_only=True)
    return kept


def progress(stage: str, kept: dict[str, dict[str, Any]]) -> int:
    """How many steps of its loop a stage has saved."""
    if stage == "model":
        return max((len(state["losses"]) for state in kept.values()), default=0)
    if stage == "activations":
        done = kept.get("progress-0", {})
        return sum(int(mask.sum()) for splits in done.values() for mask in splits.values())
    return max((state["done"] for state in kept.values()), default=0)


def kill_once(directory: Path, stage: str, words: list[str], steps: int, after: float) -> int:
    """Start a stage, kill it so many steps and seconds on from where it was; returns the steps that are saved."""
    before = progress(stage, states(directory, stage))
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *words],
        cwd=directory,
        env=toy.environment(EXPLORING_SAES_SAVE_SECONDS="0", DVC_ROOT=str(directory)),
        stderr=subprocess.PIPE,
        text=True,
    )
    begun = time.monotonic()
    while process.poll() is None and progress(stage, states(directory, stage)) < before + steps:
        assert time.monotonic() - begun < DEADLINE
        time.sleep(0.02)
    time.sleep(after)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -9, f"{stage} ended before it was killed: {errors}"
    return progress(stage, states(directory, stage))


# Stage, module and arguments, steps of its loop.
STAGES = [
    ("model", ["stages.model"], 150),
    ("activations", ["stages.activations"], None),
    ("train@topk-0", ["stages.train", "topk", "0"], 248),
]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The project after its training, in which nothing was killed, and a copy of it to kill stages in."""
    whole = toy.make(tmp_path_factory.mktemp("whole"), ["topk"], [0])
    toy.edit(whole, {"activations.batch_windows": 8})
    done = toy.run(whole, "dvc", "repro", "train")
    assert done.returncode == 0, done.stdout + done.stderr
    return whole, shutil.copytree(whole, tmp_path_factory.mktemp("killed") / "copy", symlinks=True)


@pytest.mark.parametrize(("stage", "words", "n_steps"), STAGES)
def test_a_killed_stage_goes_on_and_ends_in_the_same_bytes(
    copies: tuple[Path, Path], stage: str, words: list[str], n_steps: int | None
) -> None:
    whole, killed = copies
    for out in outs(killed)[stage]:
        shutil.rmtree(killed / out["path"])
    generator = random.Random(stage)
    saved = [
        kill_once(killed, stage, words, generator.randint(5, 60), generator.uniform(0.0, 0.1)) for _ in range(N_KILLS)
    ]
    assert 0 < saved[0] < saved[1], saved  # each kill fell inside the loop, and the later run began where it was
    assert n_steps is None or saved[-1] < n_steps
    done = toy.run(killed, "dvc", "repro", "--force", "--single-item", stage)  # not from the cache of runs
    assert done.returncode == 0 and f"Running stage '{stage}'" in done.stdout, done.stdout + done.stderr
    left = list((killed / "data/.resume" / stage).glob("*"))
    assert not left, f"the last run of {stage} did not take up {left}"
    assert outs(killed)[stage] == outs(whole)[stage]
