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


def settling_index(cos_final: Float[np.ndarray, "step d_sae"], threshold: float) -> Int[np.ndarray, " d_sae"]:
    """The first checkpoint from which on a feature stays within `threshold` of its final direction.

    `min{t: c(t') >= threshold for all t' >= t}` (last passage). Index 0 is left-censored: it was there
    from the start.
    """
    below = cos_final[:-1] < threshold  # the last checkpoint is the reference itself
    if not len(below):
        return np.zeros(cos_final.shape[1], dtype=np.int64)
    last_below = len(below) - 1 - np.argmax(below[::-1], axis=0)
    return np.where(below.any(axis=0), last_below + 1, 0)


def lazy_fraction(cos_initial: Float[np.ndarray, " d_sae"], threshold: float) -> float:
    """The share of features that end within `threshold` of their random start: the SAE barely moved them.

    Lazy training as in Korznikov et al. 2026 (soft-frozen dictionaries keep a cosine of 0.8 with theirs).
    """
    return float((cos_initial > threshold).mean())


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
