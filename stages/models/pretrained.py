"""A causal language model from the Hugging Face hub or a local directory, with further revisions of it from the hub.

`model.name` is a hub id (`EleutherAI/pythia-70m`), a name that TransformerLens knows (`gpt2-small` for `gpt2`) or a
directory; `model.revision` a branch, tag or commit of the hub. `model.pretrained.revisions` names further ones, such as
training checkpoints (`step512`), each of which becomes the revision of that name: the same architecture and vocabulary
with other weights. What is stored holds everything that later stages need, and code that comes with a model is never
run. Tokens for gated models, mirrors, offline use and time limits are the hub library's own environment variables:
`HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HUB_ETAG_TIMEOUT` and `HF_HUB_DOWNLOAD_TIMEOUT` (seconds).
"""

import json
import re
import sys
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import torch
from pydantic import AfterValidator

from stages.lib.io.errors import UserError
from stages.lib.io.params import Params
from stages.lib.run import seeds
from stages.lib.run.hub import answered, gated, limit_waiting, unknown

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARIES = ["tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model"]
"""What transformers makes a fast tokenizer of; without any of them it makes one with an empty vocabulary."""
SMALL_FILES = ["*.json", "merges.txt", *VOCABULARIES[2:]]
"""Configuration and tokenizer, and the lists of what is in which part of divided weights."""
WEIGHTS = ["model.safetensors", "pytorch_model.bin"]
"""The weights, the better form first; repositories often hold further copies for other libraries."""
INDEX = ".index.json"
"""Weights in several files are listed in a file of the name that one file would have, and this."""
OWN_REVISIONS = ["main", "untrained"]
SHAPE = ["model_type", "hidden_size", "num_hidden_layers", "vocab_size"]
"""What all revisions of a model have in common."""


def revision_name(name: str) -> str:
    """The name of a further revision, which is that of a directory too; a `ValueError` if it cannot be."""
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ValueError(f"{name!r} is no name for a directory (letters, digits, '.', '_', '-'); give the commit")
    if name in OWN_REVISIONS:
        raise ValueError(f"{name!r} is the name of a revision that every model has; give the commit instead")
    return name


def all_different(names: list[str]) -> list[str]:
    """The names themselves; a `ValueError` if two are the same, also on a disk that does not tell `A` from `a`."""
    if len({name.lower() for name in names}) < len(names):
        raise ValueError(f"two of {names} are the same")
    return names


class ModelParams(Params):
    """What is stored of a model."""

    dtype: Literal["float32", "bfloat16", "float16"]
    """The number format of the weights; every later stage computes in float32."""
    revisions: Annotated[list[Annotated[str, AfterValidator(revision_name)]], AfterValidator(all_different)]
    """Further branches, tags or commits of the hub."""


class Origin(NamedTuple):
    """Where the files are."""

    repository: str
    """Hub id or directory."""
    path: Path
    commit: str | None
    """The commit that the revision resolved to; None for a directory."""


def build(name: str | None, revision: str | None, params: ModelParams, seed: int, directory: Path) -> dict[str, Any]:
    """Write the model, its further revisions and a randomly initialised one; returns what `model.json` records.

    Raises:
        UserError: if the model cannot be had, or is none that the pipeline can use.
    """
    if name is None:
        raise UserError(
            "model.name is null: with model.source: pretrained it is a hub id, such as gpt2, or a directory"
        )
    origin = locate(name, revision)
    if origin.commit is None and params.revisions:
        raise UserError(
            f"model.pretrained.revisions is {params.revisions}, but model.name {name!r} is a directory, which has none"
        )
    config = read_config(origin)
    tokenizer = read_tokenizer(origin)
    # Whether all of them can be had and fit together is known before any weights are fetched.
    others = {other: locate(name, other, "model.pretrained.revisions") for other in params.revisions}
    for other, place in others.items():
        check_same(other, place, config, tokenizer)
    places = {"main": origin, **others}
    for place in places.values():
        fetch_weights(place)
    dtype = getattr(torch, params.dtype)
    n_parameters = 0
    for kept, place in places.items():
        model = read_weights(place, config, dtype)
        n_parameters = sum(p.numel() for p in model.parameters())
        save(model, tokenizer, directory if kept == "main" else directory / "revisions" / kept)
        del model  # one model at a time in memory
    save(initial_model(config, seed).to(dtype), tokenizer, directory / "revisions" / "untrained")
    return {
        "name": name,
        "repository": origin.repository,
        "revision": revision,
        "commit": origin.commit,
        "n_parameters": n_parameters,
        "dtype": params.dtype,
        "revisions": [*OWN_REVISIONS, *others],
        "revision_commits": {other: place.commit for other, place in others.items()},
    }


def locate(name: str, revision: str | None, setting: str = "model.revision") -> Origin:
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
    path = fetch(repository, revision, SMALL_FILES, setting)
    return Origin(repository, path, path.name)


def fetch(repository: str, revision: str | None, patterns: list[str], setting: str = "model.revision") -> Path:
    """The directory, in the hub library's own cache, that holds the files of a repository that match the patterns.

    Raises:
        UserError: if the hub refuses or cannot be reached, or the files do not arrive whole.
    """
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()  # it warns about patterns without a match, which are expected here
    if not sys.stderr.isatty():
        disable_progress_bars()
    limit_waiting()
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except errors.RevisionNotFoundError:
        raise UserError(f"{setting}: {repository} has no branch, tag or commit {revision!r}") from None
    # HTTPError: an answer, or none. OSError: not in the cache, not the size it should be, or the disk is full.
    # ValueError: no name of a repository, or no answer that a hub would give. RuntimeError: hf_xet's own downloads.
    except (errors.HTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"model.name is {repository!r}{refusal(repository, error)}") from None


def refusal(repository: str, error: Exception) -> str:
    """The end of a message about a repository that cannot be fetched."""
    import httpx2
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    # The library turns most errors into one that says that the files are not in its cache either.
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    if isinstance(cause, errors.GatedRepoError):
        return gated(repository)
    if isinstance(cause, errors.RepositoryNotFoundError):
        return f"{unknown('model')}{similar(repository)}"
    if isinstance(cause, errors.HFValidationError):
        return f", which is neither a directory nor a possible hub id{similar(repository)}"
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return ": the cache does not have all of it, and HF_HUB_OFFLINE is set; unset it to fetch the model"
    if isinstance(cause, errors.HfHubHTTPError):
        return answered(cause)
    if isinstance(cause, httpx2.TimeoutException):
        limits = "HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT (seconds)"
        return f": {hub} did not answer in time; try again, or raise {limits}"
    if isinstance(cause, (httpx2.ConnectError, httpx2.ProxyError, httpx2.UnsupportedProtocol)):
        why = " ".join(str(cause).split())
        cached = "the cache does not have all of it"
        return f": {hub} cannot be reached ({why}) and {cached}; check the network and HF_ENDPOINT"
    if isinstance(cause, (json.JSONDecodeError, errors.FileMetadataError)):
        return f": what answers at {hub} is no Hugging Face hub; check HF_ENDPOINT"
    why = " ".join(f"{type(cause).__name__}: {cause}".split())
    return f": the download broke off ({why}); files that had arrived are kept, so run it again"


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

    asked = f"model.name is {origin.repository!r}"
    if not (origin.path / "config.json").exists():
        raise UserError(f"{asked}, which has no config.json: not a transformers model")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(origin.path, trust_remote_code=False)
        architecture = determine_architecture_from_hf_config(config)
    except OSError:
        raise UserError(f"{asked}, whose config.json is not JSON: get it again") from None
    except ValueError:
        raise UserError(f"{asked}, of an architecture that transformers or TransformerLens does not know") from None
    causal = get_hf_model_class_for_architecture(architecture) is AutoModelForCausalLM
    if not causal or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{asked}, a {architecture}: not a causal language model")
    if getattr(config, "quantization_config", None):
        raise UserError(f"{asked}, whose weights are quantised; choose the model that it was made from")
    return config


def read_tokenizer(origin: Origin) -> "PreTrainedTokenizerFast":
    """The model's tokenizer.

    Raises:
        UserError: if it has none, or only a slow one, which does not say where in the text a token stands.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerFast | None = None
    if has_tokenizer(origin):
        with suppress(OSError, ValueError, ImportError):
            tokenizer = AutoTokenizer.from_pretrained(origin.path, trust_remote_code=False)
    if tokenizer is None or not tokenizer.is_fast:
        raise UserError(f"model.name is {origin.repository!r}, which has no fast tokenizer (tokenizer.json)")
    return tokenizer


def has_tokenizer(origin: Origin) -> bool:
    """Whether there is a vocabulary."""
    return any((origin.path / name).exists() for name in VOCABULARIES)


def check_same(revision: str, origin: Origin, config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerFast") -> None:
    """Refuse a further revision that is another kind of model than the main one, or splits text into other tokens.

    Raises:
        UserError: naming what differs.
    """
    own = read_config(origin).get_text_config()
    asked = f"model.pretrained.revisions: {revision!r} of {origin.repository}"
    for name in SHAPE:
        a, b = getattr(own, name, None), getattr(config.get_text_config(), name, None)
        if a != b:
            raise UserError(f"{asked} has {name} {a}, but the model {b}; it cannot be a revision of it")
    if has_tokenizer(origin) and read_tokenizer(origin).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"{asked} has another vocabulary than the model; it cannot be a revision of it")


def fetch_weights(origin: Origin) -> None:
    """Have the weights whole on the disk, in one form: those of a directory are checked, those of the hub fetched.

    Raises:
        UserError: if there are none for PyTorch, a file of them is missing or damaged, or the hub does not give it.
    """
    asked = f"model.name is {origin.repository!r}"
    for single in WEIGHTS:
        files = [single]
        if origin.commit is not None:
            fetch(origin.repository, origin.commit, files)
        index = origin.path / f"{single}{INDEX}"
        if not (origin.path / single).exists() and index.exists():
            try:
                files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{asked}: {damaged(index, origin, 'no weight_map')}") from None
            if origin.commit is not None:
                fetch(origin.repository, origin.commit, files)
            missing = [name for name in files if not (origin.path / name).exists()]
            if missing:
                raise UserError(f"{asked}, whose weights lack {missing[0]}, which {index.name} names")
        if (origin.path / files[0]).exists():
            for name in files:
                check_file(origin.path / name, origin)
            return
    raise UserError(f"{asked}, which has no weights (model.safetensors)")


def check_file(file: Path, origin: Origin) -> None:
    """Refuse a file of weights that is not whole; its numbers are not kept, nor is any code in it run.

    Raises:
        UserError: naming it.
    """
    from safetensors import SafetensorError, safe_open

    why = ""
    if file.suffix == ".safetensors":
        try:
            safe_open(file, "pt")
        except SafetensorError as error:
            why = str(error)
    else:
        try:
            whole = isinstance(torch.load(file, map_location="meta", weights_only=True), dict)
        except (OSError, RuntimeError, EOFError, UnpicklingError):
            whole = False
        why = "" if whole else "it is no PyTorch file, or has more in it than tensors"
    if why:
        raise UserError(f"model.name is {origin.repository!r}: {damaged(file, origin, why)}")


def damaged(file: Path, origin: Origin, why: str) -> str:
    """The end of a message about a file that is not whole."""
    if origin.commit is None:
        return f"{file} is damaged ({why}); get it again"
    # In the hub library's cache it is a link; only without what it leads to is the file fetched again.
    return f"{file.name} is damaged in the cache ({why}); delete {file.resolve()} and run again"


def read_weights(origin: Origin, config: "PretrainedConfig", dtype: torch.dtype) -> "PreTrainedModel":
    """The model with its weights.

    Raises:
        UserError: if some are missing or of another shape; transformers would put random ones in their place.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    model: PreTrainedModel
    model, found = AutoModelForCausalLM.from_pretrained(
        origin.path,
        config=config,
        dtype=dtype,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # it says which, instead of raising
    )
    asked = f"model.name is {origin.repository!r}"
    missing = sorted(found["missing_keys"])
    if missing:
        raise UserError(f"{asked}, whose weights lack {len(missing)} tensors such as {missing[0]}")
    for key, stored, wanted in sorted(found["mismatched_keys"]):
        shapes = f"is {list(stored)}, but config.json makes it {list(wanted)}"
        raise UserError(f"{asked}, whose weights do not fit it: {key} {shapes}")
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
