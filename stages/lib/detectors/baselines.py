"""The dense probe of the whole activation as a concept detector, with `Features`' interface."""

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float
from torch import Tensor

from stages.lib.concepts.labelled import Batch
from stages.lib.detectors.probes import ProbabilityHistogram, Probe, fit_dense


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
