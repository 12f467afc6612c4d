"""Is the firing rate of a feature a reliable number, and does it say how specialised the feature is?

in: data/activations, data/tokens, data/concepts, data/train/<arm>
out: data/frequency/<arm> (`features`, `histogram`, `decades`, all .parquet), reports/frequency/<arm>.json

Reliability, as Spearman, ICC(2,1), Lin's concordance and mean |difference of log10 p| (`stages.lib.stats.reliability`)
of

    split_half        test documents with even and with odd number
    validation        validation and test
    threshold         f > 0 and f > a tenth of the maximum
    cross_seed        features of the next seed matched by decoder (`_all`: also pairs below `match_cosine`)
    cross_level       matched features of the same seed at the next sparsity level

Specialisation: `stages.lib.features.relation`, from one row a feature (`stages.lib.features.table`). Features with
fewer than `min_firings` firings on validation or test are left out of all of it and counted as unresolved.
"""

from collections.abc import Iterator
from operator import methodcaller
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveInt

from stages.lib.activations.store import open_store
from stages.lib.concepts.labelled import Labelled, read_labelled, usable_concepts, with_concepts
from stages.lib.concepts.labels import read_concepts
from stages.lib.detectors.null import feature_null, offsets, record
from stages.lib.features.matching import best_cosines, match
from stages.lib.features.relation import decades, relation
from stages.lib.features.table import FiringCounts, feature_table
from stages.lib.io import params
from stages.lib.io.errors import run
from stages.lib.io.files import read_json
from stages.lib.io.summary import Row, write_summary
from stages.lib.io.tables import write_parquet
from stages.lib.run.log import Log
from stages.lib.run.machine import device, keep_freed_memory
from stages.lib.run.parallel import side_by_side
from stages.lib.run.seeds import numpy_generator
from stages.lib.sae.members import Member, members
from stages.lib.sae.saved import load_sae
from stages.lib.stats.intervals import resample_counts
from stages.lib.stats.reliability import rate_agreement, resolved

BATCH = 8192
"""Tokens at a time."""
EDGES = np.round(np.arange(-6, 0.05, 0.1), 1)
"""Of the histogram of log10 p."""
FIRINGS = ("n_firings", "n_firings_validation")


class FrequencyParams(params.Params):
    """The section `frequency`."""

    n_tokens: PositiveInt
    """Tokens of validation and of test, as whole windows; more than there are means all."""
    n_null_tokens: PositiveInt
    """Test tokens on which labels are shifted."""
    n_shifts: PositiveInt
    n_resamples: Annotated[int, Field(ge=2)]
    """Resamples of documents behind each rate's error, and of features behind each interval."""
    min_firings: PositiveInt
    """A feature with fewer, in validation or test, is unresolved."""
    n_rarefied: Annotated[int, Field(ge=2)]
    """Firings to which the token entropy is rarefied."""
    match_cosine: Annotated[float, Field(ge=-1, le=1)]
    """Decoder cosine from which matched features of two SAEs count as the same."""
    specialised: Annotated[float, Field(gt=0, lt=1)]
    """Calibrated MCC from which a feature counts as specialised in `auroc_frequency`."""
    seed: NonNegativeInt
    """Of the windows, shifts and resamples."""


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`."""

    frequency: FrequencyParams
    seeds: list[int]


Key = tuple[int, int]
"""Level and seed."""


def settings(arm: str) -> Settings:  # noqa: ARG001 - every stage's settings take what its main takes
    """The stage's settings."""
    return Settings(params.read("frequency", FrequencyParams), params.read("train.seeds", list[int]))


def count(runs: list[Member], validation: Labelled, test: Labelled, log: Log) -> dict[Key, FiringCounts]:
    """The firings of all SAEs, in one pass over each split."""
    d_vocab = int(max(validation.tokens.max(), test.tokens.max())) + 1
    shape = (test.labels.shape[1], test.n_documents, d_vocab)
    counts = {(run.level, run.seed): FiringCounts(load_sae(run.directory), *shape) for run in runs}
    for batch in validation.batches(BATCH):
        side_by_side(methodcaller("add_validation", batch), counts.values(), device())
        log.advance(len(batch.tokens))
    for batch in test.batches(BATCH):
        side_by_side(methodcaller("add_test", batch), counts.values(), device())
        log.advance(len(batch.tokens))
    return counts


def ladder(own: FrequencyParams, key: Key, counts: dict[Key, FiringCounts], test: Labelled) -> Iterator[Row]:
    """How far the firing rates of one SAE agree with other measurements of them."""
    (level, seed), n, one = key, len(test), counts[key]
    even = np.arange(test.n_documents) % 2 == 0
    sizes = np.bincount(test.documents, minlength=test.n_documents)
    halves = [one.by_document[half].sum(0) for half in (even, ~even)]
    split = (int(sizes[even].sum()), int(sizes[~even].sum()))
    firings, before = one.tally.n_firings, one.validation()
    found = {
        "split_half": rate_agreement(halves[0], halves[1], split, own.min_firings),
        "validation": rate_agreement(before.fired[:, 0], firings, (before.n, n), own.min_firings),
        "threshold": rate_agreement(firings, one.above_tenth, (n, n), own.min_firings),
    }
    seeds = sorted({other for _, other in counts})
    neighbours = {
        "cross_seed": (level, seeds[(seeds.index(seed) + 1) % len(seeds)]),
        "cross_level": (level + 1, seed),
    }
    for name, other in neighbours.items():
        if other in counts and other != key:
            pairs = match(one.sae.W_dec.cpu(), counts[other].sae.W_dec.cpu())
            a, b = firings[pairs.left], counts[other].tally.n_firings[pairs.right]
            same = pairs.cosines >= own.match_cosine
            found[name] = rate_agreement(a[same], b[same], (n, n), own.min_firings)
            found[f"{name}_all"] = rate_agreement(a, b, (n, n), own.min_firings)
            yield Row(level, seed, f"{name}_matched_fraction", float(same.mean()), n=len(same))
    for rung, agreed in found.items():
        if agreed is not None:
            for measure in ("spearman", "icc", "ccc", "dex"):
                yield Row(level, seed, f"{rung}_{measure}", getattr(agreed, measure), n=agreed.n)


def stability(key: Key, counts: dict[Key, FiringCounts]) -> Float[np.ndarray, " d_sae"]:
    """Each feature's largest decoder cosine with a feature of the same level of another seed; NaN with one seed."""
    one = counts[key].sae.W_dec
    others = [other.sae.W_dec for (level, seed), other in counts.items() if level == key[0] and seed != key[1]]
    if not others:
        return np.full(len(one), np.nan)
    best = torch.stack([best_cosines(one, other) for other in others]).amax(0)
    return best.cpu().numpy()


def histogram(rate: Float[np.ndarray, " feature"]) -> pd.DataFrame:
    """Counts of log10 p between `EDGES`; rates below the first edge, and dead features, are in no bin."""
    n_features, edges = np.histogram(np.log10(rate[rate > 0]), EDGES)
    return pd.DataFrame({"log10_rate": edges[:-1], "n_features": n_features})


def main(arm: str) -> None:
    """Count the firings of the arm's SAEs, describe every feature, and summarise."""
    own, seeds = settings(arm)
    keep_freed_memory()
    runs = members(arm, seeds)
    store = open_store(read_json(runs[0].directory.parent / "train.json")["activations"], verify=("validation", "test"))

    def generator(*names: str | int) -> np.random.Generator:
        return numpy_generator(own.seed, "frequency", *names)

    validation = read_labelled(store, "validation", own.n_tokens, generator("validation"))
    test = read_labelled(store, "test", own.n_tokens, generator("test"))
    null = read_labelled(store, "test", own.n_null_tokens, generator("null"))
    usable = usable_concepts([validation, test, null])
    validation, test, null = (with_concepts(part, usable) for part in (validation, test, null))
    known = read_concepts()
    concepts = [known[column] for column in usable]
    names = [concept.name for concept in concepts]
    by = offsets(len(null), max(concept.mean_run for concept in concepts), own.n_shifts, generator("shifts"))
    sizes = np.bincount(test.documents, minlength=test.n_documents)
    resamples = resample_counts(test.n_documents, own.n_resamples, generator("documents"))

    def describe(key: Key) -> tuple[list[Row], dict[str, pd.DataFrame]]:
        """The summary and the tables of one SAE."""
        (level, seed), one = key, counts[key]
        chance = feature_null(record(one.encode, x, one.validation_maximum, null.labels), by)
        table = feature_table(one, chance, sizes, resamples, names, own.n_rarefied)
        table["stability"] = stability(key, counts)
        enough = (resolved(table[column].to_numpy(), own.min_firings) for column in FIRINGS)
        table["resolved"] = np.logical_and.reduce(list(enough))
        kept = table[table["resolved"]]
        features = generator("features", level, seed)
        rows = []
        for name, found in relation(kept, own.specialised, own.n_resamples, features).items():
            low, high = found.interval or (None, None)
            rows.append(Row(level, seed, name, found.value, low, high, found.n))
        rows.append(Row(level, seed, "unresolved_fraction", 1 - len(kept) / len(table), n=len(table)))
        rows += ladder(own, key, counts, test)
        log_rate, score = np.log10(kept["rate"].to_numpy()), kept["mcc_calibrated"].to_numpy()
        by_decade = pd.DataFrame(decades(log_rate, score, own.n_resamples, features))
        tables = {"features": table, "histogram": histogram(table["rate"].to_numpy()), "decades": by_decade}
        return rows, {name: table.assign(arm=arm, level=level, seed=seed) for name, table in tables.items()}

    with Log(f"frequency@{arm}", total=len(validation) + len(test), unit="token") as log:
        counts = count(runs, validation, test, log)
        x = torch.cat([batch.x for batch in null.batches(BATCH)])
        described = side_by_side(describe, counts, device())
    for name in described[0][1]:
        parts = [tables[name] for _, tables in described]
        write_parquet(Path("data/frequency") / arm / f"{name}.parquet", pd.concat(parts, ignore_index=True))
    write_summary("frequency", arm, [row for rows, _ in described for row in rows])


if __name__ == "__main__":
    run(main)
