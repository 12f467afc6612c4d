"""How a stage starts from the command line, and how an error that a user can cause is shown."""

import sys
from collections.abc import Callable

from stages.lib.io.errors import UserError
from stages.lib.run.code import check_record


def run(main: Callable[..., None]) -> None:
    """Call `main` with the command line's arguments; a `UserError` becomes one line and exit status 1.

    For what runs as `python -m stages.<name>`, the code has to be the recorded one.
    """
    try:
        specification = sys.modules["__main__"].__spec__
        if specification is not None:
            check_record(specification.name.rpartition(".")[2], sys.argv[1:])
        main(*sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(1)
