"""What depends on the machine and changes no result: which device computes, how freed memory is kept, a full disk."""

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stages.lib.io.errors import UserError

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


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""
LARGEST = 32 * 2**20
"""The highest threshold that glibc takes on 64-bit machines."""


def keep_freed_memory() -> None:
    """Let buffers of up to 32 MiB be used again instead of going back to the system, where there is glibc.

    By default every buffer above 128 KiB is new, zeroed memory, page by page; in steps of some milliseconds that takes
    as long as the arithmetic.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def full_disk_said() -> Iterator[None]:
    """Turn the system's error about a full disk or an exhausted quota into a message.

    Raises:
        UserError: saying so; what was recorded before stays, and the same command goes on from it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        raise UserError(f"{error.strerror}{where}: make space, then run the same command again to go on") from error
