"""ReLU with an annealed Lp penalty (Karvonen et al. 2024, "Measuring Progress ...", arXiv:2408.00113, section 3.2).

    z, f, x_hat as in `stages.saes.relu`
    L = mean_n ||x_n - x_hat_n||^2 + alpha mean_n sum_i f_ni^p

p is 1 for the first fifth of the training and then falls to `p_end` in ten equal steps: with p below 1 the penalty
comes closer to counting active features and shrinks large activations less. At each step of p the weight alpha is set
so that the penalty stays what it was on the last ten batches:

    alpha <- alpha E[sum_i f_i^p_old] / E[sum_i f_i^p_new]

The slope of f^p has no bound at 0, so the penalty is of f + 1e-8 where f > 0. alpha is the `coefficient` here.
"""

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from stages.lib.sae import base
from stages.lib.sae.pairs import decoded, pairs_above, squared, which_fired, write_gradients
from stages.lib.sae.penalty import PenaltyParams, PenaltySAE

CONSTANT_SHARE = 0.2
"""Of the training, with p = 1."""
N_STEPS = 10
"""Of p."""
N_BATCHES = 10
"""Behind the expectations."""
SMALL = 1e-8


class SAEParams(PenaltyParams):
    """A level is the weight of the penalty while p is 1."""

    own_level: ClassVar[str] = "l1_coefficient"
    l1_coefficient: list[PositiveFloat] | None = Field(default=None, min_length=1)
    p_end: float = Field(gt=0, lt=1)
    """The last p; 0.2 in the paper."""


class Variant(PenaltySAE):
    """A ReLU SAE with an annealed penalty in training."""

    architecture = "standard"
    usual_coefficient = 0.12

    def begin(self, decoder: Float[Tensor, "d_sae d_in"]) -> None:
        """Start with p = 1."""
        super().begin(decoder)
        self.n_falls = 0
        """How often p has fallen."""
        self.recent = torch.ones(N_BATCHES, 2, dtype=decoder.dtype, device=decoder.device)
        """E[sum f^p] with the present and the next p, of the last batches."""
        self.n_seen = 0
        """Batches since p fell."""

    def exponent(self, n_falls: int) -> float:
        """The exponent p after so many falls."""
        return float(1 - (1 - self.params.p_end) * min(n_falls, N_STEPS) / N_STEPS)

    def advance(self, progress: float) -> None:
        """Let p fall when its time has come."""
        super().advance(progress)
        falls = math.floor((progress - CONSTANT_SHARE) / (1 - CONSTANT_SHARE) * N_STEPS) + 1
        if max(0, min(falls, N_STEPS)) > self.n_falls:
            known = self.recent[: min(self.n_seen, N_BATCHES)].mean(0)
            if self.n_seen and bool((known > 0).all()):
                self.multiply_(known[0] / known[1])
            self.n_falls, self.n_seen = self.n_falls + 1, 0

    def _remember(self, shifted: Tensor, active: Tensor, n_tokens: int) -> None:
        """Keep the sums of this batch; `shifted` is f + 1e-8, of which only active entries count."""
        exponents = (self.exponent(self.n_falls), self.exponent(self.n_falls + 1))
        now, later = ((shifted.detach().pow(p) * active).sum() for p in exponents)
        self.recent[self.n_seen % N_BATCHES] = torch.stack([now, later]) / n_tokens
        self.n_seen += 1

    def losses(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:
        """L."""
        feature_acts = self.hidden_pre(x).relu()
        active, p = feature_acts > 0, self.exponent(self.n_falls)
        shifted = feature_acts + SMALL
        self._remember(shifted, active, len(x))
        return base.Losses(
            fvu=(x - self.decode(feature_acts)).square().sum() / len(x),
            sparsity=warm_up * self.coefficient * (shifted.pow(p) * active).sum() / len(x),
            auxiliary=x.new_zeros(()),
            l0=active.sum() / len(x),
            fired=active.any(0),
        )

    def gradients(self, x: Float[Tensor, "token d_in"], warm_up: float) -> base.Losses:
        """The gradient of L, on a CPU over active features alone."""
        if x.device.type != "cpu":
            return super().gradients(x, warm_up)
        pairs = pairs_above(self, x, torch.zeros_like(self.b_enc))
        codes, p = pairs.z.relu(), self.exponent(self.n_falls)
        active, shifted = codes > 0, codes + SMALL
        weight = warm_up * self.coefficient / len(x)
        self._remember(shifted, active, len(x))
        error, slope = decoded(self, x, pairs, codes)
        hidden_gradient = slope.mul_(2 / len(x)).add_(weight * p * shifted.pow(p - 1)).mul_(active)
        write_gradients(self, x, pairs, codes, hidden_gradient, error)
        return base.Losses(
            fvu=squared(error) / len(x),
            sparsity=weight * shifted[active].pow(p).sum(),
            auxiliary=x.new_zeros(()),
            l0=active.sum() / len(x),
            fired=which_fired(pairs, codes, self.d_sae),
        )

    def state(self) -> dict[str, Any]:
        """All that changes in training."""
        own = {"recent": self.recent, "n_falls": self.n_falls, "n_seen": self.n_seen}
        return {**super().state(), **own}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        super().restore(state)
        self.recent.copy_(state["recent"])
        self.n_falls, self.n_seen = state["n_falls"], state["n_seen"]
