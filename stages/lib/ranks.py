"""Ranks, for what is called again and again or by stages that need nothing else of `scipy.stats`: seconds to import."""

import numpy as np
from jaxtyping import Float, Shaped


def mean_ranks(values: Shaped[np.ndarray, "*group value"]) -> Float[np.ndarray, "*group value"]:
    """The ranks 1 .. n of each group's values, equal ones all with the mean of theirs."""
    order = np.argsort(values, axis=-1, kind="stable")
    ascending = np.take_along_axis(values, order, -1)
    n = values.shape[-1]
    place = np.arange(n)
    differs = ascending[..., 1:] != ascending[..., :-1]
    edge = np.ones((*values.shape[:-1], 1), np.bool_)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, differs], -1), place, 0), axis=-1)
    last = np.minimum.accumulate(np.where(np.concatenate([differs, edge], -1), place, n)[..., ::-1], axis=-1)[..., ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, -1)
    return ranks
