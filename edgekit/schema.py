"""Strict decoding of TOML and JSON values into frozen dataclasses, every fault at once; and encoding back.

Understood: str, int, float, bool, Literal, X | None, tuple[X, ...], tuple[X, Y], dict[str, X], Any, dataclasses
of these, and Sequence[int] for numbers in bulk. ``Annotated[int, Between(1, 8)]`` bounds a number; NaN and
infinity are none. A field's metadata ``skip`` leaves it out of the file. A dataclass's ``__post_init__`` may
raise ValueError: it becomes a fault.
"""

import dataclasses
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgekit.errors import nearest
from edgekit.integers import Integers

T = TypeVar("T")


@dataclass(frozen=True)
class Between:
    """Inclusive bounds of a number."""

    low: float
    high: float = float("inf")


class SchemaError(ValueError):
    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("\n".join(faults))


def decode(cls: type[T], value: object, path: str = "") -> T:
    """*value* (from JSON or TOML) as the dataclass *cls*. Raises SchemaError with every fault and its path."""
    faults: list[str] = []
    decoded = _decode(cls, value, path, faults)
    if faults:
        raise SchemaError(faults)
    return decoded  # type: ignore[no-any-return]


def encode(value: Any, *, defaults: bool = True) -> Any:
    """Plain dicts, lists and scalars that `decode` reads back.

    Without *defaults* fields that have their default are left out: such a form stays the same, and so does its
    hash, when a later version of a dataclass has more fields.
    """
    if value is None or type(value) in _EXACT:
        return value
    if dataclasses.is_dataclass(value):
        kind: Any = type(value)
        fields = [field for field in _fields(kind) if defaults or not _is_default(field, value)]
        return {field.name: encode(getattr(value, field.name), defaults=defaults) for field in fields}
    if isinstance(value, Integers):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [encode(item, defaults=defaults) for item in value]
    if isinstance(value, Mapping):
        return {key: encode(item, defaults=defaults) for key, item in value.items()}
    return value


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return bool(getattr(value, field.name) == field.default_factory())
    return bool(getattr(value, field.name) == field.default)


@cache
def _fields(cls: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if not field.metadata.get("skip")]


@cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """Origin, arguments, and whether it is a dataclass: the standard library works these out each time."""
    return get_origin(kind), get_args(kind), dataclasses.is_dataclass(kind)


@cache
def _wanted(cls: Any) -> dict[str, tuple[Any, bool]]:
    """A dataclass's fields: the kind of each, and whether it is required."""
    hints, missing = get_type_hints(cls, include_extras=True), dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is missing and field.default_factory is missing)
        for field in _fields(cls)
    }


def _decode(kind: Any, value: Any, path: str, faults: list[str]) -> Any:
    if kind is Any or (kind in _EXACT and type(value) is kind):
        return value
    if kind is float and type(value) is float and abs(value) <= sys.float_info.max:
        return value
    origin, args, is_dataclass = _parts(kind)
    if origin is Annotated:
        decoded = _decode(args[0], value, path, faults)
        bounds = args[1]
        if isinstance(decoded, int | float) and not bounds.low <= decoded <= bounds.high:
            limit = f"at least {bounds.low:g}"
            if bounds.high != float("inf"):
                limit = f"between {bounds.low:g} and {bounds.high:g}"
            faults.append(f"{path}: {decoded!r} is out of range; it must be {limit}")
        return decoded
    if is_dataclass:
        return _decode_dataclass(kind, value, path, faults)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _decode(next(arg for arg in args if arg is not type(None)), value, path, faults)
    if origin is Literal:
        if not any(value == arg and type(value) is type(arg) for arg in args):
            choices = ", ".join(repr(arg) for arg in args)
            hint = nearest(value, [a for a in args if isinstance(a, str)]) if isinstance(value, str) else ""
            faults.append(f"{path}: {value!r} is not one of {choices}{hint}")
        return value
    if origin is Sequence:
        return _decode_integers(value, path, faults)
    if origin is tuple:
        return _decode_tuple(args, value, path, faults)
    if origin is dict:
        if not isinstance(value, dict):
            return _mismatch("a table", value, path, faults)
        return {key: _decode(args[1], item, f"{path}.{key}", faults) for key, item in value.items()}
    if kind is float and type(value) in (int, float):
        return (
            float(value) if abs(value) <= sys.float_info.max else _mismatch("a finite number", value, path, faults)
        )
    if type(value) is not kind:
        return _mismatch(_NAMES[kind], value, path, faults)
    return value


_EXACT = (str, int, bool)
_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def _mismatch(wanted: str, value: Any, path: str, faults: list[str]) -> None:
    text = repr(value)
    faults.append(f"{path or 'the file'}: expected {wanted}, got {text if len(text) < 60 else text[:57] + '...'}")


def _decode_tuple(args: tuple[Any, ...], value: Any, path: str, faults: list[str]) -> Any:
    if not isinstance(value, list | tuple):
        return _mismatch("a list", value, path, faults)
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        return _mismatch(f"{len(args)} values", value, path, faults)
    if set(args) in ({int}, {str}) and set(map(type, value)) <= set(args):
        return tuple(value)  # one pass over long lists
    pairs = zip(args, value, strict=True)
    return tuple(_decode(arg, item, f"{path}[{i}]", faults) for i, (arg, item) in enumerate(pairs))


def _decode_integers(value: Any, path: str, faults: list[str]) -> Any:
    if not isinstance(value, list | tuple):
        return _mismatch("a list", value, path, faults)
    if not set(map(type, value)) <= {int}:
        number, other = next((i, item) for i, item in enumerate(value) if type(item) is not int)
        return _mismatch("a whole number", other, f"{path}[{number}]", faults)
    try:
        return Integers(value)
    except OverflowError:
        return _mismatch("whole numbers of at most 64 bits", max(value, key=abs), path, faults)


def _decode_dataclass(cls: Any, value: Any, path: str, faults: list[str]) -> Any:
    if not isinstance(value, dict):
        return _mismatch("a table", value, path, faults)
    fields = _wanted(cls)
    dot = f"{path}." if path else ""
    before = len(faults)
    for key in value:
        if key not in fields:
            hint = nearest(key, fields) or f"; known keys: {', '.join(fields)}"
            faults.append(f"{dot}{key}: unknown key{hint}")
    arguments = {}
    for name, (kind, required) in fields.items():
        if name in value:
            arguments[name] = _decode(kind, value[name], f"{dot}{name}", faults)
        elif required:
            faults.append(f"{dot}{name}: missing; it is required")
    if len(faults) > before:
        return None
    try:
        return cls(**arguments)
    except ValueError as error:
        faults.append(f"{path or 'the file'}: {error}")
        return None
