"""Activations made of known features, in the format of the main pipeline's store.

out: data/activations/synthetic (`stages.lib.activations.store`), data/truth/synthetic (`synthetic.truth`)

Rows are independent, so none is moved: block b of a split is a pure function of (seed, split, b), and a run that was
stopped goes on with the block after the last recorded one. A row's `position` is its number, from 1.
"""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from stages.lib.activations.store import ACTIVATIONS
from stages.lib.activations.writer import StoreWriter, place
from stages.lib.io import params
from stages.lib.run.log import Log
from stages.lib.run.resume import Resume, fingerprint
from stages.lib.run.seeds import numpy_generator
from stages.lib.run.start import run
from synthetic.truth import BLOCK, REVISION, TRUTH, save_codes, save_truth
from synthetic.world import SyntheticParams, Truth, draw_codes, draw_truth, mix

RECORD_BLOCKS = 32
"""Blocks between two records of progress."""


class GenerateParams(SyntheticParams):
    """What the activations are made of, and how many there are."""

    n_train: PositiveInt
    n_validation: PositiveInt
    """On which trained SAEs set what inference needs."""
    n_test: PositiveInt
    """On which they are scored."""
    shard_rows: PositiveInt
    seed: NonNegativeInt

    def rows(self) -> dict[str, int]:
        """Rows of each split."""
        return {"train": self.n_train, "validation": self.n_validation, "test": self.n_test}


def settings() -> GenerateParams:
    """The settings."""
    return params.read("generate", GenerateParams)


def identity(own: GenerateParams) -> dict[str, Any]:
    """What the index says before any row is there; no model made these activations."""
    names = {"model": "synthetic", "commit": None, "revision": REVISION, "hook_name": "synthetic", "layer": 0}
    return {**names, "d_in": own.d_in, "dtype": "float32", "seed": own.seed}


def fill(own: GenerateParams, truth: Truth, split: str, writer: StoreWriter, resume: Resume, log: Log) -> None:
    """Draw what is left of a split, and record progress as it is safe on the disk."""
    n_rows = own.rows()[split]
    n_blocks = -(-n_rows // BLOCK)
    for number in range((resume.load(split) or {"blocks": 0})["blocks"], n_blocks):
        rows = np.arange(number * BLOCK, min((number + 1) * BLOCK, n_rows))
        stream = numpy_generator(own.seed, "synthetic", split, number)
        codes = draw_codes(truth, own, len(rows), stream)
        writer.scatter(split, rows, mix(truth, codes, own.noise, stream), rows + 1)
        if split == "test":
            save_codes(resume.directory / "truth" / REVISION, number, codes)
        if (number + 1) % RECORD_BLOCKS == 0 or number + 1 == n_blocks:
            writer.flush()  # first the rows, then the record of them
            resume.save({"blocks": number + 1}, split)
        log.advance(len(rows), split=split)


def build(own: GenerateParams, resume: Resume) -> tuple[Path, Path]:
    """Make the store and the truth in the resume directory; returns where they are."""
    store, known = resume.directory / REVISION, resume.directory / "truth" / REVISION
    truth = draw_truth(own, own.seed)
    save_truth(known, truth)
    writer = StoreWriter(store, identity(own), own.rows(), own.shard_rows)
    intact = [writer.prepare(split) for split in own.rows()]
    if not all(intact):
        for record in resume.directory.glob("*.resume"):
            record.unlink()
    with Log("generate", sum(own.rows().values()), "token") as log:
        for split in own.rows():
            fill(own, truth, split, writer, resume, log)
        writer.finish()
    return store, known


def main() -> None:
    """Make store and truth, then put both in place."""
    own = settings()
    with Resume("generate", fingerprint(own)) as resume:
        store, known = build(own, resume)
        place([store], ACTIVATIONS)
        place([known], TRUTH)
        resume.clear()


if __name__ == "__main__":
    run(main)
