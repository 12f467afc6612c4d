"""Windows: worked by hand, written and read again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stages.lib.io.errors import UserError
from stages.lib.io.files import write_json
from stages.lib.io.tensors import describe
from stages.lib.language.windows import Windows, WindowWriter, read_windows, windows_of


def spans(n: int) -> np.ndarray:
    return np.array([[3 * i, 3 * i + 2] for i in range(n)], dtype=np.int32).reshape(n, 2)


def test_windows_of_five_tokens_by_hand() -> None:
    rows = windows_of(np.array([11, 12, 13, 14, 15]), spans(5), n_ctx=4, bos_id=1, pad_id=2)
    assert rows["tokens"].tolist() == [[1, 11, 12, 13], [1, 14, 15, 2]]
    assert rows["start"].tolist() == [[0, 0, 3, 6], [0, 9, 12, 0]]
    assert rows["end"].tolist() == [[0, 2, 5, 8], [0, 11, 14, 0]]
    assert rows["length"].tolist() == [4, 3]
    assert {array.dtype for array in rows.values()} == {np.dtype(np.int32)}


@pytest.mark.parametrize("n_ctx", [2, 3, 7, 50])
@pytest.mark.parametrize("n_tokens", [1, 2, 6, 12, 13])
def test_every_token_is_in_one_window_in_order(n_ctx: int, n_tokens: int) -> None:
    ids = np.arange(100, 100 + n_tokens)
    rows = windows_of(ids, spans(n_tokens), n_ctx=n_ctx, bos_id=1, pad_id=2)
    windows = as_windows(rows, n_ctx)
    assert len(rows["length"]) == -(-n_tokens // (n_ctx - 1))
    assert windows.tokens[windows.valid()].tolist() == ids.tolist()
    both = torch.stack([windows.start[windows.valid()], windows.end[windows.valid()]], dim=1)
    assert both.tolist() == spans(n_tokens).tolist()
    assert (windows.tokens[:, 0] == 1).all()
    assert (windows.length >= 2).all()
    padding = ~windows.valid()
    padding[:, 0] = False
    assert (windows.tokens[padding] == 2).all()


def as_windows(rows: dict[str, np.ndarray], n_ctx: int) -> Windows:
    parts = {name: torch.from_numpy(array) for name, array in rows.items()}
    document = torch.zeros_like(parts["length"])
    return Windows(**parts, document=document, n_ctx=n_ctx, document_ids=["a"], bos=True, bos_id=1, pad_id=2)


def test_valid_leaves_out_position_0_and_padding() -> None:
    rows = windows_of(np.array([11, 12, 13]), spans(3), n_ctx=3, bos_id=1, pad_id=2)
    assert as_windows(rows, 3).valid().tolist() == [[False, True, True], [False, True, False]]


def write(directory: Path) -> None:
    with WindowWriter(directory / "fit.safetensors", n_ctx=4, bos_id=1, pad_id=2) as writer:
        writer.add("a.py", np.array([11, 12, 13, 14, 15]), spans(5))
        writer.add("b.py", np.array([21]), spans(1))
    splits = {"fit": {"windows": writer.n_windows, "tokens": writer.n_tokens, "documents": writer.document_ids}}
    facts = {"n_ctx": 4, "bos": True, "bos_id": 1, "pad_id": 2, "d_vocab": 30, "splits": splits}
    write_json(directory / "tokens.json", facts)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write(tmp_path)
    windows = read_windows("fit", tmp_path)
    assert windows.tokens.tolist() == [[1, 11, 12, 13], [1, 14, 15, 2], [1, 21, 2, 2]]
    assert windows.document.tolist() == [0, 0, 1]
    assert windows.length.tolist() == [4, 3, 2]
    assert windows.document_ids == ["a.py", "b.py"]
    assert (windows.n_ctx, windows.bos, windows.bos_id, windows.pad_id) == (4, True, 1, 2)
    assert describe(tmp_path / "fit.safetensors") == {"n_ctx": 4, "n_tokens": 6}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit.safetensors", "tokens.json"]


def test_the_file_is_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    write(tmp_path)
    loaded = load_file(tmp_path / "fit.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == {
        "tokens": (3, 4),
        "start": (3, 4),
        "end": (3, 4),
        "length": (3,),
        "document": (3,),
    }
    assert {tensor.dtype for tensor in loaded.values()} == {torch.int32}
    assert loaded["end"].tolist() == [[0, 2, 5, 8], [0, 11, 14, 0], [0, 2, 0, 0]]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="killed"),
        WindowWriter(tmp_path / "fit.safetensors", n_ctx=4, bos_id=1, pad_id=2) as writer,
    ):
        writer.add("a.py", np.array([11]), spans(1))
        raise RuntimeError("killed")
    assert list(tmp_path.iterdir()) == []


def test_missing_damaged_and_disagreeing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokens.json is missing"):
        read_windows("fit", tmp_path)
    write(tmp_path)
    path = tmp_path / "fit.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(UserError, match=r"fit.safetensors is damaged"):
        read_windows("fit", tmp_path)
    with WindowWriter(path, n_ctx=4, bos_id=1, pad_id=2) as writer:
        writer.add("a.py", np.array([11]), spans(1))
    with pytest.raises(UserError, match=r"fit.safetensors has \(1, 4\) tokens, .*tokens.json says \(3, 4\)"):
        read_windows("fit", tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"fit.safetensors is missing"):
        read_windows("fit", tmp_path)
