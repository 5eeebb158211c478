"""Core ML files on an iPhone at a Mac over SSH: the packages are real, the Mac, Xcode, coremltools and phone not.

No Mac and no iPhone were there: this shows that our side of it works, and what it says when something is missing.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import convert, mil
from edgekit.artifact import Artifact
from edgekit.cli import main
from edgekit.coreml.tensors import as_tensors
from edgekit.device import open_device
from edgekit.errors import ArtifactError, DeviceError, UsageError
from edgekit.export import ExportSource, PixelClassifier
from edgekit.operators import Placed
from edgekit.preprocess import Preprocess
from edgekit.quiet import quiet as silently
from edgekit.recipe import Variant
from tests.ssh_servers import Server, serving, tools
from tests.test_devices import agents_left, quiet
from tests.test_mac import COUNT, LABELS, PIXELS, SHORT, TRUTH, WEIGHTS, job_of, mac

SIDE = Preprocess(height=8, width=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
TEAM = "ABCDE12345"
UDID = "00008110-000A1B2C3D4E5F60"


def phone(**changes: Any) -> dict[str, Any]:
    """An entry of ``xcrun devicectl list devices -j``, as coremltools 9.0 reads it."""
    given = {"udid": UDID, "name": "Ada's iPhone", "state": "connected", "developer": "enabled", "kind": "iPhone"}
    given |= changes
    return {
        "identifier": f"id-{given['udid']}",
        "connectionProperties": {"tunnelState": given["state"]},
        "deviceProperties": {
            "name": given["name"],
            "developerModeStatus": given["developer"],
            "osVersionNumber": "18.1",
            "osBuildUpdate": "22B83",
        },
        "hardwareProperties": {
            "udid": given["udid"],
            "deviceType": given["kind"],
            "marketingName": "iPhone 13",
            "productType": "iPhone14,5",
            "platform": "iOS",
        },
    }


XCRUN = """
case "$*" in
*"list devices"*) for last; do :; done; cat "$HOME/devices.json" > "$last";;
*"info details"*) [ ! -f "$HOME/asleep" ] || { cat "$HOME/awake.json" > "$HOME/devices.json"; };;
*) exit 1;;
esac
"""
XCODE = {
    "xcode-select": "echo /Applications/Xcode.app/Contents/Developer",
    "xcodebuild": "echo Xcode 16.1",
    "devicectl": "exit 1",
    "xcrun": XCRUN,
}


def put(home: Path, *phones: dict[str, Any], name: str = "devices.json") -> None:
    (home / name).write_text(json.dumps({"result": {"devices": list(phones)}}))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return tmp_path / "home"


def at_mac(tmp_path: Path, home: Path, **shims: str) -> Server:
    server = mac(tmp_path / "mac", home, **{**XCODE, **shims})
    put(server.home, phone(), phone(kind="appleWatch", udid="watch", name="Watch"))
    (server.home / "stand_in.json").write_text(json.dumps({"weights": WEIGHTS}))
    return server


@pytest.fixture
def server(tmp_path: Path, home: Path) -> Iterator[Server]:
    with serving(at_mac(tmp_path, home)) as server:
        yield server
    assert agents_left(str(tmp_path / "mac")) == []


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A real package of the network that the stand-in computes."""
    dense = nn.Linear(3, len(LABELS), bias=False)
    with torch.no_grad():
        dense.weight.copy_(torch.tensor(WEIGHTS).float())
    mean = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), dense)
    source = ExportSource(model=PixelClassifier(mean, SIDE).eval(), preprocess=SIDE, labels=LABELS)
    images = np.ascontiguousarray(PIXELS.transpose(0, 2, 3, 1))
    out = tmp_path_factory.mktemp("made")
    return convert.convert(source, [Variant(target="coreml", precision="fp16")], images, out, quiet)[0]


def address(server: Server, query: str = f"?iphone=any&team={TEAM}") -> str:
    return f"mac+ssh://127.0.0.1:{server.port}{query}"


def test_a_visit_to_an_iphone(server: Server, tmp_path: Path, artifact: Artifact) -> None:
    (server.home / "pressure").write_text("2")
    device = open_device(address(server))
    assert (device.info.model, device.info.os, device.info.kernel) == ("iPhone 13", "iOS 18.1", "22B83")
    assert (device.info.cores, device.info.memory_bytes, device.info.fake) == (1, None, True)
    assert device.runtimes == {"coreml": "coremltools 9.0+fake"}
    outcomes = device.run(job_of(tmp_path, [artifact, replace(artifact, file="again.mlpackage")]), quiet)
    device.close()
    assert len(outcomes) == 2
    for one in outcomes:
        assert one.error == ""
        assert one.measurement is not None
        assert set(one.measurement.blocks) == {0, 1}
        assert {sample // 100_000 for sample in one.measurement.samples_ns} == {25}  # 2.5 ms, the phone's own
        assert one.measurement.first_ms == pytest.approx(2.5, abs=0.01)
        assert one.measurement.load_ms == 41.0
        assert one.measurement.peak_memory_bytes is None
        assert one.plan[0] == Placed(name="y", kind="conv", unit="NE", share=0.75)
        assert True not in {point.throttled for point in one.telemetry}  # the Mac's heat is not the phone's
        assert np.array(one.top).reshape(COUNT, 4)[:, 0].tolist() == list(TRUTH)
        assert one.notes == ()
    log = (server.home / "modelrunner.log").read_text().splitlines()
    assert log == [f"{TEAM} com.edgekit.modelrunner.abcde12345", "stopped"] * 2  # one after the other
    assert list((server.home / ".edgekit").glob("modelrunner-*/build/*")) == []


def test_results_of_an_iphone_say_fake(
    server: Server,
    tmp_path: Path,
    artifact: Artifact,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgekit.recipe.QUICK", SHORT)
    words = ["bench", str(artifact.path), "--device", address(server), "--out", str(tmp_path / "out"), "--quick"]
    assert main(words) == 0
    written = json.loads((tmp_path / "out/coreml-fp16.json").read_text())
    assert written["device"]["fake"] is True
    assert written["device"]["model"] == "iPhone 13"
    assert written["settings"]["threads"] == 1
    assert "iPhone 13" in capsys.readouterr().out


def test_a_phone_that_sleeps_is_woken(server: Server) -> None:
    put(server.home, phone(state="disconnected"))
    put(server.home, phone(), name="awake.json")
    (server.home / "asleep").touch()
    device = open_device(address(server, f"?iphone={UDID}&team={TEAM}"))
    device.close()
    assert device.info.model == "iPhone 13"


def test_a_package_as_tensors_gives_the_same(tmp_path: Path, artifact: Artifact) -> None:
    as_tensors(artifact.path, tmp_path / "plain.mlpackage")
    with silently():
        import coremltools as ct

        spec = ct.models.MLModel(str(tmp_path / "plain.mlpackage"), skip_model_load=True).get_spec()
    (given,), (told,) = spec.description.input, spec.description.output
    assert (given.name, tuple(given.type.multiArrayType.shape)) == ("image", (1, 3, 8, 8))
    assert tuple(told.type.multiArrayType.shape) == (1, 4)
    assert spec.description.predictedFeatureName == ""
    function = mil.load(tmp_path / "plain.mlpackage")
    assert "classify" not in mil.operators(function)
    images = torch.from_numpy(PIXELS).float()
    plain, whole = mil.reference(tmp_path / "plain.mlpackage"), mil.reference(artifact.path)
    assert torch.equal(plain.logits(images), whole.logits(images))
    assert plain.logits(images).argmax(1).tolist() == list(TRUTH)


def test_coremltools_has_what_the_agent_calls(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one, as far as it goes without a Mac: the names are experimental, and the stand-in claims them."""
    with silently():
        from coremltools.models.ml_program.experimental import async_wrapper, remote_device

    home.mkdir(exist_ok=True)
    put(home, phone(), phone(udid="away", state="disconnected"))
    monkeypatch.setenv("PATH", tools(tmp_path / "bin", **XCODE))
    first, second = remote_device.Device.get_devices()
    assert (first.udid, first.name, first.developer_mode_state) == (UDID, "Ada's iPhone", "enabled")
    assert first.state == remote_device.DeviceState.CONNECTED != second.state
    signing = remote_device.AppSigningCredentials(development_team=TEAM, bundle_identifier="com.x")
    assert signing.provisioning_profile_uuid is None
    taken = {
        remote_device.Device.prepare_for_model_debugging: ["credentials", "working_directory"],
        async_wrapper.MLModelAsyncWrapper.from_spec_or_path: [
            "spec_or_path",
            "weights_dir",
            "compute_units",
            "device",
        ],
        async_wrapper.RemoteMLModelAsyncWrapper.predict: ["inputs"],
        async_wrapper.RemoteMLModelAsyncWrapper.load: [],
        async_wrapper.RemoteMLModelAsyncWrapper.retrieve_compute_plan: [],
    }
    for function, names in taken.items():
        assert set(names) <= signature(function).parameters.keys(), function
    for name in ("load_duration_in_nano_seconds", "last_predict_duration_in_nano_seconds"):
        assert isinstance(getattr(async_wrapper.RemoteMLModelAsyncWrapper, name), property)
    with pytest.raises(ValueError, match="State must be CONNECTED"):
        asyncio.run(second.prepare_for_model_debugging(signing, tmp_path))


def test_a_package_that_the_app_could_not_run_is_refused(tmp_path: Path, artifact: Artifact) -> None:
    (tmp_path / "no.mlpackage").mkdir()
    with pytest.raises(ArtifactError, match=r"no\.mlpackage is not a sound Core ML package"):
        as_tensors(tmp_path / "no.mlpackage", tmp_path / "out.mlpackage")
    as_tensors(artifact.path, tmp_path / "plain.mlpackage")
    with pytest.raises(ArtifactError, match=r"plain\.mlpackage does not take an image"):
        as_tensors(tmp_path / "plain.mlpackage", tmp_path / "out.mlpackage")


# --- what a user sees when it fails ----------------------------------------------------------------


def listing(*phones: dict[str, Any]) -> Callable[[Path], None]:
    return lambda home: put(home, *phones)


OTHER = phone(udid="00008120-0000000000000001", name="Bob's iPhone")
REFUSED: dict[str, tuple[dict[str, str], Callable[[Path], None], str]] = {
    "no Xcode": (
        {"xcodebuild": "echo xcode-select: error: tool requires Xcode >&2; exit 1"},
        listing(phone()),
        r"needs Xcode on the Mac: install it from the App Store, open it once, then sudo xcode-select -s /App",
    ),
    "old Xcode": (
        {"devicectl": ""},
        lambda home: (home / "bin/devicectl").unlink(),
        r"needs Xcode 15 or newer on the Mac: this one has no devicectl",
    ),
    "no list": ({"xcrun": "exit 1"}, listing(phone()), r"xcrun devicectl list devices gives no list of devices"),
    "no iPhone": (
        {},
        listing(phone(kind="iPad")),
        r"the Mac knows no iPhone: connect one with a cable, unlock it, and trust the Mac on it",
    ),
    "away": (
        {},
        listing(phone(state="disconnected")),
        r"Ada's iPhone is disconnected: connect its cable, and unlock it",
    ),
    "two": (
        {},
        listing(phone(), OTHER),
        r"several iPhones: name one of Ada's iPhone \(iphone=00008110-.*\), Bob's iPhone \(iphone=00008120-",
    ),
    "no Developer Mode": (
        {},
        listing(phone(developer="disabled")),
        r"Developer Mode is off on Ada's iPhone: turn it on in Settings, Privacy & Security, Developer Mode",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_missing_is_told(case: str, tmp_path: Path, home: Path) -> None:
    shims, change, message = REFUSED[case]
    with serving(at_mac(tmp_path, home, **shims)) as server:
        change(server.home)
        with pytest.raises(DeviceError, match=message):
            open_device(address(server))


def test_another_phone_than_the_named_one(server: Server) -> None:
    with pytest.raises(
        DeviceError, match=r"knows no iPhone 00008120-0000000000000001; it knows Ada's iPhone \(iphone=0"
    ):
        open_device(address(server, f"?iphone=00008120-0000000000000001&team={TEAM}"))


def test_an_old_coremltools(server: Server, tmp_path: Path) -> None:
    import shutil

    from tests.test_mac import STAND_IN

    shutil.copytree(STAND_IN, tmp_path / "old")
    shutil.rmtree(tmp_path / "old/coremltools/models/ml_program")
    python = (server.home / "bin/python3").read_text().replace(str(STAND_IN), str(tmp_path / "old"))
    (server.home / "bin/python3").write_text(python)
    with pytest.raises(
        DeviceError, match=r"coremltools 9\.0\+fake there does not reach an iPhone; 9\.0 does: .* pip install -U"
    ):
        open_device(address(server))


def test_an_app_that_cannot_be_signed(server: Server, tmp_path: Path, artifact: Artifact) -> None:
    (server.home / "locked").touch()
    device = open_device(address(server))
    (outcome,) = device.run(job_of(tmp_path, [artifact]), quiet)
    device.close()
    assert outcome.error == (
        "the app that measures could not be brought onto Ada's iPhone (RuntimeError: [Error Code 65] None): "
        "unlock the phone; is the team right, and may its key sign here (security unlock-keychain)?"
    )


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?iphone=mine&team=ABCDE12345", "iphone is 'mine'; it is any, or a UDID"),
        ("?iphone=any", "iphone and team go together: the phone, and who signs"),
        ("?team=ABCDE12345", "iphone and team go together"),
        ("?iphone=any&team=me", "team is 'me'; an Apple developer team has ten letters and digits"),
    ],
)
def test_addresses_that_are_wrong(query: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_device(f"mac+ssh://me@mac{query}")
