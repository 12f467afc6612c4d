"""Where the SAEs of an arm lie, `data/train/<arm>/seed-<n>/level-<i>`, and what `train.json` records of them.

Seeds that were trained at the followed level alone lie in `data/train/<arm>/more/seed-<n>`.

Which there are is read from `train.json`, never from a listing: DVC leaves the directory of a seed or level behind that
was removed from `params.yaml`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from stages.lib.io.errors import UserError
from stages.lib.io.files import read_json

TRAIN = Path("data/train")


class Member(NamedTuple):
    """One SAE of an arm."""

    arm: str
    seed: int
    level: int
    directory: Path
    """What `saelens.load_sae` reads."""
    sparsity: float
    """The level's value: k, or the coefficient of the sparsity loss."""


def cell(arm: str, seed: int, root: Path = TRAIN) -> Path:
    """The directory of one arm and seed."""
    return root / arm / f"seed-{seed}"


def more_cell(arm: str, seed: int, root: Path = TRAIN) -> Path:
    """The directory of a seed that was trained at the followed level alone."""
    return root / arm / "more" / f"seed-{seed}"


def members(arm: str, seeds: Iterable[int], root: Path = TRAIN) -> list[Member]:
    """The SAEs of an arm, by seed and then by level.

    Raises:
        UserError: if a seed was not trained here.
    """
    found = []
    for seed in seeds:
        directory = cell(arm, seed, root)
        found += [
            Member(arm, seed, level, directory / f"level-{level}", float(sparsity))
            for level, sparsity in enumerate(_trained(directory, f"train@{arm}-{seed}")["levels"])
        ]
    return found


def more_members(arm: str, seeds: Iterable[int], root: Path = TRAIN) -> list[Member]:
    """The SAEs of the seeds that were trained at the followed level alone, by seed.

    Raises:
        UserError: if a seed was not trained here.
    """
    found = []
    for seed in seeds:
        directory = more_cell(arm, seed, root)
        facts = _trained(directory, f"train_more@{arm}")
        level = int(facts["follow_level"])
        found.append(Member(arm, seed, level, directory / f"level-{level}", float(facts["levels"][level])))
    return found


def _trained(directory: Path, stage: str) -> Any:
    path = directory / "train.json"
    if not path.is_file():
        raise UserError(f"{path} is missing; `dvc pull {stage}` brings it from a remote, `dvc repro {stage}` trains it")
    return read_json(path)


def member_at(arm: str, seed: int, level: int) -> Member:
    """The SAE of an arm at a seed and level."""
    return members(arm, [seed])[level]


def _facts(arm: str, seed: int) -> Any:
    return read_json(cell(arm, seed) / "train.json")


def followed_members(arm: str, seeds: Iterable[int]) -> list[Member]:
    """The member of the followed level for each seed."""
    return [member for member in members(arm, seeds) if member.level == _facts(arm, member.seed)["follow_level"]]


def revision(arm: str, seed: int) -> str:
    """The model revision whose activations the arm was trained on."""
    return str(_facts(arm, seed)["activations"])
