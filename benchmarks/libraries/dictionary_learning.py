"""dictionary_learning (github.com/saprmarks/dictionary_learning): `update` of its trainers.

Their defaults but for the schedule (`SHARES`; the defaults of 1,000 and 2,000 steps are longer than a short training),
the level, the tokens after which a feature is dead (10 million), and the threshold of BatchTopK: it follows the batches
from the end of the sparsity warm-up on, and with a memory of 100 steps in place of 1,000.

JumpReLU's penalty pulls L0 towards a target, so its level is the target.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.trainers import SHARES, Inference, Recipe, leave_out_init, weaken

leave_out_init("dictionary_learning")
from dictionary_learning.trainers import (  # noqa: E402
    BatchTopKTrainer,
    GatedSAETrainer,
    JumpReluTrainer,
    PAnnealTrainer,
    StandardTrainer,
    TopKTrainer,
)
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer  # noqa: E402

PACKAGE = "dictionary-learning"
METHODS: dict[str, tuple[type[Any], str]] = {
    "relu": (StandardTrainer, "l1_penalty"),
    "p_anneal": (PAnnealTrainer, "initial_sparsity_penalty"),
    "gated": (GatedSAETrainer, "l1_penalty"),
    "jump_relu": (JumpReluTrainer, "target_l0"),
    "topk": (TopKTrainer, "k"),
    "batch_topk": (BatchTopKTrainer, "k"),
    "matryoshka": (MatryoshkaBatchTopKTrainer, "k"),
}
GROUPS = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32]
"""Shares of the features that each Matryoshka dictionary adds; ours in `benchmarks.ours`."""
THRESHOLD_MEMORY = 0.99


def precisions(method: str, device: str) -> tuple[str, ...]:  # noqa: ARG001
    """`trainSAE` has autocast on CUDA alone."""
    return ("fp32", "bf16") if device == "cuda" else ("fp32",)


class DictionaryLearningTrainer:
    """One of dictionary_learning's SAEs in training."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        kind, level = METHODS[recipe.method]
        sparsity_warm_up = int(SHARES.sparsity_warm_up * recipe.n_steps)
        own: dict[str, Any] = {level: int(recipe.level) if level == "k" else recipe.level}
        if level == "k":
            own |= {"threshold_start_step": sparsity_warm_up, "threshold_beta": THRESHOLD_MEMORY}
        else:
            own["sparsity_warmup_steps"] = sparsity_warm_up
        if recipe.method == "matryoshka":
            own["group_fractions"] = GROUPS
        if recipe.method == "p_anneal":
            own |= {"anneal_start": max(1, recipe.n_steps // 5), "sparsity_function": "Lp^p", "p_end": 0.2}
        if recipe.lr is not None:
            own["lr"] = recipe.lr
        self.trainer = kind(
            steps=recipe.n_steps,
            activation_dim=recipe.d_in,
            dict_size=recipe.d_sae,
            layer=0,
            lm_name="none",
            warmup_steps=int(SHARES.lr_warm_up * recipe.n_steps),
            decay_start=int((1 - SHARES.lr_decay) * recipe.n_steps),
            seed=recipe.seed,
            device=str(recipe.device),
            **own,
        )
        self.trainer.dead_feature_threshold = recipe.dead_tokens
        self.autocast = torch.autocast(recipe.device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
        self.done, self.n_steps = 0, recipe.n_steps

    def step(self, x: Tensor) -> None:
        """One step."""
        with self.autocast:
            self.trainer.update(self.done, x)
        self.done = min(self.done + 1, self.n_steps - 1)

    def kill(self, dead: Tensor) -> None:
        """Make these features dead."""
        ae = self.trainer.ae
        rows, biases = (ae.W_enc.T, ae.b_enc) if hasattr(ae, "W_enc") else (ae.encoder.weight, ae.encoder.bias)
        weaken(rows.detach(), biases.detach(), dead)
        self.trainer.num_tokens_since_fired[dead] = self.trainer.dead_feature_threshold

    def inference(self, validation: Tensor) -> Inference:  # noqa: ARG002
        """Its dictionary; BatchTopK's uses the threshold by itself."""
        ae = self.trainer.ae

        @torch.no_grad()
        def apply(x: Tensor) -> tuple[Tensor, Tensor]:
            codes = ae.encode(x)
            return codes, ae.decode(codes)

        return apply


trainer = DictionaryLearningTrainer
