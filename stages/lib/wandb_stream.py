"""Sends what a stage logs to Weights & Biases while it runs; a process of its own: `log.jsonl` in, a run out.

`python -m stages.lib.wandb_stream <stage> <log.jsonl> <pid of the stage>`

`stages.lib.log` starts it when `WANDB_MODE` is `online` or `offline`. It reads the log as it grows, sends the numbers
in it, and ends with the line that ends the log or with the process that wrote it. Nothing waits for it, so a slow or
absent server costs the pipeline nothing. Runs made with the same `params.yaml` share a group, which `WANDB_RUN_GROUP`
overrides.
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

from stages.lib.params import PARAMS_FILE

INTERVAL = 0.5
"""Seconds between looks at the log."""
PROJECT = "exploring-saes"


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
    for name, value in entry.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + name] = float(value)
    return found


def main(stage: str, path: str, pid: str) -> None:
    """Send one log."""
    # Ctrl-C reaches the whole group of processes; the stage ends, and this one still has to send the end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import wandb
    from ruamel.yaml import YAML

    config = YAML(typ="safe", pure=True).load(PARAMS_FILE.read_text())
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    settings = wandb.Settings(silent=True, console="off")
    with wandb.init(
        project=project, group=group(), job_type=stage.split("@")[0], name=stage, config=config, settings=settings
    ) as session:
        for entry in follow(Path(path), int(pid)):
            facts = numbers(entry)
            if facts:
                session.log(facts)
            if "event" in entry:
                session.summary["event"] = entry["event"]


if __name__ == "__main__":
    main(*sys.argv[1:])
