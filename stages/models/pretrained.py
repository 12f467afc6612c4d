"""A causal language model from the Hugging Face hub or a local directory.

`model.name` is a hub id (`EleutherAI/pythia-70m`), a name that TransformerLens knows (`gpt2-small` for `gpt2`) or a
directory; `model.revision` a branch, tag or commit of the hub. What is stored holds everything that later stages need,
and code that comes with a model is never run. Tokens for gated models, mirrors and offline use are the hub library's
own environment variables: `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
"""

import sys
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from stages.lib import seeds
from stages.lib.errors import UserError
from stages.lib.params import Params

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARIES = ["tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model"]
"""What transformers makes a fast tokenizer of; without any of them it makes one with an empty vocabulary."""
SMALL_FILES = ["*.json", "merges.txt", *VOCABULARIES[2:]]
"""Configuration and tokenizer."""
WEIGHTS = (["model.safetensors", "model-*.safetensors"], ["pytorch_model.bin", "pytorch_model-*.bin"])
"""The weights, the better form first; repositories often hold further copies for other libraries."""


class ModelParams(Params):
    """The number format in which the weights are stored; every later stage computes in float32."""

    dtype: Literal["float32", "bfloat16", "float16"]


class Origin(NamedTuple):
    """Where the files are."""

    repository: str
    """Hub id or directory."""
    path: Path
    commit: str | None
    """The commit that the revision resolved to; None for a directory."""


def build(name: str | None, revision: str | None, params: ModelParams, seed: int, directory: Path) -> dict[str, Any]:
    """Write the model and, from the same configuration, a randomly initialised one; returns what `model.json` records.

    Raises:
        UserError: if the model cannot be had, or is none that the pipeline can use.
    """
    if name is None:
        raise UserError(
            "model.name is null: with model.source: pretrained it is a hub id, such as gpt2, or a directory"
        )
    origin = locate(name, revision)
    config = read_config(origin)
    tokenizer = read_tokenizer(origin)
    if origin.commit is not None:
        fetch_weights(origin)
    dtype = getattr(torch, params.dtype)
    model = read_weights(origin, config, dtype)
    n_parameters = sum(p.numel() for p in model.parameters())
    save(model, tokenizer, directory)
    del model  # one model at a time in memory
    save(initial_model(config, seed).to(dtype), tokenizer, directory / "revisions" / "untrained")
    return {
        "name": name,
        "repository": origin.repository,
        "revision": revision,
        "commit": origin.commit,
        "n_parameters": n_parameters,
        "dtype": params.dtype,
        "revisions": ["main", "untrained"],
    }


def locate(name: str, revision: str | None) -> Origin:
    """The model's configuration and tokenizer, fetched if it is not a directory.

    Raises:
        UserError: if there is no such directory or hub repository, or no such revision of it.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise UserError(f"model.revision is {revision!r}, but model.name {name!r} is a directory, which has none")
        return Origin(name, Path(name), None)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model.name is {name!r}: no such directory")
    from transformer_lens.tools.model_registry.registry_io import resolve_model_alias

    repository = resolve_model_alias(name) or name
    path = fetch(repository, revision, SMALL_FILES)
    return Origin(repository, path, path.name)


def fetch(repository: str, revision: str | None, patterns: list[str]) -> Path:
    """The directory, in the hub library's own cache, that holds the files of a repository that match the patterns.

    Raises:
        UserError: if the hub refuses or cannot be reached.
    """
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()  # it warns about patterns without a match, which are expected here
    if not sys.stderr.isatty():
        disable_progress_bars()
    asked = f"model.name is {repository!r}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError:
        page = f"{constants.ENDPOINT}/{repository}"
        raise UserError(f"{asked}, which is gated: accept its terms at {page} and set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        where = f"{constants.ENDPOINT} has no such model"
        raise UserError(f"{asked}: {where}, or it is private and HF_TOKEN is not set{similar(repository)}") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"model.revision is {revision!r}: {repository} has no such branch, tag or commit") from None
    except errors.HFValidationError:
        raise UserError(f"{asked}, which is neither a directory nor a possible hub id{similar(repository)}") from None
    except (errors.LocalEntryNotFoundError, errors.HTTPError) as error:
        answer = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__
        if isinstance(answer, errors.HfHubHTTPError):
            raise UserError(f"{asked}: {constants.ENDPOINT} answers {str(answer).splitlines()[0]}") from None
        where = f"{constants.ENDPOINT} cannot be reached and it is not in the cache"
        raise UserError(f"{asked}: {where}; check the network, HF_ENDPOINT and HF_HUB_OFFLINE") from None


def similar(name: str) -> str:
    """The end of a message about an unknown model: the nearest name that TransformerLens knows, if one is near."""
    from transformer_lens.tools.model_registry.registry_io import load_model_aliases

    aliases = load_model_aliases()
    known = {*aliases, *(alias for group in aliases.values() for alias in group)} - {name}
    close = get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def read_config(origin: Origin) -> "PretrainedConfig":
    """The model's configuration.

    Raises:
        UserError: if it is none of a causal language model that transformers and TransformerLens know.
    """
    from transformer_lens.model_bridge.sources.transformers import (
        determine_architecture_from_hf_config,
        get_hf_model_class_for_architecture,
    )
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    if not (origin.path / "config.json").exists():
        raise UserError(f"model.name is {origin.repository!r}, which has no config.json: not a transformers model")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(origin.path, trust_remote_code=False)
        architecture = determine_architecture_from_hf_config(config)
    except ValueError:
        unknown = "of an architecture that transformers or TransformerLens does not know"
        raise UserError(f"model.name is {origin.repository!r}, {unknown}") from None
    causal = get_hf_model_class_for_architecture(architecture) is AutoModelForCausalLM
    if not causal or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"model.name is {origin.repository!r}, a {architecture}: not a causal language model")
    return config


def read_tokenizer(origin: Origin) -> "PreTrainedTokenizerFast":
    """The model's tokenizer.

    Raises:
        UserError: if it has none, or only a slow one, which does not say where in the text a token stands.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerFast | None = None
    if any((origin.path / name).exists() for name in VOCABULARIES):
        with suppress(OSError, ValueError, ImportError):
            tokenizer = AutoTokenizer.from_pretrained(origin.path, trust_remote_code=False)
    if tokenizer is None or not tokenizer.is_fast:
        raise UserError(f"model.name is {origin.repository!r}, which has no fast tokenizer (tokenizer.json)")
    return tokenizer


def fetch_weights(origin: Origin) -> None:
    """Fetch the weights into the directory of the configuration.

    Raises:
        UserError: if the hub refuses or cannot be reached, or the repository has no weights for PyTorch.
    """
    for patterns in WEIGHTS:
        fetch(origin.repository, origin.commit, patterns)
        if any(match for pattern in patterns for match in origin.path.glob(pattern)):
            return
    raise UserError(f"model.name is {origin.repository!r}, which has no weights (model.safetensors)")


def read_weights(origin: Origin, config: "PretrainedConfig", dtype: torch.dtype) -> "PreTrainedModel":
    """The model with its weights.

    Raises:
        UserError: if weights are missing; transformers would put random ones in their place.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        model: PreTrainedModel
        model, found = AutoModelForCausalLM.from_pretrained(
            origin.path, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    except OSError:
        raise UserError(f"model.name is {origin.repository!r}, which has no weights (model.safetensors)") from None
    wrong = sorted(str(key) for key in [*found["missing_keys"], *found["mismatched_keys"]])
    if wrong:
        raise UserError(
            f"model.name is {origin.repository!r}, whose weights lack {len(wrong)} tensors such as {wrong[0]}"
        )
    return model


def initial_model(config: "PretrainedConfig", seed: int) -> "PreTrainedModel":
    """A model with the architecture's own random initialisation; a seed gives the same weights whatever ran before."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(seed, "model", "initialisation"))
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def save(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", directory: Path) -> None:
    """Write a self-contained Hugging Face directory."""
    from transformers import GenerationConfig

    # Settings for sampling that some repositories carry are refused on saving; nothing here samples.
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
