"""Where the SAEs of an arm lie: `data/train/<arm>/seed-<n>/level-<i>`.

Which there are is read from `train.json`, never from a listing: DVC leaves the directory of a seed or level behind that
was removed from `params.yaml`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from stages.lib.errors import UserError
from stages.lib.files import read_json

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


def members(arm: str, seeds: Iterable[int], root: Path = TRAIN) -> list[Member]:
    """The SAEs of an arm, by seed and then by level.

    Raises:
        UserError: if a seed was not trained here.
    """
    found = []
    for seed in seeds:
        directory = cell(arm, seed, root)
        if not (directory / "train.json").is_file():
            raise UserError(
                f"{directory / 'train.json'} is missing; `dvc pull train` brings it from a remote, "
                f"`dvc repro train@{arm}-{seed}` trains it"
            )
        levels = read_json(directory / "train.json")["levels"]
        found += [
            Member(arm, seed, level, directory / f"level-{level}", float(sparsity))
            for level, sparsity in enumerate(levels)
        ]
    return found
