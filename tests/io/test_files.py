import pytest
import torch

from stages.lib.io import files, tensors
from stages.lib.io.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"b": 1, "a": [0.1]})
    assert path.read_text() == '{\n  "a": [\n    0.1\n  ],\n  "b": 1\n}\n'
    with pytest.raises(RuntimeError), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert files.read_json(path) == {"a": [0.1], "b": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_missing_and_damaged_json_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.json is missing; `dvc checkout`"):
        files.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        files.read_json(tmp_path / "a.json")


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_tensors_come_back_with_their_description_and_equal_bytes(tmp_path):
    content = {"b": torch.arange(6).reshape(2, 3), "a": torch.tensor([0.5])}
    for name in ("x", "y"):
        tensors.save(tmp_path / name, content, {"step": 3, "arm": "topk"})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert torch.equal(tensors.load(tmp_path / "x")["b"], content["b"])
    assert list(tensors.load(tmp_path / "x", ["a"])) == ["a"]
    assert tensors.describe(tmp_path / "x") == {"arm": "topk", "step": 3}


def test_a_truncated_tensor_file_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors.save(path, {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:500])
    for read in (tensors.load, tensors.describe):
        with pytest.raises(UserError, match=r"x\.safetensors is damaged"):
            read(path)
        with pytest.raises(UserError, match=r"z\.safetensors is missing"):
            read(tmp_path / "z.safetensors")
