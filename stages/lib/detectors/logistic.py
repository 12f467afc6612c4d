"""Logistic regressions of a few inputs each, side by side: Newton's method in compiled loops.

Each minimises, over weights w and a bias b, with z = x w + b and y its labels,

    mean(log(1 + exp z) - y z) + l2 / 2 ||w||^2

which has one minimum where both labels occur. Newton's step there needs sums over the examples of all pairs of inputs,
which are few; it converges quadratically, so some ten passes over the examples give the minimum to the last digits.
"""

import numpy as np
from jaxtyping import Bool, Float

from stages.lib.run.parallel import compiled, over_rows

MAX_STEPS = 200
"""Tried; ten or so are needed."""
ACCURACY = 1e-13
"""Of the loss: by how much less it could be, to second order, when the last step is made."""


@compiled
def _derivatives(
    x: np.ndarray, y: np.ndarray, l2: float, theta: np.ndarray, gradient: np.ndarray, curvature: np.ndarray
) -> None:
    """The first and (below the diagonal) second derivatives of the loss; the bias is the last of `theta`."""
    (n, k), share = x.shape, 1 / x.shape[0]
    gradient[:], curvature[:] = 0, 0
    for e in range(n):
        z = theta[k]
        for i in range(k):
            z += theta[i] * x[e, i]
        p = 1 / (1 + np.exp(-z))
        r, v = (p - y[e]) * share, p * (1 - p) * share
        for i in range(k):
            gradient[i] += r * x[e, i]
            vx = v * x[e, i]
            for j in range(i + 1):
                curvature[i, j] += vx * x[e, j]
            curvature[k, i] += vx
        gradient[k] += r
        curvature[k, k] += v
    for i in range(k):
        gradient[i] += l2 * theta[i]
        curvature[i, i] += l2


@compiled
def _solve(curvature: np.ndarray, gradient: np.ndarray, step: np.ndarray) -> None:
    """Newton's step, by Cholesky's factors, which replace the lower triangle."""
    n = len(gradient)
    for i in range(n):
        for j in range(i + 1):
            rest = curvature[i, j]
            for m in range(j):
                rest -= curvature[i, m] * curvature[j, m]
            curvature[i, j] = np.sqrt(max(rest, 1e-300)) if i == j else rest / curvature[j, j]
    for i in range(n):
        rest = -gradient[i]
        for m in range(i):
            rest -= curvature[i, m] * step[m]
        step[i] = rest / curvature[i, i]
    for back in range(n):
        i = n - 1 - back
        rest = step[i]
        for m in range(i + 1, n):
            rest -= curvature[m, i] * step[m]
        step[i] = rest / curvature[i, i]


@compiled
def _minimise(
    x: np.ndarray, l2: float, start: int, stop: int, y: np.ndarray, theta: np.ndarray, gap: np.ndarray
) -> None:
    n = theta.shape[1]
    gradient, curvature, step, place = np.empty(n), np.empty((n, n)), np.zeros(n), np.empty(n)
    for c in range(start, stop):
        place[:] = 0
        _derivatives(x[c], y[c], l2, place, gradient, curvature)
        for _ in range(MAX_STEPS):
            _solve(curvature, gradient, step)
            slope = 0.0
            for i in range(n):
                slope += gradient[i] * step[i]
                place[i] += step[i]
            gap[c] = -slope / 2
            if gap[c] <= ACCURACY:
                break
            _derivatives(x[c], y[c], l2, place, gradient, curvature)
            for _ in range(60):
                after = 0.0
                for i in range(n):
                    after += gradient[i] * step[i]
                if after <= -slope / 2:
                    break
                # Beyond the lowest point in this direction, where the loss rises as it fell: half as far.
                for i in range(n):
                    step[i] /= 2
                    place[i] -= step[i]
                slope /= 2
                _derivatives(x[c], y[c], l2, place, gradient, curvature)
        theta[c] = place


def fit_logistic(
    x: Float[np.ndarray, "regression example k"], y: Bool[np.ndarray, "regression example"], l2: float
) -> Float[np.ndarray, "regression k_plus_one"]:
    """The weights of each regression and, last, its bias."""
    theta, gap = np.empty((len(x), x.shape[2] + 1)), np.empty(len(x))
    over_rows(_minimise, np.ascontiguousarray(x), l2, np.ascontiguousarray(y), theta, gap)
    assert (gap <= ACCURACY).all(), f"a regression has not converged: its loss is {gap.max()} above the least"
    return theta
