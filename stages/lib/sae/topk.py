"""What variants that keep the k largest pre-activations share.

TopK (Gao et al. 2024, arXiv:2406.04093, section 2.3): f_ni = max(z_ni, 0) where z_ni is among the k largest of token n,
else 0. `stages.lib.sae.auxk` has the loss that revives dead features.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from stages.lib.io.errors import UserError
from stages.lib.sae.auxk import add_auxk_gradients, auxk
from stages.lib.sae.base import SAE, Losses, SAEParams
from stages.lib.sae.pairs import Pairs, decoded, largest_pairs, squared, which_fired, write_gradients
from stages.lib.sae.selection import top_k


class KParams(SAEParams):
    """A level is a k; a wanted L0 is the same."""

    own_level: ClassVar[str] = "k"
    k: list[int] | None = Field(default=None, min_length=1)

    def check(self, arm: str, d_sae: int) -> None:
        """Raise a `UserError` unless every k is a whole number between 1 and d_sae."""
        for k in self.levels:
            if not 1 <= k <= d_sae or k != int(k):
                raise UserError(
                    f"saes.{arm}.{self.level_name} must be whole numbers between 1 and d_sae = {d_sae}, not {k:g}"
                )


class TopKParams(KParams):
    """A level is a k."""

    aux_coefficient: NonNegativeFloat
    """Weight of L_aux; 1/32 in the paper."""


def keep_top_k(z: Float[Tensor, "token d_sae"], k: int) -> Float[Tensor, "token d_sae"]:
    """The dense code f."""
    chosen = top_k(z, k)
    return torch.zeros_like(z).scatter(1, chosen, z.gather(1, chosen).relu())


def topk_losses(sae: SAE, x: Float[Tensor, "token d_in"], k: int, aux_coefficient: float) -> Losses:
    """mean_n ||x_n - x_hat_n||^2 + aux_coefficient L_aux, in plain operations."""
    z = sae.hidden_pre(x)
    feature_acts = keep_top_k(z, k)
    error = x - sae.decode(feature_acts)
    active = feature_acts > 0
    return Losses(
        fvu=error.square().sum() / len(x),
        sparsity=x.new_zeros(()),
        auxiliary=aux_coefficient * auxk(sae, z, error, sae.dead()),
        l0=active.sum() / len(x),
        fired=active.any(0),
    )


def topk_gradients(sae: SAE, x: Float[Tensor, "token d_in"], k: int, aux_coefficient: float) -> Losses:
    """The gradient of `topk_losses`, over active pairs alone (`stages.lib.sae.pairs`)."""
    pairs = largest_pairs(sae, x, k)
    return code_gradients(sae, x, pairs, pairs.z.relu(), aux_coefficient)


def code_gradients(
    sae: SAE, x: Float[Tensor, "token d_in"], pairs: Pairs, codes: Float[Tensor, " pair"], aux_coefficient: float
) -> Losses:
    """The gradient of mean_n ||x_n - x_hat_n||^2 + aux_coefficient L_aux for a code that is z where it is not 0."""
    error, slope = decoded(sae, x, pairs, codes)
    active = codes > 0
    write_gradients(sae, x, pairs, codes, slope.mul_(2 / len(x)).mul_(active), error)
    return Losses(
        fvu=squared(error) / len(x),
        sparsity=x.new_zeros(()),
        auxiliary=aux_coefficient * add_auxk_gradients(sae, x, error, aux_coefficient),
        l0=active.sum() / len(x),
        fired=which_fired(pairs, codes, sae.d_sae),
    )
