"""The process that `python -m stages` forks stages from: it has imported libraries, but no stage.

It listens on a Unix socket in a directory of this user's alone. A request brings a stage's arguments, environment,
working directory, module path, umask and standard streams; the answer is two lines, the number of the stage's process
and, when that has ended, its status. The process of a stage dies with the one that asked for it. The server ends when
nothing has asked and nothing has run for a while.
"""

import fcntl
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import NamedTuple

FIRST = (
    "torch", "numba", "pandas", "pydantic.main", "ruamel.yaml", "safetensors.torch", "tqdm", "rich.live", "rich.table",
    "pyarrow.parquet", "scipy.stats", "scipy.optimize",
)  # fmt: skip
"""What most stages import; it is there before the server is."""
LATER = (
    "transformers.models.llama.modeling_llama", "transformer_lens.model_bridge", "scipy.signal",
    "concurrent.futures.process", "scipy.cluster.hierarchy", "sklearn.metrics", "matplotlib.pyplot", "umap",
)  # fmt: skip
"""What some stages import; one after the other while nobody asks, from the second request on: there may be no other."""
WATCHER = "watcher"
"""The name of the thread in each stage's process that waits for the end of the one that asked."""
IDLE_SECONDS = 30.0
"""After which the server ends."""


class Request(NamedTuple):
    """What a process is forked for."""

    arguments: list[str]
    """The stage, and its own."""
    environment: dict[str, str]
    directory: str
    path: list[str]
    """Where modules are looked for."""
    umask: int
    streams: list[int]
    """Standard input, output and error."""
    connection: socket.socket


def receive(connection: socket.socket) -> Request:
    """Read a request.

    Raises:
        ConnectionError: if it is not whole.
    """
    head, streams, _, _ = socket.recv_fds(connection, 8, 3)
    left, parts = int.from_bytes(head, "big"), []
    while left:
        parts.append(connection.recv(left))
        if not parts[-1]:
            raise ConnectionError("a request ends too early")
        left -= len(parts[-1])
    arguments, environment, directory, path, umask = json.loads(b"".join(parts))
    return Request(arguments, environment, directory, path, umask, streams, connection)


def die_with(connection: socket.socket) -> None:
    """Wait until the process that asked is gone, then end this one, whatever it does."""
    connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


def run_stage(request: Request) -> None:
    """Make this process what the one that asked would have been, and run the stage."""
    for standard, stream in enumerate(request.streams):
        os.dup2(stream, standard)
        os.close(stream)
    os.chdir(request.directory)
    os.umask(request.umask)
    os.environ.clear()
    os.environ.update(request.environment)
    for name in [name for name in sys.modules if name.split(".")[0] == "stages"]:
        del sys.modules[name]  # the package of this module, which may lie elsewhere
    stage, *arguments = request.arguments
    sys.path[:], sys.argv = request.path, [f"stages.{stage}", *arguments]
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    Thread(target=die_with, args=(request.connection,), name=WATCHER, daemon=True).start()
    runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)


def preload(library: str) -> None:
    """Import a library; what it makes is never garbage, so that no stage copies memory to look for any."""
    with suppress(ImportError):  # the stage that needs it will say so
        import_module(library)
    gc.collect()
    gc.freeze()


def tell(connection: socket.socket, number: int) -> None:
    """Send a line, to nobody where the process that asked is gone."""
    with suppress(OSError):
        connection.sendall(f"{number}\n".encode())


def serve(listener: socket.socket) -> Request | None:
    """Fork a process for every request. Returns in these, with the request, and at last in the server, with None."""
    later, n_requests, watched = [*LATER], 0, selectors.DefaultSelector()
    watched.register(listener, selectors.EVENT_READ)
    while True:
        importing = bool(later) and n_requests > 1
        idle = len(watched.get_map()) == 1
        ready = watched.select(0 if importing else IDLE_SECONDS if idle else None)
        if not ready and not importing:
            return None
        if not ready:
            preload(later.pop(0))
        for key, _ in ready:
            if key.data is not None:
                process, connection = key.data
                watched.unregister(key.fd)
                os.close(key.fd)
                tell(connection, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
                connection.close()
                continue
            connection, _ = listener.accept()
            try:
                request = receive(connection)
            except (OSError, ValueError):
                connection.close()
                continue
            n_requests += 1
            process = os.fork()
            if not process:
                watched.close()
                listener.close()
                return request
            for stream in request.streams:
                os.close(stream)
            tell(connection, process)
            watched.register(os.pidfd_open(process), selectors.EVENT_READ, (process, connection))


def main(address: Path) -> None:
    """Listen at an address, and be a stage in every process that is forked. Only one server can be at an address."""
    with address.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        for library in FIRST:
            preload(library)
        listener, own = socket.socket(socket.AF_UNIX), address.with_suffix(".new")
        own.unlink(missing_ok=True)
        listener.bind(str(own))
        listener.listen(64)
        own.rename(address)
        request = serve(listener)
        if request is None:
            address.unlink(missing_ok=True)
            return
    run_stage(request)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
