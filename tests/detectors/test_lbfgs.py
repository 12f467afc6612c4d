"""Functions minimised side by side: the known minimum of parabolas, and SciPy's of the dense probe's loss."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit

from stages.lib.detectors.lbfgs import minimise
from stages.lib.detectors.probes import logistic_gradient


def test_the_lowest_points_of_parabolas() -> None:
    generator = torch.Generator().manual_seed(0)
    lowest = torch.randn(6, 4, generator=generator)
    steep = torch.tensor([1.0, 100.0, 0.01, 1.0]) * torch.logspace(-1, 1, 6)[:, None]

    def gradient(at: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return steep[:, columns] * (at - lowest[:, columns])

    found = minimise(gradient, torch.zeros(6, 4), torch.ones(4))
    assert (steep * (found - lowest).square()).sum(0).max() < 1e-6


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs that end with a 1, and labels of which some are rare."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((5000, 6))
    labels = generator.random((5000, 3)) < expit(x @ generator.standard_normal((6, 3)) * 2 - [0, 2, 6])
    return torch.from_numpy(np.c_[x, np.ones(5000)]).float(), torch.from_numpy(labels).to(torch.uint8)


def test_the_minimum_of_logistic_losses_is_scipys() -> None:
    (x, y), l2 = problem(), 1e-3
    found = minimise(partial(logistic_gradient, x, y, l2), torch.zeros(7, 3), torch.full((3,), 0.25))
    inputs, penalty = x.double().numpy(), l2 * (np.arange(7) < 6)

    def loss(theta: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
        z = inputs @ theta
        value = (np.logaddexp(0, z) - labels * z).mean() + (penalty * theta**2).sum() / 2
        return value, inputs.T @ (expit(z) - labels) / len(z) + penalty * theta

    for c in range(3):
        best = minimize(loss, np.zeros(7), (y[:, c].double().numpy(),), jac=True, options={"gtol": 1e-9})
        assert loss(found[:, c].double().numpy(), y[:, c].double().numpy())[0] - best.fun < 1e-6
        assert found[:, c].numpy() == pytest.approx(best.x, abs=2e-2)


def test_the_gradient_is_autograds() -> None:
    x, y = problem()
    theta = torch.randn(7, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    columns = torch.tensor([2, 0])
    own = y[:, columns].float()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(x @ theta, own, reduction="none").mean(0).sum()
    (loss + 0.05 * theta[:-1].square().sum()).backward()
    found = logistic_gradient(x, y, 0.1, theta.detach(), columns)
    assert torch.allclose(found, theta.grad, atol=1e-5)
