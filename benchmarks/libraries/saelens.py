"""SAELens (github.com/decoderesearch/SAELens): `SAETrainer.step` on SAEs of its training classes.

Its defaults but for the schedule (`SHARES`; it has none), the level, and the dead-feature window, which counts steps.
It neither keeps the decoder at norm 1 nor removes gradients along it: its penalties are weighted with the norm.
"""

import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from benchmarks.trainers import SHARES, Inference, Recipe, weaken

PACKAGE = "sae-lens"
METHODS: dict[str, tuple[type[Any], type[Any], str]] = {
    "relu": (StandardTrainingSAE, StandardTrainingSAEConfig, "l1"),
    "gated": (GatedTrainingSAE, GatedTrainingSAEConfig, "l1"),
    "jump_relu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, "l0"),
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig, "k"),
    "batch_topk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, "k"),
    "matryoshka": (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig, "k"),
}
GROUP_ENDS = (1 / 32, 3 / 32, 7 / 32, 15 / 32)
"""Sizes of the smaller Matryoshka dictionaries, as shares of the features; ours in `benchmarks.ours`."""
DEFAULT_LR = 3e-4


def precisions(method: str, device: str) -> tuple[str, ...]:  # noqa: ARG001
    """Its `autocast` works everywhere."""
    return ("fp32", "bf16")


def _nothing() -> Iterator[Tensor]:
    yield from ()


class SAELensTrainer:
    """One of SAELens' SAEs in training."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        kind, config, level = METHODS[recipe.method]
        own: dict[str, Any] = {"k": recipe.level if recipe.method != "topk" else int(recipe.level)}
        if level != "k":
            warm_up = int(SHARES.sparsity_warm_up * recipe.n_steps)
            own = {f"{level}_coefficient": recipe.level, f"{level}_warm_up_steps": warm_up}
        if recipe.method == "matryoshka":
            own["matryoshka_widths"] = [round(share * recipe.d_sae) for share in GROUP_ENDS] + [recipe.d_sae]
        device = str(recipe.device)
        sae = kind(config(d_in=recipe.d_in, d_sae=recipe.d_sae, device=device, **own))
        settings = SAETrainerConfig(
            total_training_samples=recipe.n_steps * recipe.batch,
            train_batch_size_samples=recipe.batch,
            lr=DEFAULT_LR if recipe.lr is None else recipe.lr,
            lr_warm_up_steps=int(SHARES.lr_warm_up * recipe.n_steps),
            lr_decay_steps=int(SHARES.lr_decay * recipe.n_steps),
            lr_end=DEFAULT_LR / 10 if recipe.lr is None else recipe.lr / 10,
            dead_feature_window=max(1, recipe.dead_tokens // recipe.batch),
            autocast=recipe.precision == "bf16",
            device=device,
        )
        self.trainer: SAETrainer[Any, Any] = SAETrainer(settings, sae, _nothing())
        self.kind = kind

    def step(self, x: Tensor) -> None:
        """One step."""
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def kill(self, dead: Tensor) -> None:
        """Make these features dead."""
        sae = self.trainer.sae
        weaken(sae.W_enc.detach().T, sae.b_enc.detach(), dead)
        self.trainer.n_forward_passes_since_fired[dead] = 2.0 * self.trainer.cfg.dead_feature_window

    def inference(self, validation: Tensor) -> Inference:  # noqa: ARG002
        """What it saves for inference, loaded again: BatchTopK is a JumpReLU SAE then."""
        with tempfile.TemporaryDirectory() as directory:
            self.trainer.sae.save_inference_model(directory)
            sae: Any = SAE.load_from_disk(directory, device=str(self.trainer.sae.device))

        @torch.no_grad()
        def apply(x: Tensor) -> tuple[Tensor, Tensor]:
            codes = sae.encode(x)
            return codes, sae.decode(codes)

        return apply


trainer = SAELensTrainer
