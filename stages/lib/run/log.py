"""What a run says while it runs: a bar or plain lines on the terminal, and a dict per line in `data/.log/`.

The log file is not an output of the stage: it holds timings. Whoever wants curves elsewhere reads it; when
`WANDB_MODE` asks for Weights & Biases, a process of its own does so, so that no stage imports it or waits for it.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

LOG = Path("data/.log")
PLAIN_INTERVAL = 10.0
"""Seconds between lines where the output is no terminal."""


class Log:
    """The progress of one stage; a context manager.

    Args:
        stage: the stage's name, with its arm and seed if it has them, such as `train@topk-0`.
        total: how many units of work there are, or None if there is nothing to count.
        unit: what is counted.
        start: how many were done by an earlier, interrupted run.
    """

    def __init__(self, stage: str, total: int | None = None, unit: str = "it", start: int = 0) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self._done = self._start = start
        self._begun = self._said = time.monotonic()
        self._facts = ""
        self._terminal = sys.stderr.isatty()
        self._bar: tqdm[None] | None = None
        path = LOG / f"{stage}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")
        if os.environ.get("WANDB_MODE", "disabled") in ("online", "offline"):
            subprocess.Popen(
                [sys.executable, "-m", "stages.lib.run.tracking", "stage", stage, str(path), str(os.getpid())]
            )

    def __enter__(self) -> "Log":
        """Show the bar."""
        if self._terminal:
            self._bar = tqdm(
                total=self.total, initial=self._start, desc=self.stage, unit=self.unit, unit_scale=True, leave=False
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away and close the file."""
        if self._bar is not None:
            self._bar.close()
        self.write(event="end" if error is None else "failed", seconds=time.monotonic() - self._begun)
        self._file.close()

    def advance(self, units: int = 1, **facts: float | str) -> None:
        """Count work done; `facts` are shown beside the bar."""
        self._done += units
        if facts:
            self._facts = "  ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in facts.items()
            )
        if self._bar is not None:
            self._bar.set_postfix_str(self._facts, refresh=False)
            self._bar.update(units)
        elif time.monotonic() - self._said >= PLAIN_INTERVAL:
            self._said = time.monotonic()
            self._plain_line()

    def _plain_line(self) -> None:
        rate = (self._done - self._start) / max(time.monotonic() - self._begun, 1e-9)
        line = f"{self.stage}: {self._done:,} {self.unit}, {rate:,.1f}/s"
        if self.total:
            left = (self.total - self._done) / max(rate, 1e-9)
            line = f"{self.stage}: {self._done:,} of {self.total:,} {self.unit}, {rate:,.1f}/s, {left:,.0f} s left"
        self.say(f"{line}  {self._facts}".rstrip())

    def say(self, line: str) -> None:
        """Print a line for the person at the terminal."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def write(self, **facts: object) -> None:
        """Append a dict to the log file, with the seconds since the start."""
        line = {"elapsed_seconds": round(time.monotonic() - self._begun, 3), **facts}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
