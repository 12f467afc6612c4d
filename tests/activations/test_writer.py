"""The store writer: valid safetensors files, moments worked out by hand, and equal bytes however often it crashes."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stages.lib.activations import writer as module
from stages.lib.activations.writer import Moments, StoreWriter, place
from stages.lib.io.errors import UserError
from stages.lib.io.files import read_json, sha256

IDENTITY = {
    "model": "toy",
    "commit": None,
    "revision": "main",
    "hook_name": "blocks.0.hook_resid_post",
    "layer": 0,
    "d_in": 3,
    "dtype": "float32",
    "n_ctx": 4,
    "seed": 0,
    "permutation": {},
}


def snapshot(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("mapped", [True, False])
def test_rows_land_where_they_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool) -> None:
    monkeypatch.setattr(module, "MAPPED_BYTES", 5 * 20 - (not mapped))
    writer = StoreWriter(tmp_path, IDENTITY, {"train": 5}, shard_rows=2)
    assert writer.shards == {"train": [2, 2, 1]}  # two equal shards and a kept tail
    assert writer.prepare("train") is False
    assert writer.prepare("train") is True
    rows = torch.arange(15.0).reshape(5, 3)
    writer.scatter("train", np.array([4, 0]), rows[:2], np.array([10, 11]))
    writer.scatter("train", np.array([3, 1, 2]), rows[2:], np.array([12, 13, 14]))
    writer.finish()
    shards = [load_file(tmp_path / f"train-0000{number}.safetensors") for number in range(3)]
    assert [shard["position"].tolist() for shard in shards] == [[11, 13], [14, 12], [10]]
    assert torch.equal(torch.cat([shard["activations"] for shard in shards]), rows[[1, 3, 4, 2, 0]])
    index = read_json(tmp_path / "index.json")
    assert index["splits"]["train"]["rows"] == 5
    assert [shard["rows"] for shard in index["splits"]["train"]["shards"]] == [2, 2, 1]
    assert [shard["sha256"] for shard in index["splits"]["train"]["shards"]] == [
        sha256(tmp_path / shard["file"]) for shard in index["splits"]["train"]["shards"]
    ]
    assert index["mean"] == [6.0, 7.0, 8.0]
    # Deviations are (-6, -3, 0, 3, 6) in each of three coordinates: 3 (36 + 9 + 0 + 9 + 36) / 5 = 54.
    assert index["scale"] == pytest.approx(54**0.5, rel=1e-15)
    assert index["hook_name"] == "blocks.0.hook_resid_post"


def test_an_empty_batch_changes_nothing(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, IDENTITY, {"train": 2}, shard_rows=2)
    writer.prepare("train")
    before = snapshot(tmp_path)
    writer.scatter("train", np.zeros(0, np.int64), torch.zeros(0, 3), np.zeros(0, np.int64))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_are_stored_as_rounded_once(tmp_path: Path, dtype: str) -> None:
    writer = StoreWriter(tmp_path, {**IDENTITY, "dtype": dtype}, {"train": 4}, shard_rows=8)
    writer.prepare("train")
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    writer.scatter("train", np.arange(4), rows, np.arange(1, 5))
    writer.finish()
    stored = load_file(tmp_path / "train-00000.safetensors")["activations"]
    assert torch.equal(stored, rows.to(getattr(torch, dtype)))
    assert np.allclose(read_json(tmp_path / "index.json")["mean"], stored.double().mean(0), rtol=1e-14)


class Crash(Exception):
    """What the simulated power cut raises."""


def build(directory: Path, crash_at: int | None, saved: dict[str, int]) -> None:
    """A job of 8 batches of 2 splits that records progress in `saved` and dies in one of them."""
    step = 0

    def tick() -> None:
        nonlocal step
        if step == crash_at:
            raise Crash
        step += 1

    rows = torch.randn(16, 3, generator=torch.Generator().manual_seed(1)) + 100
    writer = StoreWriter(directory, IDENTITY, {"train": 16, "test": 16}, shard_rows=9)
    order = np.random.default_rng(0).permutation(16)
    for split in ("train", "test"):
        writer.prepare(split)
        for batch in range(saved.setdefault(split, 0), 4):
            part = np.arange(4 * batch, 4 * batch + 4)
            writer.scatter(split, order[part], rows[part], part + 1)
            tick()
            if batch % 2:
                writer.flush()
                saved[split] = batch + 1
    writer.finish()


def test_crashes_leave_no_trace(tmp_path: Path) -> None:
    build(tmp_path / "whole", None, {})
    reference = snapshot(tmp_path / "whole")
    for crash_at in range(8):
        saved: dict[str, int] = {}
        with pytest.raises(Crash):
            build(tmp_path / str(crash_at), crash_at, saved)
        assert not (tmp_path / str(crash_at) / "index.json").exists()
        build(tmp_path / str(crash_at), None, saved)
        assert snapshot(tmp_path / str(crash_at)) == reference, f"crash in step {crash_at}"


def test_shards_read_in_any_order_make_the_same_index(tmp_path: Path) -> None:
    build(tmp_path, None, {})
    expected = (tmp_path / "index.json").read_bytes()
    writer = StoreWriter(tmp_path, IDENTITY, {"train": 16, "test": 16}, shard_rows=9)
    kept = {place: writer.digest(*place) for place in [("test", 1), ("train", 1), ("test", 0), ("train", 0)]}
    writer.write_index(lambda split, number: kept[split, number])
    assert (tmp_path / "index.json").read_bytes() == expected


@pytest.mark.parametrize("mapped", [True, False])
def test_rows_of_many_threads_land_where_they_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    monkeypatch.setattr(module, "MAPPED_BYTES", module.MAPPED_BYTES * mapped)
    rows = torch.randn(4000, 3, generator=torch.Generator().manual_seed(2))
    order = np.random.default_rng(3).permutation(4000)
    writer = StoreWriter(tmp_path, IDENTITY, {"train": 4000}, shard_rows=333)
    writer.prepare("train")
    with ThreadPoolExecutor(4) as pool:
        for part in np.split(np.arange(4000), 50):
            pool.submit(writer.scatter, "train", order[part], rows[part], part + 1)
            pool.submit(writer.flush)
    writer.finish()
    shards = [load_file(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert torch.equal(torch.cat([shard["activations"] for shard in shards])[order], rows)
    assert np.array_equal(torch.cat([shard["position"] for shard in shards]).numpy()[order], np.arange(4000) + 1)


def test_a_partial_shard_is_begun_again(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, IDENTITY, {"train": 4}, shard_rows=2)
    writer.prepare("train")
    os.truncate(tmp_path / "train-00001.safetensors", 10)
    assert writer.prepare("train") is False
    assert load_file(tmp_path / "train-00001.safetensors")["activations"].shape == (2, 3)


def test_full_disk_is_said_before_any_row_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    writer = StoreWriter(tmp_path, IDENTITY, {"train": 4}, shard_rows=2)
    with pytest.raises(
        UserError, match=r"cannot reserve [\d,]+ bytes for shard 1 of 2 of train .*No space left.*n_tokens"
    ):
        writer.prepare("train")


def test_equal_rows_have_no_scale(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, IDENTITY, {"train": 2}, shard_rows=2)
    writer.prepare("train")
    writer.scatter("train", np.arange(2), torch.ones(2, 3), np.arange(1, 3))
    with pytest.raises(UserError, match=r"all training activations at blocks.0.hook_resid_post are equal: .*layer"):
        writer.finish()


def test_a_row_never_written_is_noticed(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, IDENTITY, {"train": 2}, shard_rows=2)
    writer.prepare("train")
    writer.scatter("train", np.arange(1), torch.ones(1, 3), np.arange(1, 2))
    with pytest.raises(AssertionError, match="train has unwritten rows"):
        writer.finish()


def test_moments_by_hand() -> None:
    moments = Moments(2)
    moments.update(np.array([[3.0, 4.0]]))  # norm 5
    moments.update(np.array([[0.0, 1.0], [0.0, 1.0]]))  # norms 1
    assert moments.mean.tolist() == [1.0, 2.0]
    # Deviations (2, 2), (-1, -1), (-1, -1): squares 8 + 2 + 2 = 12, over 3 rows 4.
    assert moments.scale() == 2.0
    assert moments.norms() == {"p1": 1 + 2**-10, "p50": 1 + 2**-10, "p99": 5.0, "max": 5.0}


def test_moments_agree_with_numpy_at_a_large_mean() -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(10_000, 5)) * [1, 2, 3, 4, 5] + [1e6, -1e6, 0, 10, 1e3]
    moments = Moments(5)
    for first in range(0, len(rows), 999):
        moments.update(rows[first : first + 999])
    assert np.allclose(moments.mean, rows.mean(0), rtol=1e-12, atol=1e-9)
    assert moments.scale() == pytest.approx(np.sqrt(rows.var(0).sum()), rel=1e-9)
    norm = np.linalg.norm(rows, axis=1)
    assert moments.norms()["max"] == norm.max()
    for name, share in (("p1", 1), ("p50", 50), ("p99", 99)):
        assert moments.norms()[name] == pytest.approx(np.percentile(norm, share), rel=2**-9)


def test_normalised_rows_have_unit_mean_square(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal(3, 2, (1000, 4))
    moments = Moments(4)
    moments.update(rows)
    assert np.square((rows - moments.mean) / moments.scale()).sum(1).mean() == pytest.approx(1, rel=1e-12)


def test_moments_of_parts_add_up() -> None:
    rows = np.random.default_rng(2).normal(50, 2, (3, 100, 4))
    whole, parts = Moments(4), Moments(4)
    for block in rows:
        whole.update(block)
        part = Moments(4)
        part.update(block)
        parts.add(part.state())
    assert np.allclose(parts.mean, rows.mean((0, 1)), rtol=1e-14)
    assert parts.squares == pytest.approx(whole.squares, rel=1e-13)
    assert (parts.n, parts.norms()) == (whole.n, whole.norms())


@pytest.mark.parametrize("links", [True, False])
def test_place_replaces_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def no_link(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    if not links:
        monkeypatch.setattr(module.os, "link", no_link)
    for name in ("one", "two"):
        build(tmp_path / "work" / name, None, {})
    root = tmp_path / "out"
    (root / "stale").mkdir(parents=True)
    (root / "stale" / "index.json").write_text("{}")
    place([tmp_path / "work" / "one", tmp_path / "work" / "two"], root)
    assert sorted(path.name for path in root.iterdir()) == ["one", "two"]
    assert snapshot(root / "one") == snapshot(tmp_path / "work" / "one")
    same = (root / "one" / "index.json").samefile(tmp_path / "work" / "one" / "index.json")
    assert same is links
