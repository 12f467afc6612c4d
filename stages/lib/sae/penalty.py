"""What methods with a sparsity penalty share: a weight led to a wanted L0, and new weights for dead features.

A penalty's weight c says little about the L0 that it gives, so a level may be the wanted L0 instead, called T. Then c
starts at the method's usual value for an L0 of 16, times 16 / T, and once the warm-up of the sparsity loss is over it
follows, after every step,

    log c <- log c + min(SPEED lr, FASTEST) clamp(log(L0 / T(t)) + log r, -1, 1),   T(t) = T (1 + (1 - t)^3)

with the share t of the training that is done, the highest learning rate lr so far, the L0 of the batch, and r the ratio
of the L0 of validation activations to that of the batch, measured every few steps and smoothed: features fire more
often on text that the SAE has not seen. T(t) falls as L0 does under a constant weight; held at T from the start, a ReLU
finds fewer features of a known dictionary. L0 answers to c only as fast as weights move, so with a low learning rate c
moves slowly: otherwise it would run far beyond its value while L0 comes down from that of random weights, and kill
features. That leaves the last weights within a few percent of T. The rest is done after training, as BatchTopK sets its
threshold: all features get the same small shift of the pre-activation above which they fire (of b_enc for a ReLU), the
one that leaves exactly T active features a token on validation activations.

The price is a weight that changes while the SAE trains, written to `history.csv`, and the shift, written to
`train.json`. Both depend on nothing but the activations, so equal runs stay equal.

Features that are dead may get new weights at given shares of the training (Bricken et al. 2023, "Towards
Monosemanticity", appendix, "Neuron resampling"): their direction is that of an input that is reconstructed badly,
drawn in proportion to the square of its squared error, their encoder the same with a fifth of the mean norm of the
others' encoders; everything else of theirs, the optimiser's moments too, starts afresh.
"""

from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from stages.lib.run.seeds import integer
from stages.lib.sae.base import SAE, Losses, SAEParams
from stages.lib.sae.search import nth_largest

SPEED, FASTEST = 12.0, 0.06
"""Of log c, per step and factor of e in L0: the first is per unit of the learning rate."""
USUAL_L0 = 16.0
"""The wanted L0 at which the weight starts at its usual value."""
WITHIN = 0.1
"""Of the wanted L0: a last weight that is farther off is left as it is."""
MEASURED_EVERY = 10
"""Steps between measurements of r."""
MEASURED_ON = 2048
"""Validation activations of one measurement."""
SMOOTHING = 0.4
"""Weight of a new measurement of log r."""
LEAST_L0 = 0.1
"""What smaller L0 count as: their logarithms say nothing."""
ENCODER_SHARE = 0.2
"""Norm of a resampled encoder row, as a share of the mean norm of the others."""


class PenaltyParams(SAEParams):
    """What arms with a penalty have."""

    resample_at: list[Annotated[float, Field(gt=0, lt=1)]] = Field(default=[])
    """Shares of the training at which dead features get new weights."""


class PenaltySAE(SAE):
    """An SAE in training whose sparsity loss has a weight, `coefficient`."""

    coefficient: Tensor
    usual_coefficient: ClassVar[float]
    """Where the weight starts that is led to a wanted L0 of 16."""

    def begin(self, decoder: Float[Tensor, "d_sae d_in"]) -> None:
        """Set the weight."""
        self.is_led = self.params.level_name == "l0"
        first = self.usual_coefficient * USUAL_L0 / self.level if self.is_led else self.level
        self.coefficient = torch.tensor(first, dtype=decoder.dtype, device=decoder.device)
        self.log_ratio = torch.zeros_like(self.coefficient)
        self.n_led = self.n_resamplings = 0
        self.highest_lr, self.progress = 0.0, 1.0
        self.is_due = False
        self.sample: Tensor | None = None

    def look_at(self, sample: Float[Tensor, "token d_in"]) -> None:
        """Keep validation activations, on which L0 is measured."""
        self.sample = sample

    def lead(self, losses: Losses, lr: float, warm_up: float) -> None:
        """Bring the weight nearer to that of the wanted L0."""
        self.highest_lr = max(self.highest_lr, lr)
        if not self.is_led or warm_up < 1:
            return
        if self.sample is not None and self.n_led % MEASURED_EVERY == 0:
            self._measure(losses.l0)
        self.n_led += 1
        target = self.level * (1 + (1 - self.progress) ** 3)
        miss = losses.l0.clamp_min(LEAST_L0).div(target).log().add(self.log_ratio).clamp(-1, 1)
        self.multiply_(miss.mul(min(SPEED * self.highest_lr, FASTEST)).exp())

    def finish(self, x: Float[Tensor, "token d_in"]) -> None:
        """Shift what inference takes for active to the wanted L0 on validation activations, if that is near."""
        if self.is_led and abs(float(n_active(self.export(), x)) / self.level - 1) <= WITHIN:
            self.shift = self.wanted_shift(x)

    def wanted_shift(self, x: Float[Tensor, "token d_in"]) -> float:
        """The shift that leaves exactly the wanted L0 on these activations: midway between two pre-activations."""
        weights = self.export()
        n = round(self.level * len(x))
        above = (hidden_pre(weights, x) - weights.get("threshold", 0)).flatten()
        return sum(nth_largest(above, n)) / 2

    def shifted(self) -> dict[str, Tensor]:
        """The weights of inference, after the shift."""
        return self._shifted_by(self.shift)

    def calibrated(self, x: Float[Tensor, "token d_in"]) -> dict[str, Tensor]:
        """The weights of inference at the wanted L0, however far the training is from it."""
        return self._shifted_by(self.wanted_shift(x) if self.is_led else 0.0)

    def _shifted_by(self, shift: float) -> dict[str, Tensor]:
        weights = self.export()
        if self.architecture == "standard":
            return {**weights, "b_enc": weights["b_enc"] - shift}
        return {**weights, "threshold": (weights["threshold"] + shift).clamp_min(0)}

    def multiply_(self, factor: Float[Tensor, ""]) -> None:
        """Strengthen the penalty."""
        self.coefficient.mul_(factor)

    def _measure(self, l0: Float[Tensor, ""]) -> None:
        assert self.sample is not None
        turn, n_turns = self.n_led // MEASURED_EVERY, -(-len(self.sample) // MEASURED_ON)
        held_out = n_active(self.export(), self.sample[turn % n_turns :: n_turns])
        log_ratio = held_out.clamp_min(LEAST_L0).div(l0.clamp_min(LEAST_L0)).log().to(self.log_ratio)
        self.log_ratio.lerp_(log_ratio, SMOOTHING)

    def advance(self, progress: float) -> None:
        """See how far the training is, and whether dead features are to be resampled before the next step."""
        self.progress = progress
        self.is_due = self.n_resamplings < sum(share <= progress for share in self.params.resample_at)

    @torch.no_grad()
    def step(self, x: Float[Tensor, "token d_in"], lr: float, warm_up: float) -> Losses:
        """Train on one batch, after dead features have been resampled from it where that is due."""
        if self.is_due:
            self.resample(x)
        return super().step(x, lr, warm_up)

    def resample(self, x: Float[Tensor, "token d_in"]) -> None:
        """Give dead features new weights, each from an input of its own; features beyond those stay dead."""
        self.n_resamplings += 1
        dead = self.dead().nonzero()[:, 0]
        errors = self.errors(x).square()
        dead = dead[: int((errors > 0).sum())]
        self.n_resampled += len(dead)
        if not len(dead):
            return
        generator = torch.Generator(x.device).manual_seed(integer(self.n_resamplings, "resampling"))
        inputs = torch.multinomial(errors, len(dead), generator=generator)
        directions = torch.nn.functional.normalize(x[inputs] - self.b_dec, dim=1)
        alive = ~self.dead()
        alive |= ~alive.any()
        fresh = {name: value[dead] for name, value in self.more_weights(self.W_dec.detach()).items()}
        fresh["W_dec"] = directions * self.W_dec[alive].norm(dim=1).mean()
        norm = ENCODER_SHARE * self.W_enc[:, alive].norm(dim=0).mean()
        fresh["W_enc"] = directions * norm
        if "threshold" in fresh:  # z is smaller by as much, so that they fire as rarely as features do at the start
            fresh["threshold"] = fresh["threshold"] * norm
        fresh["b_enc"] = torch.zeros_like(self.b_enc[dead])
        self.replace_features(dead, fresh)
        self.tokens_since_fired[dead] = 0

    def errors(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, " token"]:
        """The squared error of each reconstruction."""
        weights = self.export()
        z = hidden_pre(weights, x)
        feature_acts = z * (z > weights.get("threshold", 0))
        return (x - weights["b_dec"] - feature_acts @ weights["W_dec"]).square().sum(1)

    def replace_features(self, chosen: Int[Tensor, " feature"], fresh: dict[str, Tensor]) -> None:
        """Write weights of some features, by feature, over those that they have, and forget the optimiser's moments."""
        for name, value in fresh.items():
            for weight, new in ((getattr(self, name).detach(), value), *((m, 0.0) for m in self.moments(name))):
                by_feature = weight.T if name == "W_enc" else weight
                by_feature[chosen] = new

    def state(self) -> dict[str, Any]:
        """All that changes in training."""
        own: dict[str, Any] = {"coefficient": self.coefficient, "log_ratio": self.log_ratio, "n_led": self.n_led}
        own |= {"highest_lr": self.highest_lr, "n_resamplings": self.n_resamplings, "n_resampled": self.n_resampled}
        return {**super().state(), **own}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        super().restore(state)
        self.coefficient.copy_(state["coefficient"])
        self.log_ratio.copy_(state["log_ratio"])
        self.n_led, self.highest_lr = state["n_led"], state["highest_lr"]
        self.n_resamplings = state["n_resamplings"]
        self.n_resampled = state["n_resampled"]


def hidden_pre(weights: dict[str, Tensor], x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_sae"]:
    """What has to exceed the thresholds: z = (x - b_dec) W_enc + b_enc."""
    return torch.addmm(weights["b_enc"], x - weights["b_dec"], weights["W_enc"])


def n_active(weights: dict[str, Tensor], x: Float[Tensor, "token d_in"]) -> Float[Tensor, ""]:
    """Active features a token of the SAE that is exported."""
    return torch.count_nonzero(hidden_pre(weights, x) > weights.get("threshold", 0)) / len(x)
