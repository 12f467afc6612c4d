"""What a cold run and the edit loop cost, stage by stage, in a fresh clone of this project with an empty cache.

    python -m benchmarks.pipeline --markdown docs/costs.md

The clone is of the commit that is checked out; `python`, `dvc` and the packages are those of this environment. Seconds
of wall time are read off the lines that `dvc repro` prints: from `Running stage` to `Updating lock file` a stage runs,
from there to the next it is DVC's. How much of the processors that took is what the system counted meanwhile
(/proc/stat), of all processes, so that nothing else may run on the machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from ruamel.yaml import YAML

from benchmarks.tables import Table
from benchmarks.trainers import processor

ROOT = Path(__file__).resolve().parents[1]
RUNNING, WRITING = "Running stage '", "Updating lock file"
WORD = ("stages/lib/report/answers/structure.py", "says nothing of other seeds", "says nothing about other seeds")
"""A file that `report` alone reads, words in it, and others in their place."""
COLUMNS = ["stage", "runs", "wall s", "CPU s", "DVC s", "wall s of one"]
LOOP = ["what has changed", "command", "wall s", "CPU s", "stages run"]


class Part(NamedTuple):
    """What one stage took."""

    stage: str
    wall: float
    """Seconds from its start to its end."""
    cpu: float
    """Seconds of all processors meanwhile."""
    dvc: float
    """Seconds from then to the next stage."""


def busy() -> float:
    """Seconds that all processors have worked since the system started."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def environment() -> dict[str, str]:
    """Variables with which commands are those of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "WANDB_MODE": "disabled", "PYTHONUNBUFFERED": "1"}


def timed(directory: Path, *words: str) -> tuple[float, float, list[Part]]:
    """Seconds of wall time and of the processors that a command takes, and those of each stage that DVC runs in it.

    Raises:
        SystemExit: with what it printed, if it fails.
    """
    process = subprocess.Popen(
        words, cwd=directory, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    began, events, lines = (time.monotonic(), busy()), [], []
    for line in process.stdout:
        lines.append(line)
        if line.startswith((RUNNING, WRITING)):
            events.append((line.split("'")[1] if line.startswith(RUNNING) else None, time.monotonic(), busy()))
    if process.wait():
        raise SystemExit(f"{' '.join(words)} failed:\n" + "".join(lines[-40:]))
    ended = (time.monotonic(), busy())
    parts = []
    for (stage, start, cpu_start), (_, stop, cpu_stop), *rest in (events[i : i + 3] for i in range(0, len(events), 2)):
        assert stage is not None
        parts.append(Part(stage, stop - start, cpu_stop - cpu_start, (rest[0][1] if rest else ended[0]) - stop))
    return ended[0] - began[0], ended[1] - began[1], parts


def by_stage(parts: Iterable[Part]) -> list[list[str]]:
    """One row a stage of `stages/`, all its arms and seeds together, the dearest first."""
    rows: dict[str, list[Part]] = {}
    for part in parts:
        rows.setdefault(part.stage.split("@")[0], []).append(part)
    dearest = sorted(rows.items(), key=lambda item: -sum(part.wall + part.dvc for part in item[1]))
    return [
        [f"`{name}`", str(len(some)), *(f"{sum(column):.1f}" for column in list(zip(*some, strict=True))[1:]),
         f"{min(part.wall for part in some):.1f} to {max(part.wall for part in some):.1f}"]
        for name, some in dearest
    ]  # fmt: skip


def edit_loop(directory: Path, arm: str) -> list[list[str]]:
    """What the commands of a day cost, in a finished project."""
    rows = []

    def add(what: str, *words: str) -> None:
        wall, cpu, parts = timed(directory, *words)
        rows.append([what, f"`{' '.join(words)}`", f"{wall:.1f}", f"{cpu:.1f}", str(len(parts))])

    add("nothing to do", "dvc", "repro")
    add("nothing to do", "dvc", "status")
    add("nothing to do", "dvc", "exp", "show", "--json")
    file, before, after = WORD
    text = (directory / file).read_text(encoding="utf-8")
    (directory / file).write_text(text.replace(before, after), encoding="utf-8")
    add("a word of the report", "dvc", "repro")
    yaml = YAML()
    settings = yaml.load(directory / "params.yaml")
    settings["saes"][arm]["l0"] = [round(1.25 * l0) for l0 in settings["saes"][arm]["l0"]]
    yaml.dump(settings, directory / "params.yaml")
    add(f"other targets of `{arm}`", "dvc", "repro")
    return rows


def heading() -> str:
    """The command, the machine and the commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    words = " ".join(sys.argv[1:])
    return (
        f"`python -m benchmarks.pipeline {words}`, commit {commit.stdout.strip()}; {processor(torch.device('cpu'))}, "
        f"{len(os.sched_getaffinity(0))} cores.\n"
    )


def main() -> None:
    """Clone, run from cold, edit, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument("--clone", type=Path, help="an empty or absent directory to run in; it is left as it is then")
    parser.add_argument("--jobs", type=int, help="run the cold pipeline so many stages at a time, for its sum alone")
    parser.add_argument("--arm", default="topk", help="the arm whose targets are changed in the edit loop")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        clone = (chosen.clone or Path(temporary) / "clone").resolve()
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        if chosen.jobs:
            wall, cpu, _ = timed(clone, "python", "-m", "stages", "--jobs", str(chosen.jobs))
            text = (
                f"{heading()}\nCold, {chosen.jobs} stages at a time: {wall:.0f} s of wall time, {cpu:.0f} s of CPU.\n"
            )
        else:
            wall, cpu, parts = timed(clone, "dvc", "repro")
            sums = [sum(column) for column in list(zip(*parts, strict=True))[1:]]
            stages = Table(COLUMNS, by_stage(parts)).text()
            loop = Table(LOOP, edit_loop(clone, chosen.arm)).text()
            text = (
                f"{heading()}\nCold `dvc repro`: {wall:.0f} s of wall time, {cpu:.0f} s of CPU; {len(parts)} stages "
                f"took {sums[0]:.0f} s, DVC between them {sums[2]:.0f} s, and before the first "
                f"{wall - sums[0] - sums[2]:.0f} s.\n\n{stages}\nThen, in the same clone:\n\n{loop}"
            )
    sys.stdout.write(text)
    if chosen.markdown is not None:
        chosen.markdown.parent.mkdir(parents=True, exist_ok=True)
        chosen.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
