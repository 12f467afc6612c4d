"""Several processes that work on one stage, as `torchrun` starts them; one process is a team of one.

`EXPLORING_SAES_PROCESSES=4 dvc repro activations` starts four on this machine; over several machines, start `torchrun
-m stages.activations` yourself (README). How many there are is a matter of the machine: results do not depend on it.
"""

import logging
import os
import sys
from datetime import timedelta
from types import TracebackType
from typing import TypeVar

import torch
from torch import distributed

from stages.lib.io.errors import UserError

Item = TypeVar("Item")
PROCESSES = "EXPLORING_SAES_PROCESSES"
"""Environment variable: processes that a stage starts on this machine."""
PATIENCE = timedelta(days=30)
"""The longest that a process waits for the slowest; if one dies, torchrun ends them all."""


def launch(module: str) -> bool:
    """Run `python -m module` in as many processes as the environment asks for; False if this process is to do it.

    Raises:
        UserError: if the number cannot be.
        SystemExit: if one of them failed; it has said why.
    """
    asked = os.environ.get(PROCESSES, "1")
    if not asked.isdecimal() or int(asked) < 1:
        raise UserError(f"{PROCESSES} is {asked!r}, not a number of processes from 1 on")
    if int(asked) == 1 or "RANK" in os.environ:
        return False
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # pages about a process that failed
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // int(asked))))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(asked),
        run_id=module,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module)
    except ChildFailedError:
        sys.exit(1)
    return True


class Team:
    """The processes; a context manager."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    def __enter__(self) -> "Team":
        """Connect to the other processes, waiting for them."""
        if self.size > 1:
            distributed.init_process_group("gloo", timeout=PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the other processes."""
        if self.size > 1:
            distributed.destroy_process_group()

    def share(self, items: list[Item]) -> list[Item]:
        """What of some items is this process's to do."""
        return items[self.rank :: self.size]

    def meet(self) -> None:
        """Wait for the others.

        Raises:
            SystemExit: if one of them is gone; it has said why, or was killed.
        """
        if self.size > 1:
            try:
                distributed.barrier()
            except RuntimeError:
                sys.exit(1)

    def device(self, chosen: torch.device) -> torch.device:
        """The device of this process, if it has a GPU of its own."""
        if chosen.type == "cuda" and chosen.index is None and self.size > 1:
            return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        return chosen
