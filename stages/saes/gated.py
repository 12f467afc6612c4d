"""Gated SAE (Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated SAEs", arXiv:2404.16014, section 3).

    u = (x - b_dec) W_enc                                       [token, d_sae]
    pi = u + b_enc,    g = H(pi)                                [token, d_sae]; H: Heaviside; b_enc: the paper's b_gate
    m = max(exp(r_mag) u + b_mag, 0),    f = g m                [token, d_sae]; r_mag, b_mag: [d_sae]
    x_hat = f W_dec + b_dec,   ||W_dec[i]|| = 1                 [token, d_in]
    L = mean_n ||x_n - x_hat_n||^2 + l1_coefficient mean_n sum_i max(pi_ni, 0)
        + mean_n ||x_n - max(pi_n, 0) sg(W_dec) - sg(b_dec)||^2

sg takes its argument for a constant: without it the decoder would be pulled towards the shrunken codes max(pi, 0). No
gradient passes H, so only the last two terms train the gate.

The gate opens where exp(r_mag) u + b_mag > b_mag - exp(r_mag) b_enc, so at inference this is a JumpReLU SAE (the
paper's appendix E) with W_enc exp(r_mag), bias b_mag and that threshold, or 0 where it is negative; it is saved as one.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from stages.lib.sae import base
from stages.lib.sae.pairs import decoded, pairs_above, squared, which_fired, write_gradients
from stages.lib.sae.penalty import PenaltyParams, PenaltySAE


class SAEParams(PenaltyParams):
    """A level is a weight of the penalty."""

    own_level: ClassVar[str] = "l1_coefficient"
    l1_coefficient: list[PositiveFloat] | None = Field(default=None, min_length=1)


class Variant(PenaltySAE):
    """A gated SAE in training."""

    architecture = "jumprelu"
    usual_coefficient = 0.25
    trained = ("W_enc", "b_enc", "W_dec", "b_dec", "r_mag", "b_mag")
    r_mag: Tensor
    b_mag: Tensor

    def more_weights(self, decoder: Float[Tensor, "d_sae d_in"]) -> dict[str, Tensor]:
        """Scale and bias of the magnitudes."""
        return {"r_mag": decoder.new_zeros(len(decoder)), "b_mag": decoder.new_zeros(len(decoder))}

    def export(self) -> dict[str, Tensor]:
        """The JumpReLU SAE that it is."""
        weights = self.weights()
        scale, b_mag = weights.pop("r_mag").exp(), weights.pop("b_mag")
        threshold = (b_mag - scale * weights["b_enc"]).clamp_min(0)
        return {**weights, "W_enc": weights["W_enc"] * scale, "b_enc": b_mag, "threshold": threshold}

    def losses(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:
        """L."""
        pi = self.hidden_pre(x)
        opened = pi.relu()
        feature_acts = (pi > 0) * (self.r_mag.exp() * (pi - self.b_enc) + self.b_mag).relu()
        by_gate = opened @ self.W_dec.detach() + self.b_dec.detach()
        active = feature_acts > 0
        return base.Losses(
            fvu=(x - self.decode(feature_acts)).square().sum() / len(x),
            sparsity=warm_up * self.coefficient * opened.sum() / len(x),
            auxiliary=(x - by_gate).square().sum() / len(x),
            l0=active.sum() / len(x),
            fired=active.any(0),
        )

    def gradients(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:
        """The gradient of L, on a CPU over the pairs whose gate is open."""
        if x.device.type != "cpu":
            return super().gradients(x, warm_up)
        pairs = pairs_above(self, x, torch.zeros_like(self.b_enc))
        opened, is_open = pairs.z.relu(), pairs.z > 0
        scale = self.r_mag.detach().exp()[pairs.feature]
        u = pairs.z - self.b_enc.detach()[pairs.feature]
        codes = (scale * u + self.b_mag.detach()[pairs.feature]).relu_().mul_(is_open)
        active, weight = codes > 0, warm_up * self.coefficient / len(x)
        error, slope = decoded(self, x, pairs, codes)
        gate_error, gate_slope = decoded(self, x, pairs, opened)
        m_gradient = slope.mul_(2 / len(x)).mul_(active)
        pi_gradient = gate_slope.mul_(2 / len(x)).add_(weight).mul_(is_open)
        write_gradients(self, x, pairs, codes, pi_gradient + scale * m_gradient, error)

        def by_feature(values: Tensor) -> Tensor:
            return torch.bincount(pairs.feature, values, self.d_sae).to(x.dtype)

        assert self.b_enc.grad is not None and self.b_mag.grad is not None and self.r_mag.grad is not None
        self.b_enc.grad.copy_(by_feature(pi_gradient))  # the magnitudes do not see it
        self.b_mag.grad.copy_(by_feature(m_gradient))
        self.r_mag.grad.copy_(by_feature(m_gradient * scale * u))
        return base.Losses(
            fvu=squared(error) / len(x),
            sparsity=weight * opened.sum(),
            auxiliary=squared(gate_error) / len(x),
            l0=active.sum() / len(x),
            fired=which_fired(pairs, codes, self.d_sae),
        )
