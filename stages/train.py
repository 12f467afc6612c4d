"""Trains the SAEs of one arm and seed, one a sparsity level, over the same batches.

in: data/activations
out: data/train/<arm>/seed-<n>: `level-<i>/` (SAELens' format, for raw activations), for the followed level with
`checkpoints/` (half precision, for normalised activations), `history.csv` (means over training batches), `train.json`;
with `more` in place of the seed data/train/<arm>/more/seed-<n> of further seeds, with the followed level
alone, and `seeds.json`

Within a seed all arms and levels start from the same directions and see the same batches, so that they differ in the
method alone; seeds differ in both.
"""

from contextlib import ExitStack
from functools import partial
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
from stages.lib.io.files import write_json
from stages.lib.run.live import TrainingLog
from stages.lib.run.machine import device, full_disk_said, keep_freed_memory
from stages.lib.run.parallel import side_by_side
from stages.lib.run.resume import Resume, fingerprint
from stages.lib.run.seeds import integer
from stages.lib.run.start import run
from stages.lib.sae.base import SAEParams, random_directions
from stages.lib.sae.members import cell, more_cell
from stages.lib.sae.outputs import NEAR, Space, write_training
from stages.lib.sae.schedule import Schedule
from stages.lib.sae.training import Run, Training, train

MORE = "more"
"""In place of a seed: those of `train.more_seeds`, which train the followed level alone."""
FEWEST_CHECKPOINTS = 2
"""What these keep: the start, to which their agreement is compared."""
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
    """What `params.yaml` and the arguments say."""

    train: TrainParams
    arm: SAEParams
    variant: ModuleType
    seeds: list[int]
    activations: dict[str, Any]
    """What the activations must have been made with."""
    name: str
    """The arm's."""
    only: int | None
    """The one level that is trained, if not all are."""


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
    if seed == MORE:
        several = params.read("train.more_seeds", list[int])
        return Settings(own, arm_params, variant, several, activation_settings(), arm, own.follow_level)
    if not seed.isdecimal():
        raise UserError(f"the seed must be a whole number from 0 on or {MORE!r}, not {seed!r}")
    return Settings(own, arm_params, variant, [int(seed)], activation_settings(), arm, None)


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


def prepare(chosen: Settings, seed: int, sample: Float[Tensor, "token d_in"], steps: int) -> Training:
    """The SAEs at initialisation and their schedule; `sample` are validation activations."""
    on, d_in = sample.device, sample.shape[1]
    own = chosen.train
    generator = torch.Generator().manual_seed(integer(seed, "initialisation"))
    decoder = random_directions(own.d_sae, d_in, generator).to(on)
    dead_tokens = max(own.dead_tokens, round(own.dead_share * steps * own.batch_size))
    coarse = torch.bfloat16 if own.encoder == "bfloat16" and on.type == "cpu" else None
    levels = [*range(len(chosen.arm.levels))] if chosen.only is None else [chosen.only]
    saes = [chosen.variant.Variant(chosen.arm, chosen.arm.levels[i], decoder, dead_tokens, coarse) for i in levels]
    lr = own.lr if chosen.arm.lr is None else chosen.arm.lr
    schedule = Schedule(steps, lr, own.lr_warm_up, own.lr_decay, own.sparsity_warm_up)
    n_checkpoints = own.n_checkpoints if chosen.only is None else FEWEST_CHECKPOINTS
    return Training(saes, schedule, own.follow_level, n_checkpoints, sample, levels)


def say_missed(chosen: Settings, levels: list[int], found: list[float], log: TrainingLog) -> None:
    """Tell which wanted L0 were not reached."""
    for level, reached in zip(levels, found, strict=True):
        wanted = chosen.arm.levels[level]
        if chosen.arm.level_name == "l0" and abs(reached / wanted - 1) > NEAR:
            log.say(f"{log.stage}: level {level} has L0 {reached:.2f} on validation activations, wanted was {wanted:g}")


class Cell(NamedTuple):
    """One seed of the run: where it is written, what of it, and the training itself."""

    directory: Path
    facts: dict[str, Any]
    run: Run


def begin(chosen: Settings, seed: int, store: Store, sample: Float[Tensor, "token d_in"], stack: ExitStack) -> Cell:
    """A seed at its start, or as far as an earlier run came; what it holds open is closed with `stack`."""
    on, own, arm = sample.device, chosen.train, chosen.name
    stage, directory = f"train@{arm}-{seed}", cell(arm, seed)
    if chosen.only is not None:
        stage, directory = f"train_more@{arm}-{seed}", more_cell(arm, seed)
    steps = n_steps(own, store.n_rows("train"))
    training = prepare(chosen, seed, sample, steps)
    facts: dict[str, Any] = {"arm": arm, "variant": chosen.arm.variant, "activations": chosen.arm.activations}
    facts |= {"seed": seed, "sparsity_name": chosen.arm.level_name, "levels": chosen.arm.levels}
    facts |= {"d_in": store.d_in, "d_sae": own.d_sae, "batch_size": own.batch_size, "lr": training.schedule.lr}
    key = fingerprint((stage, own, chosen.arm, chosen.only, on), [store.directory / "index.json"])
    resume = stack.enter_context(Resume(stage, key))
    if (state := resume.load()) is not None:
        training.restore(state)
    left, rows = range(training.done, steps), nearest_rows(store, on)
    batches = normalised_batches(rows, store.scaling(on), seed=seed, size=own.batch_size, steps=left)
    log = stack.enter_context(TrainingLog(stage, steps, training.done))
    return Cell(directory, facts, Run(training, batches, resume, log))


def finish(chosen: Settings, space: Space, begun: Cell) -> None:
    """Write a seed that is trained."""
    training, _, resume, log = begun.run
    reached = write_training(begun.directory, training, space, resume, begun.facts)
    say_missed(chosen, training.levels, reached, log)


def main(arm: str, seed: str) -> None:
    """Train a seed at all levels or, for `more`, those of `train.more_seeds` at the followed level."""
    chosen, on = settings(arm, seed), device()
    keep_freed_memory()
    if chosen.train.encoder == "bfloat16":
        torch.backends.cuda.matmul.allow_tf32 = True
    store = open_store(chosen.arm.activations, verify=("train", "validation"))
    check_settings(store, chosen.activations)
    sample = store.scaling(on).normalise_(spread_rows(store, "validation").to(on))
    with full_disk_said(), ExitStack() as stack:
        begun = [begin(chosen, one, store, sample, stack) for one in chosen.seeds]
        train([one.run for one in begun])
        space = Space(store.mean, store.scale, store.index["model"], store.hook_name)
        side_by_side(partial(finish, chosen, space), begun, on)
    if seed == MORE:
        write_json(more_cell(arm, 0).parent / "seeds.json", chosen.seeds)
    for one in begun:  # not before all are written: DVC removes what a killed stage wrote
        one.run.resume.clear()


if __name__ == "__main__":
    run(main)
