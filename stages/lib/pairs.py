"""Forward and backward passes of an SAE over its active (token, feature) pairs alone.

With L0 of d_sae features active, the decoder's product and every weight gradient need L0 / d_sae of the work of a dense
code. For pairs p = (n, i) with codes f_p, centred inputs x_n - b_dec, error e_n and output gradient g_n = dL/dx_hat_n:

    x_hat_n = sum_{p in n} f_p W_dec[i] + b_dec
    dL/df_p = g_n . W_dec[i]                      dL/dz_p = dL/df_p times the derivative of the activation function
    dL/dW_dec[i] = sum_{p in i} f_p g_n           dL/dW_enc[:, i] = sum_{p in i} dL/dz_p (x_n - b_dec)
    dL/db_enc[i] = sum_{p in i} dL/dz_p           dL/db_dec = sum_n g_n - W_enc dL/db_enc

Sums run over sorted pairs, in one order, so equal inputs give equal bits.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from stages.lib.sae import SAE
from stages.lib.selection import by_feature, compiled, over_rows


class Pairs(NamedTuple):
    """Pairs of a token and a feature, sorted by token."""

    first: Int[Tensor, " token_plus_one"]
    """Where each token's pairs start; the last entry is the number of pairs."""
    feature: Int[Tensor, " pair"]


@compiled
def _dots(
    left: np.ndarray, right: np.ndarray, start: int, stop: int, first: np.ndarray, feature: np.ndarray, out: np.ndarray
) -> None:
    """out_p = left[n] . right[i]."""
    for n in range(start, stop):
        row = left[n]
        for p in range(first[n], first[n + 1]):
            other = right[feature[p]]
            total = row.dtype.type(0)
            for j in range(row.shape[0]):
                total += row[j] * other[j]
            out[p] = total


def of_rows(feature: Int[Tensor, "token k"]) -> Pairs:
    """As many pairs for every token."""
    n_tokens, k = feature.shape
    return Pairs(torch.arange(0, n_tokens * k + 1, k), feature.flatten())


def weighted_sums(
    rows: Float[Tensor, "row d_in"],
    index: Int[Tensor, " pair"],
    first: Int[Tensor, " bag_plus_one"],
    weights: Float[Tensor, " pair"],
) -> Float[Tensor, "bag d_in"]:
    """For each bag of pairs, the sum of weight times the row that the index names."""
    return embedding_bag(index, rows, first, mode="sum", per_sample_weights=weights, include_last_offset=True)


def decode(
    pairs: Pairs, codes: Float[Tensor, " pair"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "token d_in"]:
    """sum_{p in n} f_p W_dec[i], without the bias."""
    return weighted_sums(W_dec.detach(), pairs.feature, pairs.first, codes)


def code_gradient(
    pairs: Pairs, output_gradient: Float[Tensor, "token d_in"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, " pair"]:
    """g_n . W_dec[i] for every pair."""
    found = torch.empty(len(pairs.feature), dtype=W_dec.dtype)
    arrays = (tensor.detach().numpy() for tensor in (W_dec, pairs.first, pairs.feature, found))
    over_rows(_dots, output_gradient.numpy(), *arrays)
    return found


def entries(z: Float[Tensor, "token d_sae"], pairs: Pairs) -> Float[Tensor, " pair"]:
    """The entries of a dense matrix at the pairs."""
    token = torch.repeat_interleave(pairs.first.diff(), output_size=len(pairs.feature))
    return z.flatten().index_select(0, token.mul_(z.shape[1]).add_(pairs.feature))


def which_fired(pairs: Pairs, codes: Float[Tensor, " pair"], d_sae: int) -> Bool[Tensor, " d_sae"]:
    """Whether each feature has a code above 0."""
    return torch.zeros(d_sae, dtype=codes.dtype).index_add_(0, pairs.feature, codes) > 0


class Gradients(NamedTuple):
    """Sums over the pairs of each feature."""

    W_dec: Float[Tensor, "d_sae d_in"]
    W_enc_rows: Float[Tensor, "d_sae d_in"]
    """Transposed: a row for each feature."""
    b_enc: Float[Tensor, " d_sae"]


def weight_gradients(
    pairs: Pairs,
    codes: Float[Tensor, " pair"],
    hidden_gradient: Float[Tensor, " pair"],
    output_gradient: Float[Tensor, "token d_in"],
    centred: Float[Tensor, "token d_in"],
    d_sae: int,
) -> Gradients:
    """The gradients of the weights from those of x_hat (`output_gradient`) and of z (`hidden_gradient`)."""
    first, token, order = by_feature(pairs.first, pairs.feature, d_sae)
    return Gradients(
        W_dec=weighted_sums(output_gradient, token, first, codes.index_select(0, order)),
        W_enc_rows=weighted_sums(centred, token, first, hidden_gradient.index_select(0, order)),
        b_enc=torch.bincount(pairs.feature, hidden_gradient, d_sae).to(hidden_gradient.dtype),
    )


def write_gradients(sae: SAE, found: Gradients, output_gradient: Float[Tensor, "token d_in"]) -> None:
    """Write the gradients of all four weights over the SAE's."""
    W_enc_gradient, b_enc_gradient, b_dec_gradient = sae.W_enc.grad, sae.b_enc.grad, sae.b_dec.grad
    assert W_enc_gradient is not None and b_enc_gradient is not None and b_dec_gradient is not None
    W_enc_gradient.T.copy_(found.W_enc_rows)
    b_enc_gradient.copy_(found.b_enc)
    torch.sub(output_gradient.sum(0), sae.W_enc.detach() @ found.b_enc, out=b_dec_gradient)
    if sae.W_dec.grad is not None:
        sae.W_dec.grad.copy_(found.W_dec)


def add_gradients(sae: SAE, found: Gradients) -> None:
    """Add gradients of the weights of features."""
    W_enc_gradient, b_enc_gradient = sae.W_enc.grad, sae.b_enc.grad
    assert W_enc_gradient is not None and b_enc_gradient is not None
    W_enc_gradient.T.add_(found.W_enc_rows)
    b_enc_gradient.add_(found.b_enc)
    if sae.W_dec.grad is not None:
        sae.W_dec.grad.add_(found.W_dec)
