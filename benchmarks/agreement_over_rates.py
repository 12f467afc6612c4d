"""How far two seeds of a method agree at equal learning rates, which the arms of `params.yaml` do not have.

    python -m benchmarks.agreement_over_rates           # all trained arms of params.yaml, into benchmarks/results
    python -m benchmarks.agreement_over_rates --arms relu topk --rates 8e-3

Two seeds of its own for every arm and rate, trained at the followed level alone as the stage `train` does. A row a run:
L0, FVU and the share of dead features on the validation split, and the mean cosine of the decoder directions of the two
seeds, matched one to one, of features that are alive (`mcc`). Methods may be compared at one rate, not across rates: a
higher rate changes the agreement of the seeds of one and the same method.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.learning_rates import ROWS, measured, trained
from stages import train
from stages.lib.activations.store import Store, open_store
from stages.lib.features.matching import match
from stages.lib.io import params
from stages.lib.run.machine import keep_freed_memory
from stages.lib.sae.outputs import write_sae
from stages.lib.sae.saved import SAE, load_sae

RESULTS = Path("benchmarks/results/agreement_over_rates.csv")
SEEDS = (1001, 1002)
RATES = [8e-3, 1.6e-2, 3.2e-2]


class Run(NamedTuple):
    """One trained SAE."""

    l0: float
    fvu: float
    dead: float
    decoder: Float[Tensor, "d_sae d_in"]
    alive: Bool[Tensor, " d_sae"]
    """Which features fired on validation activations."""


@torch.no_grad()
def alive(sae: SAE, store: Store) -> Bool[Tensor, " d_sae"]:
    """Which features fire on the validation split."""
    fired = torch.zeros(sae.d_sae, dtype=torch.bool)
    n = store.n_rows("validation")
    for start in range(0, n, ROWS):
        fired[sae.active(store.rows("validation", start, min(start + ROWS, n))).feature] = True
    return fired


def one(arm: str, seed: int, lr: float) -> Run:
    """An arm's followed level, trained with a seed and a rate."""
    chosen = train.settings(arm, str(seed))
    chosen = chosen._replace(only=chosen.train.follow_level)
    store = open_store(chosen.arm.activations)
    (sae,) = trained(chosen, store, lr).saes
    with tempfile.TemporaryDirectory() as directory:
        write_sae(Path(directory), sae, train.space(store), {})
        loaded = load_sae(Path(directory))
    l0, fvu, dead = measured(loaded, store)
    return Run(l0, fvu, dead, loaded.W_dec, alive(loaded, store))


def trial(arm: str, lr: float) -> list[dict[str, object]]:
    """Both seeds of an arm at one rate, a row each."""
    runs = [one(arm, seed, lr) for seed in SEEDS]
    left, right = (run.decoder[run.alive] for run in runs)
    mcc = match(left, right).mcc
    sys.stdout.write(f"{arm:16} lr {lr:<8g} MCC {mcc:.3f}  FVU {runs[0].fvu:.4f} {runs[1].fvu:.4f}\n")
    sys.stdout.flush()
    return [
        {"arm": arm, "lr": lr, "seed": seed, "l0": run.l0, "fvu": run.fvu, "dead_fraction": run.dead, "mcc": mcc}
        for seed, run in zip(SEEDS, runs, strict=True)
    ]


def main() -> None:
    """Run all trials and write their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=[*params.value("saes")])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    keep_freed_memory()
    controls = params.read("compare.controls", list[str])
    arms = [arm for arm in options.arms if arm not in controls]
    rows = [row for arm in arms for lr in options.rates for row in trial(arm, lr)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.6g", lineterminator="\n")


if __name__ == "__main__":
    main()
