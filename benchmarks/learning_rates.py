"""Searches the learning rate of every arm, with equal budgets and on validation activations alone.

    python -m benchmarks.learning_rates                 # all arms of params.yaml, into benchmarks/results
    python -m benchmarks.learning_rates --arms relu --rates 1e-3 3e-3
    python -m benchmarks.learning_rates --epochs 3      # three times the budget, as a check that results hold

Every arm trains all its levels with every rate, as the stage `train` does (same schedule, tokens and width) but with a
seed of its own, so that the seeds of the results have not been chosen for. An arm's score at a rate is the mean over
the common L0 (`compare.l0`) of log FVU on the validation split, read off its levels in log L0; a rate at which an arm
does not reach them all has no score. All arms get the same rates; where the best of an arm is the highest or the lowest
of them, that is said. The best rate of each arm is what `params.yaml` should have as its `lr`.
"""

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from stages import train
from stages.lib.activations.batches import normalised_batches
from stages.lib.activations.parts import spread_rows
from stages.lib.activations.store import Store, open_store
from stages.lib.io import params
from stages.lib.run.machine import keep_freed_memory
from stages.lib.sae.outputs import write_sae
from stages.lib.sae.saved import SAE, load_sae
from stages.lib.sae.training import Training, stretches
from stages.lib.stats.equal_l0 import at_l0

RESULTS = Path("benchmarks/results/learning_rates.csv")
SEED = 1000
ROWS = 4096
RATES = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2]


def trained(chosen: train.Settings, store: Store, lr: float) -> Training:
    """The levels of an arm after all its steps with a learning rate."""
    arm = chosen.arm.model_copy(update={"lr": lr})
    sample = store.scaling().normalise_(spread_rows(store, "validation"))
    training = train.prepare(
        chosen._replace(arm=arm), chosen.seeds[0], sample, train.n_steps(chosen.train, store.n_rows("train"))
    )
    steps, size = training.schedule.n_steps, chosen.train.batch_size
    batches = normalised_batches(store, store.scaling(), seed=chosen.seeds[0], size=size, steps=range(steps))
    for stretch in stretches(training, batches):
        training.run(stretch)
    for sae in training.saes:
        sae.settle(training.sample)
        sae.finish(training.sample)
    return training


@torch.no_grad()
def measured(sae: SAE, store: Store) -> tuple[float, float, float]:
    """L0, FVU and the share of dead features on the validation split."""
    n, error, total, active = store.n_rows("validation"), 0.0, 0.0, 0
    fired = torch.zeros(sae.d_sae, dtype=torch.bool)
    mean = torch.stack([store.rows("validation", start, min(start + ROWS, n)).sum(0) for start in range(0, n, ROWS)])
    mean = mean.sum(0) / n
    for start in range(0, n, ROWS):
        x = store.rows("validation", start, min(start + ROWS, n))
        codes = sae.active(x)
        error += float((x - sae.decode_active(codes)).square().sum())
        total += float((x - mean).square().sum())
        active += len(codes.value)
        fired[codes.feature] = True
    return active / n, error / total, 1 - float(fired.float().mean())


def trial(arm: str, lr: float, epochs: int | None, wanted: list[float]) -> pd.DataFrame:
    """One arm at one rate: a row a level, and the score in each."""
    chosen = train.settings(arm, str(SEED))
    if epochs is not None:
        chosen = chosen._replace(train=chosen.train.model_copy(update={"epochs": epochs}))
    store = open_store(chosen.arm.activations)
    begun = time.monotonic()
    training = trained(chosen, store, lr)
    seconds = time.monotonic() - begun
    rows = []
    for level, sae in enumerate(training.saes):
        with tempfile.TemporaryDirectory() as directory:
            write_sae(Path(directory), sae, train.space(store), {})
            l0, fvu, dead = measured(load_sae(Path(directory)), store)
        rows.append(
            {
                "arm": arm,
                "epochs": chosen.train.epochs,
                "lr": lr,
                "level": level,
                "l0": l0,
                "fvu": fvu,
                "dead_fraction": dead,
            }
        )
    table = pd.DataFrame(rows)
    at = [at_l0(table.l0.tolist(), table.fvu.tolist(), target, log=True) for target in wanted]
    found = [fvu for fvu in at if fvu is not None]
    score = sum(map(math.log, found)) / len(found) if len(found) == len(wanted) else math.nan
    sys.stdout.write(f"{arm:16} lr {lr:<8g} log FVU {score:.4f}  {table.fvu.round(4).tolist()}  {seconds:.0f} s\n")
    sys.stdout.flush()
    return table.assign(score=score)


def ends(table: pd.DataFrame) -> list[str]:
    """The arms whose best rate is the highest or the lowest that was tried: the next one may be better."""
    scores = table.drop_duplicates(["arm", "lr"]).dropna(subset="score")
    found = []
    for arm, own in scores.groupby("arm", sort=False):
        best = own.loc[own["score"].idxmin(), "lr"]
        if best in (table["lr"].min(), table["lr"].max()):
            found.append(str(arm))
    return found


def main() -> None:
    """Run all trials and write their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=[*params.value("saes")])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--epochs", type=int, help="instead of train.epochs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    keep_freed_memory()
    wanted = params.read("compare.l0", list[float])
    trained_arms = [arm for arm in options.arms if train.settings(arm, str(SEED)).variant.Variant.trained]
    parts = [trial(arm, lr, options.epochs, wanted) for arm in trained_arms for lr in sorted(options.rates)]
    table = pd.concat(parts, ignore_index=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out, index=False, float_format="%.6g", lineterminator="\n")
    best = table.loc[table.groupby("arm", sort=False).score.idxmin().dropna().astype(int)]
    sys.stdout.write("\nbest rates\n" + best[["arm", "lr", "score"]].to_string(index=False) + "\n")
    for arm in ends(table):
        sys.stdout.write(f"{arm}: the best rate is at an end of those that were tried\n")


if __name__ == "__main__":
    main()
