"""How features and concepts emerge while an SAE trains, and what goes with early emergence.

in: data/train/<arm>, data/activations, data/tokens, data/concepts    out: data/emergence/<arm>, reports/emergence

On the checkpoints of the followed level, all at the same L0: directions of features against their last and first ones
and against those of another seed, births and deaths (`stages.lib.emergence.trajectories`), times of events that lie
between checkpoints (`stages.lib.emergence.censoring`); F1 of every concept at every checkpoint
(`stages.lib.emergence.curves`) and the time of its persistent half-rise, with the agreement of seeds about the order
(`stages.lib.emergence.times`). Relations of that order with properties of the concepts (`stages.lib.emergence.order`)
are observations and license no "drives".
"""

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field, NonNegativeInt, PositiveInt

from stages.lib.activations.store import open_store
from stages.lib.concepts.labelled import Labelled, frequent_concepts, read_labelled, with_concepts
from stages.lib.concepts.labels import Concept, read_concepts
from stages.lib.emergence import concept_times, drivers, summary_rows
from stages.lib.emergence.checkpoints import Followed, checkpoints, follow
from stages.lib.emergence.curves import Sample, draw_shifts, make_sample
from stages.lib.emergence.families import families, label_correlation
from stages.lib.emergence.order_rows import Numbers, order_rows
from stages.lib.emergence.summary_rows import Thresholds
from stages.lib.emergence.tables import checkpoint_table, concept_table, feature_table
from stages.lib.io import params
from stages.lib.io.summary import Row, write_summary
from stages.lib.io.tables import write_parquet
from stages.lib.run.log import Log
from stages.lib.run.machine import keep_freed_memory
from stages.lib.run.parallel import side_by_side
from stages.lib.run.seeds import numpy_generator
from stages.lib.run.start import run
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
    l0_tolerance: Annotated[float, Field(gt=0)]
    """Relative difference in L0 to the last checkpoint above which a checkpoint counts as one of another sparsity."""
    min_final: Cosine
    """Chance-corrected F1 at the end below which a concept has not emerged."""
    n_shifts: PositiveInt
    """Circular shifts behind the chance level."""
    n_permutations: PositiveInt
    """Permutations behind the p of Kendall's W and of the joint model."""
    drivers: list[str]
    """Properties of concepts in the joint model of the order of emergence (`stages.lib.emergence.drivers`)."""
    family_phi: Cosine
    """Mean correlation of labels from which concepts are one family."""
    seed: NonNegativeInt


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`."""

    emergence: EmergenceParams
    seeds: list[int]


def settings() -> Settings:
    """The stage's settings, checked.

    Raises:
        UserError: if a driver is unknown.
    """
    own = params.read("emergence", EmergenceParams)
    drivers.check_predictors(own.drivers)
    return Settings(own, params.read("train.seeds", list[int]))


class Inputs(NamedTuple):
    """What is read before anything is followed."""

    followed: list[Member]
    """The SAE of the followed level for each seed."""
    n_checkpoints: int
    """Of all of them together."""
    concepts: list[Concept]
    """Those that are frequent enough, in the order of the labels' columns."""
    parts: dict[str, Labelled]
    """By split."""
    samples: dict[str, Sample]
    """The same with activations."""


def read_sample(part: Labelled) -> Sample:
    """Normalised activations and labels, those of the first half before those of the second."""
    first, second = part.halves()
    order = np.concatenate([first, second])
    x = (part.x()[order] - part.store.mean) / part.store.scale
    # Concept by concept in memory, as they are added up.
    return make_sample(x, np.asfortranarray(part.labels[order]), len(first))


def prepare(own: EmergenceParams, arm: str, seeds: list[int]) -> Inputs:
    """Find the SAEs and their checkpoints, and read tokens with the concepts that are frequent enough."""
    followed = followed_members(arm, seeds)
    n_checkpoints = sum(len(checkpoints(member.directory)) for member in followed)
    store = open_store(revision(arm, seeds[0]), verify=("fit", "validation", "test"))
    n_tokens = {"fit": own.n_fit, "validation": own.n_validation, "test": own.n_test}
    parts = {
        split: read_labelled(store, split, n, numpy_generator(own.seed, "part", split)) for split, n in n_tokens.items()
    }
    known = read_concepts()
    columns = frequent_concepts(parts.values(), own.min_positives)
    parts = {split: with_concepts(part, columns) for split, part in parts.items()}
    samples = {split: read_sample(part) for split, part in parts.items()}
    return Inputs(followed, n_checkpoints, [known[column] for column in columns], parts, samples)


def follow_all(own: EmergenceParams, inputs: Inputs, log: Log) -> list[Followed]:
    """Every SAE at all its checkpoints."""
    validation, test = inputs.samples["validation"], inputs.samples["test"]
    mean_run = max(concept.mean_run for concept in inputs.concepts)
    lock = Lock()

    def progress(fvu: float) -> None:
        with lock:
            log.advance(fvu=fvu)

    def follow_one(member: Member) -> Followed:
        generator = numpy_generator(own.seed, "shifts", member.seed)
        shifts = draw_shifts(validation, test, mean_run, own.n_shifts, generator)
        return follow(member, validation, test, shifts, progress)

    return side_by_side(follow_one, inputs.followed)


def tables(own: EmergenceParams, inputs: Inputs, followed: list[Followed]) -> dict[str, pd.DataFrame]:
    """What is written in full, the seeds one below the other."""
    names = [concept.name for concept in inputs.concepts]
    phi = label_correlation(inputs.samples["fit"].labels)
    by_concept = drivers.properties(inputs.concepts, inputs.parts, inputs.samples["fit"], phi)
    by_concept["family"] = families(phi, own.family_phi)

    def by_sae(table: Callable[[Followed], pd.DataFrame]) -> pd.DataFrame:
        return pd.concat(side_by_side(table, followed), ignore_index=True)

    times = by_sae(lambda one: concept_times.time_table(one, names, own.min_final))
    return {
        "trajectories": by_sae(lambda one: feature_table(one, followed, names, own.min_firings)),
        "concepts": by_sae(lambda one: concept_table(one, names)),
        "checkpoints": by_sae(lambda one: checkpoint_table(one, own.min_firings, own.settled_cosine)),
        "emergence": times,
        "drivers": concept_times.mean_times(times, by_concept),
        "survival": concept_times.survival_table(times, by_concept),
    }


def summarise(own: EmergenceParams, followed: list[Followed], found: dict[str, pd.DataFrame]) -> list[Row]:
    """The few numbers of each SAE, and of all seeds together."""
    thresholds = Thresholds(own.min_firings, own.settled_cosine, own.min_final, own.l0_tolerance)
    by_checkpoint, times, generator = found["checkpoints"], found["emergence"], numpy_generator(own.seed, "order")
    tests = Numbers(own.drivers, own.n_permutations)
    return [
        *(row for one in followed for row in summary_rows.seed_rows(one, followed, by_checkpoint, times, thresholds)),
        *summary_rows.time_rows(followed, times, thresholds),
        *order_rows(followed[0].member, times, found["drivers"], tests, generator),
    ]


def main(arm: str) -> None:
    """Follow the SAE of every seed over its checkpoints and write tables and numbers."""
    own, seeds = settings()
    keep_freed_memory()
    inputs = prepare(own, arm, seeds)
    with Log(f"emergence@{arm}", inputs.n_checkpoints, "checkpoint") as log:
        followed = follow_all(own, inputs, log)
    found = tables(own, inputs, followed)
    for name, table in found.items():
        write_parquet(DATA / arm / f"{name}.parquet", table)
    write_summary("emergence", arm, summarise(own, followed, found))


if __name__ == "__main__":
    run(main)
