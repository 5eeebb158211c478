"""A phone with `benchmark_model`: the real adbd and client, a stand-in for the tool that infers with LiteRT."""

import os
import shutil
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgekit import benchmark_model, files, inventory, phone, processor, result
from edgekit.benchmark_model import delegation, failure, parse_result, parse_text
from edgekit.cli import main
from edgekit.device import Device, Interrupted, Outcome, open_device
from edgekit.errors import DeviceBusy, DeviceError, UsageError
from edgekit.measure import judge, latency
from edgekit.operators import Delegation
from edgekit.phone_device import PhoneDevice
from edgekit.processor import Cluster
from tests import tiny_models
from tests.adb_devices import Board, needs_adbd, running
from tests.test_adb import benched
from tests.test_cli import Told
from tests.test_devices import job_of, quiet
from tests.test_transport import gone

if TYPE_CHECKING:

    def _is_a_device(phone: PhoneDevice) -> Device:
        return phone


TOOL = Path(__file__).parent / "benchmark_model.py"
PROPERTIES = {
    "ro.product.manufacturer": "Google",
    "ro.product.model": "Pixel 8",
    "ro.soc.manufacturer": "Google",
    "ro.soc.model": "Tensor G3",
    "ro.board.platform": "zuma",
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.build.version.release": "16",
    "ro.build.version.sdk": "36",
}
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  level: 87
  scale: 100
  voltage: 4231
  temperature: 284
"""
THERMAL = """IsStatusOverride: false
Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=99.9, mType=0, mName=CPU0, mStatus=0}
HAL Ready: true
HAL connection:
\tThermalHAL AIDL 1 connected: yes
Current temperatures from HAL:
\tTemperature{mValue=41.5, mType=0, mName=BIG, mStatus=0}
\tTemperature{mValue=44.25, mType=0, mName=MID, mStatus=0}
\tTemperature{mValue=31.0, mType=3, mName=VIRTUAL-SKIN, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=2, mName=thermal-cpufreq-0}
"""


def shim(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    """A "phone": this machine's shell, and Android's getprop and dumpsys."""
    shims = tmp_path / "shims"
    shims.mkdir()
    cases = "".join(f"{name}) echo '{value}';;\n" for name, value in PROPERTIES.items())
    shim(shims / "getprop", f"case $1 in\n{cases}esac")
    (shims / "battery").write_text(BATTERY)
    (shims / "thermalservice").write_text(THERMAL)
    shim(shims / "dumpsys", f"cat {shims}/$1")
    monkeypatch.setenv("EDGEKIT_DEVICES", str(tmp_path / "devices.toml"))
    with running(tmp_path / "board", monkeypatch, path=f"{shims}:/usr/bin:/bin") as board:
        yield board
        left = board.place / "data/local/tmp/edgekit"
        assert not (left / "phone.lock").exists()
        assert not list((left / "visits").glob("*"))


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    path = tmp_path / "benchmark_model"
    path.write_text(f"#!{sys.executable}\n{TOOL.read_text()}")
    return path


def opened(board: Board, tool: Path, delegate: str = "", **changes: Any) -> PhoneDevice:
    device = open_device(f"{board.address}?benchmark_model={tool}" + (f"&delegate={delegate}" if delegate else ""))
    assert isinstance(device, PhoneDevice)
    return replace(device, **changes)


def become(board: Board, kind: str) -> None:
    """Make the stand-in of another kind."""
    (board.place / "data/local/tmp/edgekit/cache/is").write_text(kind)


class TestOverAdb:
    pytestmark = [pytest.mark.adbd, needs_adbd]  # noqa: RUF012

    def test_a_visit(self, board: Board, tool: Path, tmp_path: Path) -> None:
        artifacts = [tiny_models.tflite(tmp_path / "a.tflite"), tiny_models.corrupt(tmp_path / "b.tflite")]
        artifacts.append(tiny_models.tflite(tmp_path / "c.tflite", seed=1))
        device = opened(board, tool)
        info = device.info
        assert (info.model, info.cpu, info.os) == ("Google Pixel 8", "Google Tensor G3", "Android 16 (API 36)")
        assert info.address == board.address
        assert info.soc == info.cpu
        assert sum(cluster.cores for cluster in info.clusters) == os.cpu_count()
        assert list(device.runtimes) == ["tflite"]
        job = job_of(tmp_path, artifacts, samples=300, blocks=3)
        told: list[str] = []
        first, bad, second = device.run(job, lambda text, share: told.append(text))
        assert "benchmark_model fails on b.tflite: it cannot read" in bad.error
        order = [text for text, _ in groupby(text for text in told if "block" in text)]
        assert [text[0] for text in order] == ["a", "b", "c"] * 3  # in turn
        for outcome, artifact in ((first, artifacts[0]), (second, artifacts[2])):
            check_measured(outcome)
            assert outcome.top == expected(artifact.path, tmp_path / "inputs.npy")
        readings = first.telemetry
        assert len(readings) >= 6  # before and after each block
        assert {reading.temperature_c for reading in readings} == {44.25}
        assert {reading.battery_percent for reading in readings} == {87.0}
        assert {reading.battery_temperature_c for reading in readings} == {28.4}
        assert {reading.throttled for reading in readings} == {False}
        times = [reading.time_ns for reading in readings]
        assert times == sorted(times)

    def test_a_build_that_writes_no_result(self, board: Board, tool: Path, tmp_path: Path) -> None:
        device = opened(board, tool)
        for kind in ("old", "even"):
            become(board, kind)
            (outcome,) = device.run(
                job_of(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")], samples=300), quiet
            )
            check_measured(outcome, even=kind == "even")

    def test_the_gpu(self, board: Board, tool: Path, tmp_path: Path) -> None:
        device, job = opened(board, tool, "gpu"), job_of(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")])
        (outcome,) = device.run(job, quiet)
        assert outcome.error == "benchmark_model fails on a.tflite: the GPU delegate does not work there"
        assert outcome.measurement is None
        become(board, "gpu")
        (outcome,) = device.run(job, quiet)
        assert outcome.delegate == "gpu"
        assert outcome.notes == ("the delegate fell back: GPU took 2 of 3 operators",)
        assert outcome.delegation == Delegation(taken=2, total=3)

    def test_a_lost_link_costs_one_start(self, board: Board, tool: Path, tmp_path: Path) -> None:
        dropped: list[str] = []
        job = job_of(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")], samples=300, seconds=4.0)
        device = opened(board, tool)
        original = device.transport.run

        def run(command: str, **options: Any) -> Any:
            feed = options.get("feed", quiet)

            def drop(line: bytes) -> None:
                if b"begin" in line and len(dropped) < 2:
                    dropped.append("once")
                    if len(dropped) == 2:  # the first block; before it stands the short start
                        board.kill()
                feed(line)

            return original(command, **{**options, "feed": drop} if "feed" in options else options)

        device.transport.run = run  # type: ignore[method-assign]
        (outcome,) = device.run(job, quiet)
        assert len(dropped) == 2
        check_measured(outcome)
        assert gone("first.raw")

    def test_a_link_that_does_not_come_back(self, board: Board, tool: Path, tmp_path: Path) -> None:
        def drop(text: str, share: float) -> None:
            if text == "a: block 2 of 2":
                (board.place / "hold").touch()
                board.kill()

        job = job_of(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")], samples=300)
        (outcome,) = opened(board, tool, patience_s=2.0).run(job, drop)
        assert "the link was lost" in outcome.error
        assert outcome.measurement is not None
        assert len(outcome.measurement.summaries) == 1  # what was measured is kept
        (board.place / "hold").unlink()
        for left in ("phone.lock", "visits"):
            stale = board.place / "data/local/tmp/edgekit" / left
            shutil.rmtree(stale)

    def test_an_interrupt_ends_the_tool(self, board: Board, tool: Path, tmp_path: Path) -> None:
        def interrupt(text: str, share: float) -> None:
            if text == "a: block 2 of 2":
                raise KeyboardInterrupt

        with pytest.raises(Interrupted) as caught:
            opened(board, tool).run(job_of(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")]), interrupt)
        assert gone("benchmark_model --graph")
        (outcome,) = caught.value.outcomes
        assert outcome.error == "interrupted"
        assert outcome.measurement is not None
        assert [one.block for one in outcome.measurement.summaries] == [0]

    def test_one_visit_at_a_time(self, board: Board, tool: Path, tmp_path: Path) -> None:
        device, told = opened(board, tool), list[str]()
        job = job_of(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")])

        def second(text: str, share: float) -> None:
            if "block" in text and not told:
                with pytest.raises(DeviceError, match=r"in use by .* since .*; one visit at a time") as caught:
                    opened(board, tool).run(job, quiet)
                told.append(str(caught.value))
                waiting = list[str]()
                with pytest.raises(DeviceBusy):
                    opened(board, tool).wait(0.5, lambda text, share: waiting.append(text))
                assert waiting[0].startswith("in use by ")

        (outcome,) = device.run(job, second)
        assert told
        assert outcome.error == ""
        device.wait(0.0, quiet)

    def test_a_phone_that_throttles_is_waited_for(
        self, board: Board, tool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("edgekit.phone_shell.POLL_S", 0.2)
        heat, told = tmp_path / "shims/thermalservice", list[str]()

        def warm(text: str, share: float) -> None:
            if text == "a: block 2 of 2":
                told.append(text)
                hot = len(told) == 1  # the second time it waits already
                heat.write_text(THERMAL.replace("Status: 0", f"Status: {int(hot)}"))

        job = job_of(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")], cool_down_seconds=20.0)
        (outcome,) = opened(board, tool).run(job, warm)
        assert outcome.error == ""
        (pause,) = outcome.cooling
        assert (pause.block, pause.from_c, pause.enough) == (1, 44.25, True)
        with pytest.raises(UsageError, match=r"tells no single times, .*: --sustained needs the agent"):
            opened(board, tool).run(replace(job, sustained=True), quiet)

    @pytest.mark.parametrize("hours", [-1, 24])
    def test_a_lock_that_nobody_holds_any_more(self, board: Board, tool: Path, tmp_path: Path, hours: int) -> None:
        """Untouched for ten minutes, or of a time that is yet to come: the phone's clock was set back."""
        lock = board.place / "data/local/tmp/edgekit/phone.lock"
        lock.mkdir(parents=True)
        (lock / "holder").write_text("me@here since noon")
        then = time.time() + 3600 * hours
        os.utime(lock, (then, then))
        device = opened(board, tool)
        device.wait(0.0, quiet)
        job = job_of(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")], samples=300)
        (outcome,) = device.run(job, quiet)
        check_measured(outcome)

    def test_a_lock_that_somebody_holds(self, board: Board, tool: Path) -> None:
        lock = board.place / "data/local/tmp/edgekit/phone.lock"
        lock.mkdir(parents=True)
        (lock / "holder").write_text("me@here since noon")
        with pytest.raises(
            DeviceError, match=r"in use by me@here since noon; .* within 10 minutes\): --wait waits"
        ):
            opened(board, tool).wait(0.0, quiet)
        assert not [one.name for one in lock.parent.iterdir() if "now" in one.name]
        shutil.rmtree(lock)

    def test_a_tool_from_the_network_is_held_against_its_hash(
        self, board: Board, tool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        digest, handler = files.sha256(tool), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
        monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *words: None)
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/benchmark_model"
            address = f"{board.address}?benchmark_model={url}"
            for given, status, what in (
                (url, 2, "a program from the network needs its SHA-256: URL#sha256=HASH"),
                (f"{url}#sha256={'0' * 64}", 1, f"has the SHA-256 {digest} and not 000"),
                (f"{url}s#sha256={digest}", 1, "cannot be fetched: "),
            ):
                told = Told(capsys, "device", "setup", f"{board.address}?benchmark_model={given}", "--yes")
                assert what in told.err
                assert told.status == status
            told = Told(capsys, "device", "check", f"{address}#sha256={digest}")
            assert (told.status, "was not fetched yet: edgekit device setup" in told.err) == (2, True)
            told = Told(capsys, "device", "setup", f"{address}#sha256={digest}", "--yes")
            assert (told.status, "installed benchmark_model in" in told.out) == (0, True)
            server.shutdown()
        told = Told(capsys, "device", "check", f"{address}#sha256={digest}")
        assert told.status == 0
        assert [one.name for one in (tmp_path / "cache/edgekit/benchmark_model").iterdir()] == [digest]

    def test_too_many_images(
        self, board: Board, tool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("edgekit.phone_device.MAX_IMAGES", 5)
        job = job_of(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")])
        with pytest.raises(UsageError, match=r"12 images are a start of benchmark_model each.*--accuracy-samples"):
            opened(board, tool).run(job, quiet)

    def test_what_cannot_be(self, board: Board, tool: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no such file here"):
            open_device(f"{board.address}?benchmark_model=/nowhere")
        other = tmp_path / "for_x86"
        other.write_bytes(b"\x7fELF" + b"\0" * 14 + struct.pack("<H", 62))
        with pytest.raises(UsageError, match="is for x86_64, and the phone is arm64-v8a"):
            open_device(f"{board.address}?benchmark_model={other}")

    def test_bench_on_a_sample(
        self, board: Board, tool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        address = f"{board.address}?benchmark_model={tool}"
        benched(tmp_path, monkeypatch, "--device", address, "--accuracy-samples", "10")
        said = capsys.readouterr().out
        assert "p50 is the median of 2 block medians: the device gives no single times" in said
        for name in "ab":
            found = result.read(tmp_path / f"out/{name}.json")
            assert found.predictions is not None
            assert found.predictions.dataset == "photos/all, 10 of 24"
            assert len(found.predictions.truth) == 10
            assert len(found.measurement.summaries) == 2

    def test_bench_and_setup(
        self, board: Board, tool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "devices.toml").write_text(
            f'[phone]\naddress = "{board.address}"\nbenchmark_model = "{tool}"\n'
        )
        assert main(["device", "check", "phone"]) == 0
        said = capsys.readouterr().out
        assert "Google Pixel 8" in said
        assert "a tiny model, 1 thread" in said
        assert "44 C" in said
        assert main(["device", "setup", "phone", "--yes"]) == 0
        assert "installed benchmark_model in /" in capsys.readouterr().out
        assert main(["device", "setup", board.address, "--yes"]) == 1
        assert "ADDRESS?benchmark_model=PATH" in capsys.readouterr().err
        assert main(["device", "setup", "phone", "--remove", "--yes"]) == 0
        assert not (board.place / "data/local/tmp/edgekit").exists()
        (board.place / "data/local/tmp/edgekit/visits").mkdir(parents=True)


def check_measured(outcome: Outcome, *, even: bool = False) -> None:
    assert outcome.error == ""
    assert outcome.runtime == "benchmark_model"
    assert outcome.delegate == "xnnpack"
    measured = outcome.measurement
    assert measured is not None
    assert measured.samples_ns == ()
    assert [one.block for one in measured.summaries] == list(range(len(measured.summaries)))
    assert measured.count >= 300
    found = latency(measured)
    assert found.summarized
    assert (found.p90_ms, found.p99_ms) == (None, None)
    assert 0 < found.min_ms <= found.p50_ms < 100
    assert not even or found.p50_ms == pytest.approx(1.0)
    assert measured.load_ms > 0
    assert measured.first_ms > 0
    assert not [reason for reason in judge(measured, outcome.telemetry).reasons if "samples" in reason]


def expected(model: Path, inputs: Path) -> tuple[int, ...]:
    """The likeliest classes as this machine has them."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(model))
    interpreter.allocate_tensors()
    rows = []
    for row in np.load(inputs):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], row[None])
        interpreter.invoke()
        scores = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]
        rows += np.argsort(-scores.astype(np.float64), kind="stable")[:5].tolist()
    return tuple(rows)


def test_what_the_tool_prints() -> None:
    told = parse_text(
        "INFO: count=50 first=900 curr=800 min=790 max=900 avg=810 std=5\n"
        "INFO: count=1234 first=751 curr=702 min=690 max=1.25e+06 avg=705.5 std=20 p5=692 median=700 p95=733\n"
        "Inference timings in us: Init: 12345, First inference: 1500, Warmup (avg): 810, Inference (avg): 7\n"
        "INFO: Overall peak memory footprint (MB) via periodic monitoring: 21.5\n"
    )
    assert told.count == 1234
    assert told.times_ms["median"] == pytest.approx(0.7)
    assert told.times_ms["max"] == pytest.approx(1250.0)
    assert (told.times_ms["load"], told.times_ms["first"]) == pytest.approx((12.345, 1.5))
    assert told.peak_memory_bytes == 21_500_000
    with pytest.raises(DeviceError, match=r"tells no (p5|median) of its times"):
        parse_text("INFO: count=50 first=900 curr=800 min=790 max=900 avg=810 std=5").summary(0, 0)
    with pytest.raises(DeviceError, match="printed no times"):
        parse_text("INFO: Loaded model a.tflite")


@pytest.mark.parametrize("data", [b"", b"\x12\xff", b"\x12\x05\x0d\0", b"\x0f", b"<html>", b"\xff" * 40])
def test_a_damaged_result(data: bytes) -> None:
    with pytest.raises(DeviceError, match="the result of benchmark_model is damaged"):
        parse_result(data)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "ERROR: Didn't find op for builtin opcode 'FULLY_CONNECTED' version '12'. An older version of this "
            "builtin might be supported.\nERROR: Registration failed.\n",
            "it lacks operator FULLY_CONNECTED version 12",
        ),
        (
            "ERROR: Encountered unresolved custom op: Magic.\nSee instructions",
            "it lacks the custom operator Magic",
        ),
        (
            "ERROR: x.cc:1 a != b\nERROR: Node number 5 (CONV_2D) failed to prepare.\nERROR: Failed to allocate",
            r"operator CONV_2D \(number 5\) failed to prepare",
        ),
        ("ERROR: Input tensor #0 should have 4 dimensions!\n", "Input tensor #0 should have 4 dimensions"),
        ("", "it says nothing"),
    ],
)
def test_why_it_failed(said: str, words: str) -> None:
    with pytest.raises(AssertionError, match=f"benchmark_model fails on a.tflite: {words}"):
        raise AssertionError(failure(f"{said}\nERROR: {benchmark_model.FAILED}", "a.tflite"))


def test_what_ran_it() -> None:
    whole = "Explicitly applied XNNPACK delegate, and the model graph will be completely executed by the delegate."
    none = "Though XNNPACK delegate is explicitly applied, the model graph will not be executed by the delegate."
    part = whole.replace("completely", "partially")
    assert delegation(whole, "xnnpack") == ("xnnpack", "", None)
    assert delegation(part, "xnnpack") == ("xnnpack", "", None)
    doubt = "the delegate fell back: XNNPACK took none of the operators"
    assert delegation(none, "xnnpack") == ("none", doubt, None)
    took, counts = "\nINFO: Replacing 60 out of 65 node(s) with delegate (X) node", Delegation(taken=60, total=65)
    assert delegation(part + took, "xnnpack") == ("xnnpack", "", counts)
    doubt = "the delegate fell back: GPU took 60 of 65 operators"
    assert delegation(part.replace("XNNPACK", "GPU") + took, "gpu") == ("gpu", doubt, counts)
    assert delegation("", "none") == ("none", "", None)


def test_a_phones_cores() -> None:
    block = "processor\t: {}\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: {}\n\n"
    about = block.format(0, "0xd46") + block.format(1, "0xd4e")
    text = "".join(f"{phone.MARK} cpu {line}\n" for line in about.splitlines())
    text += f"{phone.MARK} most /sys/devices/system/cpu/cpu1/cpufreq/cpuinfo_max_freq 2910000\n"
    text += f"{phone.MARK} most /sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq \ncores 2\n"
    clusters, features = processor.read(*phone._cores(text))
    assert clusters == (
        Cluster(cores=1, part="0x41/0xd46 r?p?"),
        Cluster(cores=1, part="0x41/0xd4e r?p?", max_mhz=2910.0),
    )
    assert features == ("asimd", "asimddp")


def test_a_phone_that_throttles_or_is_silent() -> None:
    def of(text: str) -> Any:
        lines = "\n".join(f"{phone.MARK} thermal {line}" for line in text.splitlines())
        (reading,) = phone.readings(f"{phone.MARK} uptime 12.50\n{lines}\n{phone.MARK} end\n", at_work=True)
        return reading

    assert of(THERMAL).throttled is False
    assert of(THERMAL.replace("Thermal Status: 0", "Thermal Status: 2")).throttled is True
    assert of(THERMAL.replace("mName=MID, mStatus=0", "mName=MID, mStatus=3")).throttled is True
    assert of(THERMAL.replace("Thermal Status: 0", "Thermal Status: 2")).throttle == ("thermal status 2",)
    assert of(THERMAL).throttle == ()
    bare = of("")
    assert (bare.temperature_c, bare.throttled, bare.battery_percent, bare.governor) == (None,) * 4
    assert bare.time_ns == 12_500_000_000


def test_options_of_a_phone(tmp_path: Path) -> None:
    takes = (*inventory.TAKES, "benchmark_model", "delegate")
    for rest, words in (
        ("X?benchmark_model=/b&delegate=gpuu", "delegate is 'gpuu'.*did you mean 'gpu'"),
        ("X?delegate=gpu", "delegate goes with benchmark_model"),
        ("X?benchmark_model=/b&python=/p", "exclude each other"),
        ("X?benchmark=/b", "unknown option 'benchmark'.*it takes folder, python, benchmark_model and delegate"),
    ):
        with pytest.raises(UsageError, match=words):
            inventory.split(rest, takes)
    with pytest.raises(UsageError, match="unknown option 'delegate'; it takes folder and python"):
        inventory.split("pi@host?delegate=gpu")
