"""What fidelity is read by and needs no SAE: the model's loss on held-out text unchanged, and without the activation.

The errors of the mean activation of each token id, and of principal components, are measured here too.

in: data/activations, data/tokens, data/model
out: data/ablations/<revision> (`stages.lib.fidelity.ablations`)

A stage of its own, because all arms on the same revision share these numbers; `stages.evaluate` reads them beside its
SAEs.
"""

import torch
from pydantic import PositiveInt

from stages.lib.activations.store import open_store
from stages.lib.fidelity.ablations import (
    Site,
    WithoutSAE,
    chosen_windows,
    identity,
    measure_ablations,
    windows_at_a_time,
    write_ablations,
)
from stages.lib.fidelity.reconstruction import baselines
from stages.lib.io import params
from stages.lib.language.copies import Copies
from stages.lib.language.model import check_weights, load_model
from stages.lib.language.windows import read_windows
from stages.lib.run.log import Log
from stages.lib.run.machine import device, keep_freed_memory
from stages.lib.run.start import run


def settings() -> int:
    """`evaluate.n_ce_tokens`: test tokens on which the model runs with each SAE, and without the activation."""
    n_tokens: int = params.read("evaluate.n_ce_tokens", PositiveInt)
    return n_tokens


def main(revision: str) -> None:
    """Measure the model of a revision without an SAE."""
    n_tokens = settings()
    keep_freed_memory()
    store, windows = open_store(revision), read_windows("test")
    check_weights(store.index, store.directory)
    model = load_model(store.index["revision"], device())
    chosen = chosen_windows(store, windows, n_tokens)
    site = Site(Copies(model), store.hook_name, store.mean.to(device()))
    with Log(f"ablations@{revision}", len(windows.length), "window") as log, torch.no_grad():
        ablations = measure_ablations(site, windows, chosen, windows_at_a_time(windows.n_ctx, model.cfg.d_vocab))
        log.advance(len(windows.length))
        found = WithoutSAE(ablations, baselines(store, windows, model.cfg.d_vocab))
    write_ablations(revision, found, identity(store, windows, n_tokens))


if __name__ == "__main__":
    run(main)
