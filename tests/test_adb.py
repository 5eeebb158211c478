"""Devices over adb: the real adbd and client; links that break; what a user sees when it fails."""

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit import artifact as artifacts
from edgekit import result
from edgekit.cli import main
from edgekit.device import Outcome, open_device
from edgekit.errors import DeviceError, MissingDependency, UsageError
from edgekit.recipe import BenchSpec
from edgekit.remote import AgentDevice
from edgekit.transport import Ended, LinkLost, output, reconnect
from edgekit.transport.adb import AdbTransport
from edgekit.transport.adb_connect import parse
from edgekit.transport.push import parcel, push
from tests import tiny_models
from tests.adb_devices import PORT, Board, needs_adbd, refusing, running
from tests.test_devices import agents_left, job_of, quiet
from tests.test_transport import big, gone

pytestmark = [pytest.mark.adbd, needs_adbd]


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    with running(tmp_path / "board", monkeypatch) as board:
        yield board
        assert agents_left(str(tmp_path / "board")) == []


def connected(board: Board) -> AdbTransport:
    transport = AdbTransport(parse(board.serial))
    transport.connect()
    return transport


def opened(board: Board, **changes: Any) -> AgentDevice:
    device = open_device(board.full)
    assert isinstance(device, AgentDevice)
    return replace(device, **changes)


def count(outcome: Outcome) -> int:
    return len(outcome.measurement.samples_ns) if outcome.measurement else 0


def test_every_status_of_a_command_is_its_own(board: Board) -> None:
    transport = connected(board)
    for status in (0, 1, 3, 255):
        assert transport.run(f"exit {status}", limit_s=20).status == status
    assert transport.run("printf x >&2", limit_s=20) == Ended(status=0, stderr="x")


def test_a_link_that_is_gone_is_an_error_at_once(board: Board) -> None:
    transport = connected(board)
    began = time.monotonic()

    def drop(line: bytes) -> None:
        (board.place / "hold").touch()
        board.kill()

    with pytest.raises(LinkLost, match="the link was lost"):
        transport.run("echo on; sleep 60", limit_s=60, feed=drop)
    with pytest.raises(LinkLost, match="the link was lost"):
        transport.run("true", limit_s=5)
    with pytest.raises(LinkLost, match="refused"):
        reconnect(transport, 2.0)
    assert time.monotonic() - began < 15
    (board.place / "hold").unlink()
    reconnect(transport, 10.0)
    assert transport.run("true", limit_s=5) == Ended(status=0)


def test_a_push_goes_on_where_the_link_was_lost(board: Board, tmp_path: Path) -> None:
    transport, one = connected(board), parcel(big(tmp_path, size=20_000_000))
    dropped: list[float] = []

    def drop(text: str, share: float) -> None:
        if share > 0.5 and not dropped:
            dropped.append(share)
            board.kill()

    there = push(transport, f"{tmp_path}/there", [one], drop)
    assert dropped
    back = tmp_path / "back"
    transport.pull(there[one], back)
    assert parcel(back).sha256 == one.sha256


def test_a_device_that_falls_silent_is_noticed(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.transport.adb.SILENT_S", 1.0)
    monkeypatch.setattr("edgekit.transport.adb_connect.ANSWER_S", 2.0)
    monkeypatch.setattr("edgekit.transport.adb_connect.ask.__kwdefaults__", {"limit_s": 2.0, "address": "adb"})
    transport = connected(board)
    assert output(transport, "sleep 2.5; echo slow") == "slow\n"  # silence alone is no fault
    with board.frozen(), pytest.raises(LinkLost, match="it answers no more"):
        transport.run("sleep 60", limit_s=60)


def test_a_device_that_refuses_this_computer(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.transport.adb_connect.SETTLE_S", 1.0)
    target = parse(f"127.0.0.1:{PORT + 1}")
    with (
        refusing(board, PORT + 1, "unauthorized"),
        pytest.raises(DeviceError, match="it does not know this computer: unlock it, say yes to 'Allow USB"),
    ):
        AdbTransport(target).connect()


def test_a_device_that_says_nothing(board: Board) -> None:
    target = parse(f"127.0.0.1:{PORT + 1}")
    with (
        refusing(board, PORT + 1, "mute"),
        pytest.raises(LinkLost, match=r"failed to connect to .*: is it on, in this network, and listening"),
    ):
        AdbTransport(target).connect()


@pytest.mark.parametrize(
    ("state", "cure"),
    [
        ("offline", "it is offline: unlock it, plug it in anew"),
        ("unauthorized", "it does not know this computer: unlock it"),
        (
            "no permissions (user in plugdev group; are your udev rules wrong?); see [http",
            "android-sdk-platform-tools",
        ),
        ("recovery", "it is in recovery mode: boot it"),
        ("jumping", "adb says that it is in the state 'jumping'"),
    ],
)
def test_states_of_a_phone_on_a_cable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, cure: str
) -> None:
    """There is no cable here: a program that says what `adb devices` says."""
    shim = tmp_path / "adb"
    shim.write_text(
        f"#!/bin/sh\n[ $1 != devices ] || printf 'List of devices attached\\nR5CT\\t%s\\n\\n' '{state}'\n"
    )
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("edgekit.transport.adb_connect.SETTLE_S", 0.5)
    for serial in ("R5CT", ""):
        with pytest.raises(DeviceError, match=re.escape(f"adb://R5CT: {cure}").replace("R5CT:", "R5CT:.*")):
            AdbTransport(parse(serial)).connect()


def test_which_device_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path / "board", monkeypatch, ports=(PORT, PORT + 1)) as board:
        only = AdbTransport(parse(""))
        with pytest.raises(LinkLost, match="adb sees no device: plug it in, and switch on USB debugging"):
            only.connect()
        connected(board)
        only.connect()
        assert only.address == board.address
        with pytest.raises(LinkLost, match=rf"adb://R5CT: no such device; adb sees {board.serial} \(device\)"):
            AdbTransport(parse("R5CT")).connect()
        AdbTransport(parse(f"127.0.0.1:{PORT + 1}")).connect()
        with pytest.raises(UsageError, match=rf"several devices, name one: .*{re.escape(board.address)}"):
            AdbTransport(parse("")).connect()


@pytest.mark.parametrize("place", ["-s", "a b", "host:0", "host:99999", "host:abc", "a/b"])
def test_addresses_that_are_none(place: str) -> None:
    with pytest.raises(UsageError, match=r"adb://SERIAL, as `adb devices` shows it, or adb://HOST:PORT"):
        parse(place)


def test_without_adb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match="needs the program adb: sudo apt install adb"):
        open_device("adb://R5CT")


def test_a_visit_over_adb(board: Board, tmp_path: Path) -> None:
    artifacts = [tiny_models.tflite(tmp_path / "a.tflite"), tiny_models.corrupt(tmp_path / "b.tflite")]
    device = opened(board)
    assert device.info.address == board.address
    assert device.runtimes["tflite"].startswith("ai-edge-litert")
    good, bad = device.run(job_of(tmp_path, artifacts), quiet)
    assert good.error == ""
    assert good.measurement is not None
    assert set(good.measurement.blocks) == {0, 1}
    assert len(good.top) == 12 * 4
    assert "not a valid Flatbuffer" in bad.error
    assert list((board.folder / "visits").iterdir()) == []


def test_a_link_that_is_lost_and_comes_back_costs_nothing(board: Board, tmp_path: Path) -> None:
    artifact = tiny_models.tflite(tmp_path / "a.tflite")
    dropped: list[str] = []

    def drop_once(text: str, share: float) -> None:
        if text == "a: block 2 of 4" and not dropped:
            dropped.append(text)
            board.kill()

    (outcome,) = opened(board).run(job_of(tmp_path, [artifact], seconds=4.0, blocks=4), drop_once)
    assert dropped
    assert outcome.error == ""
    assert outcome.measurement is not None
    assert set(outcome.measurement.blocks) == {0, 1, 2, 3}
    starts = outcome.measurement.starts_ns
    assert list(starts) == sorted(set(starts))  # nothing was heard twice
    assert len(outcome.top) == 12 * 4


def test_a_link_that_does_not_come_back_keeps_what_was_measured(board: Board, tmp_path: Path) -> None:
    artifact = tiny_models.tflite(tmp_path / "a.tflite")

    def drop(text: str, share: float) -> None:
        if text == "a: block 3 of 4":
            (board.place / "hold").touch()
            board.kill()

    job = job_of(tmp_path, [artifact], seconds=8.0, blocks=4)
    (outcome,) = opened(board, patience_s=2.0, limit_s=20.0).run(job, drop)
    assert "did not come back within 2 s" in outcome.error
    assert count(outcome) >= 20
    (board.place / "hold").unlink()


def test_bench_from_the_command_line(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The agent over adb beside `local`: the same files, the same images, the same answers."""
    with pytest.raises(AssertionError):  # this machine is behind both
        benched(tmp_path, monkeypatch, "--device", board.full, "--device", "local")
    assert "are one machine, whose benches would disturb each other" in capsys.readouterr().err
    monkeypatch.setattr("edgekit.remote.AgentDevice.machine", property(lambda device: "another"))
    benched(tmp_path, monkeypatch, "--device", board.full, "--device", "local")
    assert "too few samples" not in capsys.readouterr().out
    over_adb, local = (
        {path.stem: result.read(path) for path in tmp_path.glob(f"out/{kind}*/*.json")}
        for kind in ("adb", "local")
    )
    assert sorted(over_adb) == sorted(local) == ["a", "b"]
    for name, one in over_adb.items():
        assert one.measurement.count >= 130
        assert one.settings.runtime == "ai-edge-litert"
        assert one.predictions == local[name].predictions
        assert one.device.fingerprint == local[name].device.fingerprint


def benched(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """`edgekit bench` of two tiny models on 24 labelled pictures."""
    from PIL import Image

    for seed, name in enumerate("ab"):
        artifacts.write_sidecar(tiny_models.tflite(folder / f"{name}.tflite", seed=seed))
    for number, pixels in enumerate(tiny_models.pixels(24)):
        place = folder / "photos" / tiny_models.LABELS[number % 4]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    spec = BenchSpec(samples=130, seconds=1.0, blocks=2, warmup=2, warmup_seconds=0.1)
    monkeypatch.setattr("edgekit.recipe.QUICK", spec)
    files = [str(folder / "a.tflite"), str(folder / "b.tflite")]
    given = ["--data", str(folder / "photos"), "--split", "all", "--quick", "--out", str(folder / "out"), *words]
    assert main(["bench", *files, *given]) == 0


def test_an_interrupt_ends_what_runs_there(board: Board, tmp_path: Path) -> None:
    artifact = tiny_models.tflite(tmp_path / "a.tflite")

    def interrupt(text: str, share: float) -> None:
        if text == "a: block 1 of 2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(board).run(job_of(tmp_path, [artifact], seconds=60.0), interrupt)
    assert agents_left(str(board.place)) == []
    assert gone("platform-tools/adb -s")
    assert list((board.folder / "visits").iterdir()) == []
