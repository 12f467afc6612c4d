"""Things one chooses between (text sources, models, SAEs): one file per choice, found by its file name."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from stages.lib.io.errors import UserError, nearest

STAGES = Path(__file__).resolve().parents[2]


def names(folder: str) -> list[str]:
    """The choices in `stages/<folder>/`, sorted."""
    return sorted(path.stem for path in (STAGES / folder).glob("*.py") if path.stem != "__init__")


def load(folder: str, name: str, setting: str) -> ModuleType:
    """The module `stages/<folder>/<name>.py` that the setting called `setting` asks for.

    Raises:
        UserError: if there is no such file.
    """
    known = names(folder)
    if name not in known:
        raise UserError(f"{setting} is {name!r}, but stages/{folder}/ has no such file{nearest(name, known)}")
    return import_module(f"stages.{folder}.{name}")
