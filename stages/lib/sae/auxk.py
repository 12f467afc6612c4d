"""AuxK, the loss that revives dead features (Gao et al. 2024, arXiv:2406.04093, appendix A.2).

Let D be the dead features, e = x - x_hat taken as a constant, k_aux = min(|D|, d_in / 2) and e_hat = f' W_dec with
f' = TopK_{k_aux} over D, without bias. Then with e_bar the batch mean of e

    L_aux = sum_n ||e_n - e_hat_n||^2 / sum_n ||e_n - e_bar||^2         (0 where that is not a number)

It trains the encoder and the decoder of dead features and nothing else, so b_dec is a constant in it.

Features die with pre-activations that are hardly ever positive (in the default trainings a dead feature's is for 0.1 to
3 % of the tokens), so f' is sparser than f, and a CPU sums over its pairs as `stages.lib.sae.pairs` does over those of
f. Dense products over the dead features take less time where they are small or where f' is dense, as it is for features
that have just been made.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.lib.run.parallel import compiled, over_rows
from stages.lib.sae.base import SAE
from stages.lib.sae.pair_loops import add_rows, products
from stages.lib.sae.pairs import (
    DENSE_FROM,
    Backward,
    Gradients,
    Pairs,
    squared,
    write_feature_sums,
)
from stages.lib.sae.search import reached_by
from stages.lib.sae.selection import above, top_k

SMALL = 2**25
"""Multiplications up to which a dense product takes no longer than the calls that sums over pairs are made of."""


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


@compiled
def _keep_largest_(row: np.ndarray, k: int) -> None:
    """Write max(z, 0) where z is among the k largest of the row, the first of equals first, and 0 elsewhere."""
    n_positive = np.int64(0)
    for j in range(row.shape[0]):
        n_positive += np.int64(row[j] > 0)
    if n_positive <= k:
        for j in range(row.shape[0]):
            row[j] = 0 if row[j] < 0 else row[j]  # so NaNs stay
        return
    least, ties = reached_by(row, row.shape[0], k), np.int64(k)
    for j in range(row.shape[0]):
        ties -= np.int64(row[j] > least)
    for j in range(row.shape[0]):
        value = row[j]
        is_tie = value == least and ties > 0
        ties -= np.int64(is_tie)
        row[j] = 0 if value < least or (value == least and not is_tie) else value


@compiled
def keep_largest_of_rows_(z: np.ndarray, k: int, start: int, stop: int) -> None:
    """Do so for each row."""
    for r in range(start, stop):
        _keep_largest_(z[r], k)


@compiled
def keep_largest_of_pairs_(z: np.ndarray, k: int, start: int, stop: int, first: np.ndarray) -> None:
    """Do so for the pairs of each token."""
    for n in range(start, stop):
        _keep_largest_(z[first[n] : first[n + 1]], k)


@compiled
def _clear_inactive_(hidden: np.ndarray, codes: np.ndarray, start: int, stop: int) -> None:
    """Write 0 where there is no code."""
    for r in range(start, stop):
        for j in range(hidden.shape[1]):
            hidden[r, j] = hidden[r, j] if codes[r, j] > 0 else 0


@compiled
def _explain(
    error: np.ndarray,
    W_dec: np.ndarray,
    start: int,
    stop: int,
    first: np.ndarray,
    feature: np.ndarray,
    code: np.ndarray,
    miss: np.ndarray,
    slope: np.ndarray,
    change: np.ndarray,
) -> None:
    """Write, for tokens that have pairs, what e_hat leaves, its products with the directions, and what squares gain.

    Rows of other tokens, for which e_hat is 0, are left as they are: nothing is summed over them.
    """
    for n in range(start, stop):
        part = slice(first[n], first[n + 1])
        if first[n] < first[n + 1]:
            own, before, after = miss[n], error.dtype.type(0), error.dtype.type(0)
            for j in range(own.shape[0]):
                own[j] = error[n, j]
                before += own[j] * own[j]
            add_rows(own, W_dec, feature[part], code[part], first[n + 1] - first[n])
            for j in range(own.shape[0]):
                after += own[j] * own[j]
            products(own, W_dec, feature[part], slope[part])
            change[n] = after - before


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
    W_enc = sae.W_enc.detach().T[dead]
    z = torch.addmm(torch.addmv(sae.b_enc.detach()[dead], W_enc, sae.b_dec.detach(), alpha=-1), x, W_enc.T)
    few = z.numel() * sae.d_in > SMALL and int(torch.count_nonzero(z > 0)) <= DENSE_FROM * z.numel()
    gradients, squares = (_of_pairs if few else _of_products)(sae, x, error, dead, z)
    scale = float(2 * aux_coefficient / variation)
    assert sae.W_enc.grad is not None and sae.b_enc.grad is not None
    sae.W_enc.grad.T.index_add_(0, dead, gradients.W_enc, alpha=scale)
    sae.b_enc.grad.index_add_(0, dead, gradients.b_enc, alpha=scale)
    if sae.W_dec.grad is not None:
        sae.W_dec.grad.index_add_(0, dead, gradients.W_dec, alpha=scale)
    return squares / variation


def _of_pairs(
    sae: SAE,
    x: Float[Tensor, "token d_in"],
    error: Float[Tensor, "token d_in"],
    dead: Int[Tensor, " dead"],
    z: Float[Tensor, "token dead"],
) -> tuple[Gradients, Float[Tensor, ""]]:
    """Half the gradient of sum_n ||e_n - e_hat_n||^2, and that sum, over the pairs of f'."""
    first, feature, codes = above(z, torch.zeros_like(z[0]))
    over_rows(keep_largest_of_pairs_, codes.numpy(), sae.d_in // 2, first.numpy(), n_rows=len(z))
    W_dec, miss, slope = sae.W_dec.detach()[dead], torch.empty_like(error), torch.empty_like(codes)
    change = error.new_zeros(len(error))
    arrays = (tensor.numpy() for tensor in (W_dec, first, feature, codes, miss, slope, change))
    over_rows(_explain, error.numpy(), *arrays, work=len(codes) * sae.d_in)
    backward = Backward(Pairs(first, feature, codes), codes, slope.mul_(codes > 0))
    n_trained = 0 if sae.W_dec.grad is None else len(dead)
    gradients = Gradients(W_dec.new_empty(n_trained, sae.d_in), torch.empty_like(W_dec), W_dec.new_empty(len(dead)))
    write_feature_sums(gradients, sae.b_dec.detach(), x, backward, miss[None], [len(dead)])
    return gradients, squared(error) + change.sum()


def _of_products(
    sae: SAE,
    x: Float[Tensor, "token d_in"],
    error: Float[Tensor, "token d_in"],
    dead: Int[Tensor, " dead"],
    z: Float[Tensor, "token dead"],
) -> tuple[Gradients, Float[Tensor, ""]]:
    """The same in dense products over the dead features; `z` is written over."""
    W_dec = sae.W_dec.detach()[dead]
    over_rows(keep_largest_of_rows_, z.numpy(), sae.d_in // 2)
    miss = torch.addmm(error, z, W_dec)  # e_hat - e
    hidden_gradient = torch.mm(miss, W_dec.T)
    over_rows(_clear_inactive_, hidden_gradient.numpy(), z.numpy())
    totals = hidden_gradient.sum(0)
    W_enc_gradient = torch.mm(hidden_gradient.T, x).addr_(totals, sae.b_dec.detach(), alpha=-1)
    W_dec_gradient = W_dec[:0] if sae.W_dec.grad is None else torch.mm(z.T, miss)
    return Gradients(W_dec_gradient, W_enc_gradient, totals), squared(miss)
