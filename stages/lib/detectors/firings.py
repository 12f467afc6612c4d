"""Where features fire, and how strongly: in tenths of their maximum.

Feature i with threshold level l fires on a token if

    f_i > (l / 10) max f_i,     l = 0, ..., 9

where the maximum is taken on other tokens (Karvonen et al. 2024, arXiv 2408.00113, section 3.1, uses these ten levels).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, UInt8
from torch import Tensor

from stages.lib.sae.selection import Active

N_LEVELS = 10
PART = 2048
"""Tokens encoded at a time."""
Encode = Callable[[Float[Tensor, "token d_in"]], Float[Tensor, "token d_sae"]]
"""From raw activations to feature activations."""


@runtime_checkable
class SparseEncode(Protocol):
    """An encoder that knows the active features without writing down the zeros (`stages.lib.sae.saved`)."""

    def __call__(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_sae"]:
        """All feature activations."""

    def active(self, x: Float[Tensor, "token d_in"]) -> Active:
        """Those above 0."""


class Firings(NamedTuple):
    """Where features fire, in the order of the rows."""

    row: npt.NDArray[np.int32]
    feature: npt.NDArray[np.int32]
    activation: npt.NDArray[np.float32]


def firings(feature_acts: Float[Tensor, "token d_sae"]) -> Firings:
    """All pairs of token and feature with f > 0."""
    acts = feature_acts.numpy()
    # Over the flattened mask: `nonzero` in two dimensions takes ten times as long.
    flat = np.flatnonzero(acts > 0)
    row = flat // acts.shape[1]
    return Firings(row.astype(np.int32), (flat - row * acts.shape[1]).astype(np.int32), acts.ravel()[flat])


def listed(active: Active) -> Firings:
    """Active features as firings."""
    row = np.repeat(np.arange(len(active.first) - 1, dtype=np.int32), np.diff(active.first.numpy()))
    return Firings(row, active.feature.numpy().astype(np.int32), active.value.numpy())


def encoded(encode: Encode, x: Float[Tensor, "token d_in"]) -> Iterator[Float[Tensor, "part d_sae"]]:
    """The feature activations, `PART` tokens at a time: those of more would not stay in the processor's cache."""
    for start in range(0, len(x), PART):
        yield encode(x[start : start + PART])


def joined(parts: Iterable[Firings]) -> Firings:
    """The firings of all parts, whose rows are counted from the first of all."""
    return Firings(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _firing_parts(encode: Encode, x: Float[Tensor, "token d_in"]) -> Iterator[Firings]:
    """The firings of `PART` tokens at a time, rows counted from the first of all."""
    for start in range(0, len(x), PART):
        part = x[start : start + PART]
        own = listed(encode.active(part)) if isinstance(encode, SparseEncode) else firings(encode(part))
        yield own._replace(row=own.row + np.int32(start))


def encoded_firings(encode: Encode, x: Float[Tensor, "token d_in"]) -> Firings:
    """Where features fire, without all their activations at once."""
    return listed(encode.active(x)) if isinstance(encode, SparseEncode) else joined(_firing_parts(encode, x))


def largest(found: Firings, d_sae: int) -> Float[np.ndarray, " d_sae"]:
    """The largest activation of each feature, 0 for one that does not fire."""
    maximum = np.zeros(d_sae, np.float32)
    np.maximum.at(maximum, found.feature, found.activation)
    return maximum


def maxima(encode: Encode, x: Float[Tensor, "token d_in"], d_sae: int) -> Float[np.ndarray, " d_sae"]:
    """The largest activation of each feature on some tokens, 0 for one that does not fire."""
    parts = [largest(part, d_sae) for part in _firing_parts(encode, x)]
    maximum: npt.NDArray[np.float32] = np.maximum.reduce(parts)
    return maximum


def level_of(activation: Float[np.ndarray, "*any"], maximum: Float[np.ndarray, "*any"]) -> UInt8[np.ndarray, "*any"]:
    """The highest level whose threshold an activation above 0 exceeds; with a maximum of 0 every threshold is 0."""
    level: npt.NDArray[np.uint8] = np.clip(np.ceil(_tenths(activation, maximum)) - 1, 0, N_LEVELS - 1).astype(np.uint8)
    return level


def _tenths(activation: npt.NDArray[np.float32], maximum: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    # The same arithmetic for counting and for detecting, so that both agree on activations at a threshold.
    with np.errstate(over="ignore"):
        least = np.finfo(np.float32).tiny
        tenths: npt.NDArray[np.float32] = np.divide(N_LEVELS * activation, np.maximum(maximum, least), dtype=np.float32)
    return tenths
