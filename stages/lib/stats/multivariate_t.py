"""The largest of several correlated t statistics, which is what tests of several contrasts at once are judged by.

For T_i = Z_i / s with Z normal, correlations rho_ij = l_i l_j (i != j), and df s^2 chi-squared with df degrees of
freedom (Dunnett 1955; Hsu 1996, "Multiple Comparisons", section 3.1),

    P(|T_i| <= c for all i) = E_s E_z prod_i [Phi((c s - l_i z) / r_i) - Phi((-c s - l_i z) / r_i)]

with z standard normal and r_i = sqrt(1 - l_i^2). Contrasts with a common reference have such correlations exactly when
every cell of the design is there; otherwise l is the one-factor approximation that Hsu (1992, J. Comput. Graph. Stat.
1:151) proposes for unbalanced designs. Fixed quadrature nodes, no random numbers.
"""

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import chdtri, ndtr

MOST = 0.999
"""Of a loading: at 1 the integrand is a step, which no fixed nodes integrate."""
_HERMITE, _HERMITE_WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
_UNIT, _UNIT_WEIGHTS = np.polynomial.legendre.leggauss(48)


def loadings(correlation: Float[np.ndarray, "contrast contrast"]) -> Float[np.ndarray, " contrast"]:
    """The l whose products l_i l_j are nearest, in least squares, to the correlations off the diagonal."""
    n = len(correlation)
    if n == 1:
        return np.zeros(1)
    off = correlation - np.diag(np.diag(correlation))
    if n == 2:
        size = abs(float(off[0, 1])) ** 0.5
        return np.asarray(np.clip([size, np.sign(off[0, 1]) * size], -MOST, MOST))
    found = np.full(n, max(float(off.sum()) / (n * (n - 1)), 1e-3) ** 0.5)
    for _ in range(500):
        before = found.copy()
        for i in range(n):  # one at a time, each step the exact minimum in l_i
            found[i] = off[i] @ found / max(found @ found - found[i] ** 2, 1e-12)
        if np.abs(found - before).max() < 1e-9:
            break
    return np.asarray(np.clip(found, -MOST, MOST))


def within(c: float, loading: Float[np.ndarray, " contrast"], df: float) -> float:
    """P(|T_i| <= c for all i), to about 1e-4."""
    scale = np.sqrt(chdtri(df, 0.5 - _UNIT / 2) / df)[:, None, None]
    centre, spread = loading * _HERMITE[:, None], np.sqrt(1 - loading**2)
    inside: npt.NDArray[np.float64] = (ndtr((c * scale - centre) / spread) - ndtr((-c * scale - centre) / spread)).prod(
        -1
    )
    return float(_UNIT_WEIGHTS / 2 @ inside @ _HERMITE_WEIGHTS / _HERMITE_WEIGHTS.sum())


def critical(loading: Float[np.ndarray, " contrast"], df: float, confidence: float) -> float:
    """The c that no |T_i| passes with probability `confidence`."""
    return float(brentq(lambda c: within(c, loading, df) - confidence, 0.0, 1e4, xtol=1e-6))


def power(effect: float, limit: float, df: float) -> float:
    """P(|T| > limit) for a single T whose Z has the mean `effect` (the noncentral t distribution)."""
    scale = np.sqrt(chdtri(df, 0.5 - _UNIT / 2) / df)
    return float(_UNIT_WEIGHTS / 2 @ (ndtr(effect - limit * scale) + ndtr(-effect - limit * scale)))
