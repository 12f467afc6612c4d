"""Monotone interpolation between few points: PCHIP (Fritsch and Carlson 1980), as SciPy's `PchipInterpolator`.

Its slopes, ends and order of operations, so the same numbers to the last bit; for three points SciPy spends a hundred
times as long on checks of arrays, and importing it takes longer than all curves.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise


def slopes(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """The slope at each point: weighted harmonic means inside, one-sided at the ends (Moler 2004, section 3.6)."""
    width = [b - a for a, b in pairwise(x)]
    rise = [(b - a) / h for (a, b), h in zip(pairwise(y), width, strict=True)]
    if len(x) == 2:
        return [rise[0], rise[0]]
    inside = []
    for (h0, h1), (m0, m1) in zip(pairwise(width), pairwise(rise), strict=True):
        w1, w2 = 2 * h1 + h0, h1 + 2 * h0
        inside.append(0.0 if m0 * _sign(m1) <= 0 else 1 / ((w1 / m0 + w2 / m1) / (w1 + w2)))
    return [_end(*width[:2], *rise[:2]), *inside, _end(width[-1], width[-2], rise[-1], rise[-2])]


def _end(h0: float, h1: float, m0: float, m1: float) -> float:
    slope = ((2 * h0 + h1) * m0 - h0 * m1) / (h0 + h1)
    if _sign(slope) != _sign(m0):
        return 0.0
    return 3 * m0 if _sign(m0) != _sign(m1) and abs(slope) > 3 * abs(m0) else slope


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def interpolate(x: Sequence[float], y: Sequence[float], slope: Sequence[float], at: float) -> float:
    """The value `at` a place between the first and the last x, which ascend, from the `slopes`."""
    i = min(bisect_right(x, at), len(x) - 1) - 1
    h, step = x[i + 1] - x[i], at - x[i]
    rise = (y[i + 1] - y[i]) / h
    bend = (slope[i] + slope[i + 1] - 2 * rise) / h
    square = step * step
    return y[i] + slope[i] * step + ((rise - slope[i]) / h - bend) * square + bend / h * (square * step)
