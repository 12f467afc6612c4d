"""Small logistic regressions against SciPy's minimum of the loss as it is written."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from stages.lib.detectors.logistic import fit_logistic


def loss(theta: np.ndarray, x: np.ndarray, y: np.ndarray, l2: float) -> float:
    """The mean log-loss with the penalty."""
    z = x @ theta[:-1] + theta[-1]
    return float((np.logaddexp(0, z) - y * z).mean() + l2 / 2 * (theta[:-1] ** 2).sum())


def gradient(theta: np.ndarray, x: np.ndarray, y: np.ndarray, l2: float) -> np.ndarray:
    """Its gradient."""
    residual = (expit(x @ theta[:-1] + theta[-1]) - y) / len(y)
    return np.append(x.T @ residual + l2 * theta[:-1], residual.sum())


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-5])
def test_the_minimum_is_scipys(k: int, l2: float) -> None:
    generator = np.random.default_rng(k)
    x = np.maximum(generator.standard_normal((4, 300, k)), 0).astype(np.float32) * 3
    y = generator.random((4, 300)) < expit(x.sum(2) - 2)
    x[1, :, 0] = y[1]  # tells all
    x[2] = 0  # tells nothing
    x[3] *= np.arange(300)[:, None] < 3  # tells of few
    found = fit_logistic(x, y, l2)
    for c in range(4):
        args = (x[c].astype(np.float64), y[c], l2)
        best = minimize(loss, np.zeros(k + 1), args, jac=gradient, method="BFGS", options={"gtol": 1e-10})
        assert found[c] == pytest.approx(best.x, abs=1e-6, rel=1e-6)
        assert np.abs(gradient(found[c], *args)).max() < 1e-9


def test_weights_of_inputs_that_tell_nothing_are_0() -> None:
    found = fit_logistic(np.zeros((1, 4, 2), np.float32), np.array([[True, True, True, False]]), 1e-3)
    assert found[0].tolist() == pytest.approx([0, 0, np.log(3)])
