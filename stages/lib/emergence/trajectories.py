"""How the features of one SAE move, come alive and die over its training (checkpoints are rows, features columns).

Times are indices into the list of checkpoints: what happens between two checkpoints is dated at the later one.
"""

import numpy as np
from jaxtyping import Bool, Float, Int


def cosine_to(
    W_dec: Float[np.ndarray, "step d_sae d_in"], reference: Float[np.ndarray, "d_sae d_in"]
) -> Float[np.ndarray, "step d_sae"]:
    """The cosine of each feature's direction at each checkpoint with its row of `reference`, `c_i(t)`.

    With the last checkpoint as the reference it says how much is settled, with the first how little has moved.
    A direction of length 0 has the cosine 0.
    """
    products = np.einsum("tfd,fd->tf", W_dec, reference)
    lengths = np.linalg.norm(W_dec, axis=2) * np.linalg.norm(reference, axis=1)
    return np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1), 0)


def coherence(directions: Float[np.ndarray, "d_sae d_in"]) -> float:
    """The mean |cosine| of all pairs of different features, of unit directions: `c_dec` (Chanin 2025)."""
    cosines = directions @ directions.T
    return float(np.abs(cosines[~np.eye(len(directions), dtype=bool)]).mean())


def angles(a: Float[np.ndarray, "*row d_in"], b: Float[np.ndarray, "*row d_in"]) -> Float[np.ndarray, "*row"]:
    """The angle between the unit vectors of two arrays, in radians: `2 atan2(|a - b|, |a + b|)`.

    The arc cosine of a rounded product is wrong by up to `sqrt(2 eps)` for near-equal vectors, which is where slow
    features are (Kahan 2006, "How futile are mindless assessments of roundoff", section 12).
    """
    return np.asarray(2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)))


def angular_speed(
    directions: Float[np.ndarray, "step d_sae d_in"], steps: Int[np.ndarray, " step"]
) -> Float[np.ndarray, "interval d_sae"]:
    """Radians per e-fold of training between checkpoints: `angle(d(t_k), d(t_k+1)) / ln(t_k+1 / t_k)`.

    `directions` are of unit length and the steps above 0: from step 0 there is no e-fold. Per e-fold, because on a
    logarithmic grid of steps a feature that turns steadily in log time has a constant speed.
    """
    assert (steps > 0).all(), "step 0 has no logarithm"
    return np.asarray(angles(directions[:-1], directions[1:]) / np.log(steps[1:] / steps[:-1])[:, None])


def own_start_rank(
    start: Float[np.ndarray, "d_sae d_in"], end: Float[np.ndarray, "d_sae d_in"]
) -> Int[np.ndarray, " d_sae"]:
    """How many starts are more like a feature's end than its own start is; 0 says that the start is recognised.

    Both of unit length. If training left no trace of the start, each of the d_sae starts is as likely to be the most
    similar, so that the share of zeros is 1 / d_sae: own start and others are compared on equal terms, which the cosine
    with the own start and the best of all others are not.
    """
    cosine = end.astype(np.float64) @ start.astype(np.float64).T
    return np.asarray((cosine > np.diagonal(cosine)[:, None]).sum(axis=1))


def relative_movement(start: Float[np.ndarray, "d_sae d_in"], end: Float[np.ndarray, "d_sae d_in"]) -> float:
    """`||W_T - W_0|| / ||W_0||`: 0 is unmoved, sqrt(2) as far as a start of another seed (unit rows).

    The relative change by which lazy training is told (Chizat, Oyallon & Bach 2019, arXiv 1812.07956, section 2).
    """
    a, b = start.astype(np.float64), end.astype(np.float64)
    return float(np.linalg.norm(b - a) / np.linalg.norm(a))


def births(alive: Bool[np.ndarray, "step d_sae"]) -> Bool[np.ndarray, "interval d_sae"]:
    """Which features fire at a checkpoint and did not at the one before."""
    return np.asarray(alive[1:] & ~alive[:-1])


def deaths(alive: Bool[np.ndarray, "step d_sae"]) -> Bool[np.ndarray, "interval d_sae"]:
    """Which features do not fire at a checkpoint and did at the one before."""
    return births(~alive)


def hazard(
    events: Bool[np.ndarray, "interval d_sae"],
    at_risk: Bool[np.ndarray, "interval d_sae"],
    steps: Int[np.ndarray, " step"],
) -> float | None:
    """Events per feature at risk and step: `sum(events) / sum(at_risk x steps)`; None if nothing was at risk.

    The occurrence/exposure rate, the maximum-likelihood hazard if it is constant (Cox and Oakes 1984, section 3.2).
    """
    exposure = float((at_risk * np.diff(steps)[:, None]).sum())
    return float(events.sum()) / exposure if exposure else None
