"""Sends the finished report to Weights & Biases: settings, headline table, histograms, curves and figures.

`python -m stages.lib.wandb_report`, started by the report stage when `WANDB_MODE` is `online` or `offline`, in a
process of its own: it reads what the stage wrote and can change none of it.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from stages.lib.files import read_json
from stages.lib.params import PARAMS_FILE, value
from stages.lib.wandb_stream import PROJECT, group

REPORTS = Path("reports")


def headline() -> pd.DataFrame:
    """`reports/metrics.json` as a table with a row per arm."""
    return pd.DataFrame(read_json(REPORTS / "metrics.json")).rename_axis("arm").reset_index()


def log_rates(arm: str) -> np.ndarray:
    """log10 of the firing rates of an arm's features that fired."""
    rates = pd.read_parquet(Path("data/frequency") / arm / "features.parquet", columns=["rate"])["rate"].to_numpy()
    result: np.ndarray = np.log10(rates[rates > 0])
    return result


def main() -> None:
    """Send one report."""
    import wandb
    from ruamel.yaml import YAML

    config = YAML(typ="safe", pure=True).load(PARAMS_FILE.read_text())
    settings = wandb.Settings(silent=True, console="off")
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    with wandb.init(
        project=project, group=group(), job_type="report", name="report", config=config, settings=settings
    ) as session:
        curves = pd.read_csv(REPORTS / "compare" / "curves.csv")
        for step, rows in curves.groupby("step"):
            facts = rows.set_index("arm")[["fvu", "l0", "dead_fraction"]]
            session.log(
                {f"{name}/{arm}": number for arm, row in facts.iterrows() for name, number in row.items()}, step=step
            )
        arms = [str(arm) for arm in value("saes")]
        session.log({f"log10_rate/{arm}": wandb.Histogram(log_rates(arm)) for arm in arms})
        session.log({"headline": wandb.Table(dataframe=headline())})
        for picture in sorted((REPORTS / "figures").glob("*.png")):
            session.log({f"figures/{picture.stem}": wandb.Image(str(picture))})


if __name__ == "__main__":
    main(*sys.argv[1:])
