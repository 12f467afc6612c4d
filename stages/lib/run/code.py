"""The code that a stage runs is the code that its results are filed under, comments and docstrings aside.

`check` records, for each stage, every file of the project in its import closure with a hash of its syntax, and the
pinned version of every package that these files import (`stages.lib.run.closure`). The record is what the stage depends
on in `dvc.yaml`, so an edit re-runs the stages whose record it changes and no other. Here is the hash, and the look at
the record with which every stage begins.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from stages.lib.io.errors import UserError
from stages.lib.io.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[3]
OURS = ("stages", "synthetic")
"""The project's packages."""
RECORDS = Path("data/check/code")
"""Where `check` writes records, from the root of the pipeline."""
UNUSED = ("kind", "ctx", "type_comment", "type_ignores")
"""Fields of syntax nodes that change nothing that runs, or repeat what the place of the node says."""
N_DIGITS = 32
"""Hexadecimal digits of a hash."""


class Memo:
    """What a function has found in files, kept on disk by a hash of their content, so that it is right wherever it is.

    Nothing of it is kept from one version of the function's module to the next. Parsing all files of the project takes
    a second, those of one stage a quarter of it.

    Args:
        name: of the file below data/, which DVC and git ignore.
        module: the file of the function.
    """

    def __init__(self, name: str, module: str) -> None:
        self.path = Path(f"data/.{name}.json")
        self._version = _digest(Path(module))
        self._found: dict[str, Any] | None = None

    def get(self, file: Path) -> Any:
        """What is known of a file, or None."""
        if self._found is None:
            try:
                kept = json.loads(self.path.read_text(encoding="utf-8"))
                self._found = dict(kept["found"]) if kept["version"] == self._version else {}
            except (OSError, ValueError, KeyError, TypeError):
                self._found = {}
        return self._found.get(_digest(file))

    def keep(self, found: dict[Path, Any]) -> None:
        """Write what is known of these files, and of no others."""
        self._found = {_digest(file): found[file] for file in sorted(found)}
        write_json(self.path, {"version": self._version, "found": self._found})


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


HASHES = Memo("syntax", __file__)
"""Hashes of syntax, which `check` keeps."""


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def _pieces(node: ast.AST) -> Iterator[str]:
    """The syntax below a node as text, one piece per node and value, without statements that are only a string.

    Docstrings are such statements. Absent fields are left out, so that a field which a later Python adds changes
    nothing where it is not used.
    """
    yield f"({type(node).__name__}"
    for name in node._fields:
        value = getattr(node, name, None)
        if name in UNUSED or value is None or value == []:
            continue
        yield name
        for item in value if isinstance(value, list) else [value]:
            if _is_only_a_string(item) or (isinstance(node, ast.JoinedStr) and _is_empty_text(item)):
                continue
            if isinstance(item, ast.AST):
                yield from _pieces(item)
            else:
                yield ascii(item)
    yield ")"


def _is_only_a_string(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_empty_text(node: object) -> bool:
    """Whether a part of an f-string is nothing, which Python 3.12 alone writes down."""
    return isinstance(node, ast.Constant) and node.value == ""


@cache
def syntax_hash(path: Path) -> str:
    """A hash of what a Python file says to the interpreter: comments, docstrings and layout leave it as it is."""
    if (known := HASHES.get(path)) is not None:
        return str(known)
    text = "\n".join(_pieces(tree(path)))
    return hashlib.sha256(text.encode()).hexdigest()[:N_DIGITS]


def relative(path: Path) -> str:
    """The path of a file of the project from its root."""
    return path.relative_to(ROOT).as_posix()


def loaded() -> set[Path]:
    """The project's files that this process has imported, and the one that it runs if that is the project's."""
    main = sys.modules["__main__"]
    modules = [module for name, module in [*sys.modules.items()] if _is_ours(name)]
    if main.__spec__ is not None and _is_ours(main.__spec__.name):
        modules.append(main)
    files = {Path(file).resolve() for module in modules if (file := getattr(module, "__file__", None))}
    return {file for file in files if file.is_relative_to(ROOT) and file.stat().st_size > 0}


def _is_ours(name: str) -> bool:
    return name.split(".")[0] in OURS


def installed(distribution: str) -> str | None:
    """The installed version, without what says for which machine it was built (`+cpu`); None if it is not installed."""
    try:
        return metadata.version(distribution).split("+")[0]
    except metadata.PackageNotFoundError:
        return None


def recorded(stage: str, arguments: list[str]) -> Path | None:
    """The record of a stage with these arguments, or None where there is none."""
    names = [f"{stage}-{arguments[0]}", stage] if arguments else [stage]
    return next((path for name in names if (path := RECORDS / f"{name}.json").is_file()), None)


def check_record(stage: str, arguments: list[str]) -> None:
    """Refuse to run code that is not what the stage's record says, because DVC would file the result under other code.

    That happens when a stage is started alone after an edit, by `dvc repro -s` or by hand. Where there is no record, as
    in a directory of one's own, there is nothing to compare.

    Raises:
        UserError: naming the first file or package that differs.
    """
    path = recorded(stage, arguments)
    if path is None:
        return
    content: dict[str, Any] = read_json(path)
    differing = [name for name, value in content["files"].items() if _hash_or_none(ROOT / name) != value]
    differing += sorted(name for name in map(relative, loaded()) if name not in content["files"])
    differing += [
        f"the installed {name}" for name, version in content["packages"].items() if installed(name) != version
    ]
    if differing:
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise UserError(
            f"{differing[0]}{more} is not what {path} records, under which DVC would file the result: "
            "`dvc repro` runs `check` first, which records it anew"
        )


def _hash_or_none(path: Path) -> str | None:
    return syntax_hash(path) if path.is_file() else None
