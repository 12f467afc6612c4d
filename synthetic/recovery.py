"""How much of a known dictionary an SAE has found.

With learned directions d [d_sae, d_in], true ones D [feature, d_in], unit rows both, S = d D^T holds signed cosines:
codes are not negative, so a direction that points the other way is no recovery (many evaluations take |cosine|).

    mcc                 mean of S over the one-to-one pairs that maximise it (`stages.lib.features.matching`)
    mmcs_true           mean_j max_i S_ij: how near the true features have a learned one        (Sharkey et al. 2022)
    mmcs_learned        mean_i max_j S_ij: how near the learned features have a true one
    recovered_fraction  share of true features with max_i S_ij > 0.9; at most d_sae / feature, where a learned direction
                        cannot be so near two true ones
    unique_fraction     share of learned features left when those nearest to the same true feature count once

Firing is compared over the pairs of the mcc, with "on" for a true code above 0 and "fires" for a learned one above 0:

    precision = P(on | fires)      recall = P(fires | on)      f1 = 2 TP / (fires + on)

Absorption (Chanin et al. 2024, arXiv:2409.14507): a learned parent is silent where a child, which implies it, is on,
because the child's learned direction has taken it in. Parents and children are known here, so for a parent's matched
feature

    absorption = 1 - P(fires | parent and a child on) / P(fires | parent on, no child on)

and for each child k with "k" for "a child". Below 0 it fires more often with the child than without: the child has no
feature of its own, so its parent's stands for it too. Children of another parent imply nothing; what the same formula
gives for them is what any neighbour in the code does, such as taking one of its k places.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.lib.features.matching import best_cosines, cosines, match

RECOVERED = 0.9
"""Cosine above which a true feature counts as recovered."""
N_GROUPS = 10
"""Groups of equally many features by frequency."""


class Directions(NamedTuple):
    """Learned against true directions."""

    mcc: float
    mmcs_true: float
    mmcs_learned: float
    recovered_fraction: float
    unique_fraction: float
    best: Float[Tensor, " feature"]
    """max_i S_ij."""
    learned: Int[np.ndarray, " pair"]
    """The learned feature of each pair, ..."""
    true: Int[np.ndarray, " pair"]
    """... its true one ..."""
    cosine: Float[np.ndarray, " pair"]
    """... and their cosine."""

    def numbers(self) -> dict[str, float]:
        """Those that are one number."""
        return {name: value for name, value in self._asdict().items() if isinstance(value, float)}


def directions(learned: Float[Tensor, "d_sae d_in"], true: Float[Tensor, "feature d_in"]) -> Directions:
    """All that needs only the directions."""
    matched, best = match(learned, true), best_cosines(true, learned)
    return Directions(
        mcc=matched.mcc,
        mmcs_true=float(best.double().mean()),
        mmcs_learned=float(best_cosines(learned, true).double().mean()),
        recovered_fraction=float((best > RECOVERED).double().mean()),
        unique_fraction=len(set(cosines(learned, true).argmax(1).tolist())) / len(learned),
        best=best,
        learned=matched.left,
        true=matched.right,
        cosine=matched.cosines,
    )


def frequency_groups(frequency: Float[np.ndarray, " feature"], n_groups: int = N_GROUPS) -> Int[np.ndarray, " feature"]:
    """The group of each feature, from 0 for the rarest; groups differ in size by one feature at most."""
    group = np.empty(len(frequency), np.int64)
    group[np.argsort(frequency, kind="stable")] = np.arange(len(frequency)) * n_groups // len(frequency)
    return group


class Firings:
    """Counts of how matched features fire where their true ones are on; `add` batches, then read the numbers."""

    def __init__(self, pairs: Directions) -> None:
        """Begin with no token seen."""
        self._learned, self._true = torch.from_numpy(pairs.learned), torch.from_numpy(pairs.true)
        self.both = torch.zeros(len(self._true), dtype=torch.int64)
        self.fires, self.on = torch.zeros_like(self.both), torch.zeros_like(self.both)

    def add(self, fires: Bool[Tensor, "token d_sae"], on: Bool[Tensor, "token feature"]) -> None:
        """Take in a batch."""
        matched, true = fires[:, self._learned], on[:, self._true]
        self.both += (matched & true).sum(0)
        self.fires += matched.sum(0)
        self.on += true.sum(0)

    def precision(self) -> Float[np.ndarray, " pair"]:
        """P(on | fires); NaN for a feature that never fires."""
        return _ratio(self.both, self.fires)

    def recall(self) -> Float[np.ndarray, " pair"]:
        """P(fires | on); NaN for a true feature that is never on."""
        return _ratio(self.both, self.on)

    def f1(self) -> Float[np.ndarray, " pair"]:
        """The harmonic mean of both; 0 for a feature that never fires where its true one is on."""
        return _ratio(2 * self.both, self.fires + self.on)


class Families:
    """Counts of how the features of parents fire with and without the children of every family.

    Args:
        learned: the SAE's feature of each parent.
        parents: true features.
        family: which of the families is the parent's own.
        children: true features of each family, of which at most one is on.
    """

    def __init__(
        self,
        learned: Int[np.ndarray, " parent"],
        parents: Int[np.ndarray, " parent"],
        family: Int[np.ndarray, " parent"],
        children: Int[np.ndarray, "family child"],
    ) -> None:
        self._learned, self._parents = torch.from_numpy(learned), torch.from_numpy(parents)
        self._family, self._children = family, torch.from_numpy(children)
        self.n = torch.zeros(len(parents), dtype=torch.int64)
        """Tokens with the parent on, ..."""
        self.fires = torch.zeros_like(self.n)
        """... and those of them on which its feature fires."""
        self.n_child = torch.zeros(len(parents), *children.shape, dtype=torch.int64)
        """Tokens with the parent and this child on, [parent, family, child], ..."""
        self.fires_child = torch.zeros_like(self.n_child)
        """... and those of them on which its feature fires."""

    def add(self, fires: Bool[Tensor, "token d_sae"], on: Bool[Tensor, "token feature"]) -> None:
        """Take in a batch."""
        parent = on[:, self._parents]
        both = parent & fires[:, self._learned]
        self.n += parent.sum(0)
        self.fires += both.sum(0)
        child = on[:, self._children.flatten()].float()  # sums of a batch are whole numbers that float32 holds
        self.n_child += (parent.float().T @ child).long().view(self.n_child.shape)
        self.fires_child += (both.float().T @ child).long().view(self.n_child.shape)

    def is_own(self) -> Bool[np.ndarray, "parent family"]:
        """Which family is whose."""
        own: np.ndarray = np.arange(self.n_child.shape[1]) == self._family[:, None]
        return own

    def _alone(self) -> Float[np.ndarray, "parent family"]:
        """P(fires | parent on, no child of the family on): of children that exclude each other the counts add up."""
        return _ratio(self.fires[:, None] - self.fires_child.sum(2), self.n[:, None] - self.n_child.sum(2))

    def absorption(self) -> Float[np.ndarray, " parent"]:
        """1 - P(fires | a child) / P(fires | no child) of each parent; NaN where one of them is not defined."""
        with_child = _ratio(self.fires_child.sum(2), self.n_child.sum(2))
        every: np.ndarray = 1 - _divided(with_child, self._alone())
        own: np.ndarray = every[self.is_own()]
        return own

    def by_child(self) -> Float[np.ndarray, "parent family child"]:
        """The same with one child alone, of every family."""
        return 1 - _divided(_ratio(self.fires_child, self.n_child), self._alone()[:, :, None])


def _ratio(above: Int[Tensor, "*shape"], below: Int[Tensor, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return _divided(above.double().numpy(), below.double().numpy())


def _divided(above: Float[np.ndarray, "*shape"], below: Float[np.ndarray, "*other"]) -> Float[np.ndarray, "*shape"]:
    """The quotient; NaN where it is not defined."""
    below = np.broadcast_to(below, above.shape)
    quotient: np.ndarray = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    return quotient
