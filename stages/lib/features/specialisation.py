"""How specialised a feature is, by measures that do not depend on how often it fires merely by construction.

Each naive measure has a frequency artefact, and each has its remedy here:

- The entropy of the tokens a feature fires on grows with the number of firings. Rarefied: the expected entropy of just
  n0 of its firings (rarefaction after Hurlbert 1971), computed exactly. With n firings of which n_v on token v,

      H = -sum_v sum_k P(K = k) (k / n0) ln(k / n0),   K hypergeometric: n0 draws from n of which n_v are marked

- The best F1 with any concept is high by chance for frequent features: MCC instead, calibrated against what the same
  choice of a concept reaches on shifted labels (`stages.lib.detectors.null.feature_null`): (S - S0) / (1 - S0).
- The purity P(concept | f > 0) is high for prevalent concepts: (P - p_c) / (1 - p_c).
- The kurtosis of f with its zeros is about 1 / p: of f given f > 0.
"""

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.special import gammaln

from stages.lib.detectors.coverage import corrected
from stages.lib.detectors.firings import Firings
from stages.lib.detectors.label_sums import members
from stages.lib.run.parallel import compiled


@compiled
def _add_powers(
    feature: np.ndarray, activation: np.ndarray, n_firings: np.ndarray, maximum: np.ndarray, power_sums: np.ndarray
) -> None:
    """Add each firing, and its activation to the powers 1 to 4, to the sums of its feature."""
    for p in range(feature.shape[0]):
        i, own, power = feature[p], activation[p], 1.0
        n_firings[i] += 1
        maximum[i] = max(maximum[i], own)
        for q in range(power_sums.shape[0]):
            power *= own
            power_sums[q, i] += power


@compiled
def _count_ids(
    first: np.ndarray, ids: np.ndarray, counts: np.ndarray, starts: np.ndarray, found: np.ndarray, times: np.ndarray
) -> None:
    """Write which ids each feature's firings have, ascending, and how often; `counts` is zeros, one for each id."""
    for i in range(first.shape[0] - 1):
        begin = end = starts[i]
        for p in range(first[i], first[i + 1]):
            if counts[ids[p]] == 0:
                found[end] = ids[p]
                end += 1
            counts[ids[p]] += 1
        found[begin:end].sort()
        for q in range(begin, end):
            times[q] = counts[found[q]]
            counts[found[q]] = 0
        starts[i + 1] = end


class Tally:
    """Sums over the firings of each feature, batch by batch."""

    def __init__(self, d_sae: int, d_vocab: int) -> None:
        self._power_sums = np.zeros((4, d_sae))
        self.n_firings = np.zeros(d_sae, np.int64)
        self.maximum = np.zeros(d_sae, np.float32)
        self.tokens: csr_matrix = csr_matrix((d_sae, d_vocab), dtype=np.int32)
        """Firings of each feature on each token id, [feature, token id]."""

    def add(self, firings: Firings, tokens: Int[np.ndarray, " token"]) -> None:
        """Count a batch; `tokens` are the ids of its rows."""
        (d_sae, d_vocab), n = self.tokens.shape, len(firings.row)
        _add_powers(firings.feature, firings.activation, self.n_firings, self.maximum, self._power_sums)
        by_feature = members(firings.row, firings.feature, d_sae)
        ids, starts = tokens.astype(np.int32)[by_feature.row], np.zeros(d_sae + 1, np.int64)
        found, times = np.empty(n, np.int32), np.empty(n, np.int32)
        _count_ids(by_feature.first, ids, np.zeros(d_vocab, np.int32), starts, found, times)
        self.tokens = self.tokens + csr_matrix((times[: starts[-1]], found[: starts[-1]], starts), self.tokens.shape)

    def mean(self) -> Float[np.ndarray, " d_sae"]:
        """The mean of f given f > 0; NaN for features that never fired."""
        mean: npt.NDArray[np.float64] = self._moments()[0]
        return mean

    def kurtosis(self) -> Float[np.ndarray, " d_sae"]:
        """m4 / m2^2 of f given f > 0 (3 for a normal variable); NaN without spread."""
        m1, m2, m3, m4 = self._moments()
        variance = m2 - m1**2
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        # What is left after cancellation is rounding error, not spread.
        spread = variance > 1e-9 * m2
        result: npt.NDArray[np.float64] = np.divide(fourth, variance**2, out=np.full_like(m1, np.nan), where=spread)
        return result

    def _moments(self) -> Float[np.ndarray, "4 d_sae"]:
        n = np.broadcast_to(self.n_firings, self._power_sums.shape)
        return np.divide(self._power_sums, n, out=np.full_like(self._power_sums, np.nan), where=n > 0)


def plugin_entropy(counts: csr_matrix) -> Float[np.ndarray, " feature"]:
    """-sum q ln q of each row's shares, in nats; NaN for empty rows. Biased down where there are few counts."""
    total = np.asarray(counts.sum(1)).ravel().astype(np.float64)
    row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    share = counts.data / total[row]
    entropy = np.bincount(row, -share * np.log(share), counts.shape[0])
    return np.where(total > 0, entropy, np.nan)


def rarefied_entropy(counts: csr_matrix, n0: int) -> Float[np.ndarray, " feature"]:
    """Expected plug-in entropy of `n0` of a row's counts drawn without replacement, in nats; NaN for smaller rows."""
    total = np.asarray(counts.sum(1)).ravel().astype(np.int64)
    row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    kept = total[row] >= n0
    base = max(int(total.max(initial=0)), n0) + 1
    pairs, inverse = np.unique(total[row][kept] * base + counts.data[kept], return_inverse=True)
    value = np.zeros(len(pairs))
    n, marked = np.divmod(pairs, base)
    log_factorial = gammaln(np.arange(base) + 1.0)
    for k in range(1, n0):
        # At k = n0 the share is 1 and its logarithm 0.
        possible = (marked >= k) & (n - marked >= n0 - k)
        log_p = (
            _log_choose(log_factorial, marked[possible], k)
            + _log_choose(log_factorial, n[possible] - marked[possible], n0 - k)
            - _log_choose(log_factorial, n[possible], n0)
        )
        value[possible] -= np.exp(log_p) * (k / n0) * np.log(k / n0)
    entropy = np.bincount(row[kept], value[inverse.ravel()], counts.shape[0])
    return np.where(total >= n0, entropy, np.nan)


def _log_choose(log_factorial: npt.NDArray[np.float64], n: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
    return result


def purity(
    both: Int[np.ndarray, "feature concept"],
    fired: Int[np.ndarray, " feature"],
    positives: Int[np.ndarray, " concept"],
    n: int,
) -> Float[np.ndarray, "feature concept"]:
    """(P(concept | f > 0) - p_c) / (1 - p_c), 0 for features that never fire."""
    share = both / np.maximum(fired, 1)[:, None]
    return np.where(fired[:, None] > 0, corrected(share, positives / n), 0.0)
