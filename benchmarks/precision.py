"""What computing and storing activations in fewer bits does to the SAEs that are trained on them.

    python -m benchmarks.precision --markdown benchmarks/results/precision.md

The stage `activations` runs once for each pair of settings, on the model and the tokens of `data/`; on each of the
stores an arm is trained with several seeds, as the stage `train` does. All are measured on the same activations, those
of the validation split computed and stored in float32: the error that counts is that against the model as it is.

`error` is ||x - x_32|| / ||x_32|| over the validation split, x what is stored. FVU is at each level of the arm, the
mean over the seeds; `+-` is half the range of FVU over the seeds, `difference` that from float32 with the same seed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from ruamel.yaml import YAML

from benchmarks.activations import ROOT
from benchmarks.learning_rates import ROWS, measured, trained
from benchmarks.tables import Table, heading, write
from stages import train
from stages.lib.activations.store import Store, open_store
from stages.lib.run.machine import keep_freed_memory
from stages.lib.sae.outputs import write_sae
from stages.lib.sae.saved import load_sae

WAYS = [("float32", "float32"), ("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", "bfloat16")]
"""`activations.compute` and `activations.dtype`."""


def extracted(directory: Path, compute: str, dtype: str) -> Store:
    """The activations of the model with these settings."""
    (directory / "data").mkdir(parents=True)
    for name in ("model", "tokens"):
        (directory / "data" / name).symlink_to(Path("data", name).resolve())
    section = YAML().load(Path("params.yaml").read_text())["activations"]
    section |= {"revisions": ["main"], "compute": compute, "dtype": dtype}
    with (directory / "params.yaml").open("w") as handle:
        YAML().dump({"activations": section}, handle)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "stages.activations"], cwd=directory, env=environment, check=True)
    return open_store("main", root=directory / "data/activations")


def relative_error(store: Store, exact: Store) -> float:
    """Of the stored activations of the validation split."""
    n, error, total = exact.n_rows("validation"), 0.0, 0.0
    for start in range(0, n, ROWS):
        x, x_32 = (one.rows("validation", start, min(start + ROWS, n)).double() for one in (store, exact))
        error += float((x - x_32).square().sum())
        total += float(x_32.square().sum())
    return (error / total) ** 0.5


def fvus(arm: str, seeds: list[int], store: Store, exact: Store) -> pd.DataFrame:
    """L0 and FVU on the exact activations of SAEs trained on stored ones: a row a seed and level."""
    rows = []
    for seed in seeds:
        chosen = train.settings(arm, str(seed))
        lr = chosen.train.lr if chosen.arm.lr is None else chosen.arm.lr
        for level, sae in enumerate(trained(chosen, store, lr).saes):
            with tempfile.TemporaryDirectory() as directory:
                write_sae(Path(directory), sae, train.space(store), {})
                l0, fvu, _ = measured(load_sae(Path(directory)), exact)
            rows.append({"seed": seed, "level": chosen.arm.levels[level], "l0": l0, "fvu": fvu})
    return pd.DataFrame(rows)


def main() -> None:
    """Extract, train, measure; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=["topk", "relu"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        stores = {way: extracted(Path(scratch, "-".join(way)), *way) for way in WAYS}
        exact = stores[WAYS[0]]
        for arm in options.arms:
            reference = fvus(arm, options.seeds, exact, exact)
            for (compute, dtype), store in stores.items():
                found = reference if store is exact else fvus(arm, options.seeds, store, exact)
                error = f"{100 * relative_error(store, exact):.3f} %"
                size = sum(path.stat().st_size for path in store.directory.glob("train-*")) / store.n_rows("train")
                for level, part in found.groupby("level", sort=False):
                    difference = part.fvu - reference.fvu[part.index]
                    spread = (part.fvu.max() - part.fvu.min()) / 2
                    numbers = [f"{part.fvu.mean():.4f}", f"{spread:.4f}", f"{difference.mean():+.4f}"]
                    rows.append([arm, f"{level:g}", compute, dtype, f"{size:.0f}", error, *numbers])
    table = Table(["arm", "L0", "compute", "dtype", "bytes a row", "error", "FVU", "+-", "difference"], rows)
    text = heading("benchmarks.precision", torch.device("cpu"), [])
    sys.stdout.write(f"{text}\n{table.text()}")
    write(text, table, options.markdown, None)


if __name__ == "__main__":
    main()
