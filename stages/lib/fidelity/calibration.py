"""How well scores of nodes agree with their exact effects, by statistics that a few extreme nodes cannot move.

Effects have heavy tails: one node in hundreds can be as large as all others together, and a least-squares slope or
Pearson's correlation then says where that node lies. So the slope is the median over nodes of effect / score, a line
through the origin (a node that does not fire has neither score nor effect), over nodes whose score is large enough for
the ratio to mean something.

Nodes are not independent: those of one document share its text, those of one seed its dictionary. The two cross, since
all SAEs see the same tokens, so both are resampled at once and a node counts as often as its document times as often as
its seed: the pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1, 386-411), whose variance is on average
not below the true one.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from stages.lib.stats.correlation import resampled_sign_agreement, resampled_spearman, sign_agreement, spearman
from stages.lib.stats.intervals import Interval, percentile_interval, resample_counts

MIN_RATIOS = 10
"""With fewer nodes above the smallest score there is no slope."""


def median_ratio(score: Float[np.ndarray, " node"], effect: Float[np.ndarray, " node"]) -> float | None:
    """The median of effect / score over nodes whose score is not 0; None with fewer than `MIN_RATIOS`."""
    used = score != 0
    return float(np.median(effect[used] / score[used])) if used.sum() >= MIN_RATIOS else None


def resampled_median_ratio(
    score: Float[np.ndarray, " node"], effect: Float[np.ndarray, " node"], counts: Int[np.ndarray, "resample node"]
) -> Float[np.ndarray, " defined"]:
    """`median_ratio` with node i taken `counts[r, i]` times, for each resample that has any node."""
    used = np.flatnonzero(score)
    ratio = effect[used] / score[used]
    order = np.argsort(ratio, kind="stable")
    ascending, below = ratio[order], counts[:, used[order]].cumsum(1)
    below = below[below[:, -1] > 0]
    # The median of n values is the mean of the ceil(n / 2)-th and the floor(n / 2 + 1)-th.
    n = below[:, -1:]
    lower, upper = (2 * below >= n).argmax(1), (2 * below > n).argmax(1)
    return np.asarray((ascending[lower] + ascending[upper]) / 2)


class Statistic(NamedTuple):
    """A number of two series, and the same for many resamples at once."""

    of: Callable[[np.ndarray, np.ndarray], float | None]
    resampled: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


SPEARMAN = Statistic(spearman, resampled_spearman)
SIGN_AGREEMENT = Statistic(sign_agreement, resampled_sign_agreement)
SLOPE = Statistic(median_ratio, resampled_median_ratio)


class Found(NamedTuple):
    """A statistic with its interval, where there is one, and the nodes that it rests on."""

    name: str
    value: float
    interval: Interval | None
    n: int


class Columns(NamedTuple):
    """The scores and the exact effect of each node, in nats."""

    grad_x_act: Float[np.ndarray, " node"]
    ig: Float[np.ndarray, " node"]
    activation: Float[np.ndarray, " node"]
    naive: Float[np.ndarray, " node"]
    ablation: Float[np.ndarray, " node"]


def agreements(nodes: Columns, counts: Int[np.ndarray, "resample node"], min_score: float) -> Iterator[Found]:
    """The comparisons of scores and effects; `slope` over the nodes with |grad x act| above `min_score` alone."""
    score, integrated, activation, naive, effect = nodes
    size = np.abs(effect)
    yield from _found("spearman", SPEARMAN, (score, effect), counts)
    yield from _found("sign_agreement", SIGN_AGREEMENT, (score, effect), counts)
    large = np.abs(score) > min_score
    yield from _found("slope", SLOPE, (score[large], effect[large]), counts[:, large])
    yield from _found("spearman_ig", SPEARMAN, (integrated, effect), counts)
    yield from _found("spearman_magnitude", SPEARMAN, (np.abs(score), size), counts)
    yield from _found("spearman_magnitude_ig", SPEARMAN, (np.abs(integrated), size), counts)
    yield from _found("spearman_magnitude_activation", SPEARMAN, (activation, size), counts)
    yield from _found("spearman_naive", SPEARMAN, (naive, size), counts)


def _found(
    name: str, statistic: Statistic, pair: tuple[np.ndarray, np.ndarray], counts: Int[np.ndarray, "resample node"]
) -> Iterator[Found]:
    value = statistic.of(*pair)
    if value is not None:
        again = statistic.resampled(*pair, counts)
        yield Found(name, value, percentile_interval(again.tolist()), len(pair[0]))


def block_counts(
    blocks: Int[np.ndarray, " node"], n_resamples: int, generator: np.random.Generator
) -> Int[np.ndarray, "resample node"]:
    """How often each node is taken when the blocks that occur, documents or seeds, are resampled."""
    present, place = np.unique(blocks, return_inverse=True)
    return resample_counts(len(present), n_resamples, generator)[:, place]


def crossed_counts(
    document: Int[np.ndarray, " node"],
    seed: Int[np.ndarray, " node"],
    n_resamples: int,
    generator: np.random.Generator,
) -> Int[np.ndarray, "resample node"]:
    """How often each node is taken when documents and seeds are resampled, independently of each other.

    A resample in which no node is left (its seeds have none in its documents) has zeros alone, and no statistic.
    """
    by_document, by_seed = (block_counts(block, n_resamples, generator) for block in (document, seed))
    return np.asarray(by_document * by_seed)
