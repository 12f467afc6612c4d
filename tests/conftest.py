"""What all tests share: one thread a process, directories to work in, and the order in which files are handed out.

Tests run side by side, and sums over one thread have one order.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.settings import working_directory

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "disabled"
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that hold slow tests first: handed out last, one of them would keep one core busy alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """An empty directory as the working directory of a test; `write_params` gives it settings."""
    with working_directory(tmp_path):
        yield tmp_path


@pytest.fixture
def workspace(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a model of three layers, tokens and settings; the device and the resume directory are local."""
    from tests import extraction  # which imports transformers, that only few tests need

    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("EXPLORING_SAES_DEVICE", "cpu")
    extraction.write_model()
    extraction.write_tokens()
    extraction.configure()
    return project


@pytest.fixture(scope="module")
def shared_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty directory as the working directory of all tests of a file."""
    with working_directory(tmp_path_factory.mktemp("project")):
        yield Path.cwd()
