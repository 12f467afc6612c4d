"""How well a sparse code stands for the activations: sums over a stream of batches, and the numbers made from them.

All sums are float64 and over tokens, so no number depends on how the stream was cut. With x the activation, x_hat its
reconstruction, x_bar the mean over the *test* tokens, mu the normaliser's mean, f the code and h = d_sae:

    fvu           sum ||x - x_hat||^2 / sum ||x - x_bar||^2          (a ratio of sums; 1 - FVU is the R^2)
    relative_bias E||x_hat - mu||^2 / E[(x_hat - mu).(x - mu)]       (Rajamanoharan et al. 2024, 2404.16014, eq. 10)
    l0            mean over tokens of #{i: f_i > 0}
    hoyer         mean over tokens of (sqrt(h) - ||f||_1 / ||f||_2) / (sqrt(h) - 1) (Hoyer 2004, JMLR 5, section 3.1)
    gini          mean over tokens of 1 - 2 sum_k f_(k)/||f||_1 (h - k + 1/2)/h  (Hurley, Rickard 2009, IEEE TIT 55)

Sums are kept by block (document), for the block bootstrap.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.lib.run.parallel import compiled, over_rows
from stages.lib.sae.selection import Active

STRIDE = 16
"""Hoyer's and Gini's indices are taken on every 16th token of a batch: Gini's needs a sort of every code."""


def _sum(values: Float[Tensor, "token d_in"]) -> Float[Tensor, " token"]:
    return values.sum(1, dtype=torch.float64)


class Moments:
    """The mean and the covariance (with n below) of a stream of vectors."""

    def __init__(self, batches: Iterable[Float[Tensor, "_ d_in"]]) -> None:
        """Read the stream once."""
        self.n, shift = 0, None
        for batch in batches:
            if shift is None:
                # Sums about the first vector: those about 0 would lose digits where the mean is large.
                shift = batch[0].double()
                total, products = torch.zeros_like(shift), torch.outer(shift, shift).zero_()
            x = batch.double() - shift
            self.n += len(x)
            total += x.sum(0)
            products += x.T @ x
        assert shift is not None, "moments of no vectors"
        self.mean: Tensor = shift + total / self.n
        self.covariance: Tensor = products / self.n - torch.outer(total / self.n, total / self.n)


def mean(batches: Iterable[Float[Tensor, "_ d_in"]]) -> Float[Tensor, " d_in"]:
    """The mean of a stream of vectors, in float64."""
    n, shift = 0, None
    for batch in batches:
        if shift is None:
            shift = batch[0].double()  # as in `Moments`
            total = torch.zeros_like(shift)
        n += len(batch)
        total += (batch.double() - shift).sum(0)
    assert shift is not None, "the mean of no vectors"
    found: Tensor = shift + total / n
    return found


def squared_distance(
    x: Float[Tensor, "token d_in"], other: Float[Tensor, "*other d_in"]
) -> Float[np.ndarray, " token"]:
    """The squared distance of every vector from the other, or from one centre, in float64."""
    distance: np.ndarray = (x.double() - other.double()).square().sum(1).cpu().numpy()
    return distance


class PrincipalComponents:
    """The reconstruction from the leading principal components, at every rank at once."""

    def __init__(self, moments: Moments) -> None:
        """Take the directions from the moments."""
        self.mean = moments.mean
        # `eigh` sorts the eigenvalues ascending.
        self.directions = torch.linalg.eigh(moments.covariance).eigenvectors.flip(1)

    def squared_error(self, x: Float[Tensor, "token d_in"]) -> Float[np.ndarray, " rank"]:
        """The summed squared error of the tokens at ranks 0, 1 .. d_in: what the components left out hold."""
        energy = ((x.double() - self.mean) @ self.directions).square().sum(0)
        left = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
        result: np.ndarray = left.cpu().numpy()
        return result


@compiled
def _add_by_id(x: np.ndarray, ids: np.ndarray, sums: np.ndarray) -> None:
    for r in range(x.shape[0]):
        own, before = sums[ids[r]], x[r]
        for j in range(before.shape[0]):
            own[j] += np.float64(before[j])


class TokenMeans:
    """The mean activation of each token id: what a look-up table of tokens explains ("unigram")."""

    def __init__(self, d_vocab: int, d_in: int) -> None:
        """Begin with no token seen."""
        self._sums = torch.zeros(d_vocab, d_in, dtype=torch.float64)
        self._counts = torch.zeros(d_vocab, dtype=torch.float64)

    def add(self, x: Float[Tensor, "token d_in"], token_ids: Int[Tensor, " token"]) -> None:
        """Count tokens in."""
        ids = token_ids.long().cpu()
        _add_by_id(x.cpu().contiguous().numpy(), ids.numpy(), self._sums.numpy())
        self._counts += torch.bincount(ids, minlength=len(self._counts))

    def table(self) -> Float[Tensor, "d_vocab d_in"]:
        """The mean by token id; for ids that were never seen, the mean of all tokens."""
        overall = self._sums.sum(0) / self._counts.sum()
        means = self._sums / self._counts.clamp(min=1)[:, None]
        table: Tensor = torch.where(self._counts[:, None] > 0, means, overall)
        return table


def hoyer(codes: Float[Tensor, "token active"], d_sae: int) -> Float[Tensor, " some"]:
    """Hoyer's sparseness of each code, 1 for one active feature and 0 for equal ones; codes of zeros are left out.

    Of the `d_sae` entries of a code those that are not given are 0.
    """
    active = codes[(codes > 0).any(1)].double()
    root = d_sae**0.5
    index: Tensor = (root - active.sum(1) / active.square().sum(1).sqrt()) / (root - 1)
    return index


def gini(codes: Float[Tensor, "token active"], d_sae: int) -> Float[Tensor, " some"]:
    """The Gini index of each code, 1 - 1/h for one active feature and 0 for equal ones; codes of zeros are left out.

    Of the `d_sae` entries of a code those that are not given are 0, so they have the lowest ranks.
    """
    ascending = codes[(codes > 0).any(1)].double().sort(1).values
    rank = torch.arange(d_sae - codes.shape[1] + 1, d_sae + 1, dtype=torch.float64, device=codes.device)
    weighted: Tensor = ascending / ascending.sum(1, keepdim=True) * ((d_sae - rank + 0.5) / d_sae)
    index: Tensor = 1 - 2 * weighted.sum(1)
    return index


def thinned(active: Active, stride: int) -> Float[Tensor, "token active"]:
    """The codes of every `stride`-th token without most of their zeros, the active features first."""
    first, counts = active.first[:-1:stride], active.first.diff()[::stride]
    place = torch.arange(int(counts.max()), device=counts.device)
    where = (first[:, None] + place).clamp_(max=len(active.value) - 1)
    return torch.where(place < counts[:, None], active.value[where], 0.0)


@compiled
def _add_products(
    x: np.ndarray, mean: np.ndarray, start: int, stop: int, x_hat: np.ndarray, products: np.ndarray
) -> None:
    for r in range(start, stop):
        error = hat_hat = hat_x = x_x = 0.0
        for j in range(x.shape[1]):
            own, hat = np.float64(x[r, j]), np.float64(x_hat[r, j])
            error += (own - hat) * (own - hat)
            hat_hat += (hat - mean[j]) * (hat - mean[j])
            hat_x += (hat - mean[j]) * (own - mean[j])
            x_x += (own - mean[j]) * (own - mean[j])
        products[0, r], products[1, r], products[2, r], products[3, r] = error, hat_hat, hat_x, x_x


def products(
    x: Float[Tensor, "token d_in"], x_hat: Float[Tensor, "token d_in"], mean: Float[Tensor, " d_in"]
) -> Float[Tensor, "4 token"]:
    """||x - x_hat||^2, ||x_hat - mu||^2, (x_hat - mu).(x - mu) and ||x - mu||^2 of each token, in float64."""
    if x.device.type == "cpu":  # all in one pass
        found = np.empty((4, len(x)))
        over_rows(_add_products, x.contiguous().numpy(), mean.numpy(), x_hat.contiguous().numpy(), found)
        return torch.from_numpy(found)
    centred, centred_hat = x - mean.to(x.dtype), x_hat - mean.to(x.dtype)
    pairs = [(x - x_hat).square(), centred_hat.square(), centred_hat * centred, centred.square()]
    return torch.stack([_sum(values) for values in pairs])


class Fidelity:
    """The sums of one SAE over a stream of tokens; `add` batches, then read the numbers."""

    def __init__(self, d_sae: int, n_blocks: int, mean: Float[Tensor, " d_in"]) -> None:
        """Begin with no token seen; `mean` is the normaliser's."""
        self.n = 0
        self.squared_error = np.zeros(n_blocks)
        self.l0_counts = np.zeros(d_sae + 1, dtype=np.int64)
        self.firings = torch.zeros(d_sae, dtype=torch.int64, device=mean.device)
        self._mean = mean.double()
        self._hat_hat = self._hat_x = self._cosine = 0.0
        self._hoyer = [0.0, 0]
        self._gini = [0.0, 0]

    def add(
        self,
        x: Float[Tensor, "token d_in"],
        x_hat: Float[Tensor, "token d_in"],
        active: Active,
        blocks: Int[np.ndarray, " token"],
    ) -> None:
        """Take in a batch; `blocks` says which block each token belongs to."""
        self.n += len(x)
        error, hat_hat, hat_x, x_x = products(x, x_hat, self._mean)
        self.squared_error += np.bincount(blocks, weights=error.cpu().numpy(), minlength=len(self.squared_error))
        self._hat_hat += hat_hat.sum().item()
        self._hat_x += hat_x.sum().item()
        # A zero vector has no direction: its cosine counts as 0.
        norms = (hat_hat * x_x).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
        self._cosine += (hat_x / norms).sum().item()
        self._add_code(active)

    def _add_code(self, active: Active) -> None:
        d_sae = len(self.firings)
        self.firings += torch.bincount(active.feature, minlength=d_sae)
        self.l0_counts += np.bincount(active.first.diff().cpu().numpy(), minlength=len(self.l0_counts))
        codes = thinned(active, STRIDE)
        for sums, values in ((self._hoyer, hoyer(codes, d_sae)), (self._gini, gini(codes, d_sae))):
            sums[0] += values.sum().item()
            sums[1] += len(values)

    def fvu(self, total: Float[np.ndarray, " block"]) -> float:
        """The fraction of variance unexplained; `total` is the summed squared deviation from the test mean by block."""
        return float(self.squared_error.sum() / total.sum())

    def relative_bias(self) -> float | None:
        """Below 1 where reconstructions shrink; not defined if the reconstruction is nowhere along the activation."""
        return self._hat_hat / self._hat_x if self._hat_x > 0 else None

    def cosine(self) -> float:
        """The mean over tokens of the cosine of activation and reconstruction, both with the mean taken off."""
        return self._cosine / self.n

    def hoyer(self) -> float | None:
        """The mean of Hoyer's sparseness over the codes that are not all zero."""
        return self._hoyer[0] / self._hoyer[1] if self._hoyer[1] else None

    def gini(self) -> float | None:
        """The mean Gini index over the codes that are not all zero."""
        return self._gini[0] / self._gini[1] if self._gini[1] else None

    def rates(self) -> Float[np.ndarray, " d_sae"]:
        """The share of tokens on which each feature fires."""
        rates: np.ndarray = self.firings.cpu().numpy() / self.n
        return rates


def l0_statistics(counts: Int[np.ndarray, " l0"]) -> dict[str, float]:
    """Mean, standard deviation (n below) and 5th and 95th percentile of L0, from how many tokens have each L0.

    The percentiles are the smallest L0 that at least 5 % and 95 % of the tokens do not exceed.
    """
    values, n = np.arange(len(counts)), counts.sum()
    mean = float(values @ counts / n)
    cumulative = np.cumsum(counts)
    return {
        "l0": mean,
        "l0_sd": float(np.sqrt((values - mean) ** 2 @ counts / n)),
        "l0_p5": float(np.searchsorted(cumulative, 0.05 * n)),
        "l0_p95": float(np.searchsorted(cumulative, 0.95 * n)),
    }


def effective_dictionary(rates: Float[np.ndarray, " d_sae"]) -> float:
    """How many equally frequent features have the entropy of these: `exp(-sum q ln q)`, q = p / sum p (Hill 1973)."""
    share = rates[rates > 0] / rates.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
