"""Devices without hardware that `scripts/arm64` makes: where they are, and how Python starts on them."""

import os
from pathlib import Path

import pytest

CPUS = {"cortex-a72": "a Raspberry Pi 4: no int8 dot products", "cortex-a76": "a Raspberry Pi 5: with them"}


def _folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("EDGEKIT_ARM64") or cache / "edgekit/arm64")


FOLDER = _folder()  # asked before a test moves the home folder
PYTHON = FOLDER / "python3"
needs_arm64 = pytest.mark.skipif(
    not PYTHON.is_file(), reason=f"no arm64 root in {FOLDER}: `scripts/arm64` makes one"
)


def environment(cpu: str) -> dict[str, str]:
    """The variables with which PYTHON emulates *cpu*, this checkout on its path."""
    return {**os.environ, "EDGEKIT_ARM64_CPU": cpu, "PYTHONPATH": str(Path(__file__).parents[1])}
