"""Forward and backward passes of an SAE over its active (token, feature) pairs alone, on a CPU.

With L0 of d_sae features active, the decoder's product and every weight gradient need L0 / d_sae of the work of a dense
code. For pairs p = (n, i) with codes f_p and errors e_n = x_hat_n - x_n, so that dL/dx_hat_n = 2 e_n / N,

    x_hat_n = sum_{p in n} f_p W_dec[i] + b_dec
    dL/df_p = 2 / N e_n . W_dec[i]                dL/dz_p = dL/df_p times the derivative of the activation function
    dL/dW_dec[i] = sum_{p in i} f_p 2 e_n / N     dL/dW_enc[:, i] = sum_{p in i} dL/dz_p (x_n - b_dec)
    dL/db_enc[i] = sum_{p in i} dL/dz_p           dL/db_dec = sum_n 2 e_n / N - W_enc dL/db_enc

Which pairs are active may be searched in pre-activations of bfloat16 (`coarse_pre`), which cost a third; the
pre-activations of the pairs themselves are then computed again in full, so the code is exact. The bound on the
rounding error is from Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1, with unit roundoff
u = 2^-9 of bfloat16: two rounded factors and a rounded sum are off by at most 3 u |x_n| |W_enc[:, i]|.

Sums run over sorted pairs, in one order, so equal inputs give equal bits.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.lib.sae import SAE
from stages.lib.selection import above, by_feature, compiled, over_rows, top_k

ROUNDING = 2.0**-7
"""Of |x_n| |W_enc[:, i]|: more than coarse pre-activations can be off by."""


class Pairs(NamedTuple):
    """Pairs of a token and a feature, sorted by token, with their exact pre-activations."""

    first: Int[Tensor, " token_plus_one"]
    """Where each token's pairs start; the last entry is the number of pairs."""
    feature: Int[Tensor, " pair"]
    z: Float[Tensor, " pair"]


class Decoded(NamedTuple):
    """What the codes give."""

    error: Float[Tensor, "token d_in"]
    """e = x_hat - x."""
    slope: Float[Tensor, " pair"]
    """e_n . W_dec[i]: N / 2 times dL/df."""


@compiled
def _dots(
    x: np.ndarray,
    rows: np.ndarray,
    start: int,
    stop: int,
    bias: np.ndarray,
    first: np.ndarray,
    feature: np.ndarray,
    out: np.ndarray,
) -> None:
    """out_p = x_n . rows[i] + bias_i."""
    for n in range(start, stop):
        own = x[n]
        for p in range(first[n], first[n + 1]):
            other = rows[feature[p]]
            total = own.dtype.type(0)
            for j in range(own.shape[0]):
                total += own[j] * other[j]
            out[p] = total + bias[feature[p]]


@compiled
def _keep_largest(values: np.ndarray, k: int, start: int, stop: int, feature: np.ndarray, kept: np.ndarray) -> None:
    """Drop the smallest of each row until k are left, the last of equals first; the order stays."""
    for n in range(start, stop):
        row, columns = values[n], feature[n]
        m = row.shape[0]
        while m > k:
            least = 0
            for q in range(m):
                if row[q] <= row[least]:
                    least = q
            m -= 1
            for q in range(least, m):
                row[q], columns[q] = row[q + 1], columns[q + 1]
        for q in range(k):
            kept[n, q] = row[q]


@compiled
def _decode(
    x: np.ndarray,
    W_dec: np.ndarray,
    start: int,
    stop: int,
    b_dec: np.ndarray,
    first: np.ndarray,
    feature: np.ndarray,
    code: np.ndarray,
    error: np.ndarray,
    slope: np.ndarray,
) -> None:
    """The error of each token and its product with the directions of the token's pairs."""
    for n in range(start, stop):
        own, before = error[n], x[n]
        for j in range(own.shape[0]):
            own[j] = b_dec[j] - before[j]
        for p in range(first[n], first[n + 1]):
            f = code[p]
            if f != 0:
                other = W_dec[feature[p]]
                for j in range(own.shape[0]):
                    own[j] += f * other[j]
        for p in range(first[n], first[n + 1]):
            other = W_dec[feature[p]]
            total = own.dtype.type(0)
            for j in range(own.shape[0]):
                total += own[j] * other[j]
            slope[p] = total


@compiled
def _feature_sums(
    error: np.ndarray,
    x: np.ndarray,
    start: int,
    stop: int,
    b_dec: np.ndarray,
    ends: np.ndarray,
    token: np.ndarray,
    order: np.ndarray,
    code: np.ndarray,
    hidden: np.ndarray,
    W_dec: np.ndarray,
    W_enc: np.ndarray,
    b_enc: np.ndarray,
) -> None:
    """For each feature the sums over its pairs: f_p e_n, hidden_p (x_n - b_dec), hidden_p; added to what is there."""
    for i in range(start, stop):
        down, up, total = W_dec[i], W_enc[i], b_enc.dtype.type(0)
        for q in range(ends[i], ends[i + 1]):
            f, h = code[order[q]], hidden[order[q]]
            if f != 0 or h != 0:
                there, here = error[token[q]], x[token[q]]
                for j in range(down.shape[0]):
                    down[j] += f * there[j]
                    up[j] += h * here[j]
                total += h
        for j in range(up.shape[0]):
            up[j] -= total * b_dec[j]
        b_enc[i] += total


def coarse_pre(sae: SAE, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_sae"]:
    """Pre-activations in which to search, multiplied in the SAE's `encoder_dtype`."""
    bias = _bias(sae)
    W_enc = sae.W_enc.detach()
    if sae.encoder_dtype is None:
        return torch.addmm(bias, x, W_enc)
    return torch.mm(x.to(sae.encoder_dtype), W_enc.to(sae.encoder_dtype)).add(bias)


def _bias(sae: SAE) -> Float[Tensor, " d_sae"]:
    """b_enc - b_dec W_enc, which makes z = x W_enc + bias."""
    return torch.addmv(sae.b_enc.detach(), sae.W_enc.detach().T, sae.b_dec.detach(), alpha=-1)


def exact_pre(
    sae: SAE, x: Float[Tensor, "token d_in"], first: Int[Tensor, " token_plus_one"], feature: Int[Tensor, " pair"]
) -> Float[Tensor, " pair"]:
    """Pre-activations of pairs in the precision of the weights."""
    found = torch.empty(len(feature), dtype=x.dtype)
    arrays = (tensor.numpy() for tensor in (sae.W_enc.detach().T, _bias(sae), first, feature, found))
    rows, *rest = arrays
    over_rows(_dots, x.numpy(), rows, *rest)
    return found


def of_rows(feature: Int[Tensor, "token k"], z: Float[Tensor, "token k"]) -> Pairs:
    """As many pairs for every token."""
    return Pairs(_starts(feature), feature.flatten(), z.flatten())


def _starts(feature: Int[Tensor, "token k"]) -> Int[Tensor, " token_plus_one"]:
    n_tokens, k = feature.shape
    return torch.arange(0, n_tokens * k + 1, k)


def largest_pairs(sae: SAE, x: Float[Tensor, "token d_in"], k: int) -> Pairs:
    """The k features of each token with the largest pre-activations."""
    z = coarse_pre(sae, x)
    if sae.encoder_dtype is None:
        chosen = top_k(z, k)
        return of_rows(chosen, z.gather(1, chosen))
    # A few more than k, among which rounding cannot well have hidden one of the k.
    chosen = top_k(z, min(k + k // 16 + 2, sae.d_sae))
    values = exact_pre(sae, x, _starts(chosen), chosen.flatten()).view(chosen.shape)
    kept = values.new_empty(len(x), k)
    over_rows(_keep_largest, values.numpy(), k, chosen.numpy(), kept.numpy())
    return of_rows(chosen[:, :k], kept)


def pairs_above(
    sae: SAE,
    x: Float[Tensor, "token d_in"],
    threshold: Float[Tensor, " d_sae"] | Callable[[Float[Tensor, "token d_sae"]], Float[Tensor, " d_sae"]],
) -> Pairs:
    """All pairs with z > threshold, and with coarse pre-activations a few just below it.

    A threshold that depends on z is called with numbers that are z or, where it is coarse, less.
    """
    z = coarse_pre(sae, x)
    if sae.encoder_dtype is None:
        return Pairs(*above(z, threshold(z) if callable(threshold) else threshold))
    margin = x.norm(dim=1).mul_(ROUNDING * float(sae.W_enc.detach().norm(dim=0).max()))[:, None]
    limit = threshold(z - margin) if callable(threshold) else threshold
    first, feature, _ = above(z.add_(margin), limit)
    return Pairs(first, feature, exact_pre(sae, x, first, feature))


def decoded(sae: SAE, x: Float[Tensor, "token d_in"], pairs: Pairs, codes: Float[Tensor, " pair"]) -> Decoded:
    """The errors of the reconstructions and the slopes of the loss along the codes."""
    error, slope = torch.empty_like(x), torch.empty_like(codes)
    weights = (tensor.detach().numpy() for tensor in (sae.W_dec, sae.b_dec))
    arrays = (tensor.numpy() for tensor in (pairs.first, pairs.feature, codes, error, slope))
    W_dec, b_dec = weights
    over_rows(_decode, x.numpy(), W_dec, b_dec, *arrays)
    return Decoded(error, slope)


def squared(error: Float[Tensor, "token d_in"]) -> Float[Tensor, ""]:
    """The sum of squares."""
    flat = error.flatten()
    return torch.dot(flat, flat)


def which_fired(pairs: Pairs, codes: Float[Tensor, " pair"], d_sae: int) -> Bool[Tensor, " d_sae"]:
    """Whether each feature has a code above 0."""
    return torch.zeros(d_sae, dtype=codes.dtype).index_add_(0, pairs.feature, codes) > 0


def write_gradients(
    sae: SAE,
    x: Float[Tensor, "token d_in"],
    pairs: Pairs,
    codes: Float[Tensor, " pair"],
    hidden_gradient: Float[Tensor, " pair"],
    error: Float[Tensor, "token d_in"],
) -> None:
    """Write the gradients of the four weights of every SAE over what is there.

    Args:
        sae: its decoder need not be trained.
        x: the batch.
        pairs: those that are active, perhaps with others whose code and gradient are 0.
        codes: f.
        hidden_gradient: dL/dz.
        error: e = x_hat - x.
    """
    for weight in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec):
        if weight.grad is not None:
            weight.grad.zero_()
    scale = 2 / len(x)
    add_gradients(sae, x, pairs, codes * scale, hidden_gradient, error)
    assert sae.b_enc.grad is not None and sae.b_dec.grad is not None
    torch.addmv(error.sum(0).mul_(scale), sae.W_enc.detach(), sae.b_enc.grad, alpha=-1, out=sae.b_dec.grad)


def add_gradients(
    sae: SAE,
    x: Float[Tensor, "token d_in"],
    pairs: Pairs,
    weights: Float[Tensor, " pair"],
    hidden_gradient: Float[Tensor, " pair"],
    error: Float[Tensor, "token d_in"],
) -> None:
    """Add sum_p weight_p e_n to the gradient of W_dec, and the gradients of W_enc and b_enc."""
    assert sae.W_enc.grad is not None and sae.b_enc.grad is not None
    W_dec_gradient = torch.zeros_like(sae.W_dec) if sae.W_dec.grad is None else sae.W_dec.grad
    ends, token, order = by_feature(pairs.first, pairs.feature, sae.d_sae)
    inputs = (sae.b_dec.detach(), ends, token, order, weights, hidden_gradient)
    outputs = (W_dec_gradient, sae.W_enc.grad.T, sae.b_enc.grad)
    # Threads share the features; the number of pairs, not of features, says whether that pays.
    over_rows(
        _feature_sums,
        error.numpy(),
        x.numpy(),
        *(t.detach().numpy() for t in (*inputs, *outputs)),
        n_rows=sae.d_sae,
        work=len(token) * sae.d_in,
    )
