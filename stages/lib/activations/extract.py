"""Builds the stores of several hooks and revisions of the model; one pass over the tokens serves all hooks of one.

Each part has one job: `Layout` (`stages.lib.activations.layout`) says which windows are run in which batches and where
their rows go, `Progress` (`stages.lib.activations.progress`) which batches are done, a `Pass` runs batches of one
revision in several threads, and `Extraction` is one process's part in the whole, in the order: begin, build, finish.

A batch is worked out by one thread, whole, and its rows have places of their own. So the bytes are the same however
many threads and processes there are, in whatever order they come, and however often they were killed.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from stages.lib.activations.layout import Layout, Request, lay_out
from stages.lib.activations.progress import Batch, Progress
from stages.lib.activations.store import DTYPES, SPLITS
from stages.lib.activations.writer import StoreWriter, place
from stages.lib.io.files import read_json
from stages.lib.language.extraction import Hook, extract, runners
from stages.lib.language.model import MODEL, Place, check_hook, load_model, resolve_hook, revisions_of, weights_checksum
from stages.lib.run.log import Log
from stages.lib.run.processes import Team
from stages.lib.run.resume import Resume

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from stages.lib.language.direct import Direct

RECORD_SECONDS = 20.0
"""Seconds between two records of progress: what a kill can cost."""
GPU_WORKERS = 2
"""Threads that share a GPU: one writes rows while the other's batch is worked out."""


class Models:
    """The revisions of the model on a device, of which the last one asked for is in memory."""

    def __init__(self, on: torch.device, compute: torch.dtype) -> None:
        self._on, self._compute = on, compute
        self._loaded: tuple[str, TransformerBridge] | None = None

    def load(self, revision: str) -> "TransformerBridge":
        """A revision, read from the disk unless it is the last one that was asked for."""
        if self._loaded is None or self._loaded[0] != revision:
            self._loaded = (revision, load_model(revision, self._on, self._compute))
        return self._loaded[1]


class Output(NamedTuple):
    """A store under construction, and the hook that fills it."""

    hook: Hook
    writer: StoreWriter


def hook_of(entry: str, place: Place, model: "TransformerBridge") -> Hook:
    """The hook of an entry.

    Raises:
        UserError: if the model has no such layer or no such site.
    """
    asked = f"activations.revisions has {entry!r}, layer" if "+" in entry else "activations.layer is"
    name = resolve_hook(place.layer, place.site, model.cfg.n_layers, asked)
    check_hook(model, name)
    return Hook(name, place.layer % model.cfg.n_layers)


def open_outputs(request: Request, layout: Layout, model: "TransformerBridge", directory: Path) -> dict[str, Output]:
    """The store of each entry, built in a directory of its name; `model` is any of the revisions."""
    hooks = {entry: hook_of(entry, place, model) for entry, place in request.places.items()}
    d_in, rows = int(model.cfg.d_model), layout.split_rows()
    identities = {entry: identity(request, layout, entry, hook, d_in) for entry, hook in hooks.items()}
    return {
        entry: Output(hook, StoreWriter(directory / entry, identities[entry], rows, request.shard_rows))
        for entry, hook in hooks.items()
    }


def identity(request: Request, layout: Layout, entry: str, hook: Hook, d_in: int) -> dict[str, Any]:
    """What the index of an entry's store says before any row is there."""
    facts, revision = read_json(MODEL / "model.json"), request.places[entry].revision
    return {
        "model": facts["name"],
        "commit": facts.get("revision_commits", {}).get(revision, facts["commit"]),
        "revision": revision,
        "weights": weights_checksum(revision),
        "hook_name": hook.name,
        "layer": hook.layer,
        "d_in": d_in,
        "dtype": request.dtype,
        "n_ctx": layout.windows["train"].n_ctx,
        "seed": request.seed,
        "permutation": layout.permutation.recipe(),
        "settings": request.settings,
    }


class Pass:
    """Batches of one revision of the model, run by several threads that take the next one when they are done with one.

    Args:
        layout: where the windows are and their rows go.
        outputs: the stores that the revision fills.
        batches: what is to be done.
        written: is called, by one thread at a time, with each batch whose rows are written and their number.
    """

    def __init__(
        self, layout: Layout, outputs: list[Output], batches: list[Batch], written: Callable[[Batch, int], None]
    ) -> None:
        self._layout, self._outputs, self._written = layout, outputs, written
        self._n_batches, self._todo = len(batches), iter(batches)
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def run(self, model: "TransformerBridge", n_workers: int, record: Callable[[], None]) -> None:
        """Run the batches; `record` is called every `RECORD_SECONDS`, and in the end, also after an error."""
        with ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            hooks = [output.hook for output in self._outputs]
            models = runners(model, hooks, max(1, min(n_workers, self._n_batches)))
            workers = [pool.submit(self._work, shared) for shared in models]
            try:
                while unfinished(workers, RECORD_SECONDS):
                    record()
            finally:
                # On Ctrl-C the threads finish their batches first, so that the record has them.
                self._stopped.set()
                wait(workers)
                record()
        for worker in workers:
            worker.result()  # the error that ended it, if there is one

    def _work(self, model: "TransformerBridge | Direct") -> None:
        """Run batches until none is left: one thread's part."""
        while not self._stopped.is_set():
            with self._lock:
                batch = next(self._todo, None)
            if batch is None:
                return
            n_rows = self._run_batch(model, batch)
            with self._lock:
                self._written(batch, n_rows)

    def _run_batch(self, model: "TransformerBridge | Direct", batch: Batch) -> int:
        """Write the rows of a batch to all stores; returns how many each got."""
        layout, split = self._layout, batch.split
        hooks = [output.hook for output in self._outputs]
        dtype = DTYPES[self._outputs[0].writer.identity["dtype"]][0]
        rows = extract(model, layout.windows[split], layout.work[split], hooks, dtype, layout.slice(batch))
        target = layout.target(split, rows.row)
        for output, activations in zip(self._outputs, rows.activations, strict=True):
            output.writer.scatter(split, target, activations, rows.position)
        return len(rows.row)


def unfinished(workers: list[Future[None]], seconds: float) -> bool:
    """Whether there is work left and no worker has failed, after some time at most."""
    found = wait(workers, seconds, FIRST_EXCEPTION)
    return bool(found.not_done) and not any(worker.exception() for worker in found.done)


class Extraction:
    """One process's part in building the stores."""

    def __init__(self, request: Request, resume: Resume, team: Team, on: torch.device, n_threads: int) -> None:
        self._request, self._resume, self._team = request, resume, team
        on = team.device(on)
        self._n_workers = n_threads if on.type == "cpu" else GPU_WORKERS
        self._revisions = revisions_of(request.places)
        self._layout = lay_out(request)
        self._models = Models(on, request.compute)
        model = self._models.load(self._revisions[0])
        self._outputs = open_outputs(request, self._layout, model, resume.directory)
        self._progress = Progress(resume, self._revisions, self._layout.n_batches())

    def begin(self) -> None:
        """Reserve the room, and take over what earlier runs recorded: the first process's part before all build."""
        self._progress.join()
        for entry, output in self._outputs.items():
            for split in SPLITS:
                if not output.writer.prepare(split):
                    self._progress.forget(self._request.places[entry].revision, split)
                    for path in self._resume.directory.glob(f"{entry}.{split}-*.resume"):
                        path.unlink()
        self._progress.publish()

    def follow(self) -> None:
        """Take over what the first process found: the others' part before all build."""
        self._progress.load()

    def build(self) -> None:
        """Do this process's share of the batches of all revisions, then of the checksums."""
        shares = {name: self._team.share(self._progress.left(name)) for name in self._revisions}
        todo = sum(self._layout.batch_rows(batch) for share in shares.values() for batch in share)
        whole = len(shares) * sum(self._layout.split_rows().values()) // self._team.size
        stage = f"activations-{self._team.rank}" if self._team.rank else "activations"
        with Log(stage, max(whole, todo), "token", max(0, whole - todo)) as log:
            for name, batches in shares.items():
                if batches:
                    self._fill(name, batches, log)
        self._team.meet()
        with ThreadPoolExecutor(self._n_workers) as pool:
            # Nothing comes back: small results among large blocks that are freed would keep these from being reused.
            for done in [pool.submit(self._keep_digest, *shard) for shard in self._team.share([*self._shards()])]:
                done.result()
        self._team.meet()

    def _fill(self, revision: str, batches: list[Batch], log: Log) -> None:
        """Run batches of a revision, and record progress as it is safe on the disk."""
        entries = [entry for entry, place in self._request.places.items() if place.revision == revision]
        outputs = [self._outputs[entry] for entry in entries]

        def written(batch: Batch, n_rows: int) -> None:
            log.advance(n_rows, split=batch.split)
            self._progress.mark(revision, batch)

        def record() -> None:
            done = self._progress.copy()
            for output in outputs:
                output.writer.flush()  # first the rows, then the record of them
            self._progress.record(done, self._team.rank)

        Pass(self._layout, outputs, batches, written).run(self._models.load(revision), self._n_workers, record)

    def _shards(self) -> Iterator[tuple[str, str, int]]:
        """Entry, split and number of every shard."""
        for entry, output in self._outputs.items():
            for split, rows in output.writer.shards.items():
                for number in range(len(rows)):
                    yield entry, split, number

    def _keep_digest(self, entry: str, split: str, number: int) -> None:
        """Work a shard's checksum and moments out unless they are on record, and record them."""
        name = digest_name(entry, split, number)
        if self._resume.load(name) is None:
            self._resume.save(self._outputs[entry].writer.digest(split, number), name)

    def _kept_digest(self, entry: str, split: str, number: int) -> dict[str, Any]:
        """A shard's checksum and moments, which one of the processes has recorded."""
        name = digest_name(entry, split, number)
        found = self._resume.load(name)
        assert found is not None, f"{self._resume.directory} has no {name}.resume"
        return found

    def finish(self) -> list[Path]:
        """Write the indices; returns the directories of the finished stores."""
        for entry, output in self._outputs.items():
            output.writer.write_index(partial(self._kept_digest, entry))
        return [output.writer.directory for output in self._outputs.values()]


def digest_name(entry: str, split: str, number: int) -> str:
    """The name under which the resume directory keeps the checksum of a shard."""
    return f"{entry}.{split}-{number:05d}"


def build_stores(request: Request, resume: Resume, root: Path, *, team: Team, on: torch.device, n_threads: int) -> None:
    """Build the stores of all entries together with the other processes, then put them under `root`.

    Raises:
        UserError: if the model, the tokens or the disk cannot give what is asked for.
    """
    if team.rank:
        team.meet()  # what is wrong with the request is then said by the first process alone
        extraction = Extraction(request, resume, team, on, n_threads)
        extraction.follow()
        team.meet()
        extraction.build()
        return
    with resume:
        extraction = Extraction(request, resume, team, on, n_threads)
        extraction.begin()
        team.meet()
        team.meet()  # only when all know what there is to do may it change
        extraction.build()
        place(extraction.finish(), root)
        resume.clear()
