"""Windows of n_ctx tokens: how `data/tokens` is laid out, written and read.

A window holds tokens of one document, begins with the BOS token and is padded on the right; a document goes on in the
next window. The **flat position** of a token is `window * n_ctx + pos`.
"""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stages.lib.io import tensors
from stages.lib.io.errors import UserError
from stages.lib.io.files import atomic, read_json

TOKENS = Path("data/tokens")
FIELDS = ["document", "end", "length", "start", "tokens"]
"""The tensors of a file, in the order in which they stand in it."""


class Windows(NamedTuple):
    """The windows of one split; the tensors are views of the file, read when they are used."""

    tokens: Int[Tensor, "window pos"]
    length: Int[Tensor, " window"]
    """Tokens of the window that are not padding, BOS included."""
    document: Int[Tensor, " window"]
    """Index into `document_ids`."""
    start: Int[Tensor, "window pos"]
    """First character of the token in its document's text; 0 for BOS and padding."""
    end: Int[Tensor, "window pos"]
    """One past the last character of the token."""
    n_ctx: int
    document_ids: list[str]
    bos: bool
    bos_id: int
    pad_id: int

    def valid(self) -> Bool[Tensor, "window pos"]:
        """Which positions are tokens of the text: neither position 0, whatever stands there, nor padding."""
        pos = torch.arange(self.n_ctx)
        return (pos > 0) & (pos < self.length[:, None])


def windows_of(
    ids: Int[np.ndarray, " token"],
    spans: Int[np.ndarray, "token 2"],
    *,
    n_ctx: int,
    bos_id: int,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """The windows of one document: `tokens`, `start`, `end` [window, n_ctx] and `length` [window], all int32.

    With n tokens there are ceil(n / (n_ctx - 1)) windows, because BOS takes the first position of each.
    """
    n_text = n_ctx - 1
    n_windows = -(-len(ids) // n_text)
    body = np.zeros((3, n_windows * n_text), dtype=np.int32)
    body[0] = pad_id
    body[:, : len(ids)] = ids, spans[:, 0], spans[:, 1]
    head = np.zeros((3, n_windows, 1), dtype=np.int32)
    head[0] = bos_id
    tokens, start, end = np.concatenate([head, body.reshape(3, n_windows, n_text)], axis=2)
    length = 1 + np.clip(len(ids) - n_text * np.arange(n_windows), 0, n_text)
    return {"tokens": tokens, "start": start, "end": end, "length": length.astype(np.int32)}


class WindowWriter:
    """Writes a split document by document, in memory that does not grow with it; a context manager.

    Each tensor goes to a file of its own, and these are joined to one safetensors file at the end, since how many
    windows there are is known only then. The format: 8 bytes with the header's length, the header, the tensors' bytes.
    """

    def __init__(self, path: Path, *, n_ctx: int, bos_id: int, pad_id: int) -> None:
        self.path, self.n_ctx, self.bos_id, self.pad_id = path, n_ctx, bos_id, pad_id
        self.document_ids: list[str] = []
        self.n_windows = self.n_tokens = 0
        self._files = ExitStack()
        self._parts = {name: path.with_name(f".{path.stem}.{name}.part") for name in FIELDS}

    def __enter__(self) -> "WindowWriter":
        """Open the parts."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._handles = {name: self._files.enter_context(part.open("wb")) for name, part in self._parts.items()}
        return self

    def add(self, document_id: str, ids: Int[np.ndarray, " token"], spans: Int[np.ndarray, "token 2"]) -> None:
        """Append a document that has at least one token."""
        rows = windows_of(ids, spans, n_ctx=self.n_ctx, bos_id=self.bos_id, pad_id=self.pad_id)
        n_windows = len(rows["length"])
        rows["document"] = np.full(n_windows, len(self.document_ids), dtype=np.int32)
        for name, handle in self._handles.items():
            handle.write(rows[name].astype("<i4", copy=False).tobytes())
        self.document_ids.append(document_id)
        self.n_windows += n_windows
        self.n_tokens += len(ids)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Join the parts if all went well; remove them."""
        self._files.close()
        try:
            if error is None:
                self._join()
        finally:
            for part in self._parts.values():
                part.unlink(missing_ok=True)

    def _join(self) -> None:
        description = {"n_ctx": self.n_ctx, "n_tokens": self.n_tokens}
        header: dict[str, Any] = {"__metadata__": {"description": json.dumps(description, sort_keys=True)}}
        offset = 0
        for name, part in self._parts.items():
            shape = [self.n_windows] if name in ("document", "length") else [self.n_windows, self.n_ctx]
            end = offset + part.stat().st_size
            header[name] = {"dtype": "I32", "shape": shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with atomic(self.path) as temporary, temporary.open("wb") as whole:
            whole.write(len(text).to_bytes(8, "little") + text)
            for part in self._parts.values():
                with part.open("rb") as handle:
                    shutil.copyfileobj(handle, whole, 1 << 20)


def read_windows(split: str, directory: Path = TOKENS) -> Windows:
    """The windows of `train`, `fit`, `validation` or `test`.

    Raises:
        UserError: if a file is missing or damaged, or if the two disagree.
    """
    facts = read_json(directory / "tokens.json")
    path = directory / f"{split}.safetensors"
    loaded = tensors.load(path, FIELDS)
    expected = (facts["splits"][split]["windows"], facts["n_ctx"])
    if tuple(loaded["tokens"].shape) != expected:
        raise UserError(
            f"{path} has {tuple(loaded['tokens'].shape)} tokens, {directory / 'tokens.json'} says {expected}; "
            "`dvc checkout --force` restores both"
        )
    return Windows(
        **loaded,
        n_ctx=facts["n_ctx"],
        document_ids=facts["splits"][split]["documents"],
        bos=facts["bos"],
        bos_id=facts["bos_id"],
        pad_id=facts["pad_id"],
    )
