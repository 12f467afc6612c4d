"""A working directory with a `params.yaml` of its own, for tests of what reads settings (no test itself)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.lib.io import params


def forget_params() -> None:
    """Have `params.yaml` read again by whoever asks for a setting next."""
    params._document.cache_clear()


def write_params(settings: str | Mapping[str, Any]) -> None:
    """Write `params.yaml` in the working directory, from its text or from its sections."""
    if isinstance(settings, str):
        Path("params.yaml").write_text(settings)
    else:
        with Path("params.yaml").open("w") as handle:
            YAML().dump(dict(settings), handle)
    forget_params()


def parsed(text: str) -> dict[str, Any]:
    """The sections of a `params.yaml`, as the stages read them."""
    return dict(YAML(typ="safe", pure=True).load(text))


@contextmanager
def working_directory(directory: Path) -> Iterator[Path]:
    """Make `directory` the working directory, whose settings nobody remembers afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        forget_params()
        yield directory
    forget_params()
