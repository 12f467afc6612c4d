"""What making, writing and reading activations costs, against what the machine can do.

    python -m benchmarks.activations extraction                # the model in data/model
    python -m benchmarks.activations extraction --gpt2-small   # random weights of that size
    python -m benchmarks.activations store
    python -m benchmarks.activations waiting

`extraction`: tokens a second of one thread that runs the model up to the hook and writes the rows, next to
TransformerLens up to the hook, to its own defaults, and to the matrix products alone, which nothing can beat; all in
turns, medians of rounds, in seconds of the thread, which what else the machine does hardly changes.

`store`: the whole stage, in a process of its own, on a tiny model and more and more tokens: seconds, peak memory, bytes
of the index; and MB/s of writing, checking and reading next to plain sequential files of the same bytes.

`waiting`: the share of the time of a training that goes by until the next batch is there, from a warm page cache and
from a disk that has to be read.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ruamel.yaml import YAML
from torch import Tensor

from benchmarks.tables import Table, heading, write
from benchmarks.trainers import use_threads
from stages import train
from stages.lib.activations.batches import normalised_batches, read_batch
from stages.lib.activations.parts import spread_rows
from stages.lib.activations.permutation import Permutation
from stages.lib.activations.store import Store, open_store
from stages.lib.activations.writer import StoreWriter
from stages.lib.io.files import write_json
from stages.lib.language.extraction import Hook, Work, extract, runners
from stages.lib.language.model import MODEL
from stages.lib.language.windows import Windows, WindowWriter
from stages.lib.run.machine import keep_freed_memory
from stages.lib.sae.training import stretches

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from stages.lib.language.direct import Direct

ROOT = Path(__file__).resolve().parent.parent
MB = 1e6
BATCH = 32
"""Windows of a batch, ..."""
GPT2_BATCH = 8
"""... and where the model is larger."""


def gpt2_small(directory: Path) -> Path:
    """A random model of GPT-2 small's size, with any tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config()).save_pretrained(directory)
    copy_tokenizer(directory)
    return directory


def copy_tokenizer(directory: Path) -> None:
    """Give a model the tokenizer of `data/model`."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((MODEL / name).read_bytes())


def products(path: Path, layer: int, batch: int, n_ctx: int, dtype: torch.dtype) -> Callable[[], object]:
    """The matrix products of a forward pass up to a layer, and nothing else."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    config = AutoConfig.from_pretrained(path)
    model = AutoModelForCausalLM.from_config(config)
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, module in model.named_modules():
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        if numbers and numbers[0] <= layer and isinstance(module, torch.nn.Linear | Conv1D):
            weight = module.weight if isinstance(module, Conv1D) else module.weight.T
            pairs.append((torch.randn(batch * n_ctx, weight.shape[0]).to(dtype), weight.detach().to(dtype)))
    n_heads = config.num_attention_heads
    queries = torch.randn(batch * n_heads, n_ctx, config.hidden_size // n_heads).to(dtype)
    scores = torch.randn(batch * n_heads, n_ctx, n_ctx).to(dtype)

    def run() -> None:
        for x, weight in pairs:
            x @ weight
        for _ in range(layer + 1):
            queries @ queries.mT
            scores @ queries

    return run


def random_windows(d_vocab: int, n_windows: int, n_ctx: int) -> Windows:
    """Full windows of random tokens."""
    tokens = torch.randint(0, d_vocab, (n_windows, n_ctx), dtype=torch.int32)
    full = torch.full((n_windows,), n_ctx, dtype=torch.int32)
    zeros = torch.zeros_like(tokens)
    return Windows(tokens, full, torch.zeros_like(full), zeros, zeros, n_ctx, ["random"], True, 0, 0)


def interleaved(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of this thread that each way takes, all called in turns after one call that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for way in ways.values():
            way()
        for _ in range(rounds):
            for name, way in ways.items():
                begun = time.thread_time()
                way()
                seconds[name].append(time.thread_time() - begun)
    return {name: statistics.median(some) for name, some in seconds.items()}


def extraction(options: argparse.Namespace, scratch: Path) -> Table:
    """Tokens a second, ours and others."""
    path = gpt2_small(scratch / "model") if options.gpt2_small else MODEL
    layer, batch = (5, GPT2_BATCH) if options.gpt2_small else (2, BATCH)
    n_ctx, rows = 128, []
    for dtype in (torch.float32, torch.bfloat16):
        model = boot(path, dtype)
        hook = Hook(f"blocks.{layer}.hook_resid_post", layer)
        windows = random_windows(model.cfg.d_vocab, batch, n_ctx)
        numbers = np.arange(batch)
        work = Work(numbers, numbers * (n_ctx - 1), np.full(batch, n_ctx - 1))
        n_rows = batch * (n_ctx - 1)
        writer = store_of(scratch / str(dtype), int(model.cfg.d_model), n_rows, 2**17)
        writer.prepare("train")
        permutation = Permutation(n_rows, tuple(range(8)))

        def rows_of(runner: "TransformerBridge | Direct") -> None:
            found = extract(runner, windows, work, [hook], torch.float32, slice(0, batch))  # noqa: B023 - called here
            writer.scatter("train", permutation(found.row), found.activations[0], found.position)  # noqa: B023

        [chosen] = runners(model, [hook], 1)

        def defaults() -> None:
            model.run_with_cache(windows.tokens.long())  # noqa: B023

        ways: dict[str, Callable[[], object]] = {
            "matrix products alone": products(path, layer, batch, n_ctx, dtype),
            "this stage, rows on disk": partial(rows_of, chosen),
            "TransformerLens up to the hook, rows on disk": partial(rows_of, model),
            "TransformerLens run_with_cache": defaults,
        }
        seconds = interleaved(ways, options.rounds)
        floor = seconds["matrix products alone"]
        for name, one in seconds.items():
            speed, share = f"{batch * n_ctx / one:,.0f}", f"{floor / one:.2f}"
            rows.append([str(dtype).removeprefix("torch."), name, f"{one * 1e3:.0f}", speed, share])
    return Table(["compute", "", "ms a batch", "tokens/s", "share of the products' speed"], rows)


def boot(path: Path, dtype: torch.dtype) -> "TransformerBridge":
    """A model as the stage loads it."""
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(str(path), device="cpu", dtype=dtype)
    return model.eval().requires_grad_(False)


def store_of(directory: Path, d_in: int, rows: int, shard_rows: int) -> StoreWriter:
    """A store under construction that no model made."""
    identity: dict[str, Any] = {"model": "random", "commit": None, "revision": "main", "hook_name": "random"}
    identity |= {"layer": 0, "d_in": d_in, "dtype": "float32", "seed": 0}
    return StoreWriter(directory, identity, {"train": rows}, shard_rows)


def whole_stage(n_tokens: int, directory: Path) -> tuple[float, float, int]:
    """Seconds, peak megabytes and bytes of the index of the stage on a tiny model."""
    from transformers import GPT2Config, GPT2LMHeadModel

    n_ctx, d_vocab, model = 128, 1024, directory / "data/model"
    config = GPT2Config(vocab_size=d_vocab, n_positions=n_ctx, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(model)
    copy_tokenizer(model)
    write_json(model / "model.json", {"name": "tiny", "commit": None, "revisions": ["main"]})
    generator, facts = np.random.default_rng(0), {}
    for split, n in (("train", n_tokens), ("fit", 1000), ("validation", 1000), ("test", 1000)):
        with WindowWriter(directory / f"data/tokens/{split}.safetensors", n_ctx=n_ctx, bos_id=0, pad_id=0) as writer:
            for first in range(0, n, 100_000):
                ids = generator.integers(0, d_vocab, min(100_000, n - first))
                writer.add(f"{split}/{first}", ids, np.zeros((len(ids), 2), np.int64))
        counts: dict[str, Any] = {"windows": writer.n_windows, "tokens": writer.n_tokens}
        facts[split] = {**counts, "documents": writer.document_ids}
    head = {"n_ctx": n_ctx, "bos": True, "bos_id": 0, "pad_id": 0, "splits": facts}
    write_json(directory / "data/tokens/tokens.json", head)
    section = YAML().load((ROOT / "params.yaml").read_text())["activations"]
    section |= {"layer": 0, "revisions": ["main"], "n_tokens": n_tokens}
    with (directory / "params.yaml").open("w") as handle:
        YAML().dump({"activations": section}, handle)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EXPLORING_SAES_DEVICE": "cpu"}
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "stages.activations"], cwd=directory, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"stages.activations ended with {os.waitstatus_to_exitcode(status)}")
    index = directory / "data/activations/main/index.json"
    return time.perf_counter() - begun, usage.ru_maxrss * 1024 / MB, index.stat().st_size


def drop_cached(paths: list[Path]) -> None:
    """Have files read from the disk next time."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def plain_write(path: Path, data: bytes, parts: int) -> None:
    """A file written in order, and on the disk."""
    with path.open("wb") as handle:
        for _ in range(parts):
            handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def plain_read(paths: list[Path]) -> None:
    """Files read in order."""
    buffer = bytearray(2**22)
    for path in paths:
        with path.open("rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass


def disk_speeds(scratch: Path, n_rows: int, d_in: int) -> Iterator[list[str]]:
    """Rows of MB/s of our writing and reading, next to plain files of as many bytes."""
    scratch.mkdir()
    batch, size = 4096, n_rows * (8 + 4 * d_in) / MB
    writer = store_of(scratch / "main", d_in, n_rows, 2**17)
    permutation = Permutation(n_rows, tuple(range(8)))
    rows = torch.randn(batch, d_in)

    def scatter() -> None:
        writer.prepare("train")
        for first in range(0, n_rows, batch):
            row = np.arange(first, min(first + batch, n_rows))
            writer.scatter("train", permutation(row), rows[: len(row)], row + 1)
        writer.flush()

    data = rows.numpy().tobytes() + bytes(8 * batch)
    plain = timed(lambda: plain_write(scratch / "plain", data, -(-n_rows // batch)))
    (scratch / "plain").unlink()
    ours = timed(scatter)
    yield ["write rows to their places", f"{size / ours:,.0f}", "write in order", f"{size / plain:,.0f}"]
    ours = timed(writer.finish)
    shards = sorted(writer.directory.glob("*.safetensors"))
    drop_cached(shards)
    cold_plain = timed(lambda: plain_read(shards))
    warm_plain = timed(lambda: plain_read(shards))
    yield ["checksums and moments", f"{size / ours:,.0f}", "read in order", f"{size / warm_plain:,.0f}"]
    store = Store(writer.directory)

    def epoch() -> None:
        for step in range(n_rows // batch):
            read_batch(store, 0, step, batch)

    drop_cached(shards)
    cold = timed(epoch)
    warm = timed(epoch)
    yield ["read an epoch, from disk", f"{size / cold:,.0f}", "read in order", f"{size / cold_plain:,.0f}"]
    yield ["read an epoch, cached", f"{size / warm:,.0f}", "read in order", f"{size / warm_plain:,.0f}"]
    ours = timed(lambda: Store(writer.directory, verify=("train",)))
    yield ["verify", f"{size / ours:,.0f}", "read in order", f"{size / warm_plain:,.0f}"]


def store(options: argparse.Namespace, scratch: Path) -> list[Table]:
    """The stage at several sizes, and the speeds of the disk."""
    rows = []
    for n_tokens in options.tokens:
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            seconds, peak, index = whole_stage(n_tokens, Path(directory))
        rows.append([f"{n_tokens:,}", f"{seconds:.0f}", f"{peak:,.0f}", f"{index:,}"])
    sizes = Table(["tokens", "seconds", "peak memory, MB", "index, bytes"], rows)
    speeds = [
        [str(d_in), *row] for d_in in (192, 4096) for row in disk_speeds(scratch / str(d_in), 2**30 // (4 * d_in), d_in)
    ]
    return [sizes, Table(["d_in", "this store", "MB/s", "plain files", "MB/s"], speeds)]


def waiting(options: argparse.Namespace, scratch: Path) -> Table:  # noqa: ARG001 - as the others
    """The share of a training's time in which it waits for a batch."""
    rows = []
    for arm in options.arms:
        for cold in (False, True):
            chosen = train.settings(arm, "0")
            kept = open_store(chosen.arm.activations)
            sample = kept.scaling().normalise_(spread_rows(kept, "validation"))
            training = train.prepare(chosen, chosen.seeds[0], sample, train.n_steps(chosen.train, kept.n_rows("train")))
            if cold:
                drop_cached(sorted(kept.directory.glob("train-*")))
            steps, size = training.schedule.n_steps, chosen.train.batch_size
            batches = stretches(
                training, normalised_batches(kept, kept.scaling(), seed=0, size=size, steps=range(steps))
            )
            begun, waited = time.perf_counter(), 0.0
            while True:
                asked = time.perf_counter()
                stretch = next(batches, None)
                waited += time.perf_counter() - asked
                if stretch is None:
                    break
                training.run(stretch)
            whole = time.perf_counter() - begun
            source = "disk" if cold else "page cache"
            rows.append([arm, source, f"{whole / steps * 1e3:.1f}", f"{100 * waited / whole:.1f}"])
    return Table(["arm", "rows from", "ms a step of all levels", "% of it waiting"], rows)


def main() -> None:
    """Run one part and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["extraction", "store", "waiting"])
    parser.add_argument("--gpt2-small", action="store_true", help="extraction from random weights of that size")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--arms", nargs="+", default=["topk"])
    parser.add_argument("--scratch", type=Path, help="where the files are written (the disk that is measured)")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    if options.part == "extraction":
        use_threads()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        found = {"extraction": extraction, "store": store, "waiting": waiting}[options.part](options, Path(scratch))
    tables = found if isinstance(found, list) else [found]
    text = heading("benchmarks.activations", torch.device("cpu"), [])
    sys.stdout.write(text + "\n" + "\n".join(table.text() for table in tables))
    if options.markdown is not None:
        write(text + "".join(f"\n{table.text()}" for table in tables[:-1]), tables[-1], options.markdown, None)


if __name__ == "__main__":
    main()
