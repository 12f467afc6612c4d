"""Forward and backward passes of an SAE over its active (token, feature) pairs alone, on a CPU.

With L0 of d_sae features active, the decoder's product and every weight gradient need L0 / d_sae of the work of a dense
code. For pairs p = (n, i) with codes f_p and errors e_n = x_hat_n - x_n, so that dL/dx_hat_n = 2 e_n / N,

    x_hat_n = sum_{p in n} f_p W_dec[i] + b_dec
    dL/df_p = 2 / N e_n . W_dec[i]                dL/dz_p = dL/df_p times the derivative of the activation function
    dL/dW_dec[i] = sum_{p in i} f_p 2 e_n / N     dL/dW_enc[:, i] = sum_{p in i} dL/dz_p (x_n - b_dec)
    dL/db_enc[i] = sum_{p in i} dL/dz_p           dL/db_dec = sum_n 2 e_n / N - W_enc dL/db_enc

Which pairs are active may be searched in pre-activations of bfloat16 (`stages.lib.sae.search`), which cost half; the
pre-activations of the pairs themselves are then computed again in full, so the code is exact. Where a threshold says
which pairs are active, all are looked at that rounding can have put below it: with factors rounded to unit roundoff
u = 2^-8, independently, the product x_n . W_enc[:, i] is off by a sum of d_in terms with standard deviations below
2 u |x_nj W_ji| / sqrt(6), together below 2 u ||x_n||_4 ||W_enc[:, i]||_4 / sqrt(6) (Cauchy-Schwarz); six of these and
the rounding of the product itself are allowed for (rounding errors as random: Higham & Mary 2019, "A New Approach to
Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41(5), section 2).

Where so many pairs are active that dense products take less time, these are used, for some tokens at a time; it is
the share of active pairs that decides, product by product.

Sums run over sorted pairs, in one order, so equal inputs give equal bits.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.lib.run.parallel import over_rows
from stages.lib.sae import search
from stages.lib.sae.base import SAE
from stages.lib.sae.pair_loops import by_feature, decode, dots, feature_sums, gather, keep, keep_largest, scatter

ROUNDOFF = 2.0**-8
"""The unit roundoff of bfloat16."""
N_DEVIATIONS = 6.0
"""How many standard deviations of a product's rounding error are allowed for."""
DENSE_FROM = 0.2
"""Share of active pairs from which dense products take less time."""
DENSE_NUMBERS = 2**22
"""How many numbers of a dense code are in memory at a time."""


class Pairs(NamedTuple):
    """Pairs of a token and a feature, sorted by token, with their exact pre-activations."""

    first: Int[Tensor, " token_plus_one"]
    """Where each token's pairs start; the last entry is the number of pairs."""
    feature: Int[Tensor, " pair"]
    z: Float[Tensor, " pair"]


class Backward(NamedTuple):
    """What the weight gradients are summed from: two numbers per pair."""

    pairs: Pairs
    weights: Float[Tensor, " pair"]
    """The weight of the token's error in the gradient of the feature's direction: f 2 / N, or less in groups."""
    hidden_gradient: Float[Tensor, " pair"]
    """dL/dz."""


class Gradients(NamedTuple):
    """Those of features, which are summed over their pairs."""

    W_dec: Float[Tensor, "feature d_in"]
    """Without rows where the decoder is not trained."""
    W_enc: Float[Tensor, "feature d_in"]
    b_enc: Float[Tensor, " feature"]


class Decoded(NamedTuple):
    """What the codes give."""

    error: Float[Tensor, "token d_in"]
    """e = x_hat - x."""
    slope: Float[Tensor, " pair"]
    """e_n . W_dec[i]: N / 2 times dL/df."""


def encoder(sae: SAE) -> search.Encoder:
    """What is multiplied in a search, in the SAE's `encoder_dtype`."""
    W_enc = sae.W_enc.detach()
    # b_enc - b_dec W_enc makes z = x W_enc + bias.
    bias = torch.addmv(sae.b_enc.detach(), W_enc.T, sae.b_dec.detach(), alpha=-1)
    return search.Encoder(W_enc if sae.encoder_dtype is None else W_enc.to(sae.encoder_dtype), bias)


def exact_pre(
    sae: SAE,
    x: Float[Tensor, "token d_in"],
    bias: Float[Tensor, " d_sae"],
    first: Int[Tensor, " token_plus_one"],
    feature: Int[Tensor, " pair"],
) -> Float[Tensor, " pair"]:
    """Pre-activations of pairs in the precision of the weights."""
    found = torch.empty(len(feature), dtype=x.dtype)
    arrays = (tensor.numpy() for tensor in (sae.W_enc.detach().T, bias, first, feature, found))
    over_rows(dots, x.numpy(), *arrays)
    return found


def of_rows(feature: Int[Tensor, "token k"], z: Float[Tensor, "token k"]) -> Pairs:
    """As many pairs for every token."""
    return Pairs(_starts(feature), feature.flatten(), z.flatten())


def _starts(feature: Int[Tensor, "token k"]) -> Int[Tensor, " token_plus_one"]:
    n_tokens, k = feature.shape
    return torch.arange(0, n_tokens * k + 1, k)


def largest_pairs(sae: SAE, x: Float[Tensor, "token d_in"], k: int) -> Pairs:
    """The k features of each token with the largest pre-activations."""
    weights = encoder(sae)
    if sae.encoder_dtype is None:
        return of_rows(*search.largest(weights, x, k))
    # A few more than k, among which rounding cannot well have hidden one of the k.
    chosen, _ = search.largest(weights, x, min(k + k // 16 + 2, sae.d_sae))
    values = exact_pre(sae, x, weights.bias, _starts(chosen), chosen.flatten()).view(chosen.shape)
    kept = values.new_empty(len(x), k)
    over_rows(keep_largest, values.numpy(), k, chosen.numpy(), kept.numpy())
    return of_rows(chosen[:, :k], kept)


def pairs_above(
    sae: SAE,
    x: Float[Tensor, "token d_in"],
    threshold: Float[Tensor, " d_sae"],
    weights: search.Encoder | None = None,
) -> Pairs:
    """All pairs with z > threshold, and a few just below it; `weights` are `encoder(sae)`, if they are known."""
    weights = encoder(sae) if weights is None else weights
    if sae.encoder_dtype is not None:
        margin = fourth_norm(sae.W_enc.detach().T).mul_(N_DEVIATIONS * 2 * ROUNDOFF / 6**0.5)
        below = _below(threshold, weights.bias, ROUNDOFF)
        # Of many pairs the exact pre-activations take less time in a dense product.
        found = search.above(weights, x, below, fourth_norm(x), margin, DENSE_FROM)
        if found is not None:
            return Pairs(found.first, found.feature, exact_pre(sae, x, weights.bias, found.first, found.feature))
        weights = weights._replace(W=sae.W_enc.detach())
    nothing = torch.zeros_like(threshold)
    found = search.above(weights, x, _below(threshold, weights.bias, 2.0**-22), x.new_zeros(len(x)), nothing)
    assert found is not None
    return Pairs(*found)


def fourth_norm(rows: Float[Tensor, "row column"]) -> Float[Tensor, " row"]:
    """(sum_j rows_j^4)^(1/4)."""
    squares: Tensor = rows.square().norm(dim=1)
    return squares.sqrt()


def _below(
    threshold: Float[Tensor, " d_sae"], bias: Float[Tensor, " d_sae"], roundoff: float
) -> Float[Tensor, " d_sae"]:
    """The number that a rounded x W_enc exceeds where z > threshold."""
    below = threshold - bias
    return below.sub_((threshold.abs() + bias.abs()).mul_(roundoff))


def is_dense(n_pairs: int, x: Float[Tensor, "token d_in"], sae: SAE) -> bool:
    """Whether dense products take less time than as many pairs."""
    return n_pairs > DENSE_FROM * len(x) * sae.d_sae


def dense_parts(sae: SAE, x: Float[Tensor, "token d_in"]) -> Iterator[tuple[slice, Tensor]]:
    """Some tokens at a time, and memory for numbers of all their features."""
    size = max(1, min(len(x), DENSE_NUMBERS // sae.d_sae))
    memory = x.new_empty(size, sae.d_sae)
    for start in range(0, len(x), size):
        rows = slice(start, min(start + size, len(x)))
        yield rows, memory[: rows.stop - start]


class Nested(NamedTuple):
    """What the codes give in nested dictionaries, the features before each end."""

    errors: Float[Tensor, "group token d_in"]
    """Sums of the errors e of a dictionary and all larger ones."""
    squares: Float[Tensor, " group"]
    """Sum of squared errors of each dictionary."""
    slope: Float[Tensor, " pair"]
    """The product of the feature's direction with the summed errors of the dictionaries that it is in."""


def decoded(sae: SAE, x: Float[Tensor, "token d_in"], pairs: Pairs, codes: Float[Tensor, " pair"]) -> Decoded:
    """The errors of the reconstructions and the slopes of the loss along the codes."""
    has_many = is_dense(len(codes), x, sae)
    if not has_many or not is_dense(int(torch.count_nonzero(codes)), x, sae):
        errors, _, slope = nested(sae, x, pairs, codes, [sae.d_sae], with_slope=not has_many)
        error = errors[0]
    else:
        error = _dense_error(sae, x, pairs, codes)
    return Decoded(error, _dense_slope(sae, pairs, error) if has_many else slope)


def nested(
    sae: SAE,
    x: Float[Tensor, "token d_in"],
    pairs: Pairs,
    codes: Float[Tensor, " pair"],
    ends: list[int],
    *,
    with_slope: bool = True,
) -> Nested:
    """Errors and slopes in nested dictionaries; the features of a token have to ascend."""
    errors, squares = x.new_empty(len(ends), *x.shape), x.new_empty(len(x), len(ends))
    slope = torch.empty_like(codes) if with_slope else codes.new_empty(0)
    arrays = (tensor.detach().numpy() for tensor in (sae.W_dec, sae.b_dec, pairs.first, pairs.feature, codes))
    W_dec, *rest = arrays
    over_rows(decode, x.numpy(), W_dec, *rest, np.array(ends), errors.numpy(), squares.numpy(), slope.numpy())
    return Nested(errors, squares.sum(0), slope)


def _dense_error(
    sae: SAE, x: Float[Tensor, "token d_in"], pairs: Pairs, codes: Float[Tensor, " pair"]
) -> Float[Tensor, "token d_in"]:
    error = sae.b_dec.detach() - x
    for rows, part in dense_parts(sae, x):
        place = (pairs.first.numpy(), pairs.feature.numpy())
        over_rows(scatter, part.numpy(), rows.start, *place, codes.numpy())
        error[rows].addmm_(part, sae.W_dec.detach())
    return error


def _dense_slope(sae: SAE, pairs: Pairs, error: Float[Tensor, "token d_in"]) -> Float[Tensor, " pair"]:
    slope = torch.empty_like(pairs.z)
    for rows, part in dense_parts(sae, error):
        torch.mm(error[rows], sae.W_dec.detach().T, out=part)
        over_rows(gather, part.numpy(), rows.start, pairs.first.numpy(), pairs.feature.numpy(), slope.numpy())
    return slope


def largest_of(pairs: Pairs, n: int) -> Pairs:
    """The n pairs with the largest z above 0, the first of equals, or all above 0 where there are fewer."""
    z = pairs.z.numpy()
    least = max(0.0, float(search.reached_by(z, len(z), n))) if len(z) > n else 0.0
    n_above = int(np.count_nonzero(z > least))
    n_ties = min(n - n_above, int(np.count_nonzero(z == least))) if least > 0 else 0
    first, size = np.zeros(len(pairs.first), np.int64), n_above + n_ties
    # One place more than needed, for what is written and not kept.
    feature, kept = np.empty(size + 1, np.int64), np.empty(size + 1, z.dtype)
    keep(pairs.first.numpy(), pairs.feature.numpy(), z, least, n_ties, first, feature, kept)
    return Pairs(torch.from_numpy(first), torch.from_numpy(feature[:size]), torch.from_numpy(kept[:size]))


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
    weights = codes * (2 / len(x))
    n_active = int(torch.count_nonzero(weights.ne(0).logical_or_(hidden_gradient.ne(0))))
    backward = Backward(pairs, weights, hidden_gradient)
    if is_dense(n_active, x, sae):
        _write_dense_sums(sae, x, backward, error)
    else:
        write_sums(sae, x, backward, error[None], [sae.d_sae])
    write_bias_gradient(sae, error.sum(0).mul_(2 / len(x)))


def write_bias_gradient(sae: SAE, direct: Float[Tensor, " d_in"]) -> None:
    """Write the gradient of b_dec: what comes through x_hat, less W_enc dL/db_enc."""
    assert sae.b_enc.grad is not None and sae.b_dec.grad is not None
    torch.addmv(direct, sae.W_enc.detach(), sae.b_enc.grad, alpha=-1, out=sae.b_dec.grad)


def write_sums(
    sae: SAE,
    x: Float[Tensor, "token d_in"],
    backward: Backward,
    errors: Float[Tensor, "group token d_in"],
    ends: list[int],
) -> None:
    """Write sum_p weight_p e_n, with the errors of the feature's group, and the gradients of W_enc and b_enc.

    Group g has the features from the end before it, or 0, to `ends[g]`.
    """
    assert sae.W_enc.grad is not None and sae.b_enc.grad is not None
    W_dec_gradient = x.new_empty(0, sae.d_in) if sae.W_dec.grad is None else sae.W_dec.grad
    gradients = Gradients(W_dec_gradient, sae.W_enc.grad.T, sae.b_enc.grad)
    write_feature_sums(gradients, sae.b_dec.detach(), x, backward, errors, ends)


def write_feature_sums(
    gradients: Gradients,
    b_dec: Float[Tensor, " d_in"],
    x: Float[Tensor, "token d_in"],
    backward: Backward,
    errors: Float[Tensor, "group token d_in"],
    ends: list[int],
) -> None:
    """Write what `write_sums` does, for any features."""
    pairs, weights, hidden_gradient = backward
    n_features = len(gradients.b_enc)
    sorted_ends, token = np.zeros(n_features + 1, np.int64), np.empty(len(weights), np.int64)
    own, place = np.empty((2, len(weights)), np.float32), (pairs.first.numpy(), pairs.feature.numpy())
    by_feature(*place, weights.numpy(), hidden_gradient.numpy(), sorted_ends, token, own[0], own[1])
    group = np.searchsorted(np.array(ends), np.arange(n_features), side="right")
    outputs = (tensor.numpy() for tensor in gradients)
    inputs = (group, b_dec.numpy(), sorted_ends, token, *own)
    # Threads share the features; the number of pairs, not of features, says whether that pays.
    work = int(sorted_ends[-1]) * x.shape[1]
    over_rows(feature_sums, errors.numpy(), x.numpy(), *inputs, *outputs, n_rows=n_features, work=work)


def _write_dense_sums(
    sae: SAE, x: Float[Tensor, "token d_in"], backward: Backward, error: Float[Tensor, "token d_in"]
) -> None:
    """Write what `write_sums` does for a single group, as dense products."""
    pairs, weights, hidden_gradient = backward
    assert sae.W_enc.grad is not None and sae.b_enc.grad is not None
    place = (pairs.first.numpy(), pairs.feature.numpy())
    for weight in (sae.W_enc, sae.b_enc, sae.W_dec):
        if weight.grad is not None:
            weight.grad.zero_()
    for rows, part in dense_parts(sae, x):
        if sae.W_dec.grad is not None:
            over_rows(scatter, part.numpy(), rows.start, *place, weights.numpy())
            sae.W_dec.grad.addmm_(part.T, error[rows])
        over_rows(scatter, part.numpy(), rows.start, *place, hidden_gradient.numpy())
        sae.W_enc.grad.T.addmm_(part.T, x[rows])
        sae.b_enc.grad.add_(part.sum(0))
    sae.W_enc.grad.T.addr_(sae.b_enc.grad, sae.b_dec.detach(), alpha=-1)
