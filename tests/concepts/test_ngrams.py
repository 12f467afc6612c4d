"""Counts of contexts against dictionaries, and their file."""

from collections import Counter as Bag
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from stages.lib.concepts.labels import Concept, write_concepts
from stages.lib.concepts.ngrams import FILE, ORDERS, Asked, contexts, pack, read_ngrams, write_ngrams
from stages.lib.concepts.tally import tally
from stages.lib.io.errors import UserError

D_VOCAB, NAMES = 6, ["a", "b", "c"]


def concept(name: str) -> Concept:
    return Concept(name, "local", prevalence={}, positives={}, mean_run=1.0)


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Contexts in windows of 9 that begin with token 0, labels of three concepts, and a half."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1, D_VOCAB, (n, 9)) * (np.arange(9) > 0)
    positions = np.flatnonzero(np.broadcast_to(np.arange(9) > 0, tokens.shape))
    found = contexts(tokens, positions)
    return found, generator.random((len(found), 3)) < [0.5, 0.05, 0.0], generator.random(len(found)) < 0.3


@pytest.fixture
def asked() -> Asked:
    """The contexts of a text of 12 windows: not all that there can be."""
    return Asked(drawn(12, 0)[0], D_VOCAB)


def counted(asked: Asked, context: np.ndarray, labels: np.ndarray, half: np.ndarray, size: int) -> csr_array:
    parts = [
        tally(asked, context[i : i + size], labels[i : i + size], half[i : i + size])
        for i in range(0, len(context), size)
    ]
    total = csr_array(parts[0].shape, dtype=np.int64)
    for part in parts:
        total = total + part
    return total


def test_contexts_by_hand() -> None:
    tokens = np.array([[9, 1, 2, 3], [9, 4, 0, 0]])
    assert contexts(tokens, np.array([1, 2, 3, 5])).tolist() == [[9, 9, 1], [9, 1, 2], [1, 2, 3], [9, 9, 4]]


def test_keys_by_hand() -> None:
    grams = np.array([[0, 1, 2], [4, 4, 4]])
    assert pack(grams, 5).tolist() == [7, 124]
    assert (pack(grams, 5) % 25).tolist() == pack(grams[:, 1:], 5).tolist()
    with pytest.raises(ValueError, match="larger than the maximum"):
        pack(grams, 2**21)


def test_a_token_is_counted_at_its_longest_context() -> None:
    asked = Asked(np.array([[0, 1, 2], [1, 2, 3]]), D_VOCAB)
    # Nodes: the empty one; 2, 3; 12, 23; 012, 123.
    assert asked.first == [0, 1, 3, 5, 7]
    assert [asked.grams(n).tolist() for n in (1, 2, 3)] == [[[2], [3]], [[1, 2], [2, 3]], [[0, 1, 2], [1, 2, 3]]]
    text = np.array([[1, 2, 3], [5, 2, 3], [2, 4, 3], [1, 2, 5]])
    assert asked.longest(text).tolist() == [6, 4, 2, 0]


@pytest.mark.parametrize("size", [7, 10**6])
def test_counts_are_those_of_dictionaries(project: Path, asked: Asked, size: int) -> None:
    context, labels, half = drawn(40, 1)
    own = counted(asked, context, labels, half, size)
    write_concepts([concept(name) for name in NAMES])
    write_ngrams(asked, own, NAMES)
    found = read_ngrams(np.array([2, 0, 1]))
    assert found.rate.tolist() == labels.mean(0)[[2, 0, 1]].tolist()
    halves = asked.summed(own)[:, -2:].toarray()
    assert halves[0].tolist() == [half.sum(), (~half).sum()]
    missing = 0
    for name, n in ORDERS.items():
        table, grams = found.tables[name], [*map(tuple, context[:, -n:].tolist())]
        assert [*map(tuple, table.grams.tolist())] == sorted({*map(tuple, drawn(12, 0)[0][:, -n:].tolist())})
        total = Bag(grams)
        positives = [Bag(gram for gram, on in zip(grams, column, strict=True) if on) for column in labels.T]
        first = Bag(gram for gram, on in zip(grams, half, strict=True) if on)
        rows = [tuple(row) for row in table.grams.tolist()]
        assert table.total.tolist() == [total[row] for row in rows]
        assert table.positives.toarray().tolist() == [[positives[c][row] for c in (2, 0, 1)] for row in rows]
        assert halves[asked.nodes(n), 0].tolist() == [first[row] for row in rows]
        missing += len({*grams} - {*rows})
    assert missing > 50  # contexts that nobody asks about are left out


def test_equal_counts_are_equal_bytes(project: Path, asked: Asked) -> None:
    written = []
    for size in (3, 50):
        write_ngrams(asked, counted(asked, *drawn(40, 1), size), NAMES)
        written.append(FILE.read_bytes())
    assert written[0] == written[1]


def test_numbers_beyond_32_bits_are_kept(project: Path) -> None:
    asked = Asked(np.array([[0, 0, 1]]), D_VOCAB)
    own = csr_array(np.array([[0, 0]] * 3 + [[2**40, 2**41]]))
    write_concepts([])
    write_ngrams(asked, own, [])
    assert read_ngrams(np.zeros(0, np.int64)).tables["token"].total.tolist() == [2**40 + 2**41]
    write_concepts([concept("a")])
    write_ngrams(asked, csr_array(np.array([[0, 0, 0]] * 3 + [[2**33, 2**34, 1]])), ["a"])
    assert read_ngrams(np.array([0])).tables["trigram"].positives.toarray().tolist() == [[2**33]]


def test_columns_of_another_run(project: Path, asked: Asked) -> None:
    write_ngrams(asked, counted(asked, *drawn(4, 1), 10), NAMES)
    write_concepts([concept("other")])
    with pytest.raises(UserError, match=r"ngrams.safetensors has other columns than data/concepts/concepts.json"):
        read_ngrams(np.array([0]))
