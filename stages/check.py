"""All of `params.yaml` is right, before anything is computed, and what each stage's results rest on.

in: params.yaml, requirements.txt, stages/
out: data/check/code/<stage>[-<arm>].json (`stages.lib.run.closure`)

A typing error in a late stage's section would otherwise show after the early stages have run. The records of code are
all that other stages take from here, so a change of a setting passes through to the stages that read it, and a change
of code to the stages whose closure has it.
"""

import gc
import inspect
from importlib import import_module
from itertools import product
from typing import Any

from stages.lib.io import params, plugins
from stages.lib.io.errors import UserError, nearest
from stages.lib.run.closure import records, write_records
from stages.lib.run.start import run


def stage_names() -> list[str]:
    """The stages: the files in `stages/`, without this one."""
    return sorted(path.stem for path in plugins.STAGES.glob("[!_]*.py") if path.stem != "check")


def known_sections() -> set[str]:
    """The top-level keys that a stage reads: one a stage, and the arms."""
    return {*stage_names(), "saes"}


def settings() -> dict[str, Any]:
    """Every stage's settings, validated by the stage itself, for each arm, seed or revision that its `settings` takes.

    Raises:
        UserError: the first thing that is wrong.
    """
    document = params.document()
    known = known_sections()
    for section in document:
        if section not in known:
            raise UserError(f"{params.PARAMS_FILE}: unknown section {section}{nearest(section, sorted(known))}")
    arms = list(params.read("saes", dict[str, Any]))
    seeds = params.read("train.seeds", list[int])
    if not arms or not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(
            f"{params.PARAMS_FILE}: train.seeds is {seeds} and saes has {len(arms)} arms: "
            "at least one arm and one seed are needed, and seeds must be different and not negative"
        )
    more = params.read("train.more_seeds", list[int])
    if len({*seeds, *more}) < len(seeds) + len(more) or min(more, default=0) < 0:
        raise UserError(
            f"{params.PARAMS_FILE}: train.more_seeds is {more}: they must be different from one another and from "
            f"train.seeds ({seeds}), and not negative"
        )
    revisions = params.read("activations.revisions", list[str])
    choices = {"arm": arms, "seed": [*map(str, seeds), "more"], "revision": revisions}
    params.READ.clear()
    checked: dict[str, Any] = {}
    for name in stage_names():
        function = import_module(f"stages.{name}").settings
        for arguments in product(*(choices[argument] for argument in inspect.signature(function).parameters)):
            checked["-".join((name, *arguments))] = function(*arguments)
    _check_sources_not_chosen()
    _check_every_key_is_read(document)
    _check_across_sections(checked)
    return checked


def _check_sources_not_chosen() -> None:
    """Sections of sources that are not chosen are right too."""
    for section, folder, kind in (("corpus", "sources", "SourceParams"), ("model", "models", "ModelParams")):
        for name in plugins.names(folder):
            if name in params.document()[section]:
                module = plugins.load(folder, name, f"{section}.source")
                params.read(f"{section}.{name}", getattr(module, kind))


def _check_every_key_is_read(document: dict[str, Any]) -> None:
    """No key is without effect: a misspelt one would otherwise pass in sections that are read key by key."""
    read = params.READ - {"saes"}  # the arms' names; their settings are read one by one

    def walk(node: Any, path: str) -> None:
        if path in read:
            return
        if not isinstance(node, dict) or not any(listed.startswith(f"{path}.") for listed in read):
            parent, _, last = path.rpartition(".")
            siblings = {key[len(parent) + 1 :].split(".")[0] for key in read if key.startswith(f"{parent}.")}
            raise UserError(f"{params.PARAMS_FILE}: unknown key {path}{nearest(last, sorted(siblings))}")
        for key, inner in node.items():
            walk(inner, f"{path}.{key}")

    for section, node in document.items():
        walk(node, str(section))


def _check_across_sections(checked: dict[str, Any]) -> None:
    """What no stage can see alone, as far as it can be known before the model is there."""
    activations, tokens = checked["activations"], checked["tokens"]
    for name, cell in checked.items():
        if not name.startswith("train-"):
            continue
        if cell.arm.activations not in activations.revisions:
            raise UserError(
                f"{params.PARAMS_FILE}: saes.{name.split('-')[1]}.activations is {cell.arm.activations!r}, which "
                f"activations.revisions lacks{nearest(cell.arm.activations, activations.revisions)}"
            )
        if cell.train.batch_size > activations.n_tokens:
            raise UserError(
                f"{params.PARAMS_FILE}: train.batch_size is {cell.train.batch_size}, more than "
                f"activations.n_tokens = {activations.n_tokens}"
            )
    own, _, source_params = checked["model"]
    if hasattr(source_params, "revisions"):
        prefix = "step-" if own.source == "scratch" else ""
        known = ["main", "untrained", *(f"{prefix}{name}" for name in source_params.revisions)]
        for revision in activations.revisions_of_model():
            if revision not in known:
                raise UserError(
                    f"{params.PARAMS_FILE}: activations.revisions has {revision!r}, which "
                    f"model.{own.source}.revisions lacks{nearest(revision, known)}"
                )
    if own.source == "scratch":
        if tokens.n_ctx > source_params.n_ctx:
            raise UserError(
                f"{params.PARAMS_FILE}: tokens.n_ctx is {tokens.n_ctx}, more than "
                f"model.scratch.n_ctx = {source_params.n_ctx}"
            )
        for entry, place in activations.places().items():
            if not -source_params.n_layers <= place.layer < source_params.n_layers:
                raise UserError(
                    f"{params.PARAMS_FILE}: activations.layer is {place.layer} (of {entry}), beyond the model's: "
                    f"model.scratch.n_layers = {source_params.n_layers}"
                )


def main() -> None:
    """Check, then record."""
    settings()
    chosen = {"sources": params.value("corpus.source"), "models": params.value("model.source")}
    methods = {arm: section["variant"] for arm, section in params.value("saes").items()}
    write_records(records([f"stages.{name}" for name in stage_names()], chosen, methods))


if __name__ == "__main__":
    gc.disable()  # a fifth of the time would go into looking at modules and syntax trees, which live to the end
    run(main)
