import re

import numpy as np
import pytest
import torch

from stages.lib.concepts import labels
from stages.lib.concepts.labels import Concept, pack, read_concepts, read_labels, unpack, write_concepts, write_labels
from stages.lib.io import tensors
from stages.lib.io.errors import UserError
from stages.lib.io.files import read_json, write_json


def concept(name: str, **changes) -> Concept:
    fields = {"prevalence": {"test": 0.25}, "positives": {"test": 1}, "mean_run": 1.5, **changes}
    return Concept(name, "lexical", ("a", "b"), "group", True, **fields)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "CONCEPTS", tmp_path)
    return tmp_path


def test_first_concept_is_the_highest_bit():
    row = np.zeros((1, 10), np.bool_)
    row[0, [0, 2, 8]] = True
    assert pack(row).tolist() == [[0b10100000, 0b10000000]]


@pytest.mark.parametrize("n_concepts", [1, 7, 8, 9, 64, 130])
def test_unpack_is_the_inverse_of_pack(n_concepts):
    truth = np.random.default_rng(n_concepts).random((50, n_concepts)) < 0.3
    packed = pack(truth)
    assert packed.dtype == np.uint8
    assert packed.shape == (50, -(-n_concepts // 8))
    found = unpack(packed, n_concepts)
    assert found.dtype == np.bool_
    assert np.array_equal(found, truth)


def test_concepts_are_read_as_written():
    concepts = [concept("x"), concept("y", mean_run=2.0)]
    write_concepts(concepts)
    assert read_concepts() == concepts


def test_concepts_json_has_the_documented_fields(folder):
    write_concepts([concept("x")])
    assert read_json(folder / "concepts.json") == [
        {
            "name": "x",
            "kind": "lexical",
            "parents": ["a", "b"],
            "group": "group",
            "needs_lookahead": True,
            "prevalence": {"test": 0.25},
            "positives": {"test": 1},
            "mean_run": 1.5,
        }
    ]


def written(n_positions: int = 6) -> np.ndarray:
    concepts = [concept(f"c{i}") for i in range(9)]
    truth = np.random.default_rng(0).random((n_positions, 9)) < 0.5
    write_concepts(concepts)
    write_labels("test", pack(truth), concepts)
    return truth


def test_labels_are_read_as_written():
    truth = written()
    assert np.array_equal(read_labels("test"), truth)
    assert np.array_equal(read_labels("test", np.array([5, 0, 5])), truth[[5, 0, 5]])
    assert read_labels("test", np.zeros(0, np.int64)).shape == (0, 9)


def test_equal_labels_are_equal_bytes(folder):
    written()
    before = (folder / "test.safetensors").read_bytes()
    written()
    assert (folder / "test.safetensors").read_bytes() == before


def test_positions_beyond_the_end():
    written()
    with pytest.raises(UserError, match="has 6 positions, but position 6 is asked for"):
        read_labels("test", np.array([0, 6]))


def test_columns_of_another_run(folder):
    written()
    write_concepts([concept("other")])
    with pytest.raises(UserError, match=re.escape("other columns than")):
        read_labels("test")


def test_missing_files(folder):
    with pytest.raises(UserError, match=r"concepts\.json is missing"):
        read_concepts()
    write_concepts([concept("x")])
    with pytest.raises(UserError, match=r"fit\.safetensors is missing"):
        read_labels("fit")


@pytest.mark.parametrize("entries", [[{"name": "x"}], [{"name": "x", "parents": [], "colour": 1}]])
def test_concepts_of_another_version(folder, entries):
    write_json(folder / "concepts.json", entries)
    with pytest.raises(UserError, match="has other fields than name, kind, parents"):
        read_concepts()


def test_file_without_a_description(folder):
    write_concepts([concept("x")])
    tensors.save(folder / "test.safetensors", {"labels": torch.zeros(1, 1, dtype=torch.uint8)})
    with pytest.raises(UserError, match="other columns than"):
        read_labels("test")
