"""Trains the SAEs of one arm and seed, one a sparsity level, over the same batches.

in: data/activations
out: data/train/<arm>/seed-<n>: `level-<i>/` (SAELens' format, for raw activations), for the followed level with
`checkpoints/` (half precision, for normalised activations), `history.csv` (means over training batches), `train.json`

Within a seed all arms and levels start from the same directions and see the same batches, so that they differ in the
method alone; seeds differ in both.
"""

import csv
import io
import shutil
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from stages.lib.activations.batches import Rows, normalised_batches, resident
from stages.lib.activations.store import DTYPES, Store, activation_settings, check_settings, open_store
from stages.lib.io import params, plugins, tensors
from stages.lib.io.errors import UserError, run
from stages.lib.io.files import write_json, write_text
from stages.lib.run.live import TrainingLog
from stages.lib.run.machine import device, full_disk_said, keep_freed_memory
from stages.lib.run.resume import Resume, fingerprint
from stages.lib.run.seeds import integer
from stages.lib.sae.base import SAE, SAEParams, random_directions
from stages.lib.sae.members import cell
from stages.lib.sae.saved import fold, load_sae, save_sae
from stages.lib.sae.training import Row, Schedule, Training, train

N_BLOCKS, BLOCK_ROWS = 64, 256
"""Of validation activations, spread evenly, on which L0 is measured and the threshold of BatchTopK set."""
NEAR = 0.03
"""Of a wanted L0, the share by which the one that is reached may be off without a word."""
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
    """A feature that has not fired on this many tokens is dead, ..."""
    dead_share: Share
    """... or on this share of all training tokens, if that is more."""
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


def validation_sample(store: Store) -> Float[Tensor, "token d_in"]:
    """Raw activations from all over the validation split, which is in text order."""
    n_rows = store.n_rows("validation")
    n_blocks = min(N_BLOCKS, -(-n_rows // BLOCK_ROWS))
    starts = [n_rows * block // n_blocks for block in range(n_blocks)]
    return torch.cat([store.rows("validation", start, min(start + BLOCK_ROWS, n_rows)) for start in starts])


def held_out_l0(directory: Path, store: Store, sample: Float[Tensor, "token d_in"]) -> float:
    """Active features a token of an SAE that was written, on normalised validation activations."""
    raw = sample.cpu() * store.scale + store.mean
    return len(load_sae(directory).active(raw).value) / len(raw)


def say_missed(chosen: Settings, found: list[float], log: TrainingLog) -> None:
    """Tell which wanted L0 were not reached."""
    for level, (wanted, reached) in enumerate(zip(chosen.arm.levels, found, strict=True)):
        if chosen.arm.level_name == "l0" and abs(reached / wanted - 1) > NEAR:
            log.say(f"{log.stage}: level {level} has L0 {reached:.2f} on validation activations, wanted was {wanted:g}")


def nearest_rows(store: Store, on: torch.device) -> Rows:
    """Where batches come from: a GPU's own memory if the training rows fit into half of what is free there."""
    if on.type != "cuda":
        return store
    return resident(store, on, DTYPES[store.index["dtype"]][0], store.d_in, torch.cuda.mem_get_info(on)[0] / 2)


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


def write(arm: str, chosen: Settings, training: Training, store: Store, resume: Resume) -> list[float]:
    """All outputs, from the finished training; returns the L0 of each level on validation activations."""
    directory = cell(arm, chosen.seed)
    shutil.rmtree(directory, ignore_errors=True)
    own, name = chosen.train, chosen.arm.level_name
    identity = {"arm": arm, "variant": chosen.arm.variant, "activations": chosen.arm.activations, "seed": chosen.seed}
    identity |= {"sparsity_name": name}
    for level, (sae, row) in enumerate(zip(training.saes, training.latest(), strict=True)):
        sae.settle(training.sample)
        sae.finish(training.sample)
        facts = {**identity, "level": level, "sparsity": sae.level, "step": training.done, "mean_l0": row.l0}
        write_sae(directory / f"level-{level}", sae, store, facts)
    followed = directory / f"level-{own.follow_level}" / "checkpoints"
    for step in training.checkpoints:
        weights = resume.load(f"step-{step:08d}")
        assert weights is not None, f"no checkpoint of step {step} in {resume.directory}"
        tensors.save(
            followed / f"step-{step:08d}.safetensors", weights, {"step": step, "tokens": step * own.batch_size}
        )
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["arm", "level", "seed", "step", "tokens", *Row._fields[2:]])
    for row in sorted(training.history):
        numbers = [f"{number:.6g}" for number in row[2:]]
        table.writerow([arm, row.level, chosen.seed, row.step, row.step * own.batch_size, *numbers])
    write_text(directory / "history.csv", text.getvalue())
    sizes: dict[str, Any] = {
        "n_tokens": training.done * own.batch_size,
        "steps": training.done,
        "d_in": store.d_in,
        "d_sae": own.d_sae,
    }
    found = [held_out_l0(directory / f"level-{level}", store, training.sample) for level in range(len(training.saes))]
    levels = {"levels": chosen.arm.levels, "follow_level": own.follow_level}
    levels |= {"validation_l0": found, "shift": [sae.shift for sae in training.saes]}
    write_json(directory / "train.json", {**identity, **sizes, **levels})
    return found


def main(arm: str, seed: str) -> None:
    """Train, or go on with what was begun, and write the outputs."""
    chosen = settings(arm, seed)
    keep_freed_memory()
    if chosen.train.encoder == "bfloat16":
        torch.backends.cuda.matmul.allow_tf32 = True
    store = open_store(chosen.arm.activations, verify=("train", "validation"))
    check_settings(store, chosen.activations)
    on = device()
    mean = store.mean.to(on)
    sample = validation_sample(store).to(on)
    training = prepare(chosen, sample.sub_(mean).div_(store.scale), n_steps(chosen.train, store.n_rows("train")))
    steps, size = training.schedule.n_steps, chosen.train.batch_size
    stage = f"train@{arm}-{chosen.seed}"
    key = fingerprint((arm, chosen.seed, chosen.train, chosen.arm, on), [store.directory / "index.json"])
    with full_disk_said(), Resume(stage, key) as resume:
        if (state := resume.load()) is not None:
            training.restore(state)
        batches = normalised_batches(
            nearest_rows(store, on), mean, store.scale, seed=chosen.seed, size=size, first=training.done, stop=steps
        )
        with TrainingLog(stage, steps, training.done) as log:
            train(training, batches, resume, log)
            say_missed(chosen, write(arm, chosen, training, store, resume), log)
        resume.clear()


if __name__ == "__main__":
    run(main)
