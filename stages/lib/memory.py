"""How the process keeps memory that it has freed."""

import ctypes
import sys

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
