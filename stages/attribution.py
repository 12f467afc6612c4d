"""Whether cheap scores say what a feature at a token does to the language model's loss, against exact ablation.

in: data/activations, data/tokens, data/model, data/train/<arm>
out: data/attribution/<arm>/nodes.parquet, reports/attribution/<arm>.json

The quantity m is the sum of the next-token negative log-likelihood over all positions of a window but the first; a node
(t, i) can move the predictions at t and later only. Scores, baselines and m are defined in
`stages.lib.fidelity.attribution`. Ablation and path go to 0 ("what if the feature were absent"). Each seed's SAE at the
level that training follows is measured; the headline numbers are those of the nodes drawn at random among the active
ones, with intervals over documents:

    spearman pearson sign_agreement slope          grad x act and ablation, signed (slope: of ablation on the score)
    spearman_magnitude[_ig, _activation]           |score| and |ablation|, with IG, or f alone, for the score
    spearman_naive                                 |ablation| and mean |W_enc[:, i]| x mean f_i, which knows no token
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import NonNegativeInt, PositiveInt

from stages.lib.activations.store import open_store
from stages.lib.fidelity.attribution import CleanRun, Measured, gradient, measure
from stages.lib.fidelity.cross_entropy import spread
from stages.lib.io import params
from stages.lib.io.summary import Row, write_summary
from stages.lib.io.tables import write_parquet
from stages.lib.language.model import check_weights, load_model
from stages.lib.language.patching import WindowLoss, check_resumption
from stages.lib.language.windows import Windows, read_windows
from stages.lib.run.log import Log
from stages.lib.run.machine import device, keep_freed_memory
from stages.lib.run.seeds import numpy_generator
from stages.lib.run.start import run
from stages.lib.sae.members import Member, followed_members, revision
from stages.lib.sae.saved import load_sae
from stages.lib.stats.correlation import (
    pearson,
    resampled_pearson,
    resampled_sign_agreement,
    resampled_slope,
    resampled_spearman,
    sign_agreement,
    slope,
    spearman,
    top_recall,
)
from stages.lib.stats.intervals import percentile_interval, resample_counts

DATA = Path("data/attribution")
LOGITS = 2**23
"""How many logits are in memory at a time."""
RECALL = (10, 50)
"""Sizes of the sets of largest effects that are looked for among the largest scores."""
Statistic = Callable[[np.ndarray, np.ndarray], float | None]
RESAMPLED = {
    spearman: resampled_spearman,
    pearson: resampled_pearson,
    sign_agreement: resampled_sign_agreement,
    slope: resampled_slope,
}
"""The function that gives a statistic for many resamples at once, from how often each row is in each."""


class AttributionParams(params.Params):
    """The section `attribution`."""

    n_windows: PositiveInt
    """Test windows, spread evenly over the split."""
    n_nodes: PositiveInt
    """Nodes to ablate in each SAE: a third each by largest score, at random, and spread over the activations."""
    ig_steps: PositiveInt
    """Midpoints on the path of the integrated gradients."""
    n_resamples: PositiveInt
    """Resamples of documents behind each interval."""
    seed: NonNegativeInt
    """The seed of the sample of nodes and of the resamples."""


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`."""

    attribution: AttributionParams
    seeds: list[int]


def settings() -> Settings:
    """The stage's settings."""
    return Settings(params.read("attribution", AttributionParams), params.read("train.seeds", list[int]))


def agreements(table: pd.DataFrame) -> Iterator[tuple[str, Statistic, np.ndarray, np.ndarray]]:
    """The headline comparisons on the nodes drawn at random: name, statistic, score, effect."""
    names = ["grad_x_act", "ig", "activation", "naive", "ablation"]
    score, integrated, activation, naive, effect = (table[name].to_numpy(np.float64) for name in names)
    size = np.abs(effect)
    yield "spearman", spearman, score, effect
    yield "pearson", pearson, score, effect
    yield "sign_agreement", sign_agreement, score, effect
    yield "slope", slope, score, effect
    yield "spearman_ig", spearman, integrated, effect
    yield "spearman_magnitude", spearman, np.abs(score), size
    yield "spearman_magnitude_ig", spearman, np.abs(integrated), size
    yield "spearman_magnitude_activation", spearman, activation, size
    yield "spearman_naive", spearman, naive, size


def secondary(table: pd.DataFrame) -> Iterator[tuple[str, float | None, int]]:
    """Other numbers, without intervals: recall of the largest effects, the other strata, thirds of the activations."""
    parts = {str(name): part for name, part in table.groupby("stratum")}
    random = parts["random"]
    size, score = random["ablation"].abs().to_numpy(), random["grad_x_act"].abs().to_numpy()
    for k in RECALL:
        yield f"recall_top_{k}", top_recall(score, size, k), len(random)
    for name in ("top", "activation"):
        some = parts[name]
        yield f"spearman_{name}_stratum", _spearman(some), len(some)
    by_activation = parts["activation"].sort_values("activation")
    for label, rows in zip(("low", "middle", "high"), np.array_split(np.arange(len(by_activation)), 3), strict=True):
        yield f"spearman_{label}_activation", _spearman(by_activation.iloc[rows]), len(rows)


def _spearman(table: pd.DataFrame) -> float | None:
    return spearman(table["grad_x_act"].to_numpy(np.float64), table["ablation"].to_numpy(np.float64))


def rows_of(own: AttributionParams, member: Member, measured: Measured) -> Iterator[Row]:
    """The summary of one SAE."""
    random = measured.table[measured.table["stratum"] == "random"]
    present, blocks = np.unique(random["document"], return_inverse=True)
    generator = numpy_generator(own.seed, "attribution", "documents")
    counts = resample_counts(len(present), own.n_resamples, generator)[:, blocks]
    for name, statistic, score, effect in agreements(random):
        value = statistic(score, effect)
        if value is not None:
            again = RESAMPLED[statistic](score, effect, counts)
            low, high = percentile_interval(again.tolist()) or (None, None)
            yield Row(member.level, member.seed, name, value, low, high, len(random))
    for name, number, n in secondary(measured.table):
        if number is not None:
            yield Row(member.level, member.seed, name, number, n=n)
    for name, number in measured.whole.items():
        if number is not None:
            yield Row(member.level, member.seed, name, number)


def located(table: pd.DataFrame, text: Windows, chosen: np.ndarray) -> pd.DataFrame:
    """The nodes with document and flat position of their token, in place of their place among the chosen windows."""
    index = chosen[table["window"]]
    position = index * text.n_ctx + table["pos"]
    return table.drop(columns=["window", "pos"]).assign(document=text.document.numpy()[index], position=position)


def main(arm: str) -> None:
    """Score the nodes of every seed of an arm."""
    own, seeds = settings()
    keep_freed_memory()
    followed = followed_members(arm, seeds)
    store = open_store(revision(arm, seeds[0]))
    check_weights(store.index, store.directory)
    model, text = load_model(store.index["revision"], device()), read_windows("test")
    chosen = torch.from_numpy(spread(len(text.length), own.n_windows))
    longest = int(text.length[chosen].max())
    tokens, valid = (whole[chosen, :longest].to(device()) for whole in (text.tokens, text.valid()))
    batch = max(1, LOGITS // (longest * model.cfg.d_vocab))
    tables: list[pd.DataFrame] = []
    rows: list[Row] = []
    with Log(f"attribution@{arm}", len(followed), "SAE") as log:
        check_resumption(model, tokens[:1], store.hook_name)
        loss = WindowLoss(model, store.hook_name, tokens, valid, batch)
        clean = CleanRun(loss, gradient(loss, loss.x, batch), batch)
        for member in followed:
            generator = numpy_generator(own.seed, "attribution", f"seed-{member.seed}")
            sae = load_sae(member.directory).to(device())
            measured = measure(clean, sae, own.ig_steps, own.n_nodes, generator)
            measured = measured._replace(table=located(measured.table, text, chosen.numpy()))
            tables.append(measured.table.assign(arm=arm, level=member.level, seed=member.seed))
            rows += rows_of(own, member, measured)
            log.advance(1)
    write_parquet(DATA / arm / "nodes.parquet", pd.concat(tables, ignore_index=True))
    write_summary("attribution", arm, rows)


if __name__ == "__main__":
    run(main)
