"""Tensors in safetensors files that describe themselves."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stages.lib.io.errors import UserError
from stages.lib.io.files import atomic


def save(path: Path, tensors: dict[str, torch.Tensor], description: dict[str, Any] | None = None) -> None:
    """Write tensors and a JSON description of them, atomically.

    The description is one metadata entry, because safetensors writes several in no fixed order.
    """
    metadata = {"description": json.dumps(description or {}, sort_keys=True)}
    with atomic(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def load(path: Path, names: list[str] | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a file, or the ones named.

    Raises:
        UserError: if the file is missing, truncated or lacks one of the tensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in (names or sorted(file.keys()))}
    except FileNotFoundError:
        raise UserError(f"{path} is missing; `dvc checkout` or `dvc repro` brings it back") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); `dvc checkout --force` restores it") from None


def describe(path: Path) -> dict[str, Any]:
    """The description that `save` wrote."""
    try:
        with safe_open(path, framework="pt") as file:
            description: dict[str, Any] = json.loads((file.metadata() or {}).get("description", "{}"))
            return description
    except FileNotFoundError:
        raise UserError(f"{path} is missing; `dvc checkout` or `dvc repro` brings it back") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); `dvc checkout --force` restores it") from None
