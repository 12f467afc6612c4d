"""What is measured along the checkpoints of one SAE."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from stages.lib.detectors.coverage import corrected
from stages.lib.emergence.curves import Half, Sample, Scores, Shifts, chance_f1, score, select
from stages.lib.features.clusters import unit_rows
from stages.lib.io.errors import UserError
from stages.lib.io.tensors import describe, load
from stages.lib.sae.members import Member
from stages.lib.sae.saved import SAE, TENSORS, load_sae


class Checkpoint(NamedTuple):
    """A saved state of the training of one SAE."""

    path: Path
    step: int
    tokens: int


class Followed(NamedTuple):
    """One SAE at all its checkpoints."""

    member: Member
    steps: np.ndarray
    """Int [step]"""
    tokens: np.ndarray
    """Training tokens seen, int [step]."""
    directions: np.ndarray
    """Unit decoder rows, [step, d_sae, d_in]"""
    encoder_cosine: np.ndarray
    """Of each feature's encoder and decoder directions, [step, d_sae]"""
    halves: list[tuple[Half, Half]]
    n_tokens: int
    """Validation tokens: the probe set."""
    f1: np.ndarray
    """[step, concept] with detectors chosen anew at each checkpoint."""
    f1_fixed: np.ndarray
    """[step, concept] with the last checkpoint's detectors traced back."""
    f0: np.ndarray
    """F1 by chance, [step, concept]: measured at `null_checkpoints`, linear in log(1 + step) between."""
    fvu: np.ndarray
    l0: np.ndarray

    def n_firings(self) -> Int[np.ndarray, "step d_sae"]:
        """Firings of each feature on the probe set."""
        return np.stack([np.asarray(one.n_firings + two.n_firings) for one, two in self.halves])

    def alive(self, min_firings: int) -> Bool[np.ndarray, "step d_sae"]:
        """Which features fire at least `min_firings` times on the probe set."""
        return np.asarray(self.n_firings() >= min_firings)

    def cc_f1(self) -> Float[np.ndarray, "step concept"]:
        """Chance-corrected F1, floor 0."""
        return np.asarray(np.maximum(corrected(self.f1, self.f0), 0))


def checkpoints(directory: Path) -> list[Checkpoint]:
    """The checkpoints of one SAE by step.

    The directory is a whole output of DVC, which leaves no file of an earlier run in it, so a listing is safe.

    Raises:
        UserError: if there are fewer than two.
    """
    found = []
    for path in sorted((directory / "checkpoints").glob("step-*.safetensors")):
        facts = describe(path)
        found.append(Checkpoint(path, facts["step"], facts["tokens"]))
    if len(found) < 2:
        raise UserError(
            f"{directory}/checkpoints has {len(found)} checkpoints, but emergence needs at least 2: "
            "`dvc checkout train` restores them; training saves those of the level train.follow_level"
        )
    return found


def at_checkpoint(final: SAE, path: Path) -> SAE:
    """The SAE as it was at a checkpoint, for normalised activations."""
    weights: dict[str, Any] = {name: tensor.float() for name, tensor in load(path).items()}
    if sorted(weights) != sorted(TENSORS[final.architecture]) or weights["W_enc"].shape != final.W_enc.shape:
        raise UserError(f"{path} does not belong to the SAE beside it; `dvc checkout --force train` restores both")
    return replace(final, **weights)


def null_checkpoints(n: int) -> list[int]:
    """At which of `n` checkpoints the chance level is measured: the first, the middle and the last one.

    The shifted labels cost as much as all else at a checkpoint, and the level changes by a few thousandths over
    training.
    """
    return sorted({0, n // 2, n - 1})


def between(
    measured: Float[np.ndarray, "some concept"], at: list[int], steps: Int[np.ndarray, " step"]
) -> Float[np.ndarray, "step concept"]:
    """Rows measured at some checkpoints as rows at all: linear in log(1 + step)."""
    x = np.log1p(steps.astype(np.float64))
    return np.stack([np.interp(x, x[at], column) for column in measured.T], axis=1)


class Measured(NamedTuple):
    """What is kept of one checkpoint."""

    halves: tuple[Half, Half]
    scores: Scores
    """With detectors chosen at this checkpoint, and with those of the last one."""
    directions: Float[np.ndarray, "d_sae d_in"]
    encoder_cosine: Float[np.ndarray, " d_sae"]


def follow(
    member: Member, validation: Sample, test: Sample, shifts: Shifts, progress: Callable[[float], None]
) -> Followed:
    """Measure every checkpoint; the last one first, because its detectors are traced back through the others.

    `progress` is told the FVU of each checkpoint that is done.
    """
    saved = checkpoints(member.directory)
    final = load_sae(member.directory)
    end = select(at_checkpoint(final, saved[-1].path), validation)
    at = null_checkpoints(len(saved))
    found: list[Measured] = []
    chance: list[np.ndarray] = []
    for k, one in enumerate(saved):
        sae = at_checkpoint(final, one.path)
        chosen = end if one is saved[-1] else select(sae, validation)
        scores, track = score(sae, test, [chosen.choice, end.choice], chosen.maximum)
        if k in at:
            chance.append(chance_f1(chosen.track, track, shifts))
        aligned = torch.nn.functional.cosine_similarity(sae.W_enc.T, sae.W_dec, dim=1).numpy()
        found.append(Measured(chosen.halves, scores, unit_rows(sae.W_dec.numpy()), aligned))
        progress(found[-1].scores.fvu)
    steps = np.array([one.step for one in saved])
    return Followed(
        member,
        steps,
        np.array([one.tokens for one in saved]),
        np.stack([one.directions for one in found]),
        np.stack([one.encoder_cosine for one in found]),
        [one.halves for one in found],
        len(validation.x),
        np.stack([one.scores.f1[0] for one in found]),
        np.stack([one.scores.f1[1] for one in found]),
        between(np.stack(chance), at, steps),
        np.array([one.scores.fvu for one in found]),
        np.array([one.scores.l0 for one in found]),
    )
