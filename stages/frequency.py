"""Is the firing rate of a feature a reliable number, and does it say how specialised the feature is?

in: data/activations, data/tokens, data/concepts, data/train/<arm>
out: data/frequency/<arm> (`features`, `histogram`, `decades`, all .parquet), reports/frequency/<arm>.json

Reliability: the rates are measured again, and compared with those of the next seed and the next sparsity level
(`stages.lib.features.rates`). Specialisation: `stages.lib.features.relation`, from one row a feature
(`stages.lib.features.table`); `compare` sets it against a random decoder (`stages.lib.features.indicator`). Features
with fewer than `min_firings` firings on validation or test are left out of all of it and counted as unresolved.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int
from pydantic import Field, PositiveInt

from stages.lib.activations.store import open_store
from stages.lib.concepts.labelled import Labelled, read_labelled, usable_concepts, with_concepts
from stages.lib.concepts.labels import Concept, read_concepts
from stages.lib.detectors.null import offsets
from stages.lib.features.counting import Counted, as_part, count
from stages.lib.features.indicator import IndicatorParams
from stages.lib.features.matching import stability
from stages.lib.features.rates import Key, histogram, rate_rows
from stages.lib.features.relation import Relation, decades, relation
from stages.lib.features.table import feature_table, matched_cosine
from stages.lib.io import params
from stages.lib.io.summary import Row, write_summary
from stages.lib.io.tables import write_parquet
from stages.lib.run.log import Log
from stages.lib.run.machine import device, keep_freed_memory
from stages.lib.run.parallel import side_by_side
from stages.lib.run.seeds import numpy_generator
from stages.lib.run.start import run
from stages.lib.sae.members import Member, members, revision
from stages.lib.sae.saved import load_sae
from stages.lib.stats.intervals import resample_counts
from stages.lib.stats.reliability import resolved

FIRINGS = ("n_firings", "n_firings_validation")
TABLES = ("features", "histogram", "decades")


class FrequencyParams(IndicatorParams):
    """The section `frequency`."""

    n_tokens: PositiveInt
    """Tokens of validation and of test, as whole windows; more than there are means all."""
    n_shifts: PositiveInt
    """Shifts of the labels behind each feature's chance level."""
    min_firings: PositiveInt
    """A feature with fewer, in validation or test, is unresolved."""
    n_rarefied: Annotated[int, Field(ge=2)]
    """Firings to which the token entropy is rarefied."""
    match_cosine: Annotated[float, Field(ge=-1, le=1)]
    """Decoder cosine from which matched features of two SAEs count as the same."""
    specialised: Annotated[float, Field(gt=0, lt=1)]
    """Calibrated MCC from which a feature counts as specialised in `auroc_frequency`."""


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`."""

    frequency: FrequencyParams
    seeds: list[int]


def settings() -> Settings:
    """The stage's settings."""
    return Settings(params.read("frequency", FrequencyParams), params.read("train.seeds", list[int]))


class Inputs(NamedTuple):
    """What is read and drawn before anything is counted."""

    runs: list[Member]
    validation: Labelled
    test: Labelled
    concepts: list[Concept]
    """In the order of the labels' columns."""
    shifts: tuple[Int[np.ndarray, " shift"], Int[np.ndarray, " shift"]]
    """Of the labels of validation and of test."""
    resamples: Int[np.ndarray, "resample document"]

    def n_tokens(self) -> Int[np.ndarray, " document"]:
        """Test tokens of each document."""
        return np.bincount(self.test.documents, minlength=self.test.n_documents)


def stream(own: FrequencyParams, *names: str | int) -> np.random.Generator:
    """One of the stage's random streams."""
    return numpy_generator(own.seed, "frequency", *names)


def prepare(own: FrequencyParams, arm: str, seeds: list[int]) -> Inputs:
    """Find the SAEs, read tokens with the concepts that all parts have, and draw shifts and resamples."""
    runs = members(arm, seeds)
    store = open_store(revision(arm, seeds[0]), verify=("validation", "test"))
    parts = [read_labelled(store, split, own.n_tokens, stream(own, split)) for split in ("validation", "test")]
    usable = usable_concepts(parts)
    validation, test = (with_concepts(part, usable) for part in parts)
    known = read_concepts()
    concepts = [known[column] for column in usable]
    mean_run = max(concept.mean_run for concept in concepts)
    in_validation, in_test = (offsets(len(part), mean_run, own.n_shifts, stream(own, "shifts", part.split))
                              for part in (validation, test))  # fmt: skip
    resamples = resample_counts(test.n_documents, own.n_resamples, stream(own, "documents"))
    return Inputs(runs, validation, test, concepts, (in_validation, in_test), resamples)


def count_all(inputs: Inputs, log: Log) -> dict[Key, Counted]:
    """What the features of all SAEs do; the firings of one are in memory at a time, or of a few side by side."""
    validation, test = as_part(inputs.validation), as_part(inputs.test)
    d_vocab = int(max(inputs.validation.tokens.max(), inputs.test.tokens.max())) + 1
    lock = Lock()

    def count_one(run: Member) -> Counted:
        found = count(load_sae(run.directory).to(device()), validation, test, d_vocab, inputs.shifts)
        with lock:
            log.advance()
        return found

    found = side_by_side(count_one, inputs.runs, device())
    return {(run.level, run.seed): one for run, one in zip(inputs.runs, found, strict=True)}


def describe_features(own: FrequencyParams, inputs: Inputs, counted: dict[Key, Counted], key: Key) -> pd.DataFrame:
    """One row a feature of one SAE, and whether it is resolved."""
    one, null = counted[key]
    names = [concept.name for concept in inputs.concepts]
    table = feature_table(one, null, inputs.n_tokens(), inputs.resamples, names, own.n_rarefied)
    others = [counted[other].counts.sae.W_dec for other in counted if other[0] == key[0] and other != key]
    enough = [resolved(table[column].to_numpy(), own.min_firings) for column in FIRINGS]
    return table.assign(
        stability=stability(one.sae.W_dec, others),
        stability_matched=matched_cosine(one.sae.W_dec, others),
        resolved=np.logical_and.reduce(enough),
    )


def relation_rows(key: Key, found: dict[str, Relation]) -> Iterator[Row]:
    """The relation of rate and specialisation as rows of the summary."""
    for name, one in found.items():
        low, high = one.interval or (None, None)
        yield Row(*key, name, one.value, low, high, one.n)


class Described(NamedTuple):
    """What is written of one SAE."""

    rows: list[Row]
    tables: dict[str, pd.DataFrame]


def describe(own: FrequencyParams, inputs: Inputs, counted: dict[Key, Counted], key: Key) -> Described:
    """The summary and the tables of one SAE."""
    table = describe_features(own, inputs, counted, key)
    counts = {other: one.counts for other, one in counted.items()}
    kept = table[table["resolved"]]
    generator = stream(own, "features", *key)
    rows = [
        *relation_rows(key, relation(kept, own.specialised, own.n_resamples, generator)),
        Row(*key, "unresolved_fraction", 1 - len(kept) / len(table), n=len(table)),
        *rate_rows(key, counts, inputs.n_tokens(), own.min_firings, own.match_cosine),
    ]
    log_rate, score = np.log10(kept["rate"].to_numpy()), kept["mcc_calibrated"].to_numpy()
    by_decade = pd.DataFrame(decades(log_rate, score, own.n_resamples, generator))
    tables = {"features": table, "histogram": histogram(table["rate"].to_numpy()), "decades": by_decade}
    (level, seed), arm = key, inputs.runs[0].arm
    return Described(rows, {name: one.assign(arm=arm, level=level, seed=seed) for name, one in tables.items()})


def main(arm: str) -> None:
    """Count the firings of the arm's SAEs, describe every feature, and summarise."""
    own, seeds = settings()
    keep_freed_memory()
    inputs = prepare(own, arm, seeds)
    with Log(f"frequency@{arm}", total=len(inputs.runs), unit="SAE") as log:
        counted = count_all(inputs, log)
    described = side_by_side(partial(describe, own, inputs, counted), counted, device())
    for name in TABLES:
        table = pd.concat([one.tables[name] for one in described], ignore_index=True)
        write_parquet(Path("data/frequency") / arm / f"{name}.parquet", table)
    write_summary("frequency", arm, [row for one in described for row in one.rows])


if __name__ == "__main__":
    run(main)
