"""Choosing detectors of concepts on validation and scoring them on test, in one pass over each."""

from collections.abc import Callable, Mapping
from functools import partial
from operator import methodcaller
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Int
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from stages.lib.concepts.labelled import Batch, Shared, shared_batches
from stages.lib.detectors.counts import Choice, Predictions
from stages.lib.detectors.coverage import Features, Score, score
from stages.lib.detectors.sample import Parts
from stages.lib.io import params
from stages.lib.run.machine import device
from stages.lib.run.parallel import side_by_side

BATCH = 8192
"""Tokens at a time."""
Name = TypeVar("Name")


class DetectionParams(params.Params):
    """What of the section `interpret` the SAEs and the baselines they are compared with have in common."""

    n_tokens: PositiveInt
    """Tokens of each split, as whole windows; more than there are means all."""
    n_sample: PositiveInt
    """Tokens of each split behind the maxima, the probes and the shifted labels."""
    n_shifts: PositiveInt
    """Shifts behind each chance level, at best 99 or more (`stages.lib.detectors.coverage.chance_level`); those of an
    SAE level are shared among its seeds."""
    n_resamples: PositiveInt
    """Resamples of test documents behind each interval."""
    l2: PositiveFloat
    """Penalty of the probes."""
    seed: NonNegativeInt
    """Of the windows, shifts, examples and resamples."""


@runtime_checkable
class Detector(Protocol):
    """What is chosen on validation and predicts on test."""

    def observe(self, batch: Batch) -> None:
        """Count a validation batch."""

    def choose(self) -> None:
        """Fix the detectors."""

    def predict(self, batch: Batch) -> Bool[np.ndarray, "token concept"]:
        """Where they fire."""


class Detected(NamedTuple):
    """What a set of detectors, one a concept, reaches."""

    score: Score
    """On test."""
    chance: npt.NDArray[np.float64] | None
    """F0 of each concept without the lookups; None for detectors that are no features, which have that of the SAE they
    stand beside."""
    choice: Choice | None
    """The chosen features, with their validation F1; None for detectors that are no features."""


def choose_and_score(
    detectors: Mapping[Name, Detector | Features],
    parts: Parts,
    resamples: Int[np.ndarray, "resample document"],
    advance: Callable[[int], None],
) -> dict[Name, Score]:
    """The test scores of all detectors; `advance` is told of the tokens that are done.

    Features keep where they fire on the sample, so that no token is encoded twice.
    """
    test = parts.whole["test"]
    predictions = {name: Predictions(test.n_documents, test.labels.shape[1]) for name in detectors}

    def observe(shared: Shared, name: Name) -> None:
        one = detectors[name]
        if isinstance(one, Features):
            one.observe(one.firings(shared, "validation"), shared.batch.labels)
        else:
            one.observe(shared.batch)

    def count(shared: Shared, name: Name) -> None:
        one, batch = detectors[name], shared.batch
        if isinstance(one, Features):
            fires = one.predict(one.firings(shared, "test"), len(batch.labels))
        else:
            fires = one.predict(batch)
        predictions[name].add(fires, batch.labels, batch.documents)

    def run_through(split: str, call: Callable[[Shared, Name], None]) -> None:
        for shared in shared_batches(parts.whole[split], parts.sample[split], BATCH):
            side_by_side(partial(call, shared), detectors, device())
            advance(len(shared.places))

    run_through("validation", observe)
    side_by_side(methodcaller("choose"), detectors.values(), device())
    run_through("test", count)
    return {name: score(found, resamples) for name, found in predictions.items()}
