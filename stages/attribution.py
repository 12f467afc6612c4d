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
from torch import Tensor

from stages.lib.activations.store import open_store
from stages.lib.fidelity.attribution import (
    ablations,
    active_nodes,
    completeness_error,
    gradient,
    path_gradient,
    removal_scores,
    strata,
)
from stages.lib.fidelity.cross_entropy import spread
from stages.lib.io import params
from stages.lib.io.errors import run
from stages.lib.io.files import read_json
from stages.lib.io.summary import Row, write_summary
from stages.lib.io.tables import write_parquet
from stages.lib.language.model import check_weights, load_model
from stages.lib.language.patching import WindowLoss, check_resumption, index_batches
from stages.lib.language.windows import read_windows
from stages.lib.run.log import Log
from stages.lib.run.machine import device, keep_freed_memory
from stages.lib.run.seeds import numpy_generator
from stages.lib.sae.members import Member, members
from stages.lib.sae.saved import SAE, load_sae
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
"""Logits at a time."""
RECALL = (10, 50)
"""Sizes of the sets of largest effects that are looked for among the largest scores."""
Statistic = Callable[[np.ndarray, np.ndarray], float | None]
RESAMPLED = {
    spearman: resampled_spearman,
    pearson: resampled_pearson,
    sign_agreement: resampled_sign_agreement,
    slope: resampled_slope,
}
"""The same of many resamples at once, from how often each row is in each."""


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
    """Of the sample of nodes and of the resamples."""


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`."""

    attribution: AttributionParams
    seeds: list[int]


def settings(_arm: str) -> Settings:
    """The stage's settings."""
    return Settings(params.read("attribution", AttributionParams), params.read("train.seeds", list[int]))


class Measured(NamedTuple):
    """The ablated nodes of one SAE, and what concerns all its nodes."""

    table: pd.DataFrame
    """One row a node and stratum."""
    whole: dict[str, float | None]


def measure(own: AttributionParams, loss: WindowLoss, slopes: Tensor, one: SAE, name: str, batch: int) -> Measured:
    """Scores of all active nodes and exact ablations of a sample; `slopes` is the gradient of m at the clean x."""
    with torch.no_grad():
        feature_acts = one.encode(loss.x) * loss.counted[..., None]
        contribution = feature_acts @ one.W_dec
        error = loss.x - contribution
        nodes = active_nodes(feature_acts)
        exact = [loss.by_position((contribution + error)[some], some) for some in index_batches(len(loss.x), batch)]
        effect = [loss((loss.x - contribution)[some], some) for some in index_batches(len(loss.x), batch)]
    paths = path_gradient(loss, loss.x, contribution, own.ig_steps, batch)
    scores = removal_scores(nodes, slopes, one.W_dec)
    integrated = removal_scores(nodes, paths, one.W_dec)
    generator = numpy_generator(own.seed, "attribution", name)
    drawn = dict(strata(scores.cpu().numpy(), nodes.activation.cpu().numpy(), own.n_nodes // 3, generator))
    rows = np.unique(np.concatenate([*drawn.values()]))
    effects = ablations(loss, loss.x, nodes.take(torch.from_numpy(rows)), one.W_dec, batch)
    mean_activation = feature_acts.sum((0, 1)) / loss.counted.sum()
    columns = {
        **nodes._asdict(),
        "grad_x_act": scores,
        "ig": integrated,
        "naive": (one.W_enc.abs().mean(0) * mean_activation)[nodes.feature],
    }
    table = pd.DataFrame({key: values.cpu().numpy()[rows] for key, values in columns.items()})
    table["ablation"] = effects.cpu().numpy()
    taken = [table[np.isin(rows, chosen)].assign(stratum=stratum) for stratum, chosen in drawn.items()]
    total = float(torch.cat(effect).sum())
    whole = {
        "hook_max_error": float(torch.cat(exact).abs().max()),
        "completeness_ig": completeness_error(integrated, total),
        "completeness_grad_x_act": completeness_error(scores, total),
    }
    return Measured(pd.concat(taken, ignore_index=True), whole)


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


def rows_of(own: AttributionParams, cell: Member, measured: Measured) -> Iterator[Row]:
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
            yield Row(cell.level, cell.seed, name, value, low, high, len(random))
    for name, number, n in secondary(measured.table):
        if number is not None:
            yield Row(cell.level, cell.seed, name, number, n=n)
    for name, number in measured.whole.items():
        if number is not None:
            yield Row(cell.level, cell.seed, name, number)


def main(arm: str) -> None:
    """Score the nodes of every seed of an arm."""
    own, seeds = settings(arm)
    keep_freed_memory()
    cells = members(arm, seeds)
    described = {cell.seed: read_json(cell.directory.parent / "train.json") for cell in cells}
    cells = [cell for cell in cells if cell.level == described[cell.seed]["follow_level"]]
    store = open_store(described[cells[0].seed]["activations"])
    check_weights(store.index, store.directory)
    windows, hook_name = read_windows("test"), store.hook_name
    chosen = torch.from_numpy(spread(len(windows.length), own.n_windows))
    longest = int(windows.length[chosen].max())
    tokens, valid = (whole[chosen, :longest].to(device()) for whole in (windows.tokens, windows.valid()))
    model = load_model(store.index["revision"], device())
    batch = max(1, LOGITS // (longest * model.cfg.d_vocab))
    tables: list[pd.DataFrame] = []
    rows: list[Row] = []
    with Log(f"attribution@{arm}", len(cells), "SAE") as log:
        check_resumption(model, tokens[:1], hook_name)
        loss = WindowLoss(model, hook_name, tokens, valid, batch)
        slopes = gradient(loss, loss.x, batch)
        for cell in cells:
            measured = measure(own, loss, slopes, load_sae(cell.directory).to(device()), f"seed-{cell.seed}", batch)
            index = chosen.numpy()[measured.table.pop("window")]
            measured.table["document"] = windows.document.numpy()[index]
            measured.table["position"] = index * windows.n_ctx + measured.table.pop("pos")
            tables.append(measured.table.assign(arm=arm, level=cell.level, seed=cell.seed))
            rows += rows_of(own, cell, measured)
            log.advance(1)
    write_parquet(DATA / arm / "nodes.parquet", pd.concat(tables, ignore_index=True))
    write_summary("attribution", arm, rows)


if __name__ == "__main__":
    run(main)
