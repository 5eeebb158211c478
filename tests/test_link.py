"""A network link that goes down under a visit: OpenSSH's server in a network of its own, a client in another one.

The cable between them is cut without a word to either end, as when a router is switched off.
"""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.openssh import Cable, OpenSsh, needs_sshd
from tests.ssh_servers import user
from tests.test_devices import agents_left

pytestmark = [pytest.mark.long, pytest.mark.ssh, needs_sshd]
LIMIT_S = 180.0
# A visit; what it is told goes to stdout, last what it gave.
VISIT = """
import json, sys
from dataclasses import replace
from pathlib import Path
from edgekit import preflight, remote
from edgekit.device import open_device
from edgekit.errors import DeviceError
from tests import tiny_models
from tests.test_devices import job_of
address, folder, seconds, patience_s, lonely_s = *sys.argv[1:3], *map(float, sys.argv[3:])
preflight.NAMES, remote.LONELY_S = (sys.executable,), lonely_s
tell = lambda **said: print(json.dumps(said), flush=True)
try:
    device = replace(open_device(address), patience_s=patience_s)
    artifact = tiny_models.tflite(Path(folder, "a.tflite"))
    job = job_of(Path(folder), [artifact], seconds=seconds, blocks=8)
    (outcome,) = device.run(job, lambda text, share: tell(text=text))
    device.close()
except DeviceError as error:
    tell(refused=str(error))
else:
    found = outcome.measurement
    starts = found.starts_ns if found else ()
    assert list(starts) == sorted(set(starts))
    tell(error=outcome.error, count=len(starts), blocks=sorted(set(found.blocks)) if found else [])
"""


@pytest.fixture
def cable() -> Iterator[Cable]:
    made = Cable()
    try:
        made.make()
        yield made
    finally:
        made.remove()


@pytest.fixture
def server(cable: Cable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenSsh]:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    user(home)
    server = OpenSsh(tmp_path / "sshd", home, cable.SERVER, cable.inside(cable.server))
    try:
        yield server
    finally:
        server.close()


def visit(
    cable: Cable,
    server: OpenSsh,
    folder: Path,
    *,
    seconds: float,
    cut_s: float,
    patience_s: float,
    lonely_s: float,
) -> dict[str, Any]:
    """What a visit gave whose link was cut in its second block, for *cut_s*."""
    folder.mkdir()
    words = [str(value) for value in (server.address(), folder, seconds, patience_s, lonely_s)]
    command = [*cable.inside(cable.client), sys.executable, "-c", VISIT, *words]
    mend = threading.Timer(cut_s, cable.set, ["up"])
    said: dict[str, Any] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                said = json.loads(line)
                if cut_s and mend.ident is None and said.get("text") == "a: block 2 of 8":
                    cable.set("down")
                    mend.start()
            assert process.wait(LIMIT_S) == 0
        finally:
            process.kill()
            mend.cancel()
    return said


def test_a_link_that_is_down_for_a_while(cable: Cable, server: OpenSsh, tmp_path: Path) -> None:
    """Longer than the 15 s after which it is noticed, and shorter than the 60 s that are waited."""
    found = visit(cable, server, tmp_path / "one", seconds=28.0, cut_s=20.0, patience_s=60.0, lonely_s=120.0)
    assert found["error"] == ""
    assert found["blocks"] == list(range(8))
    assert found["count"] >= 20
    assert agents_left(str(server.place / "there")) == []
    works_again(cable, server, tmp_path / "next")


def test_a_link_that_does_not_come_back(cable: Cable, server: OpenSsh, tmp_path: Path) -> None:
    """Nothing tells the far side: its kernel takes the link for alive for a quarter of an hour."""
    began = time.monotonic()
    found = visit(cable, server, tmp_path / "one", seconds=400.0, cut_s=LIMIT_S, patience_s=3.0, lonely_s=12.0)
    assert "did not come back within 3 s" in found["error"]
    assert 0 in found["blocks"]
    assert found["count"] >= 20
    assert time.monotonic() - began < 150  # of the 400 that were to be measured
    end = time.monotonic() + 60.0  # the last follower goes after 30 s without a word from us
    while (left := agents_left(str(server.place / "there"))) and time.monotonic() < end:
        time.sleep(0.5)
    assert left == []
    cable.set("up")
    works_again(cable, server, tmp_path / "next")


def test_nobody_is_there(cable: Cable, server: OpenSsh, tmp_path: Path) -> None:
    cable.set("down")
    found = visit(cable, server, tmp_path / "one", seconds=0.4, cut_s=0.0, patience_s=3.0, lonely_s=120.0)
    wanted = (
        f"ssh://{cable.SERVER}:{server.port}: (no way leads there|no answer within 20 s): is it on, and in this"
    )
    assert re.match(wanted, found["refused"]), found
    cable.set("up")
    works_again(cable, server, tmp_path / "next")


def works_again(cable: Cable, server: OpenSsh, folder: Path) -> None:
    found = visit(cable, server, folder, seconds=0.4, cut_s=0.0, patience_s=3.0, lonely_s=120.0)
    assert found["error"] == ""
    assert found["blocks"] == list(range(8))
