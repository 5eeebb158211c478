"""A "Raspberry Pi" over SSH, arm64 Python under QEMU behind a server in this process: set up, checked, used."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit import report
from edgekit.bench import bench
from edgekit.cli import main
from edgekit.device import open_device
from edgekit.recipe import BenchSpec
from tests import tiny_models
from tests.emulated import CPUS, FOLDER, needs_arm64
from tests.ssh_servers import PI2, Server, know, pi_environment, serving, user
from tests.test_devices import agents_left, quiet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.arm64,
    needs_arm64,
    pytest.mark.skipif(sys.platform != "linux", reason="QEMU's user mode is Linux's"),
]


@pytest.fixture(params=[*CPUS, PI2])
def pi(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    home, place = tmp_path / "home", tmp_path / "pi"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("EDGEKIT_DEVICES", str(home / "devices.toml"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # those that scripts/setup-emulated-devices fetched
    monkeypatch.setenv("PIP_FIND_LINKS", str(FOLDER / "wheels"))
    key = user(home)
    with serving(Server(place, pi_environment(place, request.param), key)) as server:
        know(home, server.port, server.host_key.export_public_key().decode().strip())
        (home / "devices.toml").write_text(f'[pi]\naddress = "ssh://pi@127.0.0.1:{server.port}"\n')
        yield server
    assert agents_left(str(place)) == []


def test_from_a_bare_board_to_a_result_and_back(
    pi: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str, status: int = 0) -> str:
        assert main(["device", *words]) == status
        got = capsys.readouterr()
        return got.out + got.err

    assert "nothing there runs tflite files: edgekit device setup ssh://pi@127.0.0.1" in said(
        "check", "pi", status=1
    )
    assert "nothing was changed" in said("setup", "pi", status=2)  # nobody can be asked
    assert not (pi.home / ".edgekit/site").exists()
    installed = said("setup", "pi", "--yes")
    small = pi.environment["CPU"] == PI2
    assert ("installed tflite-runtime 2.14.0" if small else "installed ai-edge-litert 2.") in installed
    assert "is set up already" in said("setup", "pi")
    found = said("check", "pi")
    assert f"Linux {'armv7l, 32' if small else 'aarch64, 64'} bits, glibc 2." in found
    assert "(emulated: its latency is never ranked)" in found
    assert re.search(r"cpu +Cortex-A7", found), found
    assert small or "xnnpack" in found
    measured(tmp_path, "armv7l" if small else "aarch64")
    pushed = [path.name for path in (pi.home / ".edgekit").iterdir()]
    assert {"runtime.json", "site", "agent", "cache"} <= set(pushed)
    assert "is gone" in said("setup", "pi", "--remove", "--yes")
    assert not (pi.home / ".edgekit").exists()


def measured(folder: Path, architecture: str) -> None:
    artifacts = [tiny_models.tflite(folder / "a.tflite"), tiny_models.tflite(folder / "b.tflite", seed=1)]
    device = open_device("pi")
    assert device.info.architecture == architecture
    assert device.info.emulated
    spec = BenchSpec(samples=130, seconds=0.5, blocks=2, warmup=2, warmup_seconds=0.0)
    results = bench(artifacts, device, spec, folder / "results", images=None, progress=quiet)
    device.close()
    for one in results:
        stored = json.loads((folder / "results" / f"{one.name}.json").read_text())
        assert stored["device"]["emulated"] is True
        assert any("emulated" in reason for reason in one.validity.reasons)
    # No fastest file, and no ratio, also not when asked for invalid ones.
    comparison = report.as_json(report.compare(results, allow_invalid=True))
    assert "a fake or emulated device is never ranked" in json.dumps(comparison)
