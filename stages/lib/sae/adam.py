"""Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1) with PyTorch's fused kernel.

It is what `torch.optim.Adam(..., fused=True)` does, bit by bit. That class imports PyTorch's compiler when it is made,
which takes several seconds of every process and is never used here.
"""

import torch
from jaxtyping import Float
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Adam:
    """The moving averages of one vector of weights, and the update from its gradient."""

    def __init__(self, weights: Float[Tensor, " weight"]) -> None:
        self.step = torch.zeros((), dtype=torch.float32, device=weights.device)
        """Updates done; on the device, where the kernel reads it."""
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(weights), torch.zeros_like(weights)

    def update_(self, weights: Float[Tensor, " weight"], gradient: Float[Tensor, " weight"], lr: float) -> None:
        """Take one step on the weights."""
        self.step.add_(1)
        torch._fused_adam_(
            [weights],
            [gradient],
            [self.exp_avg],
            [self.exp_avg_sq],
            [],
            [self.step],
            lr=lr,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=0.0,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """All that changes, under PyTorch's names."""
        return {"step": self.step, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for name, kept in self.state().items():
            kept.copy_(state[name])
