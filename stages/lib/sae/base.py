"""What every SAE does in training: initialisation, the optimiser's step, and the count of dead features.

With normalised activations x (mean 0, mean squared norm 1; so a summed squared error is a fraction of variance
unexplained), feature directions W_dec[i] of norm 1 and

    z = (x - b_dec) W_enc + b_enc      [token, d_sae]        f = activation(z)      x_hat = f W_dec + b_dec

a step is: gradient of mean_n ||x_n - x_hat_n||^2 + the variant's own losses; remove the component of each decoder
gradient along its direction (it would only change the norm); clip the norm of all gradients together to 1; Adam
(Kingma & Ba 2015, arXiv:1412.6980, algorithm 1); decoder rows back to norm 1 (Bricken et al. 2023, "Towards
Monosemanticity", appendix). The encoder starts as the decoder's transpose and all biases at 0 (Gao et al. 2024,
arXiv:2406.04093, appendix A.1).

A variant is a file in `stages/saes/` with `SAEParams` and `Variant`. It has to write down its losses; the gradient is
then PyTorch's. It may compute the same gradient faster.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from stages.lib.io.errors import UserError
from stages.lib.io.params import Params
from stages.lib.sae.adam import Adam

MAX_GRADIENT_NORM = 1.0


class SAEParams(Params):
    """What every arm has; variants add their own.

    A level is a wanted number of active features a token, in `l0`, or what the method has for it, such as k.
    """

    own_level: ClassVar[str]
    """The method's own list of levels, which may be given in place of `l0`."""

    variant: str
    """A file in `stages/saes/`."""
    activations: str
    """The revision of the language model whose activations are learnt."""
    l0: list[PositiveFloat] | None = Field(default=None, min_length=1)
    """Wanted active features a token on held-out activations."""
    lr: PositiveFloat | None = Field(default=None)
    """Learning rate of this arm, where `train.lr` does not suit it."""

    @model_validator(mode="after")
    def _one_list_of_levels(self) -> "SAEParams":
        given = [name for name in ("l0", self.own_level) if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"has to list its levels in either l0 or {self.own_level}, not in {len(given)} of them")
        return self

    @property
    def level_name(self) -> str:
        """The setting that lists the levels."""
        return self.own_level if self.l0 is None else "l0"

    @property
    def levels(self) -> list[int] | list[float]:
        """One SAE each."""
        found: list[int] | list[float] = getattr(self, self.level_name)
        return found

    def check(self, arm: str, d_sae: int) -> None:
        """Raise a `UserError` for settings that do not fit the width of the dictionary; variants add their own."""
        for l0 in self.l0 or []:
            if l0 >= d_sae:
                raise UserError(f"saes.{arm}.l0 must be below d_sae = {d_sae}, not {l0:g}")


class Losses(NamedTuple):
    """What one batch gives; scalars are tensors, so that nothing waits for the device."""

    fvu: Float[Tensor, ""]
    """mean_n ||x_n - x_hat_n||^2."""
    sparsity: Float[Tensor, ""]
    """The loss that keeps features from firing, times its coefficient."""
    auxiliary: Float[Tensor, ""]
    """The loss that revives dead features, times its coefficient."""
    l0: Float[Tensor, ""]
    """Active features per token."""
    fired: Bool[Tensor, " d_sae"]
    """Whether the feature fired in this batch."""


class SAE:
    """One SAE in training.

    Weights are attributes in SAELens' layout. All trained ones are views into one vector, and so are their gradients,
    so that clipping and Adam are a handful of operations; W_enc is stored by feature, as its gradient comes.

    Args:
        params: the arm's settings.
        level: one of its levels.
        decoder: initial directions, unit rows.
        dead_tokens: a feature is dead when it has not fired on as many tokens.
        encoder_dtype: a coarser type in which a CPU may search for the active features, whose pre-activations are then
            computed again in that of the weights.
    """

    architecture: ClassVar[str]
    """SAELens' name of what inference needs."""
    trained: ClassVar[tuple[str, ...]] = ("W_enc", "b_enc", "W_dec", "b_dec")
    unit_norm: bool = True
    """Whether decoder rows are kept at norm 1."""
    n_resampled: int = 0
    """Features that were given new weights because they were dead, counted every time."""
    shift: float = 0.0
    """Of the pre-activation above which features fire, after the last step."""
    threshold: Tensor
    coefficient: Tensor | float = 0.0
    """Weight of the sparsity loss, where there is one."""

    def __init__(
        self,
        params: Any,
        level: float | int,
        decoder: Float[Tensor, "d_sae d_in"],
        dead_tokens: int,
        encoder_dtype: torch.dtype | None = None,
    ) -> None:
        self.params, self.level, self.dead_tokens, self.encoder_dtype = params, level, dead_tokens, encoder_dtype
        self.d_sae, self.d_in = decoder.shape
        initial = {
            "W_enc": decoder,
            "b_enc": decoder.new_zeros(self.d_sae),
            "W_dec": decoder,
            "b_dec": decoder.new_zeros(self.d_in),
            **self.more_weights(decoder),
        }
        self.names = [*initial]
        size = sum(initial[name].numel() for name in self.trained)
        self._weights = torch.nn.Parameter(decoder.new_empty(size))
        self._weights.grad = decoder.new_zeros(size)
        start = 0
        for name, value in initial.items():
            if name in self.trained:
                part = slice(start, start := start + value.numel())
                stored, gradient = (
                    flat[part].view(value.shape) for flat in (self._weights.detach(), self._weights.grad)
                )
                stored.copy_(value)
                weight = (stored.T if name == "W_enc" else stored).requires_grad_()
                weight.grad = gradient.T if name == "W_enc" else gradient
            else:
                weight = (value.T if name == "W_enc" else value).clone()
            setattr(self, name, weight)
        self._adam = Adam(self._weights.detach())
        self.tokens_since_fired = torch.zeros(self.d_sae, dtype=torch.int64, device=decoder.device)
        self.begin(decoder)

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def more_weights(self, decoder: Float[Tensor, "d_sae d_in"]) -> dict[str, Tensor]:  # noqa: ARG002
        """Initial values of weights that only this variant has; their names must be in `trained` to be trained."""
        return {}

    def begin(self, decoder: Float[Tensor, "d_sae d_in"]) -> None:
        """Set up what only this variant keeps; `decoder` are the initial directions."""

    def look_at(self, sample: Float[Tensor, "token d_in"]) -> None:
        """See validation activations, before the first step."""

    def losses(self, x: Float[Tensor, "token d_in"], warm_up: float) -> Losses:
        """The method itself: its losses, differentiable; `warm_up` in [0, 1] scales the sparsity coefficient."""
        raise NotImplementedError

    def gradients(self, x: Float[Tensor, "token d_in"], warm_up: float) -> Losses:
        """Write the gradient of the losses' sum over `.grad` of every trained weight."""
        assert self._weights.grad is not None
        self._weights.grad.zero_()
        with torch.enable_grad():
            losses = self.losses(x, warm_up)
            (losses.fvu + losses.sparsity + losses.auxiliary).backward()  # type: ignore[no-untyped-call]
        return Losses(*(value.detach() for value in losses))

    def constrain_(self) -> None:
        """Bring weights that only this variant has back into their range after a step."""

    def advance(self, progress: float) -> None:
        """What changes with the share of the training that is done, before a step."""

    def lead(self, losses: Losses, lr: float, warm_up: float) -> None:
        """What follows from a step, after it."""

    def settle(self, x: Float[Tensor, "token d_in"]) -> None:
        """Set what inference needs and training does not, from validation activations."""

    def finish(self, x: Float[Tensor, "token d_in"]) -> None:
        """Do what is left after the last step, with validation activations."""

    def shifted(self) -> dict[str, Tensor]:
        """What is exported after the last step."""
        return self.export()

    def calibrated(self, x: Float[Tensor, "token d_in"]) -> dict[str, Tensor]:
        """The weights of inference at the level's L0 on these validation activations, at any step of the training."""
        self.settle(x)
        return self.export()

    def export(self) -> dict[str, Tensor]:
        """The weights of inference, as `architecture` has them, detached."""
        return self.weights()

    def hidden_pre(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_sae"]:
        """Pre-activations z = (x - b_dec) W_enc + b_enc."""
        return torch.addmm(self.b_enc, x - self.b_dec, self.W_enc)

    def decode(self, feature_acts: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token d_in"]:
        """x_hat = f W_dec + b_dec."""
        return torch.addmm(self.b_dec, feature_acts, self.W_dec)

    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Which features have not fired on the last `dead_tokens` tokens."""
        return self.tokens_since_fired >= self.dead_tokens

    @torch.no_grad()
    def step(self, x: Float[Tensor, "token d_in"], lr: float, warm_up: float) -> Losses:
        """Train on one batch; what it returns is from before the update."""
        losses = self.gradients(x, warm_up)
        self.tokens_since_fired.add_(len(x)).masked_fill_(losses.fired, 0)
        gradient = self._weights.grad
        assert gradient is not None
        if "W_dec" in self.trained and self.unit_norm:
            assert self.W_dec.grad is not None
            remove_radial_(self.W_dec.grad, self.W_dec)
        gradient.mul_((MAX_GRADIENT_NORM / gradient.norm()).clamp(max=1.0))
        self._adam.update_(self._weights.detach(), gradient, lr)
        if "W_dec" in self.trained and self.unit_norm:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))
        self.constrain_()
        return losses

    def moments(self, name: str) -> list[Tensor]:
        """The optimiser's moving averages for a trained weight, in its shape; they change with the next step."""
        weight = getattr(self, name).detach()
        place = (weight.shape, weight.stride(), weight.storage_offset())
        return [kept.as_strided(*place) for kept in (self._adam.exp_avg, self._adam.exp_avg_sq)]

    def weights(self) -> dict[str, Tensor]:
        """All weights by name, detached; they change with the next step."""
        return {name: getattr(self, name).detach() for name in self.names}

    def state(self) -> dict[str, Any]:
        """All that changes in training."""
        return {
            "weights": self._weights.detach(),
            "adam": self._adam.state(),
            "tokens_since_fired": self.tokens_since_fired,
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._weights.copy_(state["weights"])
        self._adam.restore(state["adam"])
        self.tokens_since_fired.copy_(state["tokens_since_fired"])


def random_directions(d_sae: int, d_in: int, generator: torch.Generator) -> Float[Tensor, "d_sae d_in"]:
    """Directions drawn uniformly from the sphere."""
    directions = torch.randn(d_sae, d_in, generator=generator)
    return torch.nn.functional.normalize(directions, dim=1)


def remove_radial_(gradient: Float[Tensor, "d_sae d_in"], directions: Float[Tensor, "d_sae d_in"]) -> None:
    """Remove from each row of the gradient its component along the unit direction, in place."""
    gradient.addcmul_((gradient * directions).sum(1, keepdim=True), directions, value=-1)
