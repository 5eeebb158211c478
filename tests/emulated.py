"""What `scripts/setup-emulated-devices` makes for arm64: where it is, and how Python starts on it."""

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
    not PYTHON.is_file(), reason=f"nothing in {FOLDER}: scripts/setup-emulated-devices makes it"
)


def environment(cpu: str) -> dict[str, str]:
    """The variables with which PYTHON emulates *cpu*, this checkout on its path."""
    return {**os.environ, "EDGEKIT_ARM64_CPU": cpu, "PYTHONPATH": str(Path(__file__).parents[1])}
