"""Core ML files on a Mac over SSH: a server in this process, and on it what stands in for macOS and coremltools.

No Mac was there: this shows that our side of it works, not that Core ML answers so.
"""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import result
from edgekit.artifact import Artifact, TensorSpec
from edgekit.bench import bench
from edgekit.cli import main
from edgekit.device import BenchJob, Entry, open_device
from edgekit.errors import DeviceError, UsageError
from edgekit.mac import placement
from edgekit.measure import judge
from edgekit.operators import Placed
from edgekit.preprocess import Preprocess
from edgekit.recipe import BenchSpec
from edgekit.visit import Images
from tests import tiny_models
from tests.ssh_servers import Server, know, serving, tools, user
from tests.test_devices import agents_left, quiet

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

STAND_IN = Path(__file__).parent / "data/mac"
LABELS = ("red", "green", "blue", "dark")
WEIGHTS = [[3, 0, 0], [0, 3, 0], [0, 0, 3], [-1, -1, -1]]
COUNT = 24
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 1, 1), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
TRUTH = tuple(int(one) for one in (PIXELS.mean((2, 3)) @ np.array(WEIGHTS).T).argmax(1))
SHORT = BenchSpec(samples=130, seconds=2.0, blocks=2, warmup=2, warmup_seconds=0.1)  # for QUICK


def mac(place: Path, home: Path, **shims: str) -> Server:
    """A machine in *place* that says it is a Mac, known to the user."""
    key = user(home)
    python = f'PYTHONPATH={shlex.quote(str(STAND_IN))} exec {shlex.quote(sys.executable)} "$@"'
    given = {
        "python3": python,
        "uname": 'case "$1" in -s) echo Darwin;; -m) echo arm64;; *) exec /bin/uname "$@";; esac',
        "caffeinate": f'echo "$@" >> {place}/caffeinate.log; exec sleep 0',
        "sw_vers": "echo 15.1",
        "notifyutil": f'echo "$2 $(cat {place}/pressure)"',
        **shims,
    }
    environment = {"PATH": tools(place / "bin", **given), "HOME": str(place)}
    (place / "pressure").write_text("0")
    server = Server(place, environment, key)
    know(home, server.port, server.host_key.export_public_key().decode().strip())
    return server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return tmp_path / "home"


@pytest.fixture
def server(tmp_path: Path, home: Path) -> Iterator[Server]:
    with serving(mac(tmp_path / "mac", home)) as server:
        yield server
    assert agents_left(str(tmp_path / "mac")) == []


def package(path: Path, **more: Any) -> Artifact:
    path.mkdir(parents=True)
    (path / "stand_in.json").write_text(json.dumps({"labels": LABELS, "weights": WEIGHTS, **more}))
    one = tiny_models.artifact_of(path, "coreml", dtype="image", shape=(1, 3, 8, 8))
    return replace(
        one,
        input_is="pixels",
        labels=LABELS,
        precision="fp16",
        output=TensorSpec(name="classLabel_probs", shape=(1, 4), dtype="dictionary"),
        preprocess=Preprocess(height=8, width=8),
    )


def job_of(folder: Path, artifacts: list[Artifact], **changes: Any) -> BenchJob:
    np.save(folder / "inputs.npy", PIXELS)
    entries = tuple(Entry(artifact=a, threads=1, inputs=folder / "inputs.npy", predict=True) for a in artifacts)
    job = BenchJob(entries=entries, samples=20, seconds=0.2, blocks=2, warmup=2, warmup_seconds=0.0, top_k=4)
    return replace(job, **changes)


def address(server: Server, query: str = "") -> str:
    return f"mac+ssh://127.0.0.1:{server.port}{query}"


def test_a_visit_to_a_mac(server: Server, tmp_path: Path) -> None:
    artifacts = [package(tmp_path / "a.mlpackage"), package(tmp_path / "b.mlpackage", broken=True)]
    device = open_device(address(server))
    assert device.info.address == address(server)
    assert device.info.fake  # what ran there only stands in for Core ML
    assert device.runtimes["coreml"] == "coremltools 9.0+fake"
    good, bad = device.run(job_of(tmp_path, artifacts), quiet)
    device.close()
    assert good.error == ""
    assert (good.runtime, good.runtime_version, good.delegate) == ("coremltools", "9.0+fake", "ALL")
    assert good.measurement is not None
    assert set(good.measurement.blocks) == {0, 1}
    assert good.measurement.load_ms > 0
    assert good.measurement.compile_ms is not None
    assert good.measurement.compile_ms > 0
    assert np.array(good.top).reshape(COUNT, 4)[:, 0].tolist() == list(TRUTH)
    assert good.plan == (
        Placed(name="y", kind="conv", unit="NE", share=0.75),
        Placed(name="z", kind="softmax", unit="CPU", share=0.25),
    )
    assert good.telemetry
    assert {one.throttled for one in good.telemetry} == {False}
    assert good.notes == ()
    assert "Failed to build the model execution plan" in bad.error
    assert re.fullmatch(r"-i -w \d+\n", (server.home / "caffeinate.log").read_text())
    assert list((server.home / ".edgekit/visits").iterdir()) == []


def test_a_package_that_is_there_is_not_sent_again(server: Server, tmp_path: Path) -> None:
    artifact = package(tmp_path / "a.mlpackage", filler=np.random.default_rng(0).random(4000).tolist())
    received = []
    for _ in range(2):
        device, before = open_device(address(server)), server.received
        (outcome,) = device.run(job_of(tmp_path, [artifact]), quiet)
        device.close()
        assert outcome.error == ""
        received.append(server.received - before)
    assert received[0] > 20_000
    assert received[1] < 3_000


def test_the_unit_is_what_core_ml_may_use(server: Server, tmp_path: Path) -> None:
    device = open_device(address(server, "?unit=CPU_AND_NE"))
    (outcome,) = device.run(job_of(tmp_path, [package(tmp_path / "a.mlpackage")]), quiet)
    device.close()
    assert outcome.delegate == "CPU_AND_NE"
    assert {one.unit for one in outcome.plan} == {"CPU"}
    assert outcome.notes == ("the delegate fell back: Core ML plans all 2 operators for the CPU",)
    assert outcome.measurement is not None
    assert not judge(outcome.measurement, outcome.telemetry, outcome.notes).valid


def test_thermal_pressure_makes_a_run_invalid(server: Server, tmp_path: Path) -> None:
    (server.home / "pressure").write_text("2")
    device = open_device(address(server))
    (outcome,) = device.run(job_of(tmp_path, [package(tmp_path / "a.mlpackage")]), quiet)
    device.close()
    assert outcome.measurement is not None
    reasons = judge(outcome.measurement, outcome.telemetry).reasons
    assert any(reason.startswith("the device throttled (thermal pressure)") for reason in reasons)


def test_classes_of_no_known_order_are_refused(server: Server, tmp_path: Path) -> None:
    device = open_device(address(server))
    (outcome,) = device.run(job_of(tmp_path, [package(tmp_path / "a.mlpackage", told=False)]), quiet)
    device.close()
    assert outcome.error == "the package does not tell the order of its classes: it was not made by edgekit"


def test_a_link_that_is_lost_and_comes_back_costs_nothing(server: Server, tmp_path: Path) -> None:
    dropped: list[str] = []

    def drop_once(text: str, share: float) -> None:
        if text == "a: block 2 of 4" and not dropped:
            dropped.append(text)
            server.drop()

    device = open_device(address(server))
    job = job_of(tmp_path, [package(tmp_path / "a.mlpackage")], seconds=4.0, blocks=4)
    (outcome,) = device.run(job, drop_once)
    device.close()
    assert dropped
    assert outcome.error == ""
    assert outcome.measurement is not None
    assert set(outcome.measurement.blocks) == {0, 1, 2, 3}


def test_results_say_fake_and_keep_the_plan(server: Server, tmp_path: Path) -> None:
    images = Images(
        name="colours",
        images_sha256="0" * 64,
        truth=TRUTH,
        classes=LABELS,
        read=lambda _: np.ascontiguousarray(PIXELS.transpose(0, 2, 3, 1)),
    )
    spec = BenchSpec(samples=20, seconds=0.2, blocks=2, warmup=2, warmup_seconds=0.0)
    artifact, device = package(tmp_path / "a.mlpackage"), open_device(address(server))
    (found,) = bench([artifact], device, spec, tmp_path / "out", images=images, progress=quiet)
    device.close()
    assert found.predictions is not None
    assert found.predictions.correct(1) == COUNT
    written = json.loads((tmp_path / "out/a.json").read_text())
    assert written["device"]["fake"] is True
    assert written["plan"][0] == {"name": "y", "kind": "conv", "unit": "NE", "share": 0.75}
    assert result.read(tmp_path / "out/a.json").plan == found.plan
    assert placement(found.plan) == (
        "of 2 operators 1 on the NE (75 % of the estimated cost), 1 on the CPU (25 % of the estimated cost)"
    )


# --- what a user sees when it fails ----------------------------------------------------------------


REFUSED = {
    "no Mac": ({"uname": 'exec /bin/uname "$@"'}, r"runs Linux: Core ML is measured on a Mac; .* is ssh://"),
    "no Python": ({"python3": "exit 1"}, "it has no Python 3: coremltools needs 3.10 or newer"),
    "no coremltools": (
        {"python3": f'PYTHONPATH= exec {shlex.quote(sys.executable)} "$@"'},  # it converts here, and runs nothing
        "nothing there runs coreml files: .*python3 -m pip install coremltools pillow",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_machine_that_cannot(case: str, tmp_path: Path, home: Path) -> None:
    shims, message = REFUSED[case]
    with (
        serving(mac(tmp_path / "mac", home, **shims)) as server,
        pytest.raises(DeviceError, match=message),
    ):
        open_device(address(server))


def test_addresses_that_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UsageError, match=r"unit is 'CPU_ONL'; choose from ALL, CPU_ONLY, .*did you mean 'CPU_ONLY'"
    ):
        open_device("mac+ssh://me@mac?unit=CPU_ONL")
    with pytest.raises(UsageError, match="unknown option 'units'; did you mean 'unit'"):
        open_device("mac+ssh://me@mac?units=ALL")
    with pytest.raises(UsageError, match=r"this Mac is just 'mac'; another one is mac\+ssh://me@other"):
        open_device("mac://me@other")
    with pytest.raises(DeviceError, match=r"this machine is no Mac; another one is mac\+ssh://USER@HOST"):
        open_device("mac")


def test_the_table_says_where_operators_run(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit import files
    from edgekit.artifact import sidecar
    from edgekit.schema import encode

    artifact = package(tmp_path / "a.mlpackage")
    files.write_json(sidecar(artifact.path), encode(artifact))
    monkeypatch.setattr("edgekit.recipe.QUICK", SHORT)
    words = ["bench", str(artifact.path), "--device", address(server), "--out", str(tmp_path / "out"), "--quick"]
    assert main(words) == 0
    assert "a with ALL: of 2 operators 1 on the NE (75 % of the estimated cost)" in capsys.readouterr().err


def test_two_units_are_measured_in_turn_and_compared(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit import files
    from edgekit.artifact import sidecar
    from edgekit.schema import encode

    artifact = package(tmp_path / "a.mlpackage")
    files.write_json(sidecar(artifact.path), encode(artifact))
    monkeypatch.setattr("edgekit.recipe.QUICK", SHORT)
    words = ["--device", address(server, "?unit=CPU_ONLY,ALL"), "--out", str(tmp_path / "out"), "--quick"]
    assert main(["bench", str(artifact.path), *words, "--allow-invalid"]) == 0
    found = [result.read(path) for path in sorted((tmp_path / "out").glob("*/a.json"))]
    assert sorted(one.settings.delegate for one in found) == ["ALL", "CPU_ONLY"]
    assert {one.device.address[-8:] for one in found} == {"CPU_ONLY", "unit=ALL"}
    shown = capsys.readouterr()
    assert "a with CPU_ONLY: of 2 operators 2 on the CPU" in shown.err
    assert shown.out.count("a ") >= 2
