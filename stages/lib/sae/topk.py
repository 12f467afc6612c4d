"""What variants that keep the k largest pre-activations share: the code, and AuxK, which revives dead features.

TopK (Gao et al. 2024, arXiv:2406.04093, section 2.3): f_ni = max(z_ni, 0) where z_ni is among the k largest of token n,
else 0.

AuxK (appendix A.2): let D be the dead features, e = x - x_hat taken as a constant, k_aux = min(|D|, d_in / 2) and
e_hat = f' W_dec with f' = TopK_{k_aux} over D, without bias. Then with e_bar the batch mean of e

    L_aux = sum_n ||e_n - e_hat_n||^2 / sum_n ||e_n - e_bar||^2         (0 where that is not a number)

It trains the encoder and the decoder of dead features and nothing else, so b_dec is a constant in it.
"""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from stages.lib.io.errors import UserError
from stages.lib.run.parallel import compiled, over_rows
from stages.lib.sae.base import SAE, Losses, SAEParams
from stages.lib.sae.pairs import Pairs, decoded, largest_pairs, squared, which_fired, write_gradients
from stages.lib.sae.search import reached_by
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


@compiled
def _keep_largest_(z: np.ndarray, k: int, start: int, stop: int) -> None:
    """Write max(z, 0) where z is among the k largest of its row, the first of equals first, and 0 elsewhere."""
    for r in range(start, stop):
        row = z[r]
        n_positive = np.int64(0)
        for j in range(row.shape[0]):
            n_positive += np.int64(row[j] > 0)
        least, ties = row.dtype.type(0), row.shape[0]
        if n_positive > k:
            least, ties = reached_by(row, row.shape[0], k), k
            for j in range(row.shape[0]):
                ties -= np.int64(row[j] > least)
        for j in range(row.shape[0]):
            value = row[j]
            is_tie = value == least and ties > 0
            ties -= np.int64(is_tie)
            # Not below: so NaNs stay.
            row[j] = 0 if value < least or (value == least and not is_tie) else value


def keep_top_k(z: Float[Tensor, "token d_sae"], k: int) -> Float[Tensor, "token d_sae"]:
    """The dense code f."""
    chosen = top_k(z, k)
    return torch.zeros_like(z).scatter(1, chosen, z.gather(1, chosen).relu())


def auxk(
    sae: SAE, z: Float[Tensor, "token d_sae"], error: Float[Tensor, "token d_in"], dead: Bool[Tensor, " d_sae"]
) -> Float[Tensor, ""]:
    """L_aux in plain operations; `error` is e."""
    # Its value is 0 and its gradient cancels the one that b_dec has through z.
    z = z + (sae.b_dec - sae.b_dec.detach()) @ sae.W_enc
    # Live features rank below all dead ones and count for nothing, so k_aux needs no |D|, which would have to be read.
    chosen = top_k(torch.where(dead, z, z.min() - 1), min(sae.d_in // 2, sae.d_sae))
    feature_acts = torch.zeros_like(z).scatter(1, chosen, z.gather(1, chosen).relu() * dead[chosen])
    error = error.detach()
    loss = (error - feature_acts @ sae.W_dec).square().sum() / (error - error.mean(0)).square().sum()
    return torch.where(dead.any() & loss.isfinite(), loss, 0.0)


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


def add_auxk_gradients(
    sae: SAE, x: Float[Tensor, "token d_in"], error: Float[Tensor, "token d_in"], aux_coefficient: float
) -> Float[Tensor, ""]:
    """L_aux; adds the gradient of aux_coefficient L_aux to those of dead features. `error` is x_hat - x."""
    dead = sae.dead().nonzero()[:, 0]
    if not len(dead):
        return error.new_zeros(())
    variation = squared(error - error.mean(0))
    if not variation > 0:
        return error.new_zeros(())
    W_enc, W_dec, b_dec = sae.W_enc.detach().T[dead], sae.W_dec.detach()[dead], sae.b_dec.detach()
    codes = torch.addmm(torch.addmv(sae.b_enc.detach()[dead], W_enc, b_dec, alpha=-1), x, W_enc.T)
    over_rows(_keep_largest_, codes.numpy(), min(len(dead), sae.d_in // 2))
    miss = torch.addmm(error, codes, W_dec)  # e_hat - e
    scale = float(2 * aux_coefficient / variation)
    hidden_gradient = torch.mm(miss, W_dec.T).mul_(codes > 0)
    totals = hidden_gradient.sum(0)
    assert sae.W_enc.grad is not None and sae.b_enc.grad is not None
    W_enc_gradient = torch.addr(torch.mm(hidden_gradient.T, x), totals, b_dec, alpha=-1)
    sae.W_enc.grad.T.index_add_(0, dead, W_enc_gradient, alpha=scale)
    sae.b_enc.grad.index_add_(0, dead, totals, alpha=scale)
    if sae.W_dec.grad is not None:
        sae.W_dec.grad.index_add_(0, dead, codes.T @ miss, alpha=scale)
    return squared(miss) / variation
