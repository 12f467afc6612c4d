"""How often each context of the held-out text occurs in other text, and with which concepts.

A context is a token with up to two tokens before it, as far as a model sees them in its window. Of all contexts only
those that occur in validation or test are kept, since no other is ever looked up. `data/concepts/ngrams.safetensors`
has, for each `<name>` of `ORDERS` (contexts of n tokens),

    <name>/grams      int32 [gram, n]    the contexts, oldest token first, in lexicographic order
    <name>/total      int64 [gram]       how many tokens of the counted text have the context
    <name>/first      int64 [gram + 1]   where the pairs of each context begin, and at last how many there are
    <name>/concept    int16 [pair]       concepts that occur in the context, in rising order
    <name>/positives  int32 [pair]       how many of the tokens have the concept; int64 if one is too large for that

and `all/positives`, int64 [concept], over all counted tokens. The description has `concepts`, the names of the columns,
and `n_tokens`, how many tokens were counted.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from scipy.sparse import csr_array, vstack

from stages.lib.concepts.labels import CONCEPTS, read_concepts
from stages.lib.io import tensors
from stages.lib.io.errors import UserError

ORDERS = {"token": 1, "bigram": 2, "trigram": 3}
"""How many tokens a context has."""
LONGEST = max(ORDERS.values())
FILE, FACTS = CONCEPTS / "ngrams.safetensors", CONCEPTS / "ngrams.json"


def contexts(tokens: Int[np.ndarray, "window pos"], positions: Int[np.ndarray, " token"]) -> Int[np.ndarray, "token 3"]:
    """The two tokens before each flat position and its own, as far as a model sees them.

    Before the first token of a window stands what the window begins with, once more where two tokens are asked for.
    """
    first = positions // tokens.shape[1] * tokens.shape[1]
    places = np.maximum(positions[:, None] - np.arange(LONGEST)[::-1], first[:, None])
    found: npt.NDArray[np.int64] = tokens.ravel()[places].astype(np.int64)
    return found


def pack(grams: Int[np.ndarray, "gram n"], d_vocab: int) -> Int[np.ndarray, " gram"]:
    """One number for each n-gram, whose last column is its newest token.

    The remainder by `d_vocab ** m` is the number of its last m tokens.

    Raises:
        ValueError: if n-grams of so many different tokens do not fit 64 bits.
    """
    keys: npt.NDArray[np.int64] = np.ravel_multi_index(tuple(grams.T), (d_vocab,) * grams.shape[1])
    return keys


def place_in(keys: Int[np.ndarray, " key"], wanted: Int[np.ndarray, " any"]) -> Int[np.ndarray, " any"]:
    """The place of each wanted key among sorted ones, -1 where it is not there."""
    order = np.argsort(wanted)  # looks in rising order find their way through the cache: half the time, sort included
    place = np.empty(len(wanted), np.int64)
    place[order] = np.minimum(np.searchsorted(keys, wanted[order]), len(keys) - 1)
    found: npt.NDArray[np.int64] = np.where(keys[place] == wanted, place, -1)
    return found


class Asked:
    """The contexts that are asked about, as nodes of a tree.

    Node 0 is the empty context; those of one token follow, of two, of three, each in lexicographic order. The parent of
    a context lacks its oldest token; it is asked about too, because both end at the same token of a text. So a token is
    counted once, at its longest context that is asked about, and counts are summed up towards the root at the end.
    """

    def __init__(self, context: Int[np.ndarray, "token 3"], d_vocab: int) -> None:
        self.d_vocab = d_vocab
        keys = {n: np.unique(pack(context[:, -n:], d_vocab)) for n in ORDERS.values()}
        self._keys = {0: np.zeros(1, np.int64), **keys}
        self.first = np.cumsum([0, *(len(some) for some in self._keys.values())]).tolist()
        """The first node of each length, and at last how many nodes there are."""

    def nodes(self, n: int) -> slice:
        """The nodes of the contexts of n tokens."""
        return slice(self.first[n], self.first[n + 1])

    def grams(self, n: int) -> Int[np.ndarray, "gram n"]:
        """The contexts of n tokens, in the order of their nodes."""
        found: npt.NDArray[np.int32] = np.stack(np.unravel_index(self._keys[n], (self.d_vocab,) * n), 1).astype(
            np.int32
        )
        return found

    def places(self, context: Int[np.ndarray, "token 3"], n: int) -> Int[np.ndarray, " token"]:
        """The place of each token's context among those of n tokens, -1 if it is not asked about."""
        return place_in(self._keys[n], pack(context[:, -n:], self.d_vocab))

    def longest(self, context: Int[np.ndarray, "token 3"]) -> Int[np.ndarray, " token"]:
        """The node of each token's longest context that is asked about."""
        node = np.zeros(len(context), np.int64)
        for n in ORDERS.values():
            place = self.places(context, n)
            node = np.where(place >= 0, self.first[n] + place, node)
        return node

    def summed(self, own: csr_array) -> csr_array:
        """Counts [node, column] of each node and all below it, from those of each node alone."""
        levels = [own[self.nodes(n)] for n in range(LONGEST + 1)]
        for n in range(LONGEST, 0, -1):
            child = self._keys[n]
            parent = place_in(self._keys[n - 1], child % self.d_vocab ** (n - 1))
            size = (len(self._keys[n - 1]), len(child))
            below = csr_array((np.ones(len(child), own.dtype), (parent, np.arange(len(child)))), shape=size)
            levels[n - 1] = levels[n - 1] + below @ levels[n]
        total = csr_array(vstack(levels, format="csr"))
        total.sort_indices()
        return total


class Table(NamedTuple):
    """What was counted of the contexts of one length."""

    grams: npt.NDArray[np.int32]
    """[gram, n], in lexicographic order."""
    total: npt.NDArray[np.int64]
    """Tokens with the context."""
    positives: csr_array
    """[gram, concept]"""


class Ngrams(NamedTuple):
    """What was counted."""

    tables: dict[str, Table]
    """By the names of `ORDERS`."""
    rate: npt.NDArray[np.float64]
    """Share of all counted tokens with each concept."""


def write_ngrams(asked: Asked, own: csr_array, concepts: Sequence[str]) -> None:
    """Write what `stages.lib.concepts.tally` found, summed over the text."""
    counts = asked.summed(own)
    n_concepts = len(concepts)
    total = counts[:, n_concepts:].sum(1).astype(np.int64)
    positives = counts[:, :n_concepts]
    content: dict[str, npt.NDArray[Any]] = {"all/positives": positives[:1].toarray()[0]}
    for name, n in ORDERS.items():
        table = csr_array(positives[asked.nodes(n)])
        content |= {f"{name}/grams": asked.grams(n), f"{name}/total": total[asked.nodes(n)]}
        content |= {f"{name}/first": table.indptr.astype(np.int64), f"{name}/concept": table.indices.astype(np.int16)}
        content[f"{name}/positives"] = table.data.astype(np.int64 if table.data.max(initial=0) >= 2**31 else np.int32)
    description = {"concepts": [*concepts], "n_tokens": int(total[0])}
    tensors.save(FILE, {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in content.items()}, description)


def read_ngrams(columns: Int[np.ndarray, " concept"]) -> Ngrams:
    """What was counted of some of the concepts.

    Raises:
        UserError: if the file is missing or has other columns than `concepts.json`.
    """
    names, description = [concept.name for concept in read_concepts()], tensors.describe(FILE)
    if description.get("concepts") != names:
        raise UserError(f"{FILE} has other columns than {CONCEPTS}/concepts.json; `dvc repro concepts` writes both")
    found = {name: tensor.numpy() for name, tensor in tensors.load(FILE).items()}
    tables = {}
    for name in ORDERS:
        parts = tuple(found[f"{name}/{part}"] for part in ("positives", "concept", "first"))
        positives = csr_array(parts, shape=(len(found[f"{name}/total"]), len(names)))[:, columns]
        tables[name] = Table(found[f"{name}/grams"], found[f"{name}/total"], positives)
    return Ngrams(tables, found["all/positives"][columns] / description["n_tokens"])
