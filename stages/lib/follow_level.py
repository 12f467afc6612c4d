"""The SAEs whose checkpoints training keeps, and the activations they are of, as `train.json` records them."""

from collections.abc import Iterable
from typing import Any

from stages.lib.arms import Member, cell, members
from stages.lib.files import read_json


def _facts(arm: str, seed: int) -> Any:
    return read_json(cell(arm, seed) / "train.json")


def followed_members(arm: str, seeds: Iterable[int]) -> list[Member]:
    """The member of the followed level for each seed."""
    return [member for member in members(arm, seeds) if member.level == _facts(arm, member.seed)["follow_level"]]


def revision(arm: str, seed: int) -> str:
    """The model revision whose activations the arm was trained on."""
    return str(_facts(arm, seed)["activations"])
