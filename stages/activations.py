"""What the model's tokens look like at one hook.    in: data/model, data/tokens    out: data/activations/<revision>.

A row is a token. The model runs only up to the hooked layer. Training rows go where a seeded permutation sends them, so
reading the shards in order is reading tokens at random; the rows of the other splits stay in the order of the text. The
first position of every window (BOS) and padding give no row. All revisions take the same tokens to the same places.
"""

import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from stages.lib import params, seeds
from stages.lib.device import device
from stages.lib.errors import UserError, run
from stages.lib.extraction import Hook, Work, capture, extract, plan
from stages.lib.files import read_json
from stages.lib.language_model import MODEL, check_hook, load_model, model_path, resolve_hook
from stages.lib.log import Log
from stages.lib.permutation import Permutation
from stages.lib.resume import Resume, fingerprint
from stages.lib.store import ACTIVATIONS, DTYPES, SPLITS
from stages.lib.store_writer import StoreWriter, place
from stages.lib.windows import TOKENS, Windows, read_windows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RECORD_SECONDS = 20.0
"""Between two records of progress: what a kill can cost."""


class ActivationsParams(params.Params):
    """Where in the model, of how many tokens, and how stored."""

    layer: int
    site: str
    revisions: Annotated[list[str], Field(min_length=1)]
    n_tokens: PositiveInt
    dtype: Literal["float32", "bfloat16", "float16"]
    shard_rows: PositiveInt
    batch_windows: PositiveInt
    seed: NonNegativeInt


def settings() -> ActivationsParams:
    """The stage's settings."""
    own = params.read("activations", ActivationsParams)
    if len(set(own.revisions)) < len(own.revisions):
        raise UserError(f"params.yaml: activations.revisions names a revision twice: {', '.join(own.revisions)}")
    resolve_hook(0, own.site, n_layers=1)  # the site alone: whether there is such a layer is for the model to say
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


class Extraction:
    """What all revisions share: the settings, the windows, the work, and where the rows of training go."""

    def __init__(self, own: ActivationsParams, resume: Resume) -> None:
        self.own, self.resume = own, resume
        self.windows = {split: read_windows(split) for split in SPLITS}
        self.work = {split: plan_split(split, windows, own) for split, windows in self.windows.items()}
        self.rows = {split: int(work.rows.sum()) for split, work in self.work.items()}
        stream = seeds.sequence(own.seed, "activations", "rows")
        self.permutation = Permutation.from_seed(self.rows["train"], stream)
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def build(self, revisions: list[str]) -> list[Path]:
        """Run the revisions over all splits; returns the directories of their finished stores.

        On a CPU they run side by side, each with its share of the threads: the products of one model are often too
        small to be shared among threads.
        """
        with Log("activations", len(revisions) * sum(self.rows.values()), "token", self._done(revisions)) as log:
            if device().type != "cpu" or len(revisions) == 1:
                return [self._build_one(revision, self._model(revision), log) for revision in revisions]
            models = [self._model(revision) for revision in revisions]  # one by one: importing is not for threads
            share = max(1, torch.get_num_threads() // len(revisions))
            with ThreadPoolExecutor(len(revisions), initializer=torch.set_num_threads, initargs=(share,)) as pool:
                builds = [pool.submit(self._build_one, *both, log) for both in zip(revisions, models, strict=True)]
                try:
                    done = wait(builds, return_when=FIRST_EXCEPTION).done
                finally:
                    self._stopped.set()
                for build in done:
                    build.result()  # the error that ended the wait, if there is one
                return [build.result() for build in builds]

    def _model(self, revision: str) -> "TransformerBridge":
        model = load_model(revision, device())
        check_hook(model, self._hook(model).name)
        return model

    def _hook(self, model: "TransformerBridge") -> Hook:
        name = resolve_hook(self.own.layer, self.own.site, model.cfg.n_layers)
        return Hook(name, self.own.layer % model.cfg.n_layers, DTYPES[self.own.dtype][0])

    def _state(self, revision: str) -> dict[str, Any]:
        """Batches done of each split, and how far the writer has come with the end."""
        return self.resume.load(revision) or {"batches": dict.fromkeys(SPLITS, 0), "finish": {}}

    def _done(self, revisions: list[str]) -> int:
        """Tokens of an earlier run."""
        return sum(
            int(self.work[split].rows[: n * self.own.batch_windows].sum())
            for revision in revisions
            for split, n in self._state(revision)["batches"].items()
        )

    def _build_one(self, revision: str, model: "TransformerBridge", log: Log) -> Path:
        hook = self._hook(model)
        directory = self.resume.directory / revision
        writer = StoreWriter(directory, self.identity(revision, hook, model), self.rows, self.own.shard_rows)
        state = self._state(revision)
        for split in SPLITS:
            if not writer.prepare(split):
                state["batches"][split], state["finish"] = 0, {}
        for split in SPLITS:
            self._fill(model, hook, split, writer, state, log)
        writer.finish(state["finish"], lambda finish: self.resume.save({**state, "finish": finish}, revision))
        return directory

    def identity(self, revision: str, hook: Hook, model: "TransformerBridge") -> dict[str, Any]:
        """What the index says before any row is there."""
        facts = read_json(MODEL / "model.json")
        tokens = self.windows["train"].tokens[:1, :2].long().to(device())
        return {
            "model": facts["name"],
            "commit": facts["commit"],
            "revision": revision,
            "hook_name": hook.name,
            "layer": hook.layer,
            "d_in": capture(model, tokens, hook).shape[-1],
            "dtype": self.own.dtype,
            "n_ctx": self.windows["train"].n_ctx,
            "seed": self.own.seed,
            "permutation": self.permutation.recipe(),
        }

    def _fill(
        self, model: "TransformerBridge", hook: Hook, split: str, writer: StoreWriter, state: dict[str, Any], log: Log
    ) -> None:
        """Run what is left of a split, and record progress as it is safe on the disk."""
        recorded, done = time.monotonic(), state["batches"][split]
        for rows in extract(model, self.windows[split], self.work[split], hook, self.own.batch_windows, done):
            target = self.permutation(rows.row) if split == "train" else rows.row
            writer.scatter(split, target, rows.activations, rows.position)
            state["batches"][split] += 1
            with self._lock:
                log.advance(len(rows.row), split=split)
            if self._stopped.is_set() or time.monotonic() - recorded >= RECORD_SECONDS:
                self._record(writer, state)
                recorded = time.monotonic()
            if self._stopped.is_set():
                raise InterruptedError("another revision failed")
        self._record(writer, state)

    def _record(self, writer: StoreWriter, state: dict[str, Any]) -> None:
        writer.flush()  # first the rows, then the record of them
        self.resume.save(state, writer.identity["revision"])


def main() -> None:
    """Build the store of every revision, then put them all in place."""
    own = settings()
    inputs = [MODEL / "model.json", TOKENS / "tokens.json", *(TOKENS / f"{split}.safetensors" for split in SPLITS)]
    for revision in own.revisions:
        inputs += sorted(path for path in model_path(revision).iterdir() if path.is_file())
    with Resume("activations", fingerprint((own, device().type), inputs)) as resume:
        extraction = Extraction(own, resume)
        place(extraction.build(own.revisions), ACTIVATIONS)
        resume.clear()


if __name__ == "__main__":
    run(main)
