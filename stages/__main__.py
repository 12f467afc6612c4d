"""How stages are started: one by DVC, `python -m stages <stage> <arguments>`; or all, `python -m stages --jobs <n>`.

The second runs up to n stages at a time (`stages.lib.run.jobs`). The first forks the stage from a process that has
imported the libraries already.

PyTorch, pandas and what else a stage imports take 2 to 6 seconds, and `dvc repro` starts a process for every stage. So
the first stage that DVC starts leaves a fork server behind (`stages.lib.run.fork_server`), and it and those that follow
are forked from that. The server has imported libraries alone, none of the project's stages: what runs is the code as it
is now. There is one for each environment and set of packages, so that nothing in it is older than the command.

Without DVC, where there is an NVIDIA GPU (whose driver does not survive a fork), with EXPLORING_SAES_FORK=0, or when
anything is amiss, the stage runs in this process, as `python -m stages.<stage> <arguments>` always does.
"""

import hashlib
import json
import os
import runpy
import signal
import socket
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

SWITCH = "EXPLORING_SAES_FORK"
OF_ONE_COMMAND = ("_", "PWD", "OLDPWD", "SHLVL", "COLUMNS", "LINES")
"""Environment variables that differ between commands and that no library reads when it is imported; DVC's are too."""
LONGEST_ADDRESS = 90
"""Bytes of a path that are safe as the address of a Unix socket, and leave room for an ending."""


def stages() -> list[str]:
    """The names of the stages."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def wanted() -> bool:
    """Whether a fork server is to be used."""
    return (
        "DVC_STAGE" in os.environ
        and os.environ.get(SWITCH) != "0"
        and sys.platform == "linux"
        and not Path("/dev/nvidiactl").exists()
    )


def address() -> Path | None:
    """The socket of the server for this environment and these packages; None where no safe place for it is found."""
    variables = {k: v for k, v in os.environ.items() if k not in OF_ONE_COMMAND and not k.startswith("DVC_")}
    packages = [(place, Path(place).stat().st_mtime_ns) for place in sys.path if place.endswith("-packages")]
    identity = json.dumps([sys.executable, sys.prefix, __file__, sorted(variables.items()), packages])
    directory = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / f"exploring-saes-{os.getuid()}"
    try:
        directory.mkdir(0o700, parents=True, exist_ok=True)
        found = directory.lstat()
    except OSError:
        return None
    path = directory / hashlib.sha256(identity.encode()).hexdigest()[:20]
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return path if own and len(bytes(path)) <= LONGEST_ADDRESS else None


def connected(path: Path) -> socket.socket | None:
    """A connection to the server at an address, if there is one."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        return None
    return connection


def started(path: Path) -> socket.socket | None:
    """A connection to a server that is started now and outlives this process; None if it does not come up."""
    null = os.open(os.devnull, os.O_RDWR)
    copies = [(os.POSIX_SPAWN_DUP2, null, standard) for standard in (0, 1, 2)]
    command = [sys.executable, "-m", "stages.lib.run.fork_server", str(path)]
    server = os.posix_spawn(sys.executable, command, os.environ, file_actions=copies, setsid=True)
    os.close(null)
    while os.waitpid(server, os.WNOHANG) == (0, 0):
        if (connection := connected(path)) is not None:
            return connection
        time.sleep(0.01)
    return None


def forked(connection: socket.socket, arguments: list[str]) -> int | None:
    """Have a stage run by the server and wait for its end; the status of its end, or None if the server refuses.

    Signals that ask this process to end are passed on; if it is killed, the stage is killed too.
    """
    mask = os.umask(0o022)
    os.umask(mask)
    request = json.dumps([arguments, dict(os.environ), str(Path.cwd()), sys.path, mask]).encode()
    answers = connection.makefile()
    try:
        socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(request)
        process = int(answers.readline() or 0)
    except OSError:
        return None
    if not process:
        return None

    def pass_on(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        os.kill(process, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    status = answers.readline()
    if not status:
        sys.exit(f"error: the fork server of {arguments[0]} was killed, which alone knew how the stage ended")
    return int(status)


def end_as(status: int) -> None:
    """End this process as another one has ended, by `status` or, where that is negative, by a signal."""
    if status < 0:
        with suppress(OSError):  # the handling of SIGKILL cannot be set
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def run_all(arguments: list[str]) -> None:
    """Run all stages that have to run, as many at a time as the one argument says."""
    from stages.lib.io.errors import UserError  # a stage is started without these files
    from stages.lib.run import jobs

    if len(arguments) != 1 or not arguments[0].isdecimal() or int(arguments[0]) < 1:
        sys.exit(f"error: --jobs takes how many stages may run at a time, a number from 1 on, not {arguments}")
    try:
        jobs.main(int(arguments[0]))
    except UserError as error:
        sys.exit(f"error: {error}")


def main(arguments: list[str]) -> None:
    """Run the stage that the first argument names with the others, or all stages."""
    if arguments[:1] == ["--jobs"]:
        run_all(arguments[1:])
        return
    if not arguments or arguments[0] not in stages():
        sys.exit(
            f"error: usage is python -m stages <stage> <arguments>, with a stage out of {', '.join(stages())}, "
            "or python -m stages --jobs <n>"
        )
    if wanted() and (path := address()) is not None:
        connection = connected(path) or started(path)
        if connection is not None and (status := forked(connection, arguments)) is not None:
            end_as(status)
    sys.argv = [f"stages.{arguments[0]}", *arguments[1:]]
    runpy.run_module(f"stages.{arguments[0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
