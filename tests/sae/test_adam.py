"""The optimiser against PyTorch's own, and against a step worked out by hand."""

import subprocess
import sys

import pytest
import torch

from stages.lib.sae.adam import Adam
from tests.toy import ROOT


def test_same_bits_as_pytorch() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1001, generator=generator)
    theirs = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.Adam([theirs], lr=0.0, fused=True)
    mine = start.clone()
    adam = Adam(mine)
    for step in range(20):
        gradient = torch.randn(1001, generator=generator) * 10.0 ** -(step % 7)
        theirs.grad = gradient.clone()
        optimiser.param_groups[0]["lr"] = lr = 1e-3 * (step + 1)
        optimiser.step()
        adam.update_(mine, gradient, lr)
        assert torch.equal(mine, theirs.detach())
    state = optimiser.state[theirs]
    assert adam.state().keys() == state.keys()
    for name, kept in adam.state().items():
        assert torch.equal(kept, state[name]), name


def test_first_step_by_hand() -> None:
    # m / (1 - 0.9) = g and v / (1 - 0.999) = g^2, so the step is lr g / (|g| + 1e-8).
    weights = torch.tensor([1.0, 1.0, 1.0])
    Adam(weights).update_(weights, torch.tensor([0.5, -2.0, 0.0]), 0.1)
    assert weights.tolist() == pytest.approx([0.9, 1.1, 1.0])


def test_goes_on_from_a_state() -> None:
    gradients = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    whole, parts = torch.zeros(5), torch.zeros(5)
    adam, first, second = Adam(whole), Adam(parts), Adam(parts)
    for gradient in gradients:
        adam.update_(whole, gradient, 0.01)
    for gradient in gradients[:3]:
        first.update_(parts, gradient, 0.01)
    second.restore(first.state())
    for gradient in gradients[3:]:
        second.update_(parts, gradient, 0.01)
    assert torch.equal(whole, parts)


def test_a_step_does_not_import_the_compiler() -> None:
    code = "import sys, tests.warm; sys.exit('torch._dynamo' in sys.modules or 'sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
