"""How far two dictionaries hold the same directions.

For decoders A [a, d_in] and B [b, d_in] with unit rows, S = A B^T holds signed cosines: features are non-negative, so a
feature that points the other way is not the same feature. With the assignment P that maximises sum S over
min(a, b) pairs (Kuhn 1955, the "Hungarian" method),

    MCC_cos = mean of S over the pairs of P.

Random directions score well above 0, the more so the larger the dictionaries, so that level is reported beside it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor


class Matching(NamedTuple):
    """The best one-to-one assignment between two dictionaries."""

    mcc: float
    """Mean signed cosine over the matched pairs."""
    cosines: npt.NDArray[np.float32]
    """The cosine of each matched pair."""
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]


def cosines(left: Float[Tensor, "left d_in"], right: Float[Tensor, "right d_in"]) -> Float[Tensor, "left right"]:
    """Signed cosine of every pair of rows."""
    return torch.nn.functional.normalize(left, dim=1) @ torch.nn.functional.normalize(right, dim=1).T


def match(left: Float[Tensor, "left d_in"], right: Float[Tensor, "right d_in"]) -> Matching:
    """The assignment that maximises the sum of signed cosines."""
    from scipy.optimize import linear_sum_assignment

    similarity = cosines(left, right).numpy()
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    matched = similarity[rows, columns]
    return Matching(float(matched.mean(dtype=np.float64)), matched, rows, columns)


def best_cosines(left: Float[Tensor, "left d_in"], right: Float[Tensor, "right d_in"]) -> Float[Tensor, " left"]:
    """For each row of `left` its largest signed cosine with a row of `right`."""
    return cosines(left, right).amax(dim=1)


def stability(
    own: Float[Tensor, "d_sae d_in"], others: Sequence[Float[Tensor, "other d_in"]]
) -> Float[np.ndarray, " d_sae"]:
    """Each feature's largest decoder cosine with a feature of any other SAE; NaN where there is no other."""
    if not others:
        return np.full(len(own), np.nan)
    best: npt.NDArray[np.float32] = torch.stack([best_cosines(own, other) for other in others]).amax(0).cpu().numpy()
    return best


def shared_fraction(best: Float[Tensor, " left"], thresholds: Sequence[float]) -> list[float]:
    """P(best cosine > threshold), the shared-feature curve."""
    return [float((best > threshold).double().mean()) for threshold in thresholds]


def random_directions(n: int, d_in: int, generator: torch.Generator) -> Float[Tensor, "{n} {d_in}"]:
    """`n` directions drawn uniformly from the sphere in `d_in` dimensions."""
    return torch.nn.functional.normalize(torch.randn(n, d_in, generator=generator), dim=1)


class Contrast(NamedTuple):
    """Agreement inside arms against agreement between arms."""

    within: float
    """Mean over pairs of the same arm and different seeds."""
    between: float
    """Mean over pairs of different arms and different seeds (arms share the initialisation of equal seeds)."""
    p: float
    """Share of label permutations with a difference at least as large."""


def contrast(
    agreement: npt.NDArray[np.float64],
    arms: npt.NDArray[np.int64],
    seeds: npt.NDArray[np.int64],
    n_permutations: int,
    generator: np.random.Generator,
) -> Contrast | None:
    """Agreement within against between arms, tested by permuting the arms' labels inside each seed.

    Labels move only inside a seed, so that every permutation compares runs of different seeds as the data does.
    p = (1 + #{permuted >= observed}) / (1 + n_permutations) (Phipson & Smyth 2010).
    None if there are fewer than two arms or no arm has two seeds.
    """
    upper = np.triu(seeds[:, None] != seeds[None, :])
    same = arms[:, None] == arms[None, :]
    if not (upper & same).any() or not (upper & ~same).any():
        return None

    def difference(labels: npt.NDArray[np.int64]) -> tuple[float, float]:
        equal = labels[:, None] == labels[None, :]
        return float(agreement[upper & equal].mean()), float(agreement[upper & ~equal].mean())

    within, between = difference(arms)
    exceeded = 0
    for _ in range(n_permutations):
        labels = arms.copy()
        for seed in np.unique(seeds):
            labels[seeds == seed] = generator.permutation(labels[seeds == seed])
        permuted_within, permuted_between = difference(labels)
        exceeded += permuted_within - permuted_between >= within - between - 1e-12
    return Contrast(within, between, (1 + exceeded) / (1 + n_permutations))
