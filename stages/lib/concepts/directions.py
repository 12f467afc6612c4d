"""The direction in which activations differ between tokens with a concept and tokens without it."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def mean_differences(
    batches: Iterable[tuple[Tensor, np.ndarray]],
) -> Float[Tensor, "concept d_in"]:
    """mean(x | concept) - mean(x | no concept) of every concept, in one pass over batches.

    A batch is x [token, d_in] and labels [token, concept]. A concept that no token or every token has gets a row of
    zeros.
    """
    n, total = 0, torch.zeros(0)
    n_with, with_sum = torch.zeros(0), torch.zeros(0, 0)
    for x, labels in batches:
        y = torch.from_numpy(labels).double()
        if n == 0:
            total = torch.zeros(x.shape[1], dtype=torch.float64)
            n_with = torch.zeros(y.shape[1], dtype=torch.float64)
            with_sum = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64)
        n += len(x)
        total += x.double().sum(0)
        n_with += y.sum(0)
        with_sum += y.T @ x.double()
    known = ((n_with > 0) & (n_with < n))[:, None]
    present = with_sum / n_with.clamp(min=1)[:, None]
    lacking = (total - with_sum) / (n - n_with).clamp(min=1)[:, None]
    return torch.where(known, present - lacking, torch.zeros_like(present)).float()
