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

All thresholds start at one number, `initial_threshold`, or, where that is not given, at that of the wanted L0 T,

    threshold_0 = the (1 - T / d_sae) quantile of z at initialisation on validation activations.

Thresholds hardly rise in a training. What starts denser than T is thinned out by moving all other weights, and features
die of it: with 0.05 in place of the 0.136 that this gives at T = 16, d_sae = 512 and d_in = 192, the FVU of the default
run ends 7 % higher, with a tenth of the features dead.

`loss` chooses another penalty in place of the one in L, which is `step`:

    quadratic   (L0 / T - 1)^2 with L0 = mean_n sum_i H(z_ni - threshold_i) (Rajamanoharan et al. 2024, appendix on
                target sparsity); levels are wanted L0 and T, which starts there, is what `stages.lib.sae.penalty` leads
    tanh        l0_coefficient mean_n sum_i tanh(4 sqrt(d_in) f_ni) (Anthropic, January 2025, "Dictionary Learning
                Optimization Techniques", transformer-circuits.pub; their activations have mean squared norm d_in).
                Through f it trains all weights, with df/dz = H(z - threshold) + (threshold / b) K((z - threshold) / b)

and with `pre_act_coefficient` (same source) dead features, which have no gradient otherwise, are pulled back by
pre_act_coefficient mean_n sum_{i dead} max(threshold_i - z_ni, 0), in which b_dec is a constant.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from stages.lib.io.errors import UserError
from stages.lib.sae import base
from stages.lib.sae.pairs import decoded, pairs_above, squared, which_fired, write_gradients
from stages.lib.sae.penalty import MEASURED_ON, PenaltyParams, PenaltySAE

MIN_THRESHOLD = 1e-6
TANH_SCALE = 4.0
"""Of f, for activations of mean squared norm d_in."""


class SAEParams(PenaltyParams):
    """A level is a weight of the penalty."""

    own_level: ClassVar[str] = "l0_coefficient"
    l0_coefficient: list[PositiveFloat] | None = Field(default=None, min_length=1)
    loss: Literal["step", "quadratic", "tanh"] = "step"
    bandwidth: PositiveFloat
    """Width b of the window in which pre-activations move the threshold."""
    initial_threshold: PositiveFloat | None = None
    """Where all thresholds start, instead of where they leave the wanted L0."""
    pre_act_coefficient: NonNegativeFloat = 0.0

    def check(self, arm: str, d_sae: int) -> None:
        """Raise a `UserError` for levels that do not fit the loss."""
        super().check(arm, d_sae)
        if self.loss == "quadratic" and self.l0 is None:
            raise UserError(f"saes.{arm}.loss is quadratic, which needs wanted L0: give l0 and not l0_coefficient")
        if self.initial_threshold is None and self.l0 is None:
            raise UserError(f"saes.{arm} has no wanted l0 that its thresholds could start at: give initial_threshold")


def window(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """K((z - threshold) / bandwidth)."""
    return ((z - threshold).abs() < bandwidth / 2).to(z.dtype)


class JumpReLU(torch.autograd.Function):
    """f with its pseudo-derivatives."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float, to_input: bool) -> Tensor:
        """The product z H(z - threshold)."""
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """df/dz and df/dthreshold."""
        z, threshold = ctx.saved_tensors
        jump = gradient * (threshold / ctx.bandwidth) * window(z, threshold, ctx.bandwidth)
        smooth = gradient * (z > threshold)
        return smooth + jump if ctx.to_input else smooth, -jump.sum(0), None, None


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


class Variant(PenaltySAE):
    """A JumpReLU SAE in training."""

    architecture = "jumprelu"
    trained = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    usual_coefficient = 0.006
    first_threshold: float | None = None
    """At which validation activations have the wanted L0 before the first step."""

    def more_weights(self, decoder: Float[Tensor, "d_sae d_in"]) -> dict[str, Tensor]:
        """The threshold; before validation activations are seen, as if z were normal with the variance 1 / d_in."""
        first = self.params.initial_threshold or self.first_threshold
        if first is None:
            share = torch.tensor(1 - self.level / len(decoder), dtype=torch.float64)
            first = float(torch.special.ndtri(share)) / decoder.shape[1] ** 0.5
        return {"threshold": decoder.new_full((len(decoder),), max(first, MIN_THRESHOLD))}

    @torch.no_grad()
    def look_at(self, sample: Float[Tensor, "token d_in"]) -> None:
        """Keep validation activations, and start the thresholds where these have the wanted L0."""
        super().look_at(sample)
        if self.params.initial_threshold is None:
            z = self.hidden_pre(sample[:: -(-len(sample) // MEASURED_ON)]).flatten()
            n_active = round(self.level / self.d_sae * len(z))
            self.first_threshold = max(float(z.kthvalue(len(z) - n_active).values), MIN_THRESHOLD)
            self.threshold.fill_(self.first_threshold)

    def begin(self, decoder: Float[Tensor, "d_sae d_in"]) -> None:
        """Set T, where the loss has one; its weight is 1."""
        super().begin(decoder)
        self.target = torch.full_like(self.coefficient, self.level)
        if self.params.loss == "quadratic":
            self.coefficient.fill_(1.0)

    def multiply_(self, factor: Float[Tensor, ""]) -> None:
        """Strengthen the penalty."""
        if self.params.loss == "quadratic":
            self.target.div_(factor)
        else:
            super().multiply_(factor)

    def state(self) -> dict[str, Any]:
        """All that changes in training."""
        return {**super().state(), "target": self.target}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        super().restore(state)
        self.target.copy_(state["target"])

    def constrain_(self) -> None:
        """Keep the threshold positive; clamping it in the loss would take away its gradient at the bound."""
        self.threshold.clamp_(min=MIN_THRESHOLD)

    def saturated(self, feature_acts: Tensor) -> Tensor:
        """tanh(4 sqrt(d_in) f)."""
        return (TANH_SCALE * math.sqrt(self.d_in) * feature_acts).tanh()

    def _penalty(self, n_active: Tensor, feature_acts: Tensor) -> Tensor:
        if self.params.loss == "quadratic":
            return (n_active / self.target - 1).square()
        return self.saturated(feature_acts).sum() / len(feature_acts) if self.params.loss == "tanh" else n_active

    def _pull(self, z: Tensor) -> Tensor:
        """The loss that pulls dead features back."""
        z = z + (self.b_dec - self.b_dec.detach()) @ self.W_enc  # the same, without a gradient of b_dec
        below = (self.threshold - z).relu() * self.dead()
        return below.sum().mul(self.params.pre_act_coefficient / len(z))

    def losses(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:
        """L."""
        own, z = self.params, self.hidden_pre(x)
        feature_acts = JumpReLU.apply(z, self.threshold, own.bandwidth, own.loss == "tanh")  # type: ignore[no-untyped-call]
        steps = Step.apply(z, self.threshold, own.bandwidth)  # type: ignore[no-untyped-call]
        n_active = steps.sum() / len(x)
        return base.Losses(
            fvu=(x - self.decode(feature_acts)).square().sum() / len(x),
            sparsity=warm_up * self.coefficient * self._penalty(n_active, feature_acts),
            auxiliary=self._pull(z) if own.pre_act_coefficient else x.new_zeros(()),
            l0=n_active.detach(),
            fired=(feature_acts > 0).any(0),
        )

    def gradients(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:
        """The gradient of L, on a CPU over the pairs that are active or in the threshold's window."""
        if x.device.type != "cpu":
            return super().gradients(x, warm_up)
        own, threshold = self.params, self.threshold.detach()
        half = own.bandwidth / 2
        pairs = pairs_above(self, x, threshold - half)
        limit = threshold[pairs.feature]
        active, near = pairs.z > limit, (pairs.z - limit).abs() < half
        codes = pairs.z * active
        error, slope = decoded(self, x, pairs, codes)
        slope.mul_(2 / len(x))
        weight, n_active = warm_up * self.coefficient, active.sum() / len(x)
        per_active, loss = weight / len(x), weight * n_active
        if own.loss == "quadratic":
            miss = n_active / self.target - 1
            per_active, loss = 2 * weight * miss / self.target / len(x), weight * miss.square()
        through = near * (limit * slope + per_active)
        hidden_gradient = slope * active
        if own.loss == "tanh":
            bent = self.saturated(codes)
            slope += TANH_SCALE * math.sqrt(self.d_in) * (1 - bent.square()) * per_active
            through, loss = near * limit * slope, per_active * bent.sum()
            hidden_gradient = slope * active + through / own.bandwidth
        write_gradients(self, x, pairs, codes, hidden_gradient, error)
        assert self.threshold.grad is not None
        torch.div(torch.bincount(pairs.feature, through, self.d_sae), -own.bandwidth, out=self.threshold.grad)
        return base.Losses(
            fvu=squared(error) / len(x),
            sparsity=loss,
            auxiliary=self._add_pull_gradients(x),
            l0=n_active,
            fired=which_fired(pairs, codes, self.d_sae),
        )

    def _add_pull_gradients(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, ""]:
        """The loss that pulls dead features back; adds its gradient."""
        weight, dead = self.params.pre_act_coefficient / len(x), self.dead().nonzero()[:, 0]
        if not weight or not len(dead):
            return x.new_zeros(())
        centred = x - self.b_dec.detach()
        z = torch.addmm(self.b_enc.detach()[dead], centred, self.W_enc.detach()[:, dead])
        below = (self.threshold.detach()[dead] - z).relu()
        pull = (below > 0).to(x.dtype).mul_(weight)
        assert self.W_enc.grad is not None and self.b_enc.grad is not None and self.threshold.grad is not None
        self.W_enc.grad.T.index_add_(0, dead, pull.T @ centred, alpha=-1)
        self.b_enc.grad.index_add_(0, dead, pull.sum(0), alpha=-1)
        self.threshold.grad.index_add_(0, dead, pull.sum(0))
        return below.sum().mul_(weight)
