"""What is measured along the checkpoints of one SAE, and the tables made of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from stages.lib.detectors.counts import Choice
from stages.lib.detectors.coverage import corrected
from stages.lib.emergence import trajectories
from stages.lib.emergence.curves import Half, Sample, Scores, Selection, Shifts, chance_f1, churn, score, select
from stages.lib.features.clusters import effective_rank, spread, unit_rows
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
    """F1 by chance at the last checkpoint, [concept]"""
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


class Measured(NamedTuple):
    """What is kept of one checkpoint."""

    halves: tuple[Half, Half]
    scores: Scores
    """With detectors chosen at this checkpoint, and with those of the last one."""
    directions: Float[np.ndarray, "d_sae d_in"]
    encoder_cosine: Float[np.ndarray, " d_sae"]


def measure(sae: SAE, chosen: Selection, end: Choice, test: Sample) -> Measured:
    """The numbers of one checkpoint, of which `chosen` is the selection; `end` are the last one's detectors."""
    return Measured(
        chosen.halves,
        score(sae, test, [chosen.choice, end], chosen.maximum),
        unit_rows(sae.W_dec.numpy()),
        torch.nn.functional.cosine_similarity(sae.W_enc.T, sae.W_dec, dim=1).numpy(),
    )


def follow(
    member: Member, validation: Sample, test: Sample, shifts: Shifts, progress: Callable[[float], None]
) -> Followed:
    """Measure every checkpoint; the last one first, because its detectors are traced back through the others.

    `progress` is told the FVU of each checkpoint that is done.
    """
    saved = checkpoints(member.directory)
    final = load_sae(member.directory)
    last = at_checkpoint(final, saved[-1].path)
    end = select(last, validation)
    f0 = chance_f1(last, end, test, shifts)
    found: list[Measured] = []
    for one in saved:
        sae = at_checkpoint(final, one.path)
        chosen = end if one is saved[-1] else select(sae, validation)
        found.append(measure(sae, chosen, end.choice, test))
        progress(found[-1].scores.fvu)
    return Followed(
        member,
        np.array([one.step for one in saved]),
        np.array([one.tokens for one in saved]),
        np.stack([one.directions for one in found]),
        np.stack([one.encoder_cosine for one in found]),
        [one.halves for one in found],
        len(validation.x),
        np.stack([one.scores.f1[0] for one in found]),
        np.stack([one.scores.f1[1] for one in found]),
        f0,
        np.array([one.scores.fvu for one in found]),
        np.array([one.scores.l0 for one in found]),
    )


def _keys(followed: Followed) -> dict[str, object]:
    return {"arm": followed.member.arm, "seed": followed.member.seed, "level": followed.member.level}


def feature_table(followed: Followed, names: list[str], min_firings: int) -> pd.DataFrame:
    """One row per checkpoint and feature; what a feature that does not fire lacks is missing."""
    d = followed.directions
    positive = followed.steps > 0
    speed = np.full(d.shape[:2], np.nan)
    later = np.flatnonzero(positive)[1:]
    speed[later] = trajectories.angular_speed(d[positive], followed.steps[positive])
    cos_final, cos_initial = trajectories.cosine_to(d, d[-1]), trajectories.cosine_to(d, d[0])
    alive = followed.alive(min_firings)
    frames = []
    for t, (one, two) in enumerate(followed.halves):
        n = one.n_firings + two.n_firings
        better = np.where(one.mcc >= two.mcc, one.concept, two.concept)
        total = one.mean * one.n_firings + two.mean * two.n_firings
        frames.append(pd.DataFrame(_keys(followed) | {
            "step": followed.steps[t], "feature": np.arange(d.shape[1]), "rate": n / followed.n_tokens,
            "mean_act": np.where(n > 0, total / np.maximum(n, 1), np.nan),
            "max_act": np.where(n > 0, np.maximum(one.maximum, two.maximum), np.nan),
            "cos_final": cos_final[t], "cos_initial": cos_initial[t], "angular_speed": speed[t],
            "cos_encoder_decoder": followed.encoder_cosine[t], "alive": alive[t],
            "best_concept": [names[c] if fires else None for c, fires in zip(better, alive[t], strict=True)],
            "best_mcc": np.where(alive[t], np.maximum(one.mcc, two.mcc), np.nan),
        }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def concept_table(followed: Followed, names: list[str]) -> pd.DataFrame:
    """One row per checkpoint and concept."""
    n_steps, n_concepts = followed.f1.shape
    return pd.DataFrame(_keys(followed) | {
        "step": np.repeat(followed.steps, n_concepts), "concept": np.tile(np.array(names, dtype=object), n_steps),
        "f1": followed.f1.ravel(), "cc_f1": followed.cc_f1().ravel(), "f1_fixed": followed.f1_fixed.ravel(),
    })  # fmt: skip


def checkpoint_table(followed: Followed, min_firings: int) -> pd.DataFrame:
    """One row per checkpoint: the population of features and the concepts on average."""
    alive = followed.alive(min_firings)
    changes = [churn(a, b, min_firings) for a, b in zip(followed.halves, followed.halves[1:], strict=False)]
    n_born, n_died = trajectories.births(alive).sum(axis=1), trajectories.deaths(alive).sum(axis=1)
    cosines = [spread(directions) for directions in followed.directions]
    return pd.DataFrame(_keys(followed) | {
        "step": followed.steps, "tokens": followed.tokens, "fvu": followed.fvu, "l0": followed.l0,
        "alive_fraction": alive.mean(axis=1), "births": [0, *n_born], "deaths": [0, *n_died],
        "coverage": followed.f1.mean(axis=1), "cc_coverage": followed.cc_f1().mean(axis=1),
        "effective_rank": [effective_rank(directions) for directions in followed.directions],
        "coherence": [one.mean_absolute for one in cosines],
        "churn": [np.nan, *(one.observed if one else np.nan for one in changes)],
        "churn_null": [np.nan, *(one.null if one else np.nan for one in changes)],
    })  # fmt: skip
