"""An S3 and an SSH server on 127.0.0.1, each a process of its own, what they hold, and a proxy that cuts connections.

`python -m tests.servers s3 <port>` and `python -m tests.servers ssh <port> <directory>` are these processes: they print
their port once they listen, and end when their standard input does. Port 0 stands for a free one. moto's S3 keeps its
objects in memory; the SSH server keeps its files in a directory, so that it can be killed and started again.
"""

import asyncio
import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, Self

import asyncssh
import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from tests.toy import ROOT

HOST = "127.0.0.1"
SECRET = "abcdefgh01234567"
"""The key of the one user of S3, whose name is team."""
CHUNK = 1 << 15
"""Bytes that the proxy passes on at once."""
Direction = Literal["up", "down"]


class Server:
    """A server process that can be killed, and started again on the same port."""

    def __init__(self, kind: str, *more: str) -> None:
        self._kind, self._more = kind, more
        self.port = 0
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the process, and wait until it listens."""
        command = [sys.executable, "-m", "tests.servers", self._kind, str(self.port), *self._more]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout is not None
        with self._process.stdout as output:
            line = output.readline()  # empty if the process has ended
        assert line, f"the {self._kind} server ended with status {self._process.wait()}"
        self.port = int(line)

    def kill(self) -> None:
        """End the process by SIGKILL, so that it can put nothing in order."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    @property
    def killed(self) -> bool:
        """Whether it was, and was not started again."""
        return self._process.poll() == -signal.SIGKILL


class Proxy:
    """Passes connections on to a port until so many bytes have gone one way; then nothing passes until it is mended."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._left: dict[Direction, int] = {}
        self._then: Callable[[], object] | None = None
        self.is_cut = False
        self.passed: dict[Direction, int] = {"up": 0, "down": 0}
        """Bytes since the start."""
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self._close_all()

    def cut_after(self, direction: Direction, n_bytes: int, then: Callable[[], object] | None = None) -> None:
        """Cut all connections, and call `then`, when so many more bytes have gone up to the server or down from it."""
        with self._lock:
            self._left, self._then = {direction: n_bytes}, then

    def mend(self) -> None:
        """Let everything pass again."""
        with self._lock:
            self._left, self._then, self.is_cut = {}, None, False

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection((HOST, self._target))
                except OSError:  # nobody listens
                    client.close()
                    continue
                for end in (client, server):  # else small packets wait for acknowledgements of earlier ones
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._ends |= {client, server}
                if self.is_cut:
                    self._close_all()
                    continue
                for source, sink, direction in ((client, server, "up"), (server, client, "down")):
                    threading.Thread(target=self._pump, args=(source, sink, direction), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        with suppress(OSError):  # the connection is cut, or closed by its other end
            while data := source.recv(CHUNK):
                with self._lock:
                    if self.is_cut:
                        return
                    n_bytes = min(len(data), self._left.get(direction, len(data)))
                    self.passed[direction] += n_bytes
                    if direction in self._left:
                        self._left[direction] -= n_bytes
                    cut = self.is_cut = n_bytes < len(data)
                sink.sendall(data[:n_bytes])
                if cut:
                    if self._then is not None:
                        self._then()
                    self._close_all()
            sink.shutdown(socket.SHUT_WR)

    def _close_all(self) -> None:
        with self._lock:
            ends, self._ends = self._ends, set()
        for end in ends:
            with suppress(OSError):  # closed by the other side already
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class S3:
    """The bucket `acts` of an S3 server."""

    kind = "s3"

    def __init__(self, server: Server, proxy: Proxy) -> None:
        self.server, self.proxy, self.root = server, proxy, "acts"
        session = boto3.Session("team", SECRET, region_name="us-east-1")
        self._client = session.client("s3", endpoint_url=f"http://{HOST}:{server.port}")  # past the proxy
        self._client.create_bucket(Bucket=self.root)

    def names(self, name: str) -> list[str]:
        """The files below a directory, relative to it."""
        listed = self._client.list_objects_v2(Bucket=self.root, Prefix=f"{name}/")
        assert not listed["IsTruncated"]
        return [entry["Key"].removeprefix(f"{name}/") for entry in listed.get("Contents", [])]

    def read(self, path: str) -> bytes:
        """The content of a file."""
        content: bytes = self._client.get_object(Bucket=self.root, Key=path)["Body"].read()
        return content

    def write(self, path: str, content: bytes) -> None:
        """Put other content into a file."""
        self._client.put_object(Bucket=self.root, Key=path, Body=content)

    def delete(self, path: str) -> None:
        """Remove a file."""
        self._client.delete_object(Bucket=self.root, Key=path)


class SSH:
    """The directory of an SSH server, with the key pairs of the server and of its one user."""

    kind = "ssh"

    def __init__(self, server: Server, proxy: Proxy, directory: Path) -> None:
        self.server, self.proxy, self.root, self._directory = server, proxy, str(directory), directory

    @staticmethod
    def prepare(directory: Path) -> None:
        """Write the keys."""
        for name in ("host", "user"):
            key = asyncssh.generate_private_key("ssh-ed25519")
            key.write_private_key(directory / name)
            key.write_public_key(directory / f"{name}.pub")

    def names(self, name: str) -> list[str]:
        """The files below a directory, relative to it."""
        root = self._directory / name
        return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]

    def read(self, path: str) -> bytes:
        """The content of a file."""
        return (self._directory / path).read_bytes()

    def write(self, path: str, content: bytes) -> None:
        """Put other content into a file."""
        (self._directory / path).write_bytes(content)

    def delete(self, path: str) -> None:
        """Remove a file."""
        (self._directory / path).unlink()


@contextmanager
def serve(kind: str, directory: Path) -> Iterator[S3 | SSH]:
    """A server of a kind that keeps what it needs in a directory, behind a proxy."""
    if kind == "s3":
        with Server("s3") as server, Proxy(server.port) as proxy:
            yield S3(server, proxy)
    else:
        SSH.prepare(directory)
        with Server("ssh", str(directory)) as server, Proxy(server.port) as proxy:
            yield SSH(server, proxy, directory)


def serve_s3(port: int) -> None:
    """Run moto's S3."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else a line a request
    server = make_server(HOST, port, DomainDispatcherApplication(create_backend_app), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(server.port)
    sys.stdin.read()


async def serve_ssh(port: int, directory: Path) -> None:
    """Run an SSH server with SFTP, which lets in the user of `SSH.prepare`."""
    keys = {"server_host_keys": [directory / "host"], "authorized_client_keys": str(directory / "user.pub")}
    server = await asyncssh.listen(HOST, port, sftp_factory=True, **keys)
    say(server.get_port())
    await asyncio.to_thread(sys.stdin.read)


def say(port: int) -> None:
    """Tell who started the process that it listens."""
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1] == "s3":
        serve_s3(int(sys.argv[2]))
    else:
        asyncio.run(serve_ssh(int(sys.argv[2]), Path(sys.argv[3])))
