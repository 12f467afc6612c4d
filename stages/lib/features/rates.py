"""Firing rates of the features of an SAE: their distribution, and how far they agree with other measurements.

Agreement as Spearman, ICC(2,1), Lin's concordance and mean |difference of log10 p| (`stages.lib.stats.reliability`) of

    split_half        test documents with even and with odd number
    validation        validation and test
    threshold         f > 0 and f > a tenth of the maximum
    cross_seed        features of the next seed matched by decoder (`_all`: also pairs below `match_cosine`)
    cross_level       matched features of the same seed at the next sparsity level
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Float, Int

from stages.lib.concepts.labelled import in_first_half
from stages.lib.features.matching import match
from stages.lib.features.table import FiringCounts
from stages.lib.io.summary import Row
from stages.lib.stats.reliability import Agreement, rate_agreement

Key = tuple[int, int]
"""Level and seed."""
EDGES = np.round(np.arange(-6, 0.05, 0.1), 1)
"""Of the histogram of log10 p."""
MEASURES = ("spearman", "icc", "ccc", "dex")


def measured_again(
    counts: FiringCounts, n_tokens: Int[np.ndarray, " document"], min_firings: int
) -> dict[str, Agreement | None]:
    """The agreements that need no other SAE; `n_tokens` are the test tokens of each document."""
    first = in_first_half(np.arange(len(n_tokens)))
    one, two = (counts.by_document[half].sum(0) for half in (first, ~first))
    sizes = int(n_tokens[first].sum()), int(n_tokens[~first].sum())
    firings, n, before = counts.tally.n_firings, int(n_tokens.sum()), counts.validation()
    return {
        "split_half": rate_agreement(one, two, sizes, min_firings),
        "validation": rate_agreement(before.fired[:, 0], firings, (before.n, n), min_firings),
        "threshold": rate_agreement(firings, counts.above_tenth, (n, n), min_firings),
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
    agreements = measured_again(counts[key], n_tokens, min_firings)
    n = int(n_tokens.sum())
    for name, other in neighbours(key, counts).items():
        left, right, same = matched(counts[key], counts[other], match_cosine)
        yield Row(*key, f"{name}_matched_fraction", float(same.mean()), n=len(same))
        agreements[name] = rate_agreement(left[same], right[same], (n, n), min_firings)
        agreements[f"{name}_all"] = rate_agreement(left, right, (n, n), min_firings)
    for name, found in agreements.items():
        if found is not None:
            for measure in MEASURES:
                yield Row(*key, f"{name}_{measure}", getattr(found, measure), n=found.n)


def histogram(rate: Float[np.ndarray, " feature"]) -> pd.DataFrame:
    """Counts of log10 p between `EDGES`; rates below the first edge, and dead features, are in no bin."""
    n_features, edges = np.histogram(np.log10(rate[rate > 0]), EDGES)
    return pd.DataFrame({"log10_rate": edges[:-1], "n_features": n_features})
