"""Finds recipes, converters and devices: one file each in a folder, or an entry point of another package."""

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal

from edgekit.errors import unknown

Kind = Literal["recipes", "converters", "devices"]
_SUFFIX = {"recipes": ".toml", "converters": ".py", "devices": ".py"}


def folder(kind: Kind) -> Path:
    """The folder of *kind*: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).parent
    inside = package / kind
    return inside if inside.is_dir() else package.parent / kind


def names(kind: Kind) -> list[str]:
    """The names that can be loaded, sorted; a leading underscore marks a file that is no plug-in."""
    found = {path.stem for path in folder(kind).glob(f"[!_]*{_SUFFIX[kind]}")}
    return sorted(found | set(_entry_points(kind)))


@cache
def load(kind: Kind, name: str) -> ModuleType:
    """The module of a converter or a device. Raises UsageError for a name that does not exist."""
    path = folder(kind) / f"{name}.py"
    if not re.fullmatch(r"[A-Za-z][\w+]*", name) or not path.is_file():
        if name in _entry_points(kind):
            return importlib.import_module(_entry_points(kind)[name])
        raise unknown(kind.removesuffix("s"), name, names(kind))
    full_name = f"edgekit.{kind}.{name}"
    spec = importlib.util.spec_from_file_location(full_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module
    spec.loader.exec_module(module)
    return module


@cache
def _entry_points(kind: Kind) -> dict[str, str]:
    if kind == "recipes":
        return {}
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=f"edgekit.{kind}")}
