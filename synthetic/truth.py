"""The known features behind synthetic activations on disk, and which of them are on in the held-out stream.

`data/truth/<revision>/truth.safetensors` holds the tensors of `synthetic.world.Truth`. The codes of the test split
stand beside it in blocks of `BLOCK` tokens, as sparse rows, so that a long stream is read piece by piece.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stages.lib.io import tensors
from synthetic.world import Truth

REVISION = "synthetic"
"""What stands in a model revision's place: `activations` of every arm."""
TRUTH = Path("data/truth")
BLOCK = 8192
"""Tokens that are drawn at once, from a stream of their own; part of the result's definition."""


def codes_path(directory: Path, block: int) -> Path:
    """The file of one block of codes."""
    return directory / f"test-{block:05d}.safetensors"


def save_truth(directory: Path, truth: Truth) -> None:
    """Write all but the codes."""
    content = {
        name: torch.as_tensor(np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part)
        for name, part in truth._asdict().items()
    }
    tensors.save(directory / "truth.safetensors", content, {name: [*part.shape] for name, part in content.items()})


def load_truth(directory: Path) -> Truth:
    """What `save_truth` wrote."""
    content = tensors.load(directory / "truth.safetensors", [*Truth._fields])
    dictionary = content.pop("dictionary")
    return Truth(dictionary, **{name: part.numpy() for name, part in content.items()})


def save_codes(directory: Path, block: int, codes: Float[np.ndarray, "token feature"]) -> None:
    """Write one block of the test split: for each token where its entries start, for each entry feature and value."""
    token, feature = np.nonzero(codes)
    first = np.searchsorted(token, np.arange(len(codes) + 1))
    parts = {"first": first, "feature": feature.astype(np.int32), "value": codes[token, feature]}
    content = {name: torch.from_numpy(part) for name, part in parts.items()}
    tensors.save(codes_path(directory, block), content, {"block": block, "n_features": codes.shape[1]})


def load_codes(directory: Path, block: int) -> Float[Tensor, "token feature"]:
    """One block of the test split, with its zeros."""
    path = codes_path(directory, block)
    content = tensors.load(path, ["first", "feature", "value"])
    counts = content["first"].diff()
    codes = torch.zeros(len(counts), tensors.describe(path)["n_features"])
    token = torch.repeat_interleave(torch.arange(len(counts)), counts)
    codes[token, content["feature"].long()] = content["value"]
    return codes
