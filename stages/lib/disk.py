"""A full disk, said in one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from stages.lib.errors import UserError


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
