"""What a finished training writes: SAEs folded to raw activations, checkpoints, `history.csv` and `train.json`."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stages.lib.io.files import write_json, write_text
from stages.lib.run.parallel import side_by_side
from stages.lib.run.resume import Resume
from stages.lib.sae.base import SAE
from stages.lib.sae.saved import fold, load_sae, save_sae
from stages.lib.sae.training import Row, Training, history_table

NEAR = 0.03
"""The share of a wanted L0 by which the one that is reached may be off without a word."""


class Space(NamedTuple):
    """The activations that SAEs were trained on."""

    mean: Float[Tensor, " d_in"]
    scale: float
    model: str
    hook_name: str

    @property
    def origin(self) -> dict[str, Any]:
        """What SAELens keeps as metadata."""
        return {"model_name": self.model, "hook_name": self.hook_name, "hook_head_index": None}

    def raw(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_in"]:
        """Raw activations of normalised ones."""
        return x * self.scale + self.mean


def write_sae(directory: Path, sae: SAE, space: Space, facts: dict[str, Any]) -> None:
    """One level, folded to raw activations."""
    weights = fold({name: weight.cpu() for name, weight in sae.shifted().items()}, space.mean, space.scale)
    k = int(sae.level) if sae.architecture == "topk" else None
    save_sae(directory, sae.architecture, weights, k=k, metadata=space.origin, extra=facts)


def write_training(
    directory: Path, training: Training, space: Space, resume: Resume, facts: dict[str, Any]
) -> list[float]:
    """All outputs of a finished training; returns the L0 of each of its levels on validation activations.

    `facts` is what `train.json` says of the training beside what it became.
    """
    shutil.rmtree(directory, ignore_errors=True)
    raw = space.raw(training.sample.cpu())

    def write_level(found: tuple[int, SAE, Row]) -> float:
        level, sae, row = found
        sae.settle(training.sample)
        sae.finish(training.sample)
        own = {"level": level, "sparsity": sae.level, "step": training.done, "mean_l0": row.l0}
        write_sae(directory / f"level-{level}", sae, space, {**facts, **own})
        return held_out_l0(directory / f"level-{level}", raw)

    levels = zip(training.levels, training.saes, training.latest(), strict=True)
    reached = side_by_side(write_level, levels, training.sample.device)
    size = facts["batch_size"]
    training.write_checkpoints(directory / f"level-{training.followed}" / "checkpoints", resume, size)
    write_text(directory / "history.csv", history_table(training, facts["arm"], facts["seed"], size))
    became = {"n_tokens": training.done * size, "steps": training.done, "follow_level": training.followed}
    became |= {"validation_l0": reached, "shift": [sae.shift for sae in training.saes]}
    write_json(directory / "train.json", {**facts, **became})
    return reached


@torch.no_grad()
def held_out_l0(directory: Path, raw: Float[Tensor, "token d_in"]) -> float:
    """Active features per token of an SAE that was written, on raw validation activations."""
    return len(load_sae(directory).active(raw).value) / len(raw)
