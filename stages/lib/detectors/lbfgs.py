"""Many independent convex functions of as many variables, minimised side by side by L-BFGS.

Each column of a matrix holds the variables of one function. One gradient of all of them is a few matrix products, but
each column has its own curvature, its own length of step and its own end (Liu and Nocedal 1989, algorithm 2.1, column
by column): one step length for all would be that of the most curved.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

MEMORY = 10
"""Steps from which the curvature is known."""
MAX_STEPS = 200
ACCURACY = 1e-7
"""By how much less a function could be, to second order, when its last step is made."""
Gradient = Callable[[Tensor, Tensor], Tensor]
"""From the variables of some columns, and which columns they are, to the gradients."""


class Change(NamedTuple):
    """What one step changed."""

    at: Tensor
    """[variable, column]"""
    gradient: Tensor
    weight: Tensor
    """1 / (at . gradient) of each column, or 0 where that is not safely above 0."""

    def of(self, kept: Tensor) -> "Change":
        """Those of some columns."""
        return Change(self.at[:, kept], self.gradient[:, kept], self.weight[kept])


def _change(at: Tensor, gradient: Tensor) -> Change:
    product = (at * gradient).sum(0)
    safe = product > 1e-12 * at.square().sum(0)
    return Change(at, gradient, torch.where(safe, 1 / product.clamp_min(1e-38), 0))


def _step(gradient: Tensor, changes: list[Change], curvature: Tensor) -> Tensor:
    """The step that leads to the minimum if the curvature is what the changes say, and else that of each column."""
    rest, taken = gradient.clone(), []
    for one in reversed(changes):
        taken.append(one.weight * (one.at * rest).sum(0))
        rest -= taken[-1] * one.gradient
    if changes:
        last = changes[-1]
        measured = 1 / (last.weight * last.gradient.square().sum(0)).clamp_min(1e-30)
        rest *= torch.where(last.weight > 0, measured, 1 / curvature)
    else:
        rest /= curvature
    for one, share in zip(changes, reversed(taken), strict=True):
        rest += one.at * (share - one.weight * (one.gradient * rest).sum(0))
    return -rest


def _reached(gradient: Gradient, at: Tensor, step: Tensor, slope: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The place after the step and its gradient; columns that went far beyond their lowest point go half as far."""
    place, length = at + step, torch.ones(len(columns))
    found = gradient(place, columns)
    for _ in range(30):
        # The function is convex: where it does not rise in this direction it is lower than before.
        beyond = torch.nonzero((found * step).sum(0) > -slope / 2)[:, 0]
        if not len(beyond):
            break
        length[beyond] /= 2
        place[:, beyond] = at[:, beyond] + length[beyond] * step[:, beyond]
        found[:, beyond] = gradient(place[:, beyond], columns[beyond])
    return place, found


def minimise(
    gradient: Gradient, start: Float[Tensor, "variable column"], curvature: Float[Tensor, " column"]
) -> Float[Tensor, "variable column"]:
    """The minimum of each column's function.

    Args:
        gradient: of the functions of some columns.
        start: where to begin.
        curvature: about that of each function there, of any direction.
    """
    found, columns = start.clone(), torch.arange(start.shape[1])
    at, slopes = start, gradient(start, columns)
    changes: list[Change] = []
    for _ in range(MAX_STEPS):
        step = _step(slopes, changes, curvature[columns])
        slope = (step * slopes).sum(0)
        found[:, columns] = at + step
        left = torch.nonzero(-slope / 2 > ACCURACY)[:, 0]
        if not len(left):
            break
        if len(left) < len(columns):
            columns, at, slopes, step, slope = columns[left], at[:, left], slopes[:, left], step[:, left], slope[left]
            changes = [one.of(left) for one in changes]
        place, after = _reached(gradient, at, step, slope, columns)
        changes = [*changes, _change(place - at, after - slopes)][-MEMORY:]
        at, slopes = place, after
        found[:, columns] = at
    return found
