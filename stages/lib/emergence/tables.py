"""Tables of what was measured along the checkpoints: features, concepts, and whole SAEs."""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from stages.lib.emergence import trajectories
from stages.lib.emergence.censoring import crossing, persistent, share_by
from stages.lib.emergence.checkpoints import Followed
from stages.lib.emergence.curves import churn
from stages.lib.features.clusters import effective_rank
from stages.lib.features.matching import match


def _keys(followed: Followed) -> dict[str, object]:
    return {"arm": followed.member.arm, "seed": followed.member.seed, "level": followed.member.level}


def other_seed(followed: Followed, others: list[Followed]) -> Float[np.ndarray, "d_sae d_in"] | None:
    """For each feature the last direction of the one that it is matched with in the next seed's SAE, if there is one.

    The assignment is that of the two last decoders (`stages.lib.features.matching`); no step of this SAE's own training
    is its reference, so the cosine with it need not end at 1.
    """
    at = next(i for i, one in enumerate(others) if one.member.seed == followed.member.seed)
    other = others[(at + 1) % len(others)]
    if other is followed:
        return None
    left, right = (torch.from_numpy(one.directions[-1]) for one in (followed, other))
    return np.asarray(other.directions[-1][match(left, right).right])


def feature_table(followed: Followed, others: list[Followed], names: list[str], min_firings: int) -> pd.DataFrame:
    """One row per checkpoint and feature; what a feature that does not fire lacks is missing."""
    d = followed.directions
    positive = followed.steps > 0
    speed = np.full(d.shape[:2], np.nan)
    later = np.flatnonzero(positive)[1:]
    speed[later] = trajectories.angular_speed(d[positive], followed.steps[positive])
    other = other_seed(followed, others)
    cosines = {"cos_final": trajectories.cosine_to(d, d[-1]), "cos_initial": trajectories.cosine_to(d, d[0]),
               "cos_other_seed": np.full(d.shape[:2], np.nan) if other is None else trajectories.cosine_to(d, other),
               "angular_speed": speed, "cos_encoder_decoder": followed.encoder_cosine}  # fmt: skip
    alive = followed.alive(min_firings)
    frames = []
    for t, (one, two) in enumerate(followed.halves):
        n = one.n_firings + two.n_firings
        better = np.where(one.mcc >= two.mcc, one.concept, two.concept)
        total = one.mean * one.n_firings + two.mean * two.n_firings
        own = {name: values[t] for name, values in cosines.items()}
        frames.append(pd.DataFrame(_keys(followed) | {
            "step": followed.steps[t], "feature": np.arange(d.shape[1]), "rate": n / followed.n_tokens,
            "mean_act": np.where(n > 0, total / np.maximum(n, 1), np.nan),
            "max_act": np.where(n > 0, np.maximum(one.maximum, two.maximum), np.nan), **own, "alive": alive[t],
            "best_concept": [names[c] if fires else None for c, fires in zip(better, alive[t], strict=True)],
            "best_mcc": np.where(alive[t], np.maximum(one.mcc, two.mcc), np.nan),
        }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def concept_table(followed: Followed, names: list[str]) -> pd.DataFrame:
    """One row per checkpoint and concept."""
    n_steps, n_concepts = followed.f1.shape
    return pd.DataFrame(_keys(followed) | {
        "step": np.repeat(followed.steps, n_concepts), "concept": np.tile(np.array(names, dtype=object), n_steps),
        "f1": followed.f1.ravel(), "f1_chance": followed.f0.ravel(), "cc_f1": followed.cc_f1().ravel(),
        "f1_fixed": followed.f1_fixed.ravel(),
    })  # fmt: skip


def checkpoint_table(followed: Followed, min_firings: int, settled_cosine: float) -> pd.DataFrame:
    """One row per checkpoint: the population of features and the concepts on average."""
    alive = followed.alive(min_firings)
    changes = [churn(a, b, min_firings) for a, b in zip(followed.halves, followed.halves[1:], strict=False)]
    moved = {name: np.array([np.nan, *(getattr(one, name) if one else np.nan for one in changes)])
             for name in ("observed", "null")}  # fmt: skip
    n_born, n_died = trajectories.births(alive).sum(axis=1), trajectories.deaths(alive).sum(axis=1)
    settled, _ = settling(followed, settled_cosine)
    return pd.DataFrame(_keys(followed) | {
        "step": followed.steps, "tokens": followed.tokens, "fvu": followed.fvu, "l0": followed.l0,
        "alive_fraction": alive.mean(axis=1), "births": [0, *n_born], "deaths": [0, *n_died],
        "coverage": followed.f1.mean(axis=1), "cc_coverage": followed.cc_f1().mean(axis=1),
        "f1_chance": followed.f0.mean(axis=1),
        "effective_rank": [effective_rank(directions) for directions in followed.directions],
        "coherence": [trajectories.coherence(directions) for directions in followed.directions],
        "settled_fraction": share_by(settled, len(followed.steps)),
        "churn": moved["observed"], "churn_null": moved["null"], "churn_excess": moved["observed"] - moved["null"],
    })  # fmt: skip


def settling(
    followed: Followed, settled_cosine: float
) -> tuple[Int[np.ndarray, " d_sae"], Float[np.ndarray, " d_sae"]]:
    """From which checkpoint on, and from which step on, each feature stays that near to its last direction.

    Between checkpoints the angle is taken as linear, not the cosine, which flattens towards 1. With a checkpoint left
    out, the angle foretold the share of features settled by it at least as well as the cosine did in every case that
    was tried. Events spread evenly over the interval foretold it worse in TopK, but better in ReLU: neither is right
    everywhere, so the latter stands beside it as `settling_turnbull`.
    """
    cosine = trajectories.cosine_to(followed.directions, followed.directions[-1])
    cosine[-1] = 1  # by definition; a stored direction differs from itself by a rounding
    index = persistent(cosine >= settled_cosine)
    angle, limit = np.arccos(np.clip(cosine, -1, 1)), np.arccos(settled_cosine)
    return index, crossing(-angle, np.full(1, -limit), index, followed.steps)
