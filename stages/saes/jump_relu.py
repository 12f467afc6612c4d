"""JumpReLU with an L0 penalty (Rajamanoharan et al. 2024, "Jumping Ahead", arXiv:2407.14435, sections 3 and 4).

    z = (x - b_dec) W_enc + b_enc                               [token, d_sae]
    f = z H(z - threshold)                                      [token, d_sae]; H: Heaviside, threshold > 0 [d_sae]
    x_hat = f W_dec + b_dec                                     [token, d_in]
    L = mean_n ||x_n - x_hat_n||^2 + l0_coefficient mean_n sum_i H(z_ni - threshold_i)

H has no useful derivative with respect to the threshold, so the paper's pseudo-derivatives stand in (its section 4),
with the kernel K(u) = 1 for |u| < 1/2 and b = bandwidth:

    df/dz = H(z - threshold)        df/dthreshold = -(threshold / b) K((z - threshold) / b)
    dH/dz = 0                       dH/dthreshold = -(1 / b) K((z - threshold) / b)

The penalty is on z: on f, which is 0 below the threshold, half of the kernel's window would be lost. The threshold is a
weight itself and not its logarithm, which could move only by a fixed factor in a short training.
"""

from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from stages.lib import sae
from stages.lib.pairs import decoded, pairs_above, squared, which_fired, write_gradients

MIN_THRESHOLD = 1e-6


class SAEParams(sae.SAEParams):
    """A level is a weight of the penalty."""

    l0_coefficient: list[PositiveFloat] = Field(min_length=1)
    bandwidth: PositiveFloat
    """Width b of the window in which pre-activations move the threshold."""
    initial_threshold: PositiveFloat


def window(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """K((z - threshold) / bandwidth)."""
    return ((z - threshold).abs() < bandwidth / 2).to(z.dtype)


class JumpReLU(torch.autograd.Function):
    """f with its pseudo-derivatives."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        """The product z H(z - threshold)."""
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """df/dz and df/dthreshold."""
        z, threshold = ctx.saved_tensors
        slope = -(threshold / ctx.bandwidth) * window(z, threshold, ctx.bandwidth)
        return gradient * (z > threshold), (gradient * slope).sum(0), None


class Step(torch.autograd.Function):
    """H(z - threshold) with its pseudo-derivative."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        """H(z - threshold)."""
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        """dH/dthreshold."""
        z, threshold = ctx.saved_tensors
        return None, -(gradient * window(z, threshold, ctx.bandwidth)).sum(0) / ctx.bandwidth, None


class Variant(sae.SAE):
    """A JumpReLU SAE in training."""

    architecture = "jumprelu"
    sparsity_name = "l0_coefficient"
    trained = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")

    def more_weights(self, decoder: Float[Tensor, "d_sae d_in"]) -> dict[str, Tensor]:
        """The threshold."""
        return {"threshold": decoder.new_full((len(decoder),), self.params.initial_threshold)}

    def constrain_(self) -> None:
        """Keep the threshold positive; clamping it in the loss would take away its gradient at the bound."""
        self.threshold.clamp_(min=MIN_THRESHOLD)

    def losses(self, x: Float[Tensor, "token d_in"], warm_up: float) -> sae.Losses:
        """L."""
        z = self.hidden_pre(x)
        feature_acts = JumpReLU.apply(z, self.threshold, self.params.bandwidth)  # type: ignore[no-untyped-call]
        steps = Step.apply(z, self.threshold, self.params.bandwidth)  # type: ignore[no-untyped-call]
        n_active = steps.sum() / len(x)
        return sae.Losses(
            fvu=(x - self.decode(feature_acts)).square().sum() / len(x),
            sparsity=warm_up * self.sparsity * n_active,
            auxiliary=x.new_zeros(()),
            l0=n_active.detach(),
            fired=(feature_acts > 0).any(0),
        )

    def gradients(self, x: Float[Tensor, "token d_in"], warm_up: float) -> sae.Losses:
        """The gradient of L, on a CPU over the pairs that are active or in the threshold's window."""
        if x.device.type != "cpu":
            return super().gradients(x, warm_up)
        threshold, half = self.threshold.detach(), self.params.bandwidth / 2
        pairs = pairs_above(self, x, threshold - half)
        limit = threshold[pairs.feature]
        active, near = pairs.z > limit, (pairs.z - limit).abs() < half
        codes = pairs.z * active
        error, slope = decoded(self, x, pairs, codes)
        slope.mul_(2 / len(x))
        write_gradients(self, x, pairs, codes, slope * active, error)
        coefficient = warm_up * self.sparsity / len(x)
        through = torch.bincount(pairs.feature, near * (limit * slope + coefficient), self.d_sae)
        assert self.threshold.grad is not None
        torch.div(through, -self.params.bandwidth, out=self.threshold.grad)
        n_active = active.sum()
        return sae.Losses(
            fvu=squared(error) / len(x),
            sparsity=coefficient * n_active,
            auxiliary=x.new_zeros(()),
            l0=n_active / len(x),
            fired=which_fired(pairs, codes, self.d_sae),
        )
