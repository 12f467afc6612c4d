"""Sends runs to Weights & Biases, each from a process of its own that no stage waits for.

    python -m stages.lib.run.tracking stage <stage> <log.jsonl> <pid of the stage>
    python -m stages.lib.run.tracking report

`stages.lib.run.log` starts the first when `WANDB_MODE` is `online` or `offline`: it reads the log as it grows, sends
the numbers in it, and ends with the line that ends the log or with the process that wrote it. A slow or absent server
costs the pipeline nothing. The report stage starts the second, which sends settings, headline table, histograms, curves
and figures; it reads what the stage wrote and can change none of it. Runs made with the same `params.yaml` share a
group, which `WANDB_RUN_GROUP` overrides.
"""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.lib.io.files import read_json
from stages.lib.io.params import PARAMS_FILE, value

INTERVAL = 0.5
"""Seconds between looks at the log."""
PROJECT = "exploring-saes"
REPORTS = Path("reports")


def group(params_file: Path = PARAMS_FILE) -> str:
    """The group of the runs of one `dvc repro`: an experiment's name, or a fingerprint of the settings."""
    named = os.environ.get("WANDB_RUN_GROUP") or os.environ.get("DVC_EXP_NAME")
    return named or f"params-{hashlib.sha256(params_file.read_bytes()).hexdigest()[:8]}"


def alive(pid: int) -> bool:
    """Whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def follow(path: Path, pid: int, interval: float = INTERVAL) -> Iterator[dict[str, Any]]:
    """The entries of a log as they are written, until one has an `event` or the process that writes is gone."""
    with path.open(encoding="utf-8") as handle:
        part = ""
        while True:
            running = alive(pid)  # asked before reading: what was written before the end is then still read
            part += handle.read()
            *lines, part = part.split("\n")
            for line in lines:
                entry: dict[str, Any] = json.loads(line)
                yield entry
                if "event" in entry:
                    return
            if not running:
                return
            time.sleep(interval)


def numbers(entry: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numeric facts of an entry, nested ones under `outer/inner`."""
    found: dict[str, float] = {}
    for name, fact in entry.items():
        if isinstance(fact, dict):
            found |= numbers(fact, f"{prefix}{name}/")
        elif isinstance(fact, int | float) and not isinstance(fact, bool):
            found[prefix + name] = float(fact)
    return found


def _session(job: str, name: str) -> Any:
    """A run of Weights & Biases that knows the settings."""
    import wandb
    from ruamel.yaml import YAML

    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        group=group(),
        job_type=job,
        name=name,
        config=YAML(typ="safe", pure=True).load(PARAMS_FILE.read_text()),
        settings=wandb.Settings(silent=True, console="off"),
    )


def send_stage(stage: str, path: str, pid: str) -> None:
    """Send the log of one stage while it grows."""
    # Ctrl-C reaches the whole group of processes; the stage ends, and this one still has to send the end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _session(stage.split("@")[0], stage) as session:
        for entry in follow(Path(path), int(pid)):
            facts = numbers(entry)
            if facts:
                session.log(facts)
            if "event" in entry:
                session.summary["event"] = entry["event"]


def headline() -> pd.DataFrame:
    """`reports/metrics.json` as a table with a row per arm."""
    return pd.DataFrame(read_json(REPORTS / "metrics.json")).rename_axis("arm").reset_index()


def log_rates(arm: str) -> np.ndarray:
    """log10 of the firing rates of an arm's features that fired."""
    rates = pd.read_parquet(Path("data/frequency") / arm / "features.parquet", columns=["rate"])["rate"].to_numpy()
    result: np.ndarray = np.log10(rates[rates > 0])
    return result


def send_report() -> None:
    """Send the finished report."""
    import wandb

    with _session("report", "report") as session:
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


def main(what: str, *arguments: str) -> None:
    """Send a stage's log or the report, as the command line says."""
    if what == "stage":
        send_stage(*arguments)
    else:
        send_report()


if __name__ == "__main__":
    main(*sys.argv[1:])
