"""A seeded bijection of range(n) that needs no memory proportional to n.

An alternating Feistel network (Luby & Rackoff 1988, doi 10.1137/0217022; halves of unequal width: Hoang & Rogaway
2010, doi 10.1007/978-3-642-14623-7_33) permutes the smallest power of two that holds n; what falls outside goes
through it again until it falls inside (cycle walking, method 2 of Black & Rogaway 2002, doi 10.1007/3-540-45760-7_9),
which takes fewer than two passes on average. So any process can tell where any row goes, at 10^6 or 10^11 rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

from stages.lib.io.errors import UserError

METHOD = "feistel-splitmix64"
ROUNDS = 8
"""Twice the four rounds of Luby & Rackoff, whose proof is about wide halves; ours can be one bit wide."""


def _mix(value: UInt64[np.ndarray, " row"], key: int) -> UInt64[np.ndarray, " row"]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014, `mix64`), with the key in the value's upper half."""
    value = value ^ np.uint64(key << 32)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64[np.ndarray, " row"] = value ^ (value >> np.uint64(31))
    return mixed


@dataclass(frozen=True)
class Permutation:
    """One bijection of range(n), told apart from others by its round keys (32 bits each)."""

    n: int
    keys: tuple[int, ...]

    @classmethod
    def from_seed(cls, n: int, sequence: np.random.SeedSequence) -> "Permutation":
        """The permutation of range(n) that belongs to a stream of random numbers."""
        return cls(n, tuple(int(key) for key in sequence.generate_state(ROUNDS, np.uint32)))

    @classmethod
    def from_recipe(cls, recipe: dict[str, Any]) -> "Permutation":
        """The permutation that `recipe` described.

        Raises:
            UserError: if the recipe is of another method.
        """
        if recipe.get("method") != METHOD:
            raise UserError(
                f"permutation recipe of method {recipe.get('method')!r}, not {METHOD!r}: remake the artefact"
            )
        return cls(recipe["n"], tuple(recipe["keys"]))

    def recipe(self) -> dict[str, Any]:
        """All that is needed to rebuild it, as JSON can hold it."""
        return {"method": METHOD, "n": self.n, "keys": list(self.keys)}

    def __call__(self, index: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
        """Where each index goes."""
        return self._walk(index, range(len(self.keys)))

    def inverse(self, image: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
        """Which index goes there: the same rounds in reverse, since each of them undoes itself."""
        return self._walk(image, range(len(self.keys) - 1, -1, -1))

    def _walk(self, start: Int64[np.ndarray, " row"], rounds: range) -> Int64[np.ndarray, " row"]:
        assert start.size == 0 or (start.min() >= 0 and start.max() < self.n), f"indices outside range({self.n})"
        value = self._network(start.astype(np.uint64), rounds)
        outside = np.flatnonzero(value >= self.n)
        while outside.size:
            value[outside] = self._network(value[outside], rounds)
            outside = outside[value[outside] >= self.n]
        return value.astype(np.int64)

    def _network(self, value: UInt64[np.ndarray, " row"], rounds: range) -> UInt64[np.ndarray, " row"]:
        """A bijection of the power of two: each round adds a hash of one half to the other."""
        bits = max(2, (self.n - 1).bit_length())
        width = np.uint64(bits // 2)
        low_mask, high_mask = np.uint64((1 << (bits // 2)) - 1), np.uint64((1 << (bits - bits // 2)) - 1)
        low, high = value & low_mask, value >> width
        for step in rounds:
            if step % 2 == 0:
                high = high ^ (_mix(low, self.keys[step]) & high_mask)
            else:
                low = low ^ (_mix(high, self.keys[step]) & low_mask)
        return (high << width) | low
