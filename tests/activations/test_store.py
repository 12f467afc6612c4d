"""The store's reader: any range of rows of any dtype, and every kind of damage named with its remedy."""

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stages.lib.activations import store
from stages.lib.activations.store import Store, open_store
from stages.lib.activations.writer import StoreWriter
from stages.lib.io.errors import UserError

ROWS = {"train": 23, "test": 10}
D_IN = 6


def truth(split: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(ROWS[split])
    return torch.randn(ROWS[split], D_IN, generator=generator) * 3 + 10


def write(root: Path, dtype: str = "float32", seed: int = 0, revision: str = "main") -> Path:
    identity: dict[str, Any] = {"model": "toy", "commit": "abc", "revision": revision, "dtype": dtype, "n_ctx": 8}
    identity |= {"hook_name": "blocks.2.hook_resid_post", "layer": 2, "d_in": D_IN, "seed": seed, "permutation": {}}
    writer = StoreWriter(root / revision, identity, ROWS, shard_rows=5)
    for split, n in ROWS.items():
        writer.prepare(split)
        writer.scatter(split, np.arange(n), truth(split), np.arange(n) + 100)
    writer.finish()
    return root / revision


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_any_range_of_rows(tmp_path: Path, dtype: str) -> None:
    write(tmp_path, dtype)
    reader = open_store("main", verify=("train", "test"), root=tmp_path)
    expected = truth("train").to(getattr(torch, dtype)).float()
    for start in range(24):
        for stop in range(start, 24):
            rows = reader.rows("train", start, stop)
            assert rows.dtype == torch.float32
            assert torch.equal(rows, expected[start:stop])
            assert np.array_equal(reader.positions("train", start, stop), np.arange(start, stop) + 100)


def test_facts(tmp_path: Path) -> None:
    write(tmp_path)
    reader = open_store("main", root=tmp_path)
    assert (reader.d_in, reader.layer, reader.hook_name) == (6, 2, "blocks.2.hook_resid_post")
    assert (reader.n_rows("train"), reader.n_rows("test")) == (23, 10)
    rows = truth("train").double()
    assert reader.mean.dtype == torch.float32
    assert torch.allclose(reader.mean.double(), rows.mean(0), rtol=1e-6)
    assert reader.scale == pytest.approx(float((rows - rows.mean(0)).square().sum(1).mean().sqrt()), rel=1e-12)
    assert np.array_equal(reader.positions("test"), np.arange(10) + 100)
    assert reader.index["commit"] == "abc"


def test_batches_cover_every_row_once(tmp_path: Path) -> None:
    write(tmp_path)
    reader = open_store("main", root=tmp_path)
    for size in (1, 4, 5, 7, 23, 100):
        parts = list(reader.batches("train", size))
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
        assert torch.equal(torch.cat(parts), truth("train"))


def test_rows_are_copies(tmp_path: Path) -> None:
    write(tmp_path)
    reader = open_store("main", root=tmp_path)
    reader.rows("train", 0, 5).zero_()
    assert torch.equal(reader.rows("train", 0, 5), truth("train")[:5])


def test_shards_are_what_safetensors_reads(tmp_path: Path) -> None:
    directory = write(tmp_path)
    parts = [load_file(directory / f"train-{number:05d}.safetensors")["activations"] for number in range(5)]
    assert torch.equal(torch.cat(parts), truth("train"))


@pytest.mark.parametrize(("dtype", "shard"), [("float32", 0), ("float16", 4), ("bfloat16", 1)])
def test_activations_begin_with_a_page(tmp_path: Path, dtype: str, shard: int) -> None:
    path = write(tmp_path, dtype) / f"train-0000{shard}.safetensors"
    length = int.from_bytes(path.read_bytes()[:8], "little")
    fields = json.loads(path.read_bytes()[8 : 8 + length])
    begin, end = fields["activations"]["data_offsets"]
    assert (8 + length + begin) % 4096 == 0
    assert path.stat().st_size == 8 + length + end


def test_unknown_revision(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(
        UserError, match=r"no activations of revision 'mian'; did you mean 'main'\?.*activations.revisions"
    ):
        open_store("mian", root=tmp_path)


def test_unknown_split(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UserError, match=r"no split 'tset'; did you mean 'test'\?"):
        open_store("main", root=tmp_path).n_rows("tset")


def test_rows_outside_are_a_bug(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(AssertionError, match=r"rows 20:24 of train, which has 23"):
        open_store("main", root=tmp_path).rows("train", 20, 24)


DAMAGED = r"`find .dvc/cache data -samefile .*safetensors -delete` removes it .* `dvc repro activations` brings it back"
REMEDY = r"`dvc checkout --force activations` restores it, `dvc repro -f activations` makes it again"


def test_missing_shard(tmp_path: Path) -> None:
    directory = write(tmp_path)
    (directory / "train-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"train-00003.safetensors is missing: `dvc pull activations`"):
        open_store("main", root=tmp_path)


@pytest.mark.parametrize("change", [-1, 1])
def test_truncated_or_longer_shard(tmp_path: Path, change: int) -> None:
    path = write(tmp_path) / "test-00001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] if change < 0 else content + b"x")
    size = len(content)
    what = rf"test-00001.safetensors has {size + change:,} bytes instead of {size:,}, so it is cut off or foreign"
    with pytest.raises(UserError, match=f"{what}: {DAMAGED}"):
        open_store("main", root=tmp_path)


def test_foreign_shard(tmp_path: Path) -> None:
    directory, other = write(tmp_path), write(tmp_path / "other", seed=1)
    (directory / "train-00000.safetensors").write_bytes((other / "train-00000.safetensors").read_bytes())
    with pytest.raises(UserError, match=rf"train-00000.safetensors belongs to other activations than .*: {REMEDY}"):
        open_store("main", root=tmp_path)


def test_swapped_shards(tmp_path: Path) -> None:
    directory = write(tmp_path)
    (directory / "train-00000.safetensors").rename(directory / "kept")
    (directory / "train-00001.safetensors").rename(directory / "train-00000.safetensors")
    (directory / "kept").rename(directory / "train-00001.safetensors")
    with pytest.raises(UserError, match=r"train-00000.safetensors belongs to other activations"):
        open_store("main", root=tmp_path)


def test_a_flipped_bit_is_found_by_verify(tmp_path: Path) -> None:
    path = write(tmp_path) / "train-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    open_store("main", root=tmp_path)
    with pytest.raises(UserError, match=rf"train-00002.safetensors is damaged \(its SHA-256 .*: {DAMAGED}"):
        open_store("main", verify=("train", "test"), root=tmp_path)


def test_shard_cut_off_while_in_use(tmp_path: Path) -> None:
    path = write(tmp_path) / "train-00000.safetensors"
    reader = open_store("main", root=tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train-00000.safetensors was cut off while it was in use"):
        reader.rows("train", 0, 5)


def test_index_of_another_format(tmp_path: Path) -> None:
    path = write(tmp_path) / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(UserError, match=rf"index.json is of format 2, this code reads 1: {REMEDY}"):
        open_store("main", root=tmp_path)


def test_damaged_index(tmp_path: Path) -> None:
    path = write(tmp_path) / "index.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"index.json is damaged"):
        open_store("main", root=tmp_path)


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"index.json is missing"):
        Store(tmp_path)


def test_imports_neither_the_writer_nor_the_model() -> None:
    nodes = ast.walk(ast.parse(Path(store.__file__).read_text()))
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    assert {name for name in imported if name.startswith("stages.lib.")} == {
        "stages.lib.io",
        "stages.lib.io.errors",
        "stages.lib.io.files",
    }
