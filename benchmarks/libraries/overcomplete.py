"""overcomplete (github.com/KempnerInstitute/overcomplete): `train_sae` and `train_sae_amp` on one batch at a time.

Losses and optimisers are the user's there: mean squared error, for ReLU with its `mse_l1`, and Adam with the schedule
of `SHARES`. Its loss that revives features (`top_k_auxiliary_loss`) knows of no dead ones: it explains what is left
over by the best half of all features that were not chosen, so it takes the place of the plain loss once some are dead.
JumpReLU has no penalty of the number of active features there, so its loss is `mse_l1` too.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.trainers import SHARES, Inference, Recipe, leave_out_init, weaken

leave_out_init("overcomplete")
from overcomplete.sae import SAE, BatchTopKSAE, JumpSAE, TopKSAE  # noqa: E402
from overcomplete.sae.losses import mse_l1, top_k_auxiliary_loss  # noqa: E402
from overcomplete.sae.train import train_sae, train_sae_amp  # noqa: E402

PACKAGE = "overcomplete"
METHODS: dict[str, type[Any]] = {"relu": SAE, "jump_relu": JumpSAE, "topk": TopKSAE, "batch_topk": BatchTopKSAE}
DEFAULT_LR = 1e-3


def precisions(method: str, device: str) -> tuple[str, ...]:  # noqa: ARG001
    """`train_sae_amp` takes bfloat16 on a CPU, and float16 on CUDA, which is not compared here."""
    return ("fp32", "bf16") if device == "cpu" else ("fp32",)


def squared_error(x: Tensor, x_hat: Tensor, *rest: Tensor) -> Tensor:  # noqa: ARG001
    """The mean over all coordinates, as its losses have it."""
    return (x - x_hat).square().mean()


class OvercompleteTrainer:
    """One of overcomplete's SAEs in training."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.device, self.method = recipe.device.type, recipe.method
        own: dict[str, Any] = {}
        if recipe.method in ("topk", "batch_topk"):
            own["top_k"] = int(recipe.level) * (recipe.batch if recipe.method == "batch_topk" else 1)
        self.sae = METHODS[recipe.method](recipe.d_in, recipe.d_sae, device=self.device, **own)
        # Its penalty is of the sum over the batch, its error a mean over tokens and coordinates.
        weight = recipe.level / (recipe.batch * recipe.d_in)
        self.loss = squared_error if own else partial(mse_l1, penalty=weight)
        lr = DEFAULT_LR if recipe.lr is None else recipe.lr
        self.adam = torch.optim.Adam(self.sae.parameters(), lr=lr)
        rise, fall = (max(1.0, share * recipe.n_steps) for share in (SHARES.lr_warm_up, SHARES.lr_decay))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.adam, lambda step: max(0.0, min(1.0, (step + 1) / rise, (recipe.n_steps - step) / fall))
        )
        self.train = train_sae_amp if recipe.precision == "bf16" else train_sae

    def step(self, x: Tensor) -> None:
        """One step."""
        self.train(self.sae, [x], self.loss, self.adam, self.schedule, nb_epochs=1, monitoring=0, device=self.device)

    def kill(self, dead: Tensor) -> None:
        """Make these features dead and put the loss that revives features to work."""
        encoder = self.sae.encoder.final_block[0]
        weaken(encoder.weight.detach(), encoder.bias.detach(), dead)
        self.loss = top_k_auxiliary_loss

    def inference(self, validation: Tensor) -> Inference:  # noqa: ARG002
        """The SAE in evaluation mode; BatchTopK uses its threshold then."""
        self.sae.eval()

        @torch.no_grad()
        def apply(x: Tensor) -> tuple[Tensor, Tensor]:
            _, codes, x_hat = self.sae(x)
            return codes, x_hat

        return apply


trainer = OvercompleteTrainer
