"""Optional packages, imported where they are needed; a missing one is named with its cure."""

import importlib
from typing import Any

from edgekit.errors import MissingDependency


def require(module: str, *, feature: str, extra: str) -> Any:
    """The imported *module*. Raises MissingDependency: the feature, the package and the command."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise MissingDependency(
            f"{feature} needs the package {missing}: pip install 'edgekit[{extra}]'"
        ) from error
