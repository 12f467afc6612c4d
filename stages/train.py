"""Trains the SAEs of one arm and seed, one a sparsity level, over the same batches.

in: data/activations
out: data/train/<arm>/seed-<n>: `level-<i>/` (SAELens' format, for raw activations), for the followed level with
`checkpoints/` (half precision, for normalised activations), `history.csv` (means over training batches), `train.json`

Within a seed all arms and levels start from the same directions and see the same batches, so that they differ in the
method alone; seeds differ in both.
"""

import shutil
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from stages.lib.activations.batches import nearest_rows, normalised_batches
from stages.lib.activations.parts import spread_rows
from stages.lib.activations.store import Store, activation_settings, check_settings, open_store
from stages.lib.io import params, plugins
from stages.lib.io.errors import UserError
from stages.lib.io.files import write_json, write_text
from stages.lib.run.live import TrainingLog
from stages.lib.run.machine import device, full_disk_said, keep_freed_memory
from stages.lib.run.resume import Resume, fingerprint
from stages.lib.run.seeds import integer
from stages.lib.run.start import run
from stages.lib.sae.base import SAE, SAEParams, random_directions
from stages.lib.sae.members import cell
from stages.lib.sae.saved import fold, load_sae, save_sae
from stages.lib.sae.training import Schedule, Training, history_table, train

NEAR = 0.03
"""The share of a wanted L0 by which the one that is reached may be off without a word."""
Share = Annotated[float, Field(ge=0, le=1)]


class TrainParams(params.Params):
    """What all arms have in common; without `train.seeds`, so that another seed leaves the trained ones as they are."""

    d_sae: PositiveInt
    epochs: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    encoder: Literal["float32", "bfloat16"]
    """In what a CPU searches for active features; their codes are float32 in any case. On a GPU `bfloat16` stands for
    products whose factors are rounded to TF32."""
    lr_warm_up: Share
    lr_decay: Share
    sparsity_warm_up: Share
    dead_tokens: PositiveInt
    """The least number of tokens without firing after which a feature is dead."""
    dead_share: Share
    """A feature is dead only once it has not fired on this share of all training tokens either."""
    follow_level: NonNegativeInt
    """The level of which checkpoints are kept."""
    n_checkpoints: Annotated[int, Field(ge=2)]


class Settings(NamedTuple):
    """All that this stage reads from `params.yaml`, and its arguments."""

    train: TrainParams
    arm: SAEParams
    variant: ModuleType
    seed: int
    activations: dict[str, Any]
    """What the activations must have been made with."""


def settings(arm: str, seed: str) -> Settings:
    """The stage's settings."""
    own = params.check("train", {name: params.value(f"train.{name}") for name in TrainParams.model_fields}, TrainParams)
    raw = params.value(f"saes.{arm}")
    name = params.check(f"saes.{arm}.variant", raw.get("variant") if isinstance(raw, dict) else None, str)
    variant = plugins.load("saes", name, f"saes.{arm}.variant")
    arm_params: SAEParams = params.check(f"saes.{arm}", raw, variant.SAEParams)
    arm_params.check(arm, own.d_sae)
    if own.follow_level >= len(arm_params.levels):
        raise UserError(
            f"train.follow_level must be below the {len(arm_params.levels)} levels of "
            f"saes.{arm}.{arm_params.level_name}, not {own.follow_level}"
        )
    if not seed.isdecimal():
        raise UserError(f"the seed must be a whole number from 0 on, not {seed!r}")
    return Settings(own, arm_params, variant, int(seed), activation_settings())


def n_steps(own: TrainParams, n_rows: int) -> int:
    """How many batches there are."""
    if own.batch_size > n_rows:
        raise UserError(f"train.batch_size must be at most the {n_rows} training activations, not {own.batch_size}")
    steps = own.epochs * (n_rows // own.batch_size)
    if own.n_checkpoints > steps + 1:
        raise UserError(
            f"train.n_checkpoints must be at most {steps + 1}, one more than the steps, not {own.n_checkpoints}"
        )
    return steps


def prepare(chosen: Settings, sample: Float[Tensor, "token d_in"], steps: int) -> Training:
    """The SAEs at initialisation and their schedule; `sample` are validation activations."""
    on, d_in = sample.device, sample.shape[1]
    own = chosen.train
    generator = torch.Generator().manual_seed(integer(chosen.seed, "initialisation"))
    decoder = random_directions(own.d_sae, d_in, generator).to(on)
    dead_tokens = max(own.dead_tokens, round(own.dead_share * steps * own.batch_size))
    coarse = torch.bfloat16 if own.encoder == "bfloat16" and on.type == "cpu" else None
    saes = [chosen.variant.Variant(chosen.arm, level, decoder, dead_tokens, coarse) for level in chosen.arm.levels]
    lr = own.lr if chosen.arm.lr is None else chosen.arm.lr
    schedule = Schedule(steps, lr, own.lr_warm_up, own.lr_decay, own.sparsity_warm_up)
    return Training(saes, schedule, own.follow_level, own.n_checkpoints, sample)


def held_out_l0(directory: Path, raw: Float[Tensor, "token d_in"]) -> float:
    """Active features per token of an SAE that was written, on raw validation activations."""
    return len(load_sae(directory).active(raw).value) / len(raw)


def say_missed(chosen: Settings, found: list[float], log: TrainingLog) -> None:
    """Tell which wanted L0 were not reached."""
    for level, (wanted, reached) in enumerate(zip(chosen.arm.levels, found, strict=True)):
        if chosen.arm.level_name == "l0" and abs(reached / wanted - 1) > NEAR:
            log.say(f"{log.stage}: level {level} has L0 {reached:.2f} on validation activations, wanted was {wanted:g}")


def write_sae(directory: Path, sae: SAE, store: Store, facts: dict[str, Any]) -> None:
    """One level, folded to raw activations."""
    weights = fold({name: weight.cpu() for name, weight in sae.shifted().items()}, store.mean, store.scale)
    save_sae(
        directory,
        sae.architecture,
        weights,
        k=int(sae.level) if sae.architecture == "topk" else None,
        metadata={"model_name": store.index["model"], "hook_name": store.hook_name, "hook_head_index": None},
        extra=facts,
    )


def write_levels(directory: Path, training: Training, store: Store, identity: dict[str, Any]) -> None:
    """All levels of a finished training."""
    for level, (sae, row) in enumerate(zip(training.saes, training.latest(), strict=True)):
        sae.settle(training.sample)
        sae.finish(training.sample)
        facts = {**identity, "level": level, "sparsity": sae.level, "step": training.done, "mean_l0": row.l0}
        write_sae(directory / f"level-{level}", sae, store, facts)


def write(arm: str, chosen: Settings, training: Training, store: Store, resume: Resume) -> list[float]:
    """All outputs, from the finished training; returns the L0 of each level on validation activations."""
    directory, own = cell(arm, chosen.seed), chosen.train
    shutil.rmtree(directory, ignore_errors=True)
    identity = {"arm": arm, "variant": chosen.arm.variant, "activations": chosen.arm.activations, "seed": chosen.seed}
    identity |= {"sparsity_name": chosen.arm.level_name}
    write_levels(directory, training, store, identity)
    training.write_checkpoints(directory / f"level-{own.follow_level}" / "checkpoints", resume, own.batch_size)
    write_text(directory / "history.csv", history_table(training, arm, chosen.seed, own.batch_size))
    raw = store.scaling().raw(training.sample.cpu())
    reached = [held_out_l0(directory / f"level-{level}", raw) for level in range(len(training.saes))]
    sizes = {"n_tokens": training.done * own.batch_size, "steps": training.done}
    sizes |= {"d_in": store.d_in, "d_sae": own.d_sae}
    levels = {"levels": chosen.arm.levels, "follow_level": own.follow_level}
    levels |= {"validation_l0": reached, "shift": [sae.shift for sae in training.saes]}
    write_json(directory / "train.json", {**identity, **sizes, **levels})
    return reached


def main(arm: str, seed: str) -> None:
    """Train, or go on with what was begun, and write the outputs."""
    chosen = settings(arm, seed)
    keep_freed_memory()
    if chosen.train.encoder == "bfloat16":
        torch.backends.cuda.matmul.allow_tf32 = True
    store = open_store(chosen.arm.activations, verify=("train", "validation"))
    check_settings(store, chosen.activations)
    on = device()
    scaling = store.scaling(on)
    sample = scaling.normalise_(spread_rows(store, "validation").to(on))
    steps, size = n_steps(chosen.train, store.n_rows("train")), chosen.train.batch_size
    training = prepare(chosen, sample, steps)
    stage = f"train@{arm}-{chosen.seed}"
    key = fingerprint((arm, chosen.seed, chosen.train, chosen.arm, on), [store.directory / "index.json"])
    with full_disk_said(), Resume(stage, key) as resume:
        if (state := resume.load()) is not None:
            training.restore(state)
        left, rows = range(training.done, steps), nearest_rows(store, on)
        batches = normalised_batches(rows, scaling, seed=chosen.seed, size=size, steps=left)
        with TrainingLog(stage, steps, training.done) as log:
            train(training, batches, resume, log)
            say_missed(chosen, write(arm, chosen, training, store, resume), log)
        resume.clear()


if __name__ == "__main__":
    run(main)
