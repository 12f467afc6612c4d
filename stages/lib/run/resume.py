"""Where a long stage keeps its half-finished work, so that killing it loses minutes and changes nothing.

The directory is `$DVC_ROOT/data/.resume/<stage>/<fingerprint>`: outside the declared outputs (DVC deletes those before
a run) and under the main repository even when an experiment runs in a temporary workspace. The fingerprint covers all
that determines the result (settings, inputs, code), so a state is never taken up by a run that would differ.
"""

import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from stages.lib.io.errors import UserError
from stages.lib.io.files import atomic, sha256
from stages.lib.run.code import loaded, relative, syntax_hash

FORMAT = 1


def fingerprint(settings: Any, inputs: Iterable[Path] = ()) -> str:
    """A hash of a stage's settings, the bytes of its input files and the syntax of every loaded module of the project.

    Args:
        settings: anything whose `repr` is the same in every process.
        inputs: files; for a directory with an index of checksums, the index is enough.
    """
    digest = hashlib.sha256(repr(settings).encode())
    digest.update(f"{torch.__version__} {torch.get_num_threads()}".encode())
    for path in sorted(loaded()):
        digest.update(relative(path).encode() + syntax_hash(path).encode())
    for path in inputs:
        digest.update(path.name.encode() + sha256(path).encode())
    return digest.hexdigest()[:32]


class Resume:
    """The resume directory of one run, locked while it is in use; use it as a context manager."""

    def __init__(self, stage: str, key: str) -> None:
        self.directory = Path(os.environ.get("DVC_ROOT", ".")) / "data" / ".resume" / stage / key
        self._lock: io.TextIOWrapper | None = None

    def __enter__(self) -> "Resume":
        """Create and lock the directory.

        Raises:
            UserError: if another process holds it: a stage orphaned by a killed `dvc`, or the same run started twice.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = (self.directory / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise UserError(
                f"{self.directory} is in use by process {holder}, which computes the same result; "
                f"wait for it or `kill {holder}`, then run again"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unlock; what was saved stays for the next run."""
        assert self._lock is not None
        self._lock.close()

    def save(self, state: dict[str, Any], name: str = "state") -> None:
        """Keep a nested dict of tensors and plain values, atomically, with its checksum."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getvalue()
        header = {"format": FORMAT, "sha256": hashlib.sha256(payload).hexdigest()}
        with atomic(self.directory / f"{name}.resume") as temporary:
            temporary.write_bytes(json.dumps(header).encode() + b"\n" + payload)

    def load(self, name: str = "state") -> dict[str, Any] | None:
        """What `save` kept, or None.

        Raises:
            UserError: if the file is damaged or of another format; it is never half-used.
        """
        path = self.directory / f"{name}.resume"
        if not path.exists():
            return None
        header, _, payload = path.read_bytes().partition(b"\n")
        try:
            fields = json.loads(header)
        except ValueError:
            fields = {}
        if fields.get("format") != FORMAT or fields.get("sha256") != hashlib.sha256(payload).hexdigest():
            raise UserError(f"{path} is damaged or of another version; delete it to start this stage afresh")
        state: dict[str, Any] = torch.load(io.BytesIO(payload), weights_only=True)
        return state

    def clear(self) -> None:
        """Remove the directory: the stage has written its outputs."""
        shutil.rmtree(self.directory)
