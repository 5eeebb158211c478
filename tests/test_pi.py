"""A "Raspberry Pi" over SSH and over adb, ARM Python under QEMU behind a server: set up, used, cleared."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekit import report
from edgekit.bench import bench
from edgekit.cli import main
from edgekit.device import open_device
from edgekit.recipe import BenchSpec
from edgekit.result import Result
from tests import adb_devices, tiny_models
from tests.emulated import CPUS, FOLDER, needs_arm64
from tests.ssh_servers import PI2, Server, know, pi_environment, serving, user
from tests.test_devices import agents_left, job_of, quiet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.arm64,
    needs_arm64,
    pytest.mark.skipif(sys.platform != "linux", reason="QEMU's user mode is Linux's"),
]
A72, A76 = CPUS


@dataclass(frozen=True, kw_only=True)
class Pi:
    """*folder*: edgekit's there."""

    scheme: str
    folder: Path
    small: bool


@pytest.fixture(params=[("ssh", A72), ("adb", A76), ("ssh", PI2)], ids=" ".join)
def pi(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pi]:
    scheme, cpu = request.param
    home, place = tmp_path / "home", tmp_path / "pi"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("EDGEKIT_DEVICES", str(tmp_path / "devices.toml"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # those that scripts/setup-emulated-devices fetched
    monkeypatch.setenv("PIP_FIND_LINKS", str(FOLDER / "wheels"))
    environment = pi_environment(place, cpu)
    with ExitStack() as stack:
        if scheme == "ssh":
            key = user(home)
            server = stack.enter_context(serving(Server(place, environment, key)))
            know(home, server.port, server.host_key.export_public_key().decode().strip())
            address, folder = f"ssh://pi@127.0.0.1:{server.port}", place / ".edgekit"
        elif why := adb_devices.missing():
            pytest.skip(why)
        else:
            found = adb_devices.running(tmp_path / "adb", monkeypatch, path=environment["PATH"])
            board = stack.enter_context(found)
            address, folder = board.full, board.folder
        (tmp_path / "devices.toml").write_text(f'[pi]\naddress = "{address}"\n')
        yield Pi(scheme=scheme, folder=folder, small=cpu == PI2)
    assert agents_left(str(folder)) == []


def test_from_a_bare_board_to_a_result_and_back(
    pi: Pi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str, status: int = 0) -> str:
        assert main(["device", *words]) == status
        got = capsys.readouterr()
        return got.out + got.err

    assert "nothing there runs tflite files: edgekit device setup pi\n" in said("check", "pi", status=1)
    assert "nothing was changed" in said("setup", "pi", status=2)  # nobody can be asked
    assert not (pi.folder / "site").exists()
    installed = said("setup", "pi", "--yes")
    assert ("installed tflite-runtime 2.14.0" if pi.small else "installed ai-edge-litert 2.") in installed
    assert "is set up already" in said("setup", "pi")
    found = said("check", "pi")
    assert f"Linux {'armv7l, 32' if pi.small else 'aarch64, 64'} bits, glibc 2." in found
    assert "(emulated: its latency is never ranked)" in found
    assert re.search(r"cpu +Cortex-A7", found), found
    assert pi.small or "xnnpack" in found
    measured(tmp_path, "armv7l" if pi.small else "aarch64")
    pushed = [path.name for path in pi.folder.iterdir()]
    assert {"runtime.json", "site", "agent", "cache"} <= set(pushed)
    assert list(tmp_path.glob("home/.edgekit")) == []  # here nothing
    assert "is gone" in said("setup", "pi", "--remove", "--yes")
    assert not pi.folder.exists()


def measured(folder: Path, architecture: str) -> None:
    artifacts = [tiny_models.tflite(folder / "a.tflite"), tiny_models.tflite(folder / "b.tflite", seed=1)]
    device = open_device("pi")
    newer = tiny_models.strange(folder / "newer.tflite", "newer")
    (outcome,) = device.run(job_of(folder, [newer]), quiet)
    assert outcome.error.startswith("the runtime lacks operator FULLY_CONNECTED version 99: it is older than")
    assert device.info.architecture == architecture
    assert device.info.emulated
    spec = BenchSpec(samples=130, seconds=0.5, blocks=2, warmup=2, warmup_seconds=0.0)
    results = bench(artifacts, device, spec, folder / "results", images=None, progress=quiet)
    device.close()
    for one in results:
        stored = json.loads((folder / "results" / f"{one.name}.json").read_text())
        assert stored["device"]["emulated"] is True
        assert any("emulated" in reason for reason in one.validity.reasons)
        check_told(one, small=architecture == "armv7l")
    assert device.info.clusters[0].part.startswith("0x41/0xd" if architecture == "aarch64" else "0x41/0xc")
    # No fastest file, and no ratio, also not when asked for invalid ones.
    comparison = report.as_json(report.compare(results, allow_invalid=True))
    assert "a fake or emulated device is never ranked" in json.dumps(comparison)


def check_told(one: Result, *, small: bool) -> None:
    """Operators by name, their costs where the runtime has a profiler, and no memory: the emulator's own."""
    assert one.delegation is not None
    assert one.delegation.total == 3
    assert one.delegation.taken or small
    assert one.profile is not None
    if small:
        assert one.profile.absent == "tflite-runtime has no profiler"
    else:
        assert one.profile.absent == ""
        assert [cost.layer for cost in one.profile.costs if cost.operator.startswith("Fully")] == ["logits"]
    assert one.measurement.peak_memory_bytes is None
    assert one.measurement.load_ms > 0
    assert one.measurement.first_ms > 0
