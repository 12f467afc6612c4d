"""How faithful each SAE of an arm is to the activations and to the language model, on held-out documents.

in: data/activations, data/tokens, data/model, data/ablations/<revision>, data/train/<arm>
out: data/evaluate/<arm> (`l0.parquet`, `documents.parquet`, `alive.parquet`), reports/evaluate/<arm>.json

All levels and seeds, and the further seeds that have the followed level alone. The numbers are defined in
`stages.lib.fidelity.measures`; dead features are those that fire nowhere in validation and test. For the cross-entropy
(nats a token) the reconstruction replaces the activation at all positions but the first, and the predictions of all
positions but the first count:

    delta_ce = ce_sae - ce_clean, random_error_ratio = (ce_random_error - ce_clean) / delta_ce
    ce_recovered_mean = (ce_mean - ce_sae) / (ce_mean - ce_clean)       (with ce_zero: ce_recovered_zero)

`ce_clean_test` is the unchanged model on all test tokens, the others are on `n_ce_tokens` of them. `fvu_train` and
`relative_bias_train` are on training activations: what the test documents add to the error is their difference.

Baselines: the mean training activation of each token id, and the principal components of the `fit` tokens, as many as
the SAE has active features on average.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from pydantic import NonNegativeInt, PositiveInt

from stages.lib.activations.store import Store, open_store
from stages.lib.fidelity.ablations import (
    Site,
    WithoutSAE,
    batches,
    chosen_windows,
    identity,
    read_ablations,
    windows_at_a_time,
)
from stages.lib.fidelity.cross_entropy import Sums, split_sums
from stages.lib.fidelity.detail_tables import alive_table, documents_table, l0_table
from stages.lib.fidelity.measures import Fidelity
from stages.lib.fidelity.reconstruction import OnTraining, dead, fidelities, on_training, shift_of
from stages.lib.fidelity.summary_rows import ce_rows, clean_row, fidelity_rows, training_rows
from stages.lib.io import params
from stages.lib.io.summary import Row, write_summary
from stages.lib.io.tables import write_parquet
from stages.lib.language.copies import Copies
from stages.lib.language.model import check_weights, load_model
from stages.lib.language.windows import Windows, read_windows
from stages.lib.run.log import Log
from stages.lib.run.machine import device, keep_freed_memory
from stages.lib.run.parallel import side_by_side
from stages.lib.run.seeds import integer, numpy_generator
from stages.lib.run.start import run
from stages.lib.sae.members import Member, members, more_members, revision
from stages.lib.sae.saved import SAE, load_sae
from stages.lib.stats.intervals import resample_counts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DATA = Path("data/evaluate")


class EvaluateParams(params.Params):
    """The section `evaluate`."""

    n_ce_tokens: PositiveInt
    """Test tokens on which the model runs with each SAE, as whole windows spread evenly over the split."""
    n_train_tokens: PositiveInt
    """Training activations on which SAEs are measured too."""
    n_resamples: PositiveInt
    """Resamples of documents behind each interval."""
    seed: NonNegativeInt
    """Of the resamples and of the random error directions."""


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`."""

    evaluate: EvaluateParams
    seeds: list[int]
    more_seeds: list[int]


def settings() -> Settings:
    """The stage's settings."""
    own = params.read("evaluate", EvaluateParams)
    return Settings(own, params.read("train.seeds", list[int]), params.read("train.more_seeds", list[int]))


class Inputs(NamedTuple):
    """What is read before anything is measured."""

    runs: list[Member]
    saes: list[SAE]
    store: Store
    windows: Windows
    """Of the test split."""
    without: WithoutSAE
    """What needs no SAE."""
    model: "TransformerBridge"


def prepare(arm: str, given: Settings) -> Inputs:
    """Load the SAEs and the language model whose activations they were trained on."""
    own, seeds, more_seeds = given
    runs = [*members(arm, seeds), *more_members(arm, more_seeds)]
    trained_on, windows = revision(arm, seeds[0]), read_windows("test")
    store = open_store(trained_on, verify=("validation", "test"))
    check_weights(store.index, store.directory)
    without = read_ablations(trained_on, identity(store, windows, own.n_ce_tokens))
    model = load_model(store.index["revision"], device())
    return Inputs(runs, [load_sae(run.directory).to(device()) for run in runs], store, windows, without, model)


class CrossEntropies(NamedTuple):
    """What the language model was measured on."""

    sums: Sums
    """Of some windows."""
    document: Int[np.ndarray, " window"]
    """The document of each of them, numbered among those that occur."""
    n_documents: int


def cross_entropies(own: EvaluateParams, inputs: Inputs) -> CrossEntropies:
    """The sums of test windows spread evenly over the split."""
    store, windows, model = inputs.store, inputs.windows, inputs.model
    chosen = chosen_windows(store, windows, own.n_ce_tokens)
    parts = batches(windows, chosen, windows_at_a_time(windows.n_ctx, model.cfg.d_vocab), torch.device(device()))
    generator = torch.Generator().manual_seed(integer(own.seed, "evaluate", "random_error"))
    site = Site(Copies(model), store.hook_name, store.mean.to(device()))
    sums = split_sums(site, parts, inputs.saes, generator)
    present, document = np.unique(windows.document.numpy()[chosen], return_inverse=True)
    return CrossEntropies(sums, document, len(present))


class Measured(NamedTuple):
    """What was measured of all SAEs."""

    fidelities: list[Fidelity]
    silent: list[Bool[np.ndarray, " d_sae"]]
    """The features that fire neither in test nor in validation."""
    patched: CrossEntropies
    training: list[OnTraining]


def measure(own: EvaluateParams, inputs: Inputs, log: Log) -> Measured:
    """The sums of all SAEs over the activations and over the runs of the language model."""
    store, saes = inputs.store, inputs.saes
    sums = fidelities(store, inputs.windows, saes)
    patched = cross_entropies(own, inputs)
    silent = side_by_side(lambda pair: dead(store, *pair), zip(saes, sums, strict=True), device())
    training = on_training(store, saes, [shift_of(run) for run in inputs.runs], own.n_train_tokens)
    for fidelity in sums:
        log.advance(1, fvu=fidelity.fvu(inputs.without.baselines.total))
    return Measured(sums, silent, patched, training)


def summarise(own: EvaluateParams, inputs: Inputs, found: Measured) -> Iterator[Row]:
    """Every number of the arm's summary."""
    patched, n_validation = found.patched, inputs.store.n_rows("validation")
    ablations, baselines = inputs.without
    generator = numpy_generator(own.seed, "evaluate", "documents")
    counts = resample_counts(len(inputs.windows.document_ids), own.n_resamples, generator)
    ce_counts = resample_counts(patched.n_documents, own.n_resamples, generator)
    each = zip(inputs.runs, found.fidelities, found.silent, found.training, strict=True)
    for index, (member, fidelity, silent, training) in enumerate(each):
        yield from fidelity_rows(member, fidelity, baselines, silent, n_validation, counts)
        yield from ce_rows(member, patched.sums, ablations, index, patched.document, ce_counts)
        yield clean_row(member, ablations, inputs.windows.document.numpy(), counts)
        yield from training_rows(member, training)


def main(arm: str) -> None:
    """Evaluate all levels and seeds of an arm."""
    given = settings()
    own = given.evaluate
    keep_freed_memory()
    inputs = prepare(arm, given)
    with Log(f"evaluate@{arm}", unit="SAE") as log, torch.no_grad():
        found = measure(own, inputs, log)
    pairs = list(zip(inputs.runs, found.fidelities, strict=True))
    tables = {
        "documents": [documents_table(*pair, inputs.without.baselines.total) for pair in pairs],
        "l0": [l0_table(*pair) for pair in pairs],
        "alive": [alive_table(*pair) for pair in pairs],
    }
    for name, parts in tables.items():
        write_parquet(DATA / arm / f"{name}.parquet", pd.concat(parts, ignore_index=True))
    write_summary("evaluate", arm, summarise(own, inputs, found))


if __name__ == "__main__":
    run(main)
