"""The agent on its own: a job file in, events out, and no process left behind whatever happens."""

import ast
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgekit import agent, xnnpack
from edgekit.artifact import Artifact
from edgekit.device import BenchJob, Entry
from edgekit.errors import DeviceError
from tests import tiny_models
from tests.test_inspect import chain

Event = dict[str, Any]
IMAGES = 40


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """The agent imported, for its functions."""
    spec = importlib.util.spec_from_file_location("agent_under_test", agent.source())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_job(folder: Path, artifacts: list[Artifact], **changes: Any) -> Path:
    """A short job over *artifacts* at one thread, as its file."""
    threads = changes.pop("threads", 1)
    entries = []
    for artifact in artifacts:
        side = artifact.input.shape[1]
        inputs = folder / f"{side}-{artifact.input.dtype}.npy"
        np.save(inputs, tiny_models.pixels(IMAGES, side=side).astype(artifact.input.dtype))
        entries.append(Entry(artifact=artifact, threads=threads, inputs=inputs, predict=True))
    job = BenchJob(
        entries=tuple(entries), samples=20, seconds=0.2, blocks=2, warmup=3, warmup_seconds=0.0, top_k=3
    )
    paths = [(str(entry.artifact.path), entry.inputs.name) for entry in entries]
    path = folder / "job.json"
    path.write_text(json.dumps({**agent.job_json(job, paths), **changes}))
    return path


@contextmanager
def started(job: Path) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, str(agent.source()), str(job)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def events_of(job: Path) -> list[Event]:
    with started(job) as process:
        assert process.stdout is not None
        events = [json.loads(line) for line in process.stdout]
        assert process.wait(timeout=20) in (0, 2)
    return events


def of_kind(events: list[Event], kind: str, entry: int | None = None) -> list[Event]:
    return [e for e in events if e["event"] == kind and entry in (None, e.get("entry"))]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_until_gone(pids: list[int], seconds: float = 10.0) -> list[int]:
    end = time.monotonic() + seconds
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def test_blocks_take_turns_and_every_entry_has_a_process_of_its_own(tmp_path: Path) -> None:
    artifacts = [tiny_models.tflite(tmp_path / "a.tflite"), tiny_models.onnx(tmp_path / "b.onnx")]
    events = events_of(write_job(tmp_path, artifacts, blocks=3, seconds=0.6))
    assert events[0]["event"] == "device"
    assert events[0]["protocol"] == agent.PROTOCOL
    assert events[-1] == {"event": "end"}
    pids = {event["pid"] for event in of_kind(events, "loaded")}
    assert len(pids) == 2
    assert os.getpid() not in pids
    turns: list[tuple[int, int]] = []
    ends = 0
    for event in of_kind(events, "samples"):
        assert len(event["start_ns"]) == len(event["duration_ns"])
        turn = (event["entry"], event["block"])
        if not turns or turns[-1] != turn:
            turns.append(turn)
            assert event["start_ns"][0] > ends  # no two work at a time
        ends = event["start_ns"][-1] + event["duration_ns"][-1]
    assert turns == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    for entry in (0, 1):
        for block in range(3):
            mine = [e for e in of_kind(events, "samples", entry) if e["block"] == block]
            starts = [value for event in mine for value in event["start_ns"]]
            durations = [value for event in mine for value in event["duration_ns"]]
            assert len(starts) >= 7  # 20 over 3 blocks
            assert starts == sorted(starts)
            assert min(durations) > 0
            assert starts[-1] + durations[-1] - starts[0] > 0.15e9  # of 0.2 s
    shares = [event["share"] for event in of_kind(events, "progress")]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1


def test_samples_asked_for_are_taken_even_without_a_minimum_of_seconds(tmp_path: Path) -> None:
    events = events_of(write_job(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")], seconds=0.0, samples=41))
    counts = [sum(len(e["start_ns"]) for e in of_kind(events, "samples") if e["block"] == b) for b in (0, 1)]
    assert counts == [21, 21]


@pytest.mark.parametrize(("kind", "suffix"), [("tflite", "tflite"), ("onnx", "onnx")])
def test_predictions_are_those_of_the_model(tmp_path: Path, kind: str, suffix: str) -> None:
    artifact = getattr(tiny_models, kind)(tmp_path / f"a.{suffix}", seed=5)
    events = events_of(write_job(tmp_path, [artifact]))
    rows = of_kind(events, "predictions")
    assert rows[0]["first"] == 0
    top = np.array([index for event in rows for index in event["top"]]).reshape(IMAGES, 3)
    logits = tiny_models.pixels(IMAGES).reshape(IMAGES, -1).astype(np.float32) @ tiny_models.weights(5).T
    np.testing.assert_array_equal(top, np.argsort(-logits, axis=1)[:, :3])
    loaded = of_kind(events, "loaded")[0]
    expected = {"tflite": ("ai-edge-litert", "xnnpack"), "onnx": ("onnxruntime", "CPUExecutionProvider")}
    assert (loaded["runtime"], loaded["delegate"]) == expected[kind]
    assert loaded["load_ms"] > 0
    assert loaded["first_ms"] > 0
    assert loaded["peak_memory_bytes"] > 5_000_000


def test_operators_that_the_delegate_left_are_named(tmp_path: Path) -> None:
    """The runtime says so on the device; the rules of `edgekit inspect` are asked for comparison."""
    artifact = tiny_models.tflite(tmp_path / "a.tflite", dtype="float32")
    artifact.path.write_bytes(chain("RELU", "LOG_SOFTMAX", "LOGISTIC", "LOG_SOFTMAX", "FLOOR"))
    plain = tiny_models.onnx(tmp_path / "b.onnx")
    events = events_of(write_job(tmp_path, [artifact, plain]))
    chained, without = of_kind(events, "loaded")
    assert chained["operators"] == {"total": 5, "taken": 3, "left": {"LOG_SOFTMAX": 2}}
    assert xnnpack.taken(artifact.path).count(True) == 3
    assert without["operators"] is None
    assert not of_kind(events, "note")


@pytest.mark.parametrize(("precision", "doubted"), [("fp32", True), ("int8-mixed", True), ("int16x8", False)])
def test_a_delegate_that_takes_nothing_is_a_doubt(tmp_path: Path, precision: str, doubted: bool) -> None:
    artifact = replace(tiny_models.tflite(tmp_path / "a.tflite", dtype="float32"), precision=precision)
    artifact.path.write_bytes(chain("LOG_SOFTMAX"))
    events = events_of(write_job(tmp_path, [artifact]))
    (loaded,) = of_kind(events, "loaded")
    assert loaded["delegate"] == "none"
    assert loaded["operators"] == {"total": 1, "taken": 0, "left": {"LOG_SOFTMAX": 1}}
    expected = ["the delegate fell back: XNNPACK took none of the 1 operators"] if doubted else []
    assert [event["text"] for event in of_kind(events, "note")] == expected


def test_parts_of_a_delegated_graph(program: ModuleType) -> None:
    def listed(name: str, inputs: list[int], outputs: list[int]) -> Event:
        return {"op_name": name, "inputs": inputs, "outputs": outputs}

    own = [listed("A", [0], [1]), listed("B", [1], [2]), listed("C", [2], [3]), listed("D", [3, 1], [4])]
    assert program.parts_of(own) == (["A", "B", "C", "D"], [None] * 4)
    first, second = listed("DELEGATE", [0], [2, 1]), listed("TfLiteXNNPackDelegate", [3, 1], [4])
    assert program.parts_of([*own, first, second])[1] == [0, 0, None, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("kind", ["tflite", "onnx"])
def test_the_runtime_gets_as_many_threads_as_asked(tmp_path: Path, kind: str) -> None:
    found = {}
    for threads in (1, 3):
        artifact = getattr(tiny_models, kind)(tmp_path / f"a.{kind}")
        with started(write_job(tmp_path, [artifact], threads=threads, seconds=2.0)) as process:
            assert process.stdout is not None
            loaded = next(e for e in map(json.loads, process.stdout) if e["event"] == "loaded")
            found[threads] = len(list(Path(f"/proc/{loaded['pid']}/task").iterdir()))
    assert found[3] - found[1] == 2


def test_what_cannot_run_fails_alone(tmp_path: Path) -> None:
    good, bad = tiny_models.tflite(tmp_path / "good.tflite"), tiny_models.corrupt(tmp_path / "bad.tflite")
    unknown = tiny_models.artifact_of(bad.path, "coreml", dtype="uint8", shape=bad.input.shape)
    events = events_of(write_job(tmp_path, [bad, unknown, good]))
    texts = {event["entry"]: event["text"] for event in of_kind(events, "error")}
    assert set(texts) == {0, 1}
    assert texts[0].startswith("ValueError: ")
    assert texts[1] == "nothing here runs coreml files"
    assert [event["entry"] for event in of_kind(events, "done")] == [2]
    assert events[-1] == {"event": "end"}


def test_inputs_of_another_shape_are_an_error_of_that_entry(tmp_path: Path) -> None:
    job = write_job(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")])
    np.save(tmp_path / f"{tiny_models.SIDE}-uint8.npy", tiny_models.pixels(4, side=5))
    (error,) = of_kind(events_of(job), "error")
    assert "expected 8 for dimension 1" in error["text"]


def test_a_crash_is_named_by_its_signal_and_the_others_go_on(tmp_path: Path) -> None:
    artifacts = [tiny_models.tflite(tmp_path / "a.tflite"), tiny_models.tflite(tmp_path / "b.tflite", seed=1)]
    with started(write_job(tmp_path, artifacts, seconds=1.0)) as process:
        assert process.stdout is not None
        events: list[Event] = []
        for line in process.stdout:
            events.append(json.loads(line))
            if len(events) > 1 and events[-1]["event"] == "loaded" and events[-1]["entry"] == 0:
                os.kill(events[-1]["pid"], signal.SIGILL)
    (error,) = of_kind(events, "error")
    assert error["entry"] == 0
    assert "killed by SIGILL" in error["text"]
    assert [event["entry"] for event in of_kind(events, "done")] == [1]


def test_an_output_that_is_not_finite_is_noted(tmp_path: Path) -> None:
    artifact = tiny_models.tflite(tmp_path / "a.tflite", dtype="float32")
    job = write_job(tmp_path, [artifact])
    values = np.ones((IMAGES, *artifact.input.shape[1:]), np.float32)
    values[3] = np.inf
    np.save(tmp_path / f"{tiny_models.SIDE}-float32.npy", values)
    (note,) = of_kind(events_of(job), "note")
    assert note["text"] == f"infinite or undefined outputs for 1 of {IMAGES} images"


def test_telemetry_is_read_while_an_entry_works(tmp_path: Path) -> None:
    artifact = tiny_models.tflite(tmp_path / "a.tflite")
    readings = of_kind(events_of(write_job(tmp_path, [artifact], blocks=1, seconds=1.6)), "telemetry", 0)
    assert len(readings) >= 2  # before, each second, after
    assert "other_load" not in readings[0]  # nothing to compare with
    if sys.platform == "linux":
        loads = [reading["other_load"] for reading in readings if "other_load" in reading]
        assert loads
        assert all(0 <= load <= (os.cpu_count() or 1) + 0.1 for load in loads)
        assert readings[0]["free_memory_bytes"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("way", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "stdin", "stdout"])
def test_no_child_outlives_the_agent(tmp_path: Path, way: str) -> None:
    artifacts = [tiny_models.tflite(tmp_path / "a.tflite"), tiny_models.tflite(tmp_path / "b.tflite", seed=1)]
    with started(write_job(tmp_path, artifacts, seconds=60.0)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        pids = []
        for line in process.stdout:
            event = json.loads(line)
            pids += [event["pid"]] if event["event"] == "loaded" else []
            if event["event"] == "samples":
                break  # in the middle of a block
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        if way.startswith("SIG"):
            process.send_signal(getattr(signal, way))
        else:
            getattr(process, way).close()
        assert process.wait(timeout=10) != 0
        assert wait_until_gone(pids) == []


def test_a_job_of_another_protocol_or_without_its_keys_is_refused(tmp_path: Path) -> None:
    job = write_job(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")], protocol=99)
    *_, error = events_of(job)
    assert error == {"event": "error", "entry": None, "text": "the job speaks protocol 99; this agent speaks 1"}
    job.write_text(json.dumps({"protocol": agent.PROTOCOL, "samples": 1, "entries": [{"model": "x"}]}))
    *_, error = events_of(job)
    assert "lacks seconds, blocks" in error["text"]
    assert "entries[0].inputs" in error["text"]
    job.write_text("{")
    assert events_of(job)[-1]["entry"] is None


def test_the_agent_is_one_file_for_python_3_9(program: ModuleType) -> None:
    tree = ast.parse(agent.source().read_text(encoding="utf-8"), feature_version=(3, 9))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy"}
    assert program.PROTOCOL == agent.PROTOCOL


def test_tflite_runtime_is_refused_where_it_is_wrong(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = ("tflite_runtime", "tflite-runtime", "2.14.0")
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(program.Refused, match=r"does not work with NumPy 2\.1\.0: pip install 'numpy<2'"):
        program.TfliteModel(*runtime, {"precision": "fp32"})
    monkeypatch.setattr(np, "__version__", "1.26.4")
    with pytest.raises(program.Refused, match="computes dyn8 wrongly"):
        program.TfliteModel(*runtime, {"precision": "dyn8-qat"})


def test_the_processor_and_the_board_are_named(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts = {
        "/proc/cpuinfo": "processor\t: 0\nCPU part\t: 0xd03\nprocessor\t: 1\nCPU part\t: 0xd08\nCPU part\t: 0xd08",
        "/sys/devices/system/cpu/modalias": "cpu:type:aarch64:feature:,0001",
        "/proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4",
    }
    board = tmp_path / "model"
    board.write_bytes(b"Raspberry Pi 4 Model B Rev 1.4\0")
    assert program.read(str(board)) == texts["/proc/device-tree/model"]
    assert program.read(str(tmp_path / "absent")) == ""
    monkeypatch.setattr(program, "read", lambda path: texts.get(path, ""))
    monkeypatch.setattr(sys, "platform", "linux")
    assert program.cpu_name() == "Cortex-A53 + Cortex-A72"
    found = program.describe()
    assert found["model"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert found["emulated"] is False


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_peak_of_memory_is_this_processs_and_not_an_emulators(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    told = program.peak_memory_bytes()
    assert told == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.02)
    monkeypatch.setattr(program, "qemu_user", lambda: True)
    assert program.peak_memory_bytes() is None


def test_an_emulated_processor_is_told(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"/sys/devices/system/cpu/modalias": "cpu:type:x86,ven0000", "/proc/cpuinfo": "CPU part : 0xd08"}
    monkeypatch.setattr(program, "read", lambda path: texts.get(path, ""))
    uname = os.uname_result(("Linux", "host", "6.1", "#1", "aarch64"))
    monkeypatch.setattr(program.platform, "uname", lambda: _Uname(uname))
    assert program.describe()["emulated"] is True
    texts["/sys/devices/system/cpu/modalias"] = "cpu:type:aarch64"
    assert program.describe()["emulated"] is False
    texts["/proc/cpuinfo"] = "model name : QEMU TCG CPU version 2.5+"
    assert program.describe()["emulated"] is True


class _Uname:
    def __init__(self, names: os.uname_result) -> None:
        self.system, self.release, self.machine = names.sysname, names.release, names.machine


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/stat")
def test_load_counts_other_programs_but_not_the_children(program: ModuleType) -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            everything, without = program.Probe(list), program.Probe(lambda: [busy.pid])
            first = everything.read(restart=True), without.read(restart=True)
            used_s = cpu_seconds(busy.pid)
            time.sleep(1.0)
            while cpu_seconds(busy.pid) < used_s + 0.5:
                time.sleep(0.05)
            second = everything.read(), without.read()
        finally:
            busy.kill()
    assert "other_load" not in first[0]
    elapsed_s = (second[0]["time_ns"] - first[0]["time_ns"]) / 1e9
    assert (second[0]["other_load"] - second[1]["other_load"]) * elapsed_s > 0.4


def cpu_seconds(pid: int) -> float:
    """By the scheduler's own count, which the agent does not use."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def collect(lines: list[bytes], entries: int = 1) -> agent.Visit:
    artifact = tiny_models.artifact_of(Path(__file__), "tflite", dtype="uint8", shape=(1, 8, 8, 3))
    entry = Entry(artifact=artifact, threads=1, inputs=Path("x.npy"), predict=False)
    job = BenchJob(entries=(entry,) * entries, samples=1, seconds=0.0, blocks=1, warmup=1, warmup_seconds=0.0)
    visit = agent.Visit(job, "pi", lambda text, share: None)
    for line in lines:
        visit.feed(line)
    return visit


def test_a_login_shells_greeting_is_no_event() -> None:
    (outcome,) = collect([b"Welcome to Raspberry Pi OS\n", b"\xff\xfe\n", b"{}\n"]).outcomes("cut off")
    assert outcome.error == "cut off"
    assert outcome.measurement is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"event":"samples","entry":0,"blo', "line is damaged"),
        (
            b'{"event":"samples","entry":0,"block":0,"start_ns":["x"],"duration_ns":[1]}',
            "malformed event: start_ns",
        ),
        (b'{"event":"done","entry":7}', "entry 7 of 1"),
        (b'{"event":"telemetry","time_ns":1}', "entry None of 1"),
        (b'{"event":"surprise"}', "unknown event 'surprise'"),
        (b'{"event":"error","entry":null,"text":"no"}', "refuses the job: no"),
    ],
)
def test_an_agent_that_makes_no_sense_is_an_error(line: bytes, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        collect([line])


def test_a_device_that_speaks_another_protocol_is_refused() -> None:
    described = {"event": "device", "protocol": 2, "model": "", "cpu": "", "architecture": "", "cores": 1}
    line = json.dumps({**described, "memory_bytes": 1, "os": "", "kernel": "", "emulated": False, "runtimes": {}})
    with pytest.raises(DeviceError, match="speaks protocol 2, this edgekit 1"):
        agent.describe(line, "pi")
    with pytest.raises(DeviceError, match="did not describe the device"):
        agent.describe("sh: python3: not found", "pi")


# --- apart from the host -------------------------------------------------------------------------


def call(*arguments: object, seconds: float = 30.0) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(agent.source()), *map(str, arguments)]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
    )


def detached(folder: Path, **changes: Any) -> int:
    """The id of an agent that works on a long job in *folder*, apart from this process."""
    alone = {"limit_s": 60, "patience_s": 60, "lock": str(folder / "lock"), "holder": "me since noon"}
    write_job(folder, [tiny_models.tflite(folder / "a.tflite")], **{"seconds": 60.0, **alone, **changes})
    done = call("--detach", folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return int((folder / "pid").read_text().split()[0])


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@on_linux
def test_a_detached_agent_holds_the_lock_until_it_is_stopped(tmp_path: Path) -> None:
    pid = detached(tmp_path)
    assert alive(pid)
    second = call("--detach", tmp_path)
    assert second.returncode == 3
    assert json.loads(second.stdout) == {"event": "busy", "holder": "me since noon"}
    assert call("--stop", tmp_path).returncode == 0
    assert not alive(pid)
    assert call("--stop", tmp_path).returncode == 0  # it may have ended already
    pid = detached(tmp_path)
    call("--stop", tmp_path)
    assert wait_until_gone([pid]) == []


@on_linux
@pytest.mark.parametrize(
    ("changes", "words"),
    [({"patience_s": 1}, "nobody has followed for 1 s"), ({"limit_s": 2}, "its time limit is over")],
)
def test_a_detached_agent_ends_by_itself(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    pid = detached(tmp_path, **changes)
    assert wait_until_gone([pid]) == []
    assert (tmp_path / "stderr").read_text().strip() == words
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    workers = [event["pid"] for event in of_kind(events, "loaded")]
    assert wait_until_gone(workers) == []


@on_linux
def test_who_follows_from_a_byte_on_misses_nothing(tmp_path: Path) -> None:
    pid = detached(tmp_path, seconds=1.0, patience_s=10)
    command = [sys.executable, str(agent.source()), "--follow", str(tmp_path)]
    with subprocess.Popen([*command, "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        heard = first.stdout.readline() + first.stdout.readline()
        first.stdin.close()  # the host is gone
        assert first.wait(timeout=10) == 0
    assert alive(pid) or (tmp_path / "events").read_text().endswith('{"event":"end"}\n')
    with subprocess.Popen([*command, str(len(heard))], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as second:
        assert second.stdout is not None
        rest = second.stdout.read()
        assert second.wait(timeout=10) == 0
    assert heard + rest == (tmp_path / "events").read_bytes()
    assert rest.endswith(b'{"event":"end"}\n')
    assert wait_until_gone([pid]) == []


@on_linux
def test_a_follower_whose_host_is_silent_does_not_count(tmp_path: Path) -> None:
    """As over a link that died and that the device takes for alive."""
    pid = detached(tmp_path, patience_s=3)
    command = [sys.executable, str(agent.source()), "--follow", str(tmp_path), "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as follower:
        assert follower.stdin is not None
        for _ in range(6):
            follower.stdin.write(b"\n")
            follower.stdin.flush()
            time.sleep(1.0)
        assert alive(pid)  # longer than its patience: the host was heard
        assert wait_until_gone([pid]) == []
        assert follower.wait(timeout=10) == 0
    assert (tmp_path / "stderr").read_text().strip() == "nobody has followed for 3 s"


@on_linux
def test_a_silent_host_ends_the_follower_too(tmp_path: Path, program: ModuleType) -> None:
    short = agent.source().read_text().replace(f"FOLLOW_S = {program.FOLLOW_S}", "FOLLOW_S = 1")
    (tmp_path / "agent.py").write_text(short)
    (tmp_path / "events").write_text("")
    start = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    (tmp_path / "pid").write_text(f"{os.getpid()} {start}")  # a living agent
    command = [sys.executable, str(tmp_path / "agent.py"), "--follow", str(tmp_path), "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as follower:
        assert follower.wait(timeout=10) == -signal.SIGALRM


@on_linux
def test_a_follower_of_nobody_ends(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("")
    (tmp_path / "pid").write_text(f"{os.getpid()} 1")  # another process has got the number
    assert call("--follow", tmp_path, 0).returncode == 0
