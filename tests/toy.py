"""A copy of the project that runs from one end to the other in a minute or two, on a few source files of networkx.

`python -m tests.toy <directory>` makes one; `dvc repro` in it is then a real run.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
N_TEXTS = 60
SMALLEST, LARGEST = 2500, 9000
"""Bytes of a text."""
ARMS = ("relu", "jump_relu", "topk", "matryoshka", "frozen_decoder", "untrained", "pca_topk")
LEVELS = [2, 4, 8]
"""Wanted L0 ..."""
OWN_LEVELS = {"relu": [12, 16, 24]}
"""... but of an arm that else would reconstruct worse than the mean activation of each token, which is refused."""
SETTINGS: dict[str, Any] = {
    "corpus.source": "local_files",
    "corpus.local_files": {"glob": "**/*.py", "column": "text"},
    "corpus.split": {"lm_train": 0.4, "sae_train": 0.2, "validation": 0.2, "test": 0.2},
    "model.scratch.d_vocab": 320,
    "model.scratch.d_model": 32,
    "model.scratch.n_layers": 2,
    "model.scratch.n_heads": 2,
    "model.scratch.d_mlp": 64,
    "model.scratch.n_ctx": 32,
    "model.scratch.steps": 150,
    "model.scratch.batch_size": 16,
    "model.scratch.precision": "float32",
    "model.scratch.n_heldout": 4000,
    "tokens.n_ctx": 32,
    "tokens.excerpt": 620,
    "tokens.n_fit": 4000,
    "tokens.n_validation": 4000,
    "tokens.n_test": 4000,
    "concepts.min_positives": {"fit": 40, "validation": 40, "test": 40},
    "activations.layer": 1,
    "activations.n_tokens": 8000,
    "activations.shard_rows": 3000,
    "train.seeds": [0, 1],
    "train.more_seeds": [7],
    "train.d_sae": 64,
    "train.epochs": 4,
    "train.batch_size": 128,
    "train.dead_tokens": 4000,
    "train.n_checkpoints": 6,
    "evaluate.n_ce_tokens": 600,
    "evaluate.n_resamples": 50,
    "frequency.n_tokens": 4000,
    "frequency.n_shifts": 5,
    "frequency.n_resamples": 20,
    "frequency.min_firings": 20,
    "emergence.n_fit": 3000,
    "emergence.n_validation": 3000,
    "emergence.n_test": 3000,
    "emergence.min_positives": 20,
    "emergence.n_shifts": 5,
    "emergence.n_permutations": 50,
    "attribution.n_windows": 4,
    "attribution.n_random": 20,
    "attribution.n_stratum": 5,
    "attribution.ig_steps": 2,
    "attribution.n_resamples": 20,
    "interpret.n_tokens": 4000,
    "interpret.n_sample": 2000,
    "interpret.n_shifts": 5,
    "interpret.n_resamples": 20,
    "interpret.n_examples": 100,
    "embed.n_tokens": 4000,
    "embed.n_clusters": [2, 4],
    "embed.n_resamples": 3,
    "embed.n_null": 2,
    "embed.n_neighbors": 5,
    "compare.l0": [2.5, 4, 7],
    "compare.n_permutations": 100,
    "compare.n_random": 2,
    "report.n_features": 3,
    "report.n_contexts": 2,
    "report.n_tokens": 12,
}
yaml = YAML()


def files() -> list[str]:
    """What a commit of the project would hold, without what runs have made."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    made = ("data/", "reports/", "dvc.lock")
    return [name for name in listed if not name.startswith(made) and (ROOT / name).is_file()]


def write_texts(directory: Path) -> None:
    """The first files of networkx, by name, that are neither short nor long."""
    spec = importlib.util.find_spec("networkx")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    paths = [path for path in sorted(package.rglob("*.py")) if SMALLEST <= path.stat().st_size <= LARGEST]
    directory.mkdir(exist_ok=True)
    for path in paths[:N_TEXTS]:
        shutil.copyfile(path, directory / "__".join(path.relative_to(package).parts))


def edit(directory: Path, changes: Mapping[str, Any]) -> None:
    """Set dotted paths of the copy's `params.yaml`, with comments and order as they were."""

    def change(document: Any) -> None:
        for path, value in changes.items():
            *parents, last = path.split(".")
            node = document
            for key in parents:
                node = node[key]
            node[last] = value

    rewrite(directory, change)


def rewrite(directory: Path, change: Callable[[Any], None]) -> None:
    """Change the copy's `params.yaml` in any way."""
    path = directory / "params.yaml"
    document = yaml.load(path.read_text())
    change(document)
    with path.open("w") as handle:
        yaml.dump(document, handle)


def make(directory: Path, arms: Iterable[str] = ARMS, seeds: Iterable[int] = (0, 1)) -> Path:
    """Write the copy with only `arms`, and commit it; returns the directory."""
    chosen = list(arms)
    for name in files():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, directory / name)
    write_texts(directory / "texts")
    edit(directory, SETTINGS | {"train.seeds": list(seeds)})

    def choose_arms(document: Any) -> None:
        for arm in list(document["saes"]):
            if arm not in chosen:
                del document["saes"][arm]
        for arm in chosen:
            document["saes"][arm]["l0"] = [*OWN_LEVELS.get(arm, LEVELS)]
        for name in ("controls", "l0_type"):
            document["compare"][name] = [arm for arm in document["compare"][name] if arm in chosen]
        if document["frequency"]["random_decoder"] not in chosen:
            document["frequency"]["random_decoder"] = chosen[0]

    rewrite(directory, choose_arms)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "Toy"]):
        identity = ["-c", "user.name=toy", "-c", "user.email=toy@example.org"]
        subprocess.run(["git", *identity, *command], cwd=directory, check=True)
    return directory


def environment(**more: str) -> dict[str, str]:
    """Variables for a run in a copy: the `python` of its commands is the one that runs this."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    inherited = {name: value for name, value in os.environ.items() if name not in ("DVC_ROOT", "PYTHONPATH")}
    return {**inherited, "PATH": path, "WANDB_MODE": "disabled", **more}


def start(directory: Path, *command: str, **more: str) -> subprocess.Popen[str]:
    """Begin a command in a copy; a first word `python` or `dvc` is that of this environment."""
    python = {"python": [sys.executable], "dvc": [sys.executable, "-m", "dvc"]}
    words = [*python.get(command[0], [command[0]]), *command[1:]]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=directory, env=environment(**more), stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for what `start` began, and take its output."""
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run(directory: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A command in a copy, with its output."""
    return finish(start(directory, *command, **more))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
