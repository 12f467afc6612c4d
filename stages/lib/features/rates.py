"""Firing rates of the features of an SAE: their distribution, and how far they agree with other measurements.

A ladder: each rung changes more about the measurement than the one before, and says nothing about the next.

    split_half        test documents with even and with odd number
    validation        validation and test
    threshold         f > 0 and f > a tenth of the maximum
    cross_seed        features of the next seed with a decoder cosine of at least `match_cosine`
    cross_seed_all    all features of the two seeds, matched one to one by their decoders
    cross_level       the same two with the same seed's next sparsity level
    cross_level_all

Agreement is Spearman's, ICC(2,1), Lin's concordance and mean |difference of log10 p| (`stages.lib.stats.reliability`),
and the standard error of a measurement in the unit of log10 p, which, unlike the ICC, does not grow with the spread of
the features,

    SEM = sqrt(mean (x - y)^2 / 2)                                 (the agreement form of de Vet et al. 2006, section 2,
                                                                    doi 10.1016/j.jclinepi.2005.10.015)
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Float, Int

from stages.lib.concepts.labelled import in_first_half
from stages.lib.features.counting import FiringCounts
from stages.lib.features.matching import match
from stages.lib.io.summary import Row
from stages.lib.stats.reliability import rate_agreement, resolved

Key = tuple[int, int]
"""Level and seed."""
EDGES = np.round(np.arange(-6, 0.05, 0.1), 1)
"""Of the histogram of log10 p."""
AGREEMENTS = ("spearman", "icc", "ccc", "dex")


def standard_error(
    left: Int[np.ndarray, " feature"], right: Int[np.ndarray, " feature"], n: tuple[int, int], min_firings: int
) -> float:
    """The standard error of log10 p, in dex, from two counts of the same features on `n` tokens; NaN without features.

    Of the features with at least `min_firings` firings in both.
    """
    both = resolved(left, min_firings) & resolved(right, min_firings)
    difference = np.log10(left[both] / n[0]) - np.log10(right[both] / n[1])
    return float(np.sqrt((difference**2).mean() / 2)) if both.any() else float("nan")


class Rung(NamedTuple):
    """Firings of the same features counted in two ways."""

    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    n: tuple[int, int]
    """The tokens that each count looked at."""

    def numbers(self, min_firings: int) -> dict[str, tuple[float, int]]:
        """How far the two agree, each number with the features behind it; nothing where it is not defined."""
        found = rate_agreement(*self, min_firings)
        if found is None:
            return {}
        agreements = {name: (float(getattr(found, name)), found.n) for name in AGREEMENTS}
        return agreements | {"sem": (standard_error(*self, min_firings), found.n)}


def measured_again(counts: FiringCounts, n_tokens: Int[np.ndarray, " document"]) -> dict[str, Rung]:
    """The rungs that need no other SAE; `n_tokens` are the test tokens of each document."""
    first = in_first_half(np.arange(len(n_tokens)))
    one, two = (counts.by_document[half].sum(0) for half in (first, ~first))
    sizes = int(n_tokens[first].sum()), int(n_tokens[~first].sum())
    firings, n, before = counts.tally.n_firings, int(n_tokens.sum()), counts.validation()
    return {
        "split_half": Rung(one, two, sizes),
        "validation": Rung(before.fired[:, 0], firings, (before.n, n)),
        "threshold": Rung(firings, counts.above_tenth, (n, n)),
    }


def neighbours(key: Key, keys: Iterable[Key]) -> dict[str, Key]:
    """The SAEs whose features are compared: the next seed's, the last being followed by the first, and the next level.

    Those of them that there are.
    """
    level, seed = key
    known = set(keys)
    seeds = sorted({other for _, other in known})
    following = seeds[(seeds.index(seed) + 1) % len(seeds)]
    found = {"cross_seed": (level, following), "cross_level": (level + 1, seed)}
    return {name: other for name, other in found.items() if other in known and other != key}


class Matched(NamedTuple):
    """Test firings of the features of two SAEs that are matched one to one by their decoders, [pair]."""

    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    same: npt.NDArray[np.bool_]
    """Whether their cosine is high enough to count as the same feature."""


def matched(left: FiringCounts, right: FiringCounts, match_cosine: float) -> Matched:
    """The firings of matched features; from a cosine of `match_cosine` they are the same."""
    pairs = match(left.sae.W_dec.cpu(), right.sae.W_dec.cpu())
    firings = left.tally.n_firings[pairs.left], right.tally.n_firings[pairs.right]
    return Matched(*firings, pairs.cosines >= match_cosine)


def rate_rows(
    key: Key,
    counts: Mapping[Key, FiringCounts],
    n_tokens: Int[np.ndarray, " document"],
    min_firings: int,
    match_cosine: float,
) -> Iterator[Row]:
    """The numbers of one SAE: its rates measured again, and beside those of its neighbours."""
    rungs = measured_again(counts[key], n_tokens)
    n = int(n_tokens.sum())
    for name, other in neighbours(key, counts).items():
        left, right, same = matched(counts[key], counts[other], match_cosine)
        yield Row(*key, f"{name}_matched_fraction", float(same.mean()), n=len(same))
        rungs[name] = Rung(left[same], right[same], (n, n))
        rungs[f"{name}_all"] = Rung(left, right, (n, n))
    for name, rung in rungs.items():
        for measure, (value, n_features) in rung.numbers(min_firings).items():
            yield Row(*key, f"{name}_{measure}", value, n=n_features)


def histogram(rate: Float[np.ndarray, " feature"]) -> pd.DataFrame:
    """Counts of log10 p between `EDGES`; rates below the first edge, and dead features, are in no bin."""
    n_features, edges = np.histogram(np.log10(rate[rate > 0]), EDGES)
    return pd.DataFrame({"log10_rate": edges[:-1], "n_features": n_features})
