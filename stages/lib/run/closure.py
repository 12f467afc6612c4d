"""What the results of each stage rest on, recorded: the import closure of its module, found in the text.

Imports count wherever they stand, also inside functions, but for those that only type checkers follow. A plug-in that
is loaded by name (`plugins.load`) belongs to the closure if the settings choose it. What a stage starts as a process of
its own (`stages.lib.run.tracking`) cannot change its results and does not count. It stands apart from
`stages.lib.run.code`, which every stage imports.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from stages.lib.io.errors import UserError
from stages.lib.io.files import write_json
from stages.lib.run.code import HASHES, OURS, RECORDS, ROOT, Memo, installed, relative, syntax_hash, tree

REQUIREMENTS = ROOT / "requirements.txt"
Record = dict[str, dict[str, str]]
"""`files`, path to hash, and `packages`, distribution to version."""


class Imports(NamedTuple):
    """What one file imports."""

    files: frozenset[Path]
    """Of the project."""
    folders: frozenset[str]
    """Of plug-ins that it loads by name."""
    packages: frozenset[str]
    """Top-level names of installed packages."""


NAMES = Memo("imports", __file__)
"""What `_named` has found, which `check` keeps."""


@cache
def _named(path: Path) -> tuple[list[str], list[str]]:
    """The dotted names that one file imports, wherever the statement stands, and the folders of its plug-ins."""
    if (known := NAMES.get(path)) is not None:
        return known[0], known[1]
    names, folders = set(), set()
    for node in _what_runs(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "plugins.load":
            folders.add(str(ast.literal_eval(node.args[0])))
    return sorted(names), sorted(folders)


@cache
def imports(path: Path) -> Imports:
    """What one file of the project imports."""
    names, folders = _named(path)
    files = {file for name in names if name.split(".")[0] in OURS for file in _modules(name)}
    others = {name.split(".")[0] for name in names} - {*OURS} - sys.stdlib_module_names
    return Imports(frozenset(files), frozenset(folders), frozenset(others))


def _what_runs(root: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a tree, but not those under `if TYPE_CHECKING:`, which no run imports."""
    todo = [root]
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            todo += node.orelse
        else:
            todo += ast.iter_child_nodes(node)


@cache
def _modules(name: str) -> tuple[Path, ...]:
    """The files that importing a dotted name of the project runs: the module, and the packages above it."""
    place = ROOT.joinpath(*name.split("."))
    above = _modules(name.rpartition(".")[0]) if "." in name else ()
    candidates = (place / "__init__.py", place.with_suffix(".py"))
    # An empty file says nothing.
    return (*above, *(path for path in candidates if path.is_file() and path.stat().st_size > 0))


def closure(module: str, chosen: Mapping[str, str]) -> set[Path]:
    """The files of the project that a module imports, directly or through others, itself and chosen plug-ins included.

    `chosen` says which plug-in the settings choose of a folder; of a folder that it lacks none is counted.
    """
    seen: set[Path] = set()
    todo = [*_modules(module)]
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        found = imports(file)
        todo += found.files
        todo += [ROOT / "stages" / folder / f"{chosen[folder]}.py" for folder in found.folders if folder in chosen]
    return seen


def plugin_folders(module: str) -> set[str]:
    """The folders of plug-ins that a module's closure loads from."""
    return {folder for file in closure(module, {}) for folder in imports(file).folders}


@cache
def pins() -> dict[str, str]:
    """The version that `requirements.txt` pins of each distribution, by its normalised name."""
    lines = [line.split("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    return {_normalised(name): version for line in lines if line for name, _, version in [line.partition("==")]}


def _normalised(name: str) -> str:
    """How pip compares names (PEP 503)."""
    return name.lower().replace("_", "-").replace(".", "-")


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _providers(package: str) -> list[str]:
    """The distributions that provide an import name; one of that very name is taken at its word."""
    return [_normalised(package)] if _normalised(package) in pins() else sorted({*_distributions().get(package, [])})


@cache
def pinned(package: str) -> Mapping[str, str]:
    """The pinned version of each distribution that provides an import name.

    Raises:
        UserError: if it is not installed, not pinned, or installed in another version than the pinned one.
    """
    names = _providers(package)
    found = {name: pins()[_normalised(name)] for name in names if _normalised(name) in pins()}
    if not found:
        line = f"{names[0] if names else package}==<version>"
        raise UserError(f"{package} is imported, but {REQUIREMENTS.name} pins no version of it: add a line {line}")
    for name, version in found.items():
        if installed(name) != version:
            raise UserError(
                f"{REQUIREMENTS.name} pins {name}=={version}, but {installed(name)} is installed: "
                f"`pip install -r {REQUIREMENTS.name}`, or change the pin"
            )
    return found


def record(module: str, chosen: Mapping[str, str]) -> Record:
    """What the results of a stage rest on."""
    files = closure(module, chosen)
    packages: dict[str, str] = {}
    for name in sorted({name for file in files for name in imports(file).packages}):
        packages |= pinned(name)
    return {"files": {relative(file): syntax_hash(file) for file in sorted(files)}, "packages": packages}


def records(modules: Iterable[str], chosen: Mapping[str, str], arms: Mapping[str, str]) -> dict[str, Record]:
    """The record of every stage, by `<stage>`, or by `<stage>-<arm>` for those that load an arm's method.

    Args:
        modules: the stages, as dotted names whose last part is the stage's.
        chosen: the plug-in that the settings choose of `sources` and of `models`.
        arms: the method of each arm, a file in `stages/saes/`.
    """
    found: dict[str, Record] = {}
    for module in modules:
        stage = module.rpartition(".")[2]
        if "saes" in plugin_folders(module):
            found |= {f"{stage}-{arm}": record(module, {**chosen, "saes": method}) for arm, method in arms.items()}
        else:
            found[stage] = record(module, chosen)
    return found


def write_records(found: Mapping[str, Record]) -> None:
    """Write each record to a file of its own, and remove those of stages and arms that are no more."""
    for name, content in found.items():
        write_json(RECORDS / f"{name}.json", content)
    for path in RECORDS.glob("*.json"):
        if path.stem not in found:
            path.unlink()
    files = {ROOT / file for content in found.values() for file in content["files"]}
    HASHES.keep({file: syntax_hash(file) for file in files})
    NAMES.keep({file: _named(file) for file in files})
