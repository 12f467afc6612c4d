"""Disjoint random streams from one root seed.

Streams are told apart by name, never by adding numbers to a seed: two uses of the same seed (a dictionary and the
initialisation of an SAE, say) then never share their random numbers, which would make chance look like recovery.
"""

import zlib

import numpy as np


def sequence(root: int, *names: str | int) -> np.random.SeedSequence:
    """The seed sequence of the stream called `names` below `root`."""
    return np.random.SeedSequence(root, spawn_key=tuple(zlib.crc32(str(name).encode()) for name in names))


def numpy_generator(root: int, *names: str | int) -> np.random.Generator:
    """A numpy generator on the stream called `names`."""
    return np.random.default_rng(sequence(root, *names))


def integer(root: int, *names: str | int) -> int:
    """A 63-bit seed for libraries that want a number (`torch.Generator.manual_seed`, UMAP)."""
    return int(sequence(root, *names).generate_state(1, np.uint64)[0] >> 1)
