"""Which arms are as good as the best one, by tests of all pairs; apart from the tests, because the report reads it."""

from collections.abc import Mapping
from typing import NamedTuple

CONFIDENCE = 0.95


class Pair(NamedTuple):
    """Two arms."""

    mean: float
    """The first less the second."""
    p: float
    """For all pairs at once."""


def as_good_as_best(means: Mapping[str, float], pairs: dict[tuple[str, str], Pair], lower: bool) -> list[str]:
    """The arm with the best mean and those that the tests don't tell from it, the best first.

    An arm whose pair with the best could not be tested is left out. `lower` says that a lower number is the better one.
    """
    order = sorted(means, key=lambda arm: means[arm] if lower else -means[arm])
    both = pairs | {(other, one): pair for (one, other), pair in pairs.items()}
    equal = [arm for arm in order[1:] if (arm, order[0]) in both and both[arm, order[0]].p >= 1 - CONFIDENCE]
    return [*order[:1], *equal]
