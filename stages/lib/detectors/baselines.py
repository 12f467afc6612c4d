"""Concept detectors that are no single features: the token id, and a dense probe. They have `Features`' interface."""

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float
from torch import Tensor

from stages.lib.concepts.labelled import Batch, Labelled
from stages.lib.detectors.counts import joint_counts
from stages.lib.detectors.label_sums import in_words, members
from stages.lib.detectors.probes import ProbabilityHistogram, Probe, accepted_ids, fit_dense, lookup


class TokenLookup:
    """Takes a token for a concept if its id is one of a list, made on `fit` and cut off on `validation`."""

    def __init__(self, fit: Labelled, d_vocab: int) -> None:
        self._d_vocab = d_vocab
        n_concepts = fit.labels.shape[1]
        self._probability = lookup(*self._counts(fit.tokens, fit.labels))
        self._positives: npt.NDArray[np.int64] = np.zeros((d_vocab, n_concepts), np.int64)
        self._totals: npt.NDArray[np.int64] = np.zeros(d_vocab, np.int64)
        self._accepted: npt.NDArray[np.bool_] | None = None

    def _counts(
        self, tokens: npt.NDArray[np.int64], labels: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        positives = joint_counts(members(np.arange(len(tokens)), tokens, self._d_vocab), in_words(labels))
        return positives.astype(np.int64), np.bincount(tokens, minlength=self._d_vocab)

    def observe(self, batch: Batch) -> None:
        """Count a validation batch."""
        positives, totals = self._counts(batch.tokens, batch.labels)
        self._positives += positives
        self._totals += totals

    def choose(self) -> None:
        """Fix the list of each concept."""
        self._accepted = accepted_ids(self._probability, self._positives, self._totals)

    def predict(self, batch: Batch) -> Bool[np.ndarray, "token concept"]:
        """Whether the tokens' ids are on the lists."""
        assert self._accepted is not None, "choose before predicting"
        return self._accepted[batch.tokens]


class DenseProbe:
    """Logistic probes of all coordinates, fitted on `fit` and cut off on `validation`: the ceiling."""

    def __init__(self, x: Float[Tensor, "token d_in"], labels: Bool[np.ndarray, "token concept"], l2: float) -> None:
        self.probe: Probe = fit_dense(x, labels, l2)
        self._histogram = ProbabilityHistogram(labels.shape[1])
        self._threshold: npt.NDArray[np.float64] | None = None

    def observe(self, batch: Batch) -> None:
        """Count a validation batch."""
        self._histogram.add(self.probe.probability(batch.x), batch.labels)

    def choose(self) -> None:
        """Fix the threshold of each concept."""
        self._threshold = self._histogram.thresholds()

    def predict(self, batch: Batch) -> Bool[np.ndarray, "token concept"]:
        """Where the probability is at or above the threshold."""
        assert self._threshold is not None, "choose before predicting"
        fires: npt.NDArray[np.bool_] = self.probe.probability(batch.x) >= self._threshold
        return fires
