"""A metric at a given L0, read off the points that one seed's levels measured; never beyond them.

Arms are compared at equal L0. The levels of an arm land near a target, not on it, so the value there is interpolated in
log L0 by PCHIP (Fritsch & Carlson 1980), which keeps monotone data monotone; FVU is interpolated as log FVU, since
frontiers are close to straight lines there. A target outside the measured range has no value.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator


def at_l0(l0: Sequence[float], values: Sequence[float], target: float, tolerance: float, log: bool) -> float | None:
    """The value at L0 = `target`, or None outside the measured range.

    Args:
        l0: the measured L0 of each level, in any order; levels with an L0 of 0 are left out.
        values: the metric at each level.
        target: the L0 wanted.
        tolerance: a target beyond the last level by at most this fraction takes that level's value, because a TopK of
            k = 32 measures an L0 a little under 32.
        log: whether the logarithm of the values is interpolated.
    """
    merged: dict[float, list[float]] = {}
    for x, y in zip(l0, values, strict=True):
        if x > 0 and math.isfinite(y) and (y > 0 or not log):
            merged.setdefault(float(x), []).append(float(y))
    points = sorted((x, float(np.mean(ys))) for x, ys in merged.items())
    if not points or not points[0][0] / (1 + tolerance) <= target <= points[-1][0] * (1 + tolerance):
        return None
    inside = min(max(target, points[0][0]), points[-1][0])
    if len(points) == 1:
        return points[0][1]
    at, measured = np.log([point[0] for point in points]), np.array([point[1] for point in points])
    result = float(PchipInterpolator(at, np.log(measured) if log else measured)(np.log(inside)))
    return math.exp(result) if log else result
