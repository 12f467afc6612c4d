"""Reading and validating `params.yaml`.

Every stage declares its own `Params` class and reads it here by the dotted path that `dvc.yaml` lists under `params:`.
All reads go through `value`, so that a test can record them.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.lib.io.errors import UserError, nearest

PARAMS_FILE = Path("params.yaml")
READ: set[str] = set()
"""The dotted paths that were read, so that what nobody reads can be refused."""
T = TypeVar("T")


class Params(BaseModel):
    """A section of `params.yaml`: immutable, strictly typed, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


@cache
def _document(path: Path) -> dict[str, Any]:
    # YAML 1.2, as DVC reads it: PyYAML (1.1) would read `1e-3` as a string and `no` as False.
    try:
        return dict(YAML(typ="safe", pure=True).load(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run from the root of the repository") from None
    except (YAMLError, TypeError) as error:
        raise UserError(f"{path} is not readable YAML: {error}") from None


def document() -> dict[str, Any]:
    """The whole of `params.yaml`."""
    return _document(PARAMS_FILE)


def value(path: str) -> Any:
    """The raw value at a dotted path of `params.yaml`, such as `saes.topk`."""
    READ.add(path)
    node: Any = document()
    walked: list[str] = []
    for key in path.split("."):
        if not isinstance(node, dict) or key not in node:
            where = ".".join(walked) or "the top level"
            known = [str(k) for k in node] if isinstance(node, dict) else []
            raise UserError(f"{PARAMS_FILE}: {path} is missing: no {key!r} in {where}{nearest(key, known)}")
        node = node[key]
        walked.append(key)
    return node


def read(path: str, kind: Callable[..., T]) -> T:
    """The value at a dotted path, validated as `kind` (a `Params` class or any type that pydantic checks).

    Raises:
        UserError: naming the first offending key, its value and what is allowed.
    """
    return check(path, value(path), kind)


def check(path: str, raw: Any, kind: Callable[..., T]) -> T:
    """`raw` validated as `kind`; `path` is where it stands in `params.yaml`, for the message."""
    config = None if _is_model(kind) else ConfigDict(strict=True)
    try:
        # A type is called `Callable[..., T]` here, because `type[T]` leaves out `list[int]`.
        adapter: TypeAdapter[T] = TypeAdapter(kind, config=config)  # type: ignore[arg-type]
        return adapter.validate_python(raw)
    except ValidationError as error:
        raise UserError(_first_message(path, kind, error)) from None


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _fields(kind: object, location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model that `location` points into."""
    for part in location[:-1]:
        if isinstance(part, str) and _is_model(kind):
            field = kind.model_fields.get(part)  # type: ignore[attr-defined]
            kind = field.annotation if field else None
    return list(kind.model_fields) if _is_model(kind) else []  # type: ignore[attr-defined]


def _first_message(path: str, kind: object, error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join([path, *(str(part) for part in first["loc"])])
    if first["type"] == "extra_forbidden":
        return f"{PARAMS_FILE}: unknown key {key}{nearest(str(first['loc'][-1]), _fields(kind, first['loc']))}"
    if first["type"] == "missing":
        return f"{PARAMS_FILE}: {key} is missing"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if first["type"] == "value_error":  # our own checks say the key and its value themselves
        return f"{PARAMS_FILE}: {key}: {message}"
    return f"{PARAMS_FILE}: {key} is {first['input']!r}: {message[0].lower()}{message[1:]}"
