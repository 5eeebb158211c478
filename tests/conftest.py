"""What every test needs."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_lock(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock of the tests' own: they need no valid latency, so another bench on this machine is none of theirs."""
    place: Path = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("EDGEKIT_LOCK", str(place / "local.lock"))
