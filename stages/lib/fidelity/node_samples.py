"""Which of an SAE's active nodes, (token, feature) pairs, are measured exactly."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Draws(NamedTuple):
    """Tokens drawn before any SAE is looked at, so that all SAEs are measured at the same ones."""

    window: Tensor
    pos: Tensor
    share: np.ndarray
    """Which of a token's active features is taken: the one this far along them, in [0, 1)."""


def draw_tokens(counted: Bool[Tensor, "window pos"], n: int, generator: np.random.Generator) -> Draws:
    """`n` of the positions whose prediction counts, or all if there are fewer, each with a uniform number."""
    window, pos = counted.cpu().nonzero(as_tuple=True)
    rows = torch.from_numpy(np.sort(generator.choice(len(window), min(n, len(window)), replace=False)))
    return Draws(window[rows], pos[rows], generator.random(len(rows)))


def drawn_nodes(draws: Draws, feature_acts: Float[Tensor, "window pos d_sae"]) -> Int[np.ndarray, " node"]:
    """One active feature at each drawn token that has any, as places among `active_nodes`, which go by token."""
    per_token = (feature_acts > 0).sum(2).cpu()
    first = per_token.flatten().cumsum(0).reshape(per_token.shape) - per_token
    n, before = (counts[draws.window, draws.pos].numpy() for counts in (per_token, first))
    place = before + (draws.share * n).astype(np.int64)
    return np.asarray(place[n > 0])


def strata(
    score: Float[np.ndarray, " node"],
    activation: Float[np.ndarray, " node"],
    n_each: int,
    generator: np.random.Generator,
) -> Iterator[tuple[str, Int[np.ndarray, " chosen"]]]:
    """Two samples of nodes: `top` by |score|, and `activation`, spread evenly over the quantiles of f.

    Agreement on the top nodes alone says little (their range is selected), so `random` (`drawn_nodes`) is the one to go
    by. The samples may share nodes.
    """
    n = min(n_each, len(score))
    yield "top", np.sort(np.argsort(-np.abs(score), kind="stable")[:n])
    by_activation = np.argsort(activation, kind="stable")
    edges = np.linspace(0, len(score), n + 1).astype(np.int64)
    # One from each of n equal quantile bins.
    yield "activation", np.sort(by_activation[generator.integers(edges[:-1], edges[1:])])
