"""What the model's tokens look like at one hook or several.

in: data/model, data/tokens    out: data/activations/<entry of activations.revisions>

A row is a token. The model runs only up to the highest hooked layer. Training rows go where a seeded permutation sends
them, so reading the shards in order is reading tokens at random; the rows of the other splits stay in the order of the
text. The first position of every window (BOS) and padding give no row. All revisions take the same tokens to the same
places.

A batch of windows is worked out by one thread, whole, and its rows have places of their own. So the bytes are the same
however many threads and processes there are, in whatever order they come, and however often they were killed.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from stages.lib.activations.permutation import Permutation
from stages.lib.activations.store import ACTIVATIONS, DTYPES, SETTINGS, SPLITS
from stages.lib.activations.writer import StoreWriter, place
from stages.lib.io import params
from stages.lib.io.errors import UserError, run
from stages.lib.io.files import read_json
from stages.lib.language.extraction import Hook, Work, extract, plan, share
from stages.lib.language.model import (
    MODEL,
    Place,
    check_hook,
    load_model,
    model_path,
    place_of,
    resolve_hook,
    weights_checksum,
)
from stages.lib.language.windows import TOKENS, Windows, read_windows
from stages.lib.run import seeds
from stages.lib.run.log import Log
from stages.lib.run.machine import device, full_disk_said, keep_freed_memory
from stages.lib.run.processes import Team, launch
from stages.lib.run.resume import Resume, fingerprint

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RECORD_SECONDS = 20.0
"""Between two records of progress: what a kill can cost."""
GPU_WORKERS = 2
"""Threads that share a GPU: one writes rows while the other's batch is worked out."""


class ActivationsParams(params.Params):
    """Where in the model, of how many tokens, and how stored."""

    layer: int
    site: str
    revisions: Annotated[list[str], Field(min_length=1)]
    """Entries: a revision of the model, or `<revision>+<hook name>` for another hook than `layer` and `site` give."""
    n_tokens: PositiveInt
    compute: Literal["float32", "bfloat16"]
    dtype: Literal["float32", "bfloat16", "float16"]
    shard_rows: PositiveInt
    batch_windows: PositiveInt
    seed: NonNegativeInt

    def places(self) -> dict[str, Place]:
        """What each entry of `revisions` stands for."""
        return {entry: place_of(entry, self.layer, self.site) for entry in self.revisions}

    def revisions_of_model(self) -> list[str]:
        """The revisions of the model in the order in which they are first named."""
        return list(dict.fromkeys(place.revision for place in self.places().values()))


def settings() -> ActivationsParams:
    """The stage's settings."""
    own = params.read("activations", ActivationsParams)
    if len(set(own.revisions)) < len(own.revisions):
        raise UserError(f"params.yaml: activations.revisions names a revision twice: {', '.join(own.revisions)}")
    resolve_hook(0, own.site, n_layers=1)  # the site alone: whether there is such a layer is for the model to say
    own.places()
    return own


def plan_split(split: str, windows: Windows, own: ActivationsParams) -> Work:
    """The work of one split: `n_tokens` tokens of windows in seeded order for training, else everything in order."""
    rows = (windows.length.numpy().astype(np.int64) - 1).clip(0)
    total, in_order = int(rows.sum()), np.arange(len(rows))
    if total == 0:
        raise UserError(f"{TOKENS}/{split}.safetensors has no tokens of text: give the corpus stage more documents")
    if split != "train":
        return plan(rows, in_order, total)
    if total < own.n_tokens:
        raise UserError(
            f"params.yaml: activations.n_tokens is {own.n_tokens:,}, but {TOKENS}/train.safetensors has {total:,} "
            "tokens: lower activations.n_tokens, or raise corpus.split.sae_train or the amount of text"
        )
    order = Permutation.from_seed(len(rows), seeds.sequence(own.seed, "activations", "windows"))
    return plan(rows, order(in_order), own.n_tokens)


class Batch(NamedTuple):
    """Some windows of a split."""

    split: str
    number: int


class Extraction:
    """What all processes share (the settings, the windows, the work, where rows go) and what this one has done."""

    def __init__(self, own: ActivationsParams, resume: Resume, team: Team, n_threads: int) -> None:
        self.own, self.resume, self.team = own, resume, team
        self.on = team.device(device())
        self.n_workers = n_threads if self.on.type == "cpu" else GPU_WORKERS
        self.windows = {split: read_windows(split) for split in SPLITS}
        self.work = {split: plan_split(split, windows, own) for split, windows in self.windows.items()}
        self.rows = {split: int(work.rows.sum()) for split, work in self.work.items()}
        stream = seeds.sequence(own.seed, "activations", "rows")
        self.permutation = Permutation.from_seed(self.rows["train"], stream)
        self.loaded = (own.revisions_of_model()[0], self._load(own.revisions_of_model()[0]))
        """The model that was loaded last, and its revision."""
        self.hooks = {entry: self._hook(entry, place, self.loaded[1]) for entry, place in own.places().items()}
        self.writers = {entry: self._writer(entry) for entry in own.revisions}
        self.done: dict[str, dict[str, Any]] = {}
        """Of each revision and split, which batches are done, as far as this process knows."""
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def _load(self, revision: str) -> "TransformerBridge":
        return load_model(revision, self.on, getattr(torch, self.own.compute))

    @staticmethod
    def _hook(entry: str, place: Place, model: "TransformerBridge") -> Hook:
        asked = f"activations.revisions has {entry!r}, layer" if "+" in entry else "activations.layer is"
        name = resolve_hook(place.layer, place.site, model.cfg.n_layers, asked)
        check_hook(model, name)
        return Hook(name, place.layer % model.cfg.n_layers)

    def _writer(self, entry: str) -> StoreWriter:
        return StoreWriter(self.resume.directory / entry, self.identity(entry), self.rows, self.own.shard_rows)

    def identity(self, entry: str) -> dict[str, Any]:
        """What the index says before any row is there."""
        facts, place, hook = read_json(MODEL / "model.json"), self.own.places()[entry], self.hooks[entry]
        return {
            "model": facts["name"],
            "commit": facts.get("revision_commits", {}).get(place.revision, facts["commit"]),
            "revision": place.revision,
            "weights": weights_checksum(place.revision),
            "hook_name": hook.name,
            "layer": hook.layer,
            "d_in": int(self.loaded[1].cfg.d_model),
            "dtype": self.own.dtype,
            "n_ctx": self.windows["train"].n_ctx,
            "seed": self.own.seed,
            "permutation": self.permutation.recipe(),
            "settings": self.own.model_dump(include=set(SETTINGS)),
        }

    def entries(self, revision: str) -> list[str]:
        """The entries that one pass over a revision of the model fills."""
        return [entry for entry, place in self.own.places().items() if place.revision == revision]

    def n_batches(self, split: str) -> int:
        """How many batches the windows of a split make."""
        return -(-len(self.work[split].window) // self.own.batch_windows)

    def prepare(self) -> None:
        """Reserve the room, and take up what earlier runs recorded, however many processes they had."""
        names = self.own.revisions_of_model()
        self.done = {
            name: {split: torch.zeros(self.n_batches(split), dtype=torch.bool) for split in SPLITS} for name in names
        }
        for path in sorted(self.resume.directory.glob("progress-*.resume")):
            kept = self.resume.load(path.stem)
            assert kept is not None, f"{path} vanished"
            for name in names:
                for split in SPLITS:
                    self.done[name][split] |= kept[name][split]
        for entry, writer in self.writers.items():
            for split in SPLITS:
                if not writer.prepare(split):
                    self.done[self.own.places()[entry].revision][split].fill_(False)
                    for path in self.resume.directory.glob(f"{entry}.{split}-*.resume"):
                        path.unlink()
        self.resume.save(self.done, "progress-0")
        for path in self.resume.directory.glob("progress-*.resume"):
            if path.stem != "progress-0":
                path.unlink()

    def take_up(self) -> None:
        """Know what `prepare` found."""
        kept = self.resume.load("progress-0")
        assert kept is not None, f"{self.resume.directory} has no progress-0.resume"
        self.done = kept

    def left(self, revision: str) -> list[Batch]:
        """This process's share of the batches to do."""
        batches = [
            Batch(split, number)
            for split in SPLITS
            for number in torch.nonzero(~self.done[revision][split]).flatten().tolist()
        ]
        return batches[self.team.rank :: self.team.size]

    def n_rows(self, batch: Batch) -> int:
        """Rows that a batch gives at each hook."""
        return int(self.work[batch.split].rows[self._windows(batch)].sum())

    def _windows(self, batch: Batch) -> slice:
        return slice(batch.number * self.own.batch_windows, (batch.number + 1) * self.own.batch_windows)

    def build(self) -> None:
        """Do this process's share of the batches of all revisions, then of the checksums."""
        names = self.own.revisions_of_model()
        shares = {name: self.left(name) for name in names}
        todo = sum(self.n_rows(batch) for share in shares.values() for batch in share)
        whole = len(names) * sum(self.rows.values()) // self.team.size
        stage = f"activations-{self.team.rank}" if self.team.rank else "activations"
        with Log(stage, max(whole, todo), "token", max(0, whole - todo)) as log:
            for name, batches in shares.items():
                if batches:
                    self._fill(name, batches, log)
        self.team.meet()
        shards = [
            (entry, split, number)
            for entry, writer in self.writers.items()
            for split, rows in writer.shards.items()
            for number in range(len(rows))
        ]
        with ThreadPoolExecutor(self.n_workers) as pool:
            # Nothing comes back: small results among large blocks that are freed would keep these from being reused.
            for done in [pool.submit(self._digest_once, *shard) for shard in shards[self.team.rank :: self.team.size]]:
                done.result()
        self.team.meet()

    def _fill(self, revision: str, batches: list[Batch], log: Log) -> None:
        """Run batches of a revision, in threads, and record progress as it is safe on the disk."""
        if self.loaded[0] != revision:
            self.loaded = (revision, self._load(revision))
        model, todo = self.loaded[1], iter(batches)
        with ThreadPoolExecutor(self.n_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            models = [model, *(share(model) for _ in range(1, min(self.n_workers, len(batches))))]
            workers = [pool.submit(self._work, own, revision, todo, log) for own in models]
            try:
                while unfinished(workers, RECORD_SECONDS):
                    self._record(revision)
            finally:
                self._stopped.set()
                wait(workers)
                self._record(revision)
        self._stopped.clear()
        for worker in workers:
            worker.result()  # the error that ended it, if there is one

    def _work(self, model: "TransformerBridge", revision: str, todo: Iterator[Batch], log: Log) -> None:
        entries = self.entries(revision)
        hooks, dtype = [self.hooks[entry] for entry in entries], DTYPES[self.own.dtype][0]
        while not self._stopped.is_set():
            with self._lock:
                batch = next(todo, None)
            if batch is None:
                return
            split = batch.split
            rows = extract(model, self.windows[split], self.work[split], hooks, dtype, self._windows(batch))
            target = self.permutation(rows.row) if split == "train" else rows.row
            for entry, activations in zip(entries, rows.activations, strict=True):
                self.writers[entry].scatter(split, target, activations, rows.position)
            with self._lock:
                log.advance(len(rows.row), split=split)
                self.done[revision][split][batch.number] = True

    def _record(self, revision: str) -> None:
        with self._lock:
            done = {name: {split: mask.clone() for split, mask in both.items()} for name, both in self.done.items()}
        for entry in self.entries(revision):
            self.writers[entry].flush()  # first the rows, then the record of them
        self.resume.save(done, f"progress-{self.team.rank}")

    def _digest_once(self, entry: str, split: str, number: int) -> None:
        self._digest(entry, split, number)

    def _digest(self, entry: str, split: str, number: int) -> dict[str, Any]:
        """A shard's checksum and moments, which are worked out once."""
        name = f"{entry}.{split}-{number:05d}"
        found = self.resume.load(name)
        if found is None:
            found = self.writers[entry].digest(split, number)
            self.resume.save(found, name)
        return found

    def finish(self) -> list[Path]:
        """Write the indices; returns the directories of the finished stores."""
        for entry, writer in self.writers.items():
            writer.write_index(partial(self._digest, entry))
        return [writer.directory for writer in self.writers.values()]


def unfinished(workers: list[Future[None]], seconds: float) -> bool:
    """Whether there is work left and no worker has failed, after some time at most."""
    found = wait(workers, seconds, FIRST_EXCEPTION)
    return bool(found.not_done) and not any(worker.exception() for worker in found.done)


def extract_all(own: ActivationsParams, team: Team) -> None:
    """Build the stores of all entries together with the other processes, then put them in place."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    inputs = [MODEL / "model.json", TOKENS / "tokens.json", *(TOKENS / f"{split}.safetensors" for split in SPLITS)]
    for revision in own.revisions_of_model():
        inputs += sorted(path for path in model_path(revision).iterdir() if path.is_file())
    resume = Resume("activations", fingerprint((own, device().type), inputs))
    if team.rank:
        team.meet()
        extraction = Extraction(own, resume, team, n_threads)
        extraction.take_up()
        team.meet()
        extraction.build()
        return
    with resume:
        extraction = Extraction(own, resume, team, n_threads)
        extraction.prepare()
        team.meet()
        team.meet()  # only when all know what there is to do may it change
        extraction.build()
        place(extraction.finish(), ACTIVATIONS)
        resume.clear()


def main() -> None:
    """Do the stage, in several processes if asked to."""
    own = settings()
    keep_freed_memory()
    if launch("stages.activations"):
        return
    with full_disk_said(), Team() as team:
        extract_all(own, team)


if __name__ == "__main__":
    run(main)
