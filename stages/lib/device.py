"""Which device computes: a matter of the machine, so an environment variable and not a setting."""

import os

import torch

from stages.lib.errors import UserError

VARIABLE = "EXPLORING_SAES_DEVICE"


def device() -> torch.device:
    """The device that `EXPLORING_SAES_DEVICE` names, or else CUDA where there is one, or else the CPU.

    Raises:
        UserError: if the named device is not there.
    """
    name = os.environ.get(VARIABLE) or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"{VARIABLE} is {name!r}, which this machine cannot use: {str(error).splitlines()[0]}"
        ) from None
    return chosen
