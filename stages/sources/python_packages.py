"""The Python source code of installed packages: real text that is the same on every machine and needs no download."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pydantic import Field

from stages.lib.io.errors import UserError
from stages.lib.io.params import Params
from stages.lib.language.documents import Document

SETTING = "corpus.python_packages.packages"


class SourceParams(Params):
    """Which packages, pinned: another version is another text."""

    packages: list[str] = Field(min_length=1)


def documents(params: SourceParams) -> Iterator[Document]:
    """Every `.py` file that the wheels brought, sorted by path.

    The list comes from each wheel's own record, not from the directory, so that files that something else left there
    are not read; which files are read depends on the wheel alone, never on the Python that runs.

    Raises:
        UserError: if a package is not installed in exactly the version asked for.
    """
    for requirement in sorted(params.packages):
        for path, text in _files(requirement):
            yield Document(id=path, text=text, language="python")


def _files(requirement: str) -> list[tuple[str, str]]:
    name, _, version = requirement.partition("==")
    if not version:
        raise UserError(f"{SETTING} has {requirement!r}, but a version is needed, such as {name}==1.0")
    try:
        package = distribution(name)
    except PackageNotFoundError:
        raise UserError(f"{SETTING} has {requirement!r}, which is not installed; pip install {requirement}") from None
    if package.version != version:
        raise UserError(f"{SETTING} has {requirement!r}, but {package.version} is installed; pip install {requirement}")
    paths = sorted(path.as_posix() for path in package.files or [] if path.suffix == ".py" and ".." not in path.parts)
    return [(path, Path(str(package.locate_file(path))).read_bytes().decode("utf-8", "replace")) for path in paths]
