"""sparsify (PyPI: eai-sparsify): the step that `Trainer.fit` does around a language model, on its `SparseCoder`.

Its defaults but for the optimiser, which is Adam as everywhere else here (its other choice; the default is a
schedule-free SignSGD), the loss that revives features, which has the weight that it has elsewhere (0 by default), the
tokens after which a feature is dead (10 million), and the schedule: linear warm-up as `SHARES`, then its linear decay
over all of the training. It does not clip gradients. On CUDA it always computes in bfloat16.
"""

import os

import torch
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from benchmarks.trainers import SHARES, Inference, Recipe, weaken

if not torch.cuda.is_available():
    # Where Triton is installed its kernel would be chosen, which needs a GPU.
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
from sparsify import SparseCoder, SparseCoderConfig

PACKAGE = "eai-sparsify"
METHODS = ("topk",)
AUX_COEFFICIENT = 1 / 32


def precisions(method: str, device: str) -> tuple[str, ...]:  # noqa: ARG001
    """The device decides."""
    return ("bf16",) if device == "cuda" else ("fp32",)


class SparsifyTrainer:
    """One of sparsify's SAEs in training."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        config = SparseCoderConfig(num_latents=recipe.d_sae, k=int(recipe.level))
        self.sae = SparseCoder(recipe.d_in, config, recipe.device, torch.float32)
        lr = 2e-4 / (recipe.d_sae / 2**14) ** 0.5 if recipe.lr is None else recipe.lr
        self.adam = torch.optim.Adam(self.sae.parameters(), lr=lr)
        warm_up = int(SHARES.lr_warm_up * recipe.n_steps)
        self.schedule = get_linear_schedule_with_warmup(self.adam, warm_up, recipe.n_steps)
        self.tokens_since_fired = torch.zeros(recipe.d_sae, dtype=torch.int64, device=recipe.device)
        self.dead_tokens = recipe.dead_tokens
        self.begun = False

    def step(self, x: Tensor) -> None:
        """One step."""
        if not self.begun:
            self.sae.b_dec.data = x.mean(0)
            self.begun = True
        self.sae.set_decoder_norm_to_unit_norm()
        out = self.sae(x, dead_mask=self.tokens_since_fired > self.dead_tokens)
        float(out.fvu.detach())  # it reads its losses in every step
        float(out.auxk_loss.detach())
        (out.fvu + AUX_COEFFICIENT * out.auxk_loss).backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.adam.step()
        self.adam.zero_grad()
        self.schedule.step()
        self.tokens_since_fired += len(x)
        self.tokens_since_fired[out.latent_indices.flatten()] = 0

    def kill(self, dead: Tensor) -> None:
        """Make these features dead."""
        weaken(self.sae.encoder.weight.detach(), self.sae.encoder.bias.detach(), dead)
        self.tokens_since_fired[dead] = self.dead_tokens + 1

    def inference(self, validation: Tensor) -> Inference:  # noqa: ARG002
        """Its encoder and decoder."""
        self.sae.set_decoder_norm_to_unit_norm()

        @torch.no_grad()
        def apply(x: Tensor) -> tuple[Tensor, Tensor]:
            values, indices, _ = self.sae.encode(x)
            codes = values.new_zeros(len(x), self.sae.num_latents).scatter_(1, indices, values)
            return codes, self.sae.decode(values, indices)

        return apply


trainer = SparsifyTrainer
