"""Trainings in processes forked from one that has imported everything, so that they start at once (no test itself)."""

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess

import pytest

from stages import train
from tests.toy import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__, "tests.warm"])


def _train(arm: str, seed: str, variables: dict[str, str]) -> None:
    os.environ |= variables
    train.main(arm, seed)


def start_training(arm: str, seed: str, **variables: str) -> BaseProcess:
    """Begin `stages.train` in the working directory with these environment variables, in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # where the first process finds what it is to import
        forkserver.ensure_running()
    process = CONTEXT.Process(target=_train, args=(arm, seed, variables))
    process.start()
    return process


def run_training(arm: str, seed: str) -> None:
    """Run `stages.train` in a process of its own, to its end."""
    process = start_training(arm, seed)
    process.join()
    assert process.exitcode == 0
