"""The causal language model in `data/model`, as TransformerLens boots it, and the names of its hooks.

The weights are Hugging Face's own: no LayerNorm is folded and nothing is centred, so an activation here is the tensor
that `transformers` computes. Heavy libraries are imported where they are used: TransformerLens takes seconds to import.
"""

import hashlib
import re
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from stages.lib.io.errors import UserError, nearest
from stages.lib.io.files import read_json, sha256

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

MODEL = Path("data/model")
SITES = ["hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"]
"""Hook points of a block that have the residual stream's width: what an SAE can read and put back."""


class Limits(NamedTuple):
    """What the model's configuration says about the tokens that it takes."""

    n_positions: int | None
    """The longest window, or None if positions are unlimited."""
    d_vocab: int


def model_path(revision: str = "main") -> Path:
    """The Hugging Face directory of a revision: `data/model` itself for `main`.

    Raises:
        UserError: if the model or the revision is missing.
    """
    path = MODEL if revision == "main" else MODEL / "revisions" / revision
    if not (path / "config.json").exists():
        if revision != "main" and revision not in (known := read_json(MODEL / "model.json")["revisions"]):
            raise UserError(f"{MODEL} has no revision {revision!r}{nearest(revision, known)}")
        raise UserError(f"{path / 'config.json'} is missing; `dvc checkout model` or `dvc repro model` brings it back")
    return path


def weights_checksum(revision: str) -> str:
    """The SHA-256 over configuration and weights of a revision, by which its activations know it."""
    path = model_path(revision)
    files = [path / "config.json", *sorted(path.glob("*.safetensors"))]
    return hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in files).encode()).hexdigest()


def check_weights(index: dict[str, Any], source: Path) -> None:
    """Refuse a model that is not the one whose activations an index describes.

    Raises:
        UserError: naming the index, which stands in `source`, and the model's directory.
    """
    if weights_checksum(index["revision"]) != index["weights"]:
        raise UserError(
            f"{source}/index.json is of other weights than {model_path(index['revision'])} has: `dvc checkout --force "
            "model` restores the model, `dvc repro activations` makes the activations of the one that is there"
        )


def load_model(revision: str, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "TransformerBridge":
    """A revision of the model on a device, in evaluation mode, its parameters without gradients.

    Raises:
        UserError: if the model or the revision is missing.
    """
    path = model_path(revision)
    from transformer_lens.model_bridge import TransformerBridge

    _silence_transformers()
    model = TransformerBridge.boot_transformers(str(path), device=device, dtype=dtype)
    _normalise_once(model)
    return model.eval().requires_grad_(False)


def _normalise_once(model: "TransformerBridge") -> None:
    """Let each norm work out its output alone, as `transformers` does: the hooks between its steps get nothing.

    Where TransformerLens has a norm worked out by `transformers`, it does so again for those hooks, which
    nothing here reads; with one block above the hook that is a fifteenth of a run. Input and output of the norm keep
    their hooks, and its numbers are the same.
    """
    from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge

    def own(norm: NormalizationBridge, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = norm.original_component(x)
        return result.to(x.dtype)

    for module in model.modules():
        if isinstance(module, NormalizationBridge) and module.use_native_layernorm_autograd:
            # Not as an attribute, which the module would hand on to what it wraps.
            module.__dict__["_hf_autograd_forward_with_hooks"] = MethodType(own, module)


def load_tokenizer() -> "PreTrainedTokenizerFast":
    """The model's tokenizer: a fast one (`models/` stores no other), which knows where in a text each token stands."""
    path = model_path()
    from transformers import AutoTokenizer

    _silence_transformers()
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(path)
    return tokenizer


def limits() -> Limits:
    """The longest window and the vocabulary size of the model."""
    path = model_path()
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path).get_text_config()
    return Limits(getattr(config, "max_position_embeddings", None), config.vocab_size)


class Place(NamedTuple):
    """What an entry of `activations.revisions` stands for: `<revision>`, or `<revision>+<hook name>`."""

    revision: str
    """Of the model."""
    layer: int
    site: str


def place_of(entry: str, layer: int, site: str) -> Place:
    """The revision, and the hook that the entry names or else that of the settings.

    Raises:
        UserError: if what stands behind the + is no name of a hook.
    """
    revision, named, hook_name = entry.partition("+")
    if not named:
        return Place(revision, layer, site)
    found = re.fullmatch(r"blocks\.(\d+)\.(\w+)", hook_name)
    if found is None or found[2] not in SITES:
        known = [f"blocks.{found[1] if found else max(layer, 0)}.{name}" for name in SITES]
        raise UserError(
            f"activations.revisions has {entry!r}: no such hook as {hook_name!r}{nearest(hook_name, known)}"
        )
    return Place(revision, int(found[1]), found[2])


def revisions_of(places: dict[str, Place]) -> list[str]:
    """The revisions of the model that entries stand for, in the order in which they are first named."""
    return list(dict.fromkeys(place.revision for place in places.values()))


def resolve_hook(layer: int, site: str, n_layers: int, asked: str = "activations.layer is") -> str:
    """The hook's name, `blocks.<layer>.<site>`; a negative layer counts from the end, -1 being the last.

    Raises:
        UserError: if the model has no such layer or a block no such site.
    """
    if site not in SITES:
        raise UserError(f"activations.site is {site!r}: no such site{nearest(site, SITES)}")
    if not -n_layers <= layer < n_layers:
        raise UserError(f"{asked} {layer}: the model has {n_layers} layers, so {-n_layers} to {n_layers - 1}")
    return f"blocks.{layer % n_layers}.{site}"


def check_hook(model: "TransformerBridge", hook_name: str) -> None:
    """Refuse a hook that this architecture lacks: blocks with attention and MLP in parallel have no `hook_resid_mid`.

    Raises:
        UserError: naming the sites that the model has.
    """
    block, _, site = hook_name.rpartition(".")
    if hook_name not in model.hook_dict:
        known = [name for name in SITES if f"{block}.{name}" in model.hook_dict]
        raise UserError(f"activations.site is {site!r}, which this model's blocks lack{nearest(site, known)}")


def _silence_transformers() -> None:
    # Its bars and notes would break up the stage's own; whether the weights are whole is checked when they come in.
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
