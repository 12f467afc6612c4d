"""How features and concepts emerge while an SAE trains, and what goes with early emergence.

in: data/train/<arm>, data/activations, data/tokens, data/concepts    out: data/emergence/<arm>, reports/emergence

On the checkpoints of the followed level: directions of features against their last and first ones, births and deaths
(`stages.lib.emergence.trajectories`); F1 of every concept at every checkpoint (`stages.lib.emergence.curves`) and the
time of its persistent half-rise, with the agreement of seeds about the order (`stages.lib.emergence.times`).
Correlations of that time with properties of the concepts (`stages.lib.emergence.drivers`) are observations on few
concepts and license no "drives".
"""

from pathlib import Path
from threading import Lock
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field, NonNegativeInt, PositiveInt

from stages.lib.activations.parts import read_rows
from stages.lib.activations.store import open_store
from stages.lib.concepts.labelled import Labelled, read_labelled
from stages.lib.concepts.labels import Concept, read_concepts
from stages.lib.detectors.label_sums import in_words
from stages.lib.emergence import drivers, summary_rows
from stages.lib.emergence.checkpoints import (
    Followed,
    checkpoint_table,
    checkpoints,
    concept_table,
    feature_table,
    follow,
)
from stages.lib.emergence.curves import Sample
from stages.lib.emergence.summary_rows import Thresholds
from stages.lib.io import params
from stages.lib.io.errors import UserError, run
from stages.lib.io.files import atomic
from stages.lib.io.summary import write_summary
from stages.lib.run.log import Log
from stages.lib.run.machine import keep_freed_memory
from stages.lib.run.parallel import side_by_side
from stages.lib.run.seeds import numpy_generator
from stages.lib.sae.members import Member, followed_members, revision

DATA = Path("data/emergence")
Cosine = Annotated[float, Field(gt=0, lt=1)]


class EmergenceParams(params.Params):
    """The section `emergence`."""

    n_fit: PositiveInt
    """Tokens on which the properties of concepts are measured."""
    n_validation: PositiveInt
    """Tokens that choose detectors and tell which features are alive."""
    n_test: PositiveInt
    """Tokens that score detectors."""
    min_positives: PositiveInt
    """A concept with fewer tokens in any of these parts is left out."""
    min_firings: PositiveInt
    """A feature with fewer firings on the validation tokens is not alive."""
    settled_cosine: Cosine
    lazy_cosine: Cosine
    min_final: Cosine
    """Chance-corrected F1 at the end below which a concept has not emerged."""
    n_shifts: PositiveInt
    """Circular shifts behind the chance level."""
    n_permutations: PositiveInt
    """Permutations behind the p of Kendall's W."""
    n_resamples: PositiveInt
    """Resamples of concepts behind the intervals of the correlations."""
    seed: NonNegativeInt


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`."""

    emergence: EmergenceParams
    seeds: list[int]


class Parts(NamedTuple):
    """The tokens that are looked at."""

    fit: Labelled
    validation: Labelled
    test: Labelled


def settings(arm: str) -> Settings:  # noqa: ARG001
    """The stage's settings, checked; the same for every arm."""
    return Settings(params.read("emergence", EmergenceParams), params.read("train.seeds", list[int]))


def kept_concepts(parts: Parts, concepts: list[Concept], min_positives: int) -> list[int]:
    """The columns of the concepts with enough tokens in every part."""
    counts = np.min([part.labels.sum(axis=0) for part in parts], axis=0)
    # A concept that is on everywhere has no tokens without it to compare with.
    missing = np.min([(~part.labels).sum(axis=0) for part in parts], axis=0)
    kept = np.flatnonzero((counts >= min_positives) & (missing >= min_positives)).tolist()
    if not kept:
        raise UserError(
            f"no concept has {min_positives} tokens in each part (the most frequent of {len(concepts)} has "
            f"{int(counts.max(initial=0))}): lower emergence.min_positives or raise emergence.n_fit, "
            "emergence.n_validation and emergence.n_test"
        )
    return kept


def sample(part: Labelled, columns: list[int]) -> Sample:
    """Normalised activations and labels, the even-numbered documents before the odd-numbered ones."""
    order = np.argsort(part.documents % 2, kind="stable")
    x = read_rows(part.store, part.split, part.rows)[order]
    x = (x - part.store.mean) / part.store.scale
    variation = float((x - x.double().mean(dim=0)).square().sum())
    labels = part.labels[order][:, columns]
    return Sample(x, labels, int((part.documents % 2 == 0).sum()), variation, in_words(labels))


def properties(parts: Parts, fit: Sample, concepts: list[Concept], columns: list[int]) -> pd.DataFrame:
    """One row per concept with what could make it emerge early."""
    apart = drivers.contrast(fit.x.numpy(), fit.labels)
    d_vocab = 1 + max(int(part.tokens.max()) for part in parts)
    on_fit, on_validation, on_test = (drivers.Ids(part.tokens, part.labels[:, columns]) for part in parts)
    return pd.DataFrame({
        "concept": [concepts[column].name for column in columns],
        "kind": [concepts[column].kind for column in columns],
        "prevalence": fit.labels.mean(axis=0),
        "variance_share": apart.variance_share,
        "separability": apart.separability,
        "lexicality": drivers.lexicality(on_fit, on_validation, on_test, d_vocab),
        "redundancy": drivers.redundancy(fit.labels),
    })  # fmt: skip


def write_tables(arm: str, tables: dict[str, pd.DataFrame]) -> None:
    """Write each table as Parquet."""
    for name, table in tables.items():
        with atomic(DATA / arm / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)


def main(arm: str) -> None:
    """Follow the SAE of every seed over its checkpoints and write tables and numbers."""
    own, seeds = settings(arm)
    keep_freed_memory()
    chosen = followed_members(arm, seeds)
    n_checkpoints = sum(len(checkpoints(member.directory)) for member in chosen)  # fails before any computing
    store = open_store(revision(arm, seeds[0]), verify=("fit", "validation", "test"))
    splits = {"fit": own.n_fit, "validation": own.n_validation, "test": own.n_test}
    parts = Parts(**{
        split: read_labelled(store, split, n, numpy_generator(own.seed, "part", split)) for split, n in splits.items()
    })  # fmt: skip
    concepts = read_concepts()
    columns = kept_concepts(parts, concepts, own.min_positives)
    names = [concepts[column].name for column in columns]
    mean_run = max(concepts[column].mean_run for column in columns)
    fit, validation, test = (sample(part, columns) for part in parts)
    with Log(f"emergence@{arm}", n_checkpoints, "checkpoint") as log:
        lock = Lock()

        def progress(fvu: float) -> None:
            with lock:
                log.advance(fvu=fvu)

        def follow_one(member: Member) -> Followed:
            generator = numpy_generator(own.seed, "shifts", member.seed)
            return follow(
                member, validation, test, mean_run=mean_run, n_shifts=own.n_shifts, generator=generator,
                progress=progress,
            )  # fmt: skip

        found = side_by_side(follow_one, chosen)
    thresholds = Thresholds(own.min_firings, own.settled_cosine, own.lazy_cosine, own.min_final)
    by_concept = properties(parts, fit, concepts, columns)
    by_checkpoint = [checkpoint_table(one, own.min_firings) for one in found]
    times = pd.concat([summary_rows.time_table(one, names, own.min_final) for one in found], ignore_index=True)
    order = summary_rows.mean_times(times, by_concept)
    rows = [row for one, table in zip(found, by_checkpoint, strict=True)
            for row in summary_rows.seed_rows(one, found, table, times, thresholds)]  # fmt: skip
    generator = numpy_generator(own.seed, "order")
    rows += summary_rows.order_rows(chosen[0], times, order, own.n_permutations, own.n_resamples, generator)
    write_tables(arm, {
        "trajectories": pd.concat([feature_table(one, names, own.min_firings) for one in found], ignore_index=True),
        "concepts": pd.concat([concept_table(one, names) for one in found], ignore_index=True),
        "checkpoints": pd.concat(by_checkpoint, ignore_index=True),
        "emergence": times,
        "drivers": order,
        "survival": summary_rows.survival_table(times, by_concept),
    })  # fmt: skip
    write_summary("emergence", arm, rows)


if __name__ == "__main__":
    run(main)
