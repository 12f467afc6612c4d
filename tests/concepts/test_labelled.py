"""A part of the small world: its halves, and which concepts it can tell."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.lib.activations.store import open_store
from stages.lib.concepts.labelled import Labelled, frequent_concepts, in_first_half, read_labelled, shared_batches
from stages.lib.io.errors import UserError
from tests import toy_concepts


@pytest.fixture(scope="module")
def part(shared_project: Path) -> Labelled:
    """All test tokens."""
    toy_concepts.write_world(600)
    return read_labelled(open_store("main"), "test", 10**6, np.random.default_rng(0))


def test_even_documents_are_the_first_half() -> None:
    assert in_first_half(np.array([0, 1, 2, 2, 5])).tolist() == [True, False, True, True, False]


def test_halves_are_whole_documents_in_the_order_of_the_text(part: Labelled) -> None:
    first, second = part.halves()
    assert sorted([*first, *second]) == list(range(len(part)))
    assert (np.diff(first) > 0).all() and (np.diff(second) > 0).all()
    assert set(part.documents[first] % 2) == {0} and set(part.documents[second] % 2) == {1}


def test_activations_are_those_of_the_batches(part: Labelled) -> None:
    assert torch.equal(part.x(), torch.cat([batch.x for batch in part.batches(100)]))


def test_a_frequent_concept_is_present_and_absent_often_in_every_part(part: Labelled) -> None:
    labels = np.zeros((len(part), 3), np.bool_)
    labels[:5, 0], labels[:-5, 1], labels[:4, 2] = True, True, True
    rare = replace(part, labels=labels)
    assert frequent_concepts([rare], 5).tolist() == [0, 1]
    assert frequent_concepts([rare], 4).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match=r"no concept has 6 tokens in each part \(the most frequent of 3 has \d+\)"):
        frequent_concepts([rare], 6)


@pytest.mark.parametrize("size", [1, 64, 10**6])
def test_shared_batches_have_the_tokens_of_both_parts_once(part: Labelled, size: int) -> None:
    one, other = (read_labelled(part.store, "test", n, np.random.default_rng(n)) for n in (300, 120))
    batches = [*shared_batches(one, other, size)]
    assert torch.equal(torch.cat([batch.batch.x for batch in batches]), one.x())
    assert np.array_equal(np.concatenate([batch.batch.labels for batch in batches]), one.labels)
    assert torch.equal(torch.cat([batch.x[batch.other_places] for batch in batches]), other.x())
    before = np.cumsum([0, *(len(batch.other_places) for batch in batches)])
    assert [batch.first for batch in batches] == before[:-1].tolist()
    assert sum(len(batch.x) for batch in batches) == len(np.union1d(one.rows, other.rows))
