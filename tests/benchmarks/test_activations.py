"""The benchmarks of activations: what they count, by hand, and that each part runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import activations as benchmark
from benchmarks import precision
from stages.lib.activations.store import Store


def test_products_are_those_of_the_layers_up_to_the_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=3, n_head=2)).save_pretrained(tmp_path)
    shapes: list[tuple[int, ...]] = []

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.Tensor.matmul or getattr(func, "__name__", "") in ("matmul", "__matmul__"):
                shapes.append((*args[0].shape, args[1].shape[-1]))
            return func(*args, **(kwargs or {}))

    run = benchmark.products(tmp_path, 1, batch=2, n_ctx=16, dtype=torch.float32)
    with Spy():
        run()
    # Two layers: attention in and out, MLP up and down over 32 tokens; scores and values of 4 heads of width 4.
    layer = [(32, 8, 24), (32, 8, 8), (32, 8, 32), (32, 32, 8)]
    assert sorted(shapes) == sorted([*layer, *layer, *[(4, 16, 4, 16), (4, 16, 16, 4)] * 2])


def test_ways_are_called_in_turns() -> None:
    called: list[str] = []
    seconds = benchmark.interleaved({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 2)
    assert called == ["a", "b"] * 3 and set(seconds) == {"a", "b"}


def test_speeds_of_the_disk_have_all_rows(tmp_path: Path) -> None:
    rows = list(benchmark.disk_speeds(tmp_path / "speeds", 9000, 4))
    assert [row[0] for row in rows][:2] == ["write rows to their places", "checksums and moments"]
    assert all(float(row[1].replace(",", "")) > 0 and float(row[3].replace(",", "")) > 0 for row in rows)
    assert Store(tmp_path / "speeds/main").n_rows("train") == 9000


def test_relative_error_by_hand(tmp_path: Path) -> None:
    stores = []
    for name, rows in (("exact", [[3.0, 4.0], [1.0, 0.0]]), ("rounded", [[3.0, 4.5], [1.0, 0.0]])):
        writer = benchmark.store_of(tmp_path / name, 2, 2, 4)
        writer = type(writer)(tmp_path / name, writer.identity, {"train": 2, "validation": 2}, 4)
        for split in ("train", "validation"):
            writer.prepare(split)
            writer.scatter(split, np.arange(2), torch.tensor(rows), np.arange(1, 3))
        writer.finish()
        stores.append(Store(tmp_path / name))
    assert precision.relative_error(stores[1], stores[0]) == pytest.approx(0.5 / 26**0.5)
    assert precision.relative_error(stores[0], stores[0]) == 0
