"""What each operator costs: from the runtime's profiler in a process of its own, to the terminal and the page."""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgekit import recipe, result
from edgekit.artifact import Artifact, write_sidecar
from edgekit.cli import main
from edgekit.operators import Cost, Delegation, Profile
from edgekit.recipe import BenchSpec
from edgekit.report import as_json, compare, make_console, page, render_costs
from edgekit.schema import SchemaError, decode, encode
from tests import report_samples, tiny_models
from tests.test_agent import events_of, of_kind, program, started, write_job
from tests.test_inspect import chain

__all__ = ["program"]  # the fixture
RUNTIME = ("ai_edge_litert", "ai-edge-litert")


def chained(path: Path) -> Artifact:
    """RELU, LOG_SOFTMAX, LOGISTIC, LOG_SOFTMAX: XNNPACK takes two in parts of their own."""
    artifact = tiny_models.tflite(path, dtype="float32")
    path.write_bytes(chain("RELU", "LOG_SOFTMAX", "LOGISTIC", "LOG_SOFTMAX"))
    return artifact


def test_the_operators_that_ran_are_named_with_their_layers(tmp_path: Path) -> None:
    artifacts = [chained(tmp_path / "a.tflite"), tiny_models.onnx(tmp_path / "b.onnx")]
    events = events_of(write_job(tmp_path, artifacts, profile=True))
    first, second = of_kind(events, "profile")
    costs = first["costs"]
    assert [(cost["operator"].partition(" (")[0], cost["delegated"]) for cost in costs] == [
        ("Clamp", True),
        ("LOG_SOFTMAX", False),
        ("Sigmoid", True),
        ("LOG_SOFTMAX", False),
    ]
    assert [cost["layer"] for cost in costs] == ["", "LOG_SOFTMAX", "LOGISTIC", "LOG_SOFTMAX_1"]
    assert first["runs"] >= 3
    assert first["total_us"] >= 0.5 * sum(cost["mean_us"] for cost in costs)
    assert {"MatMul", "Gemm"} & {cost["operator"] for cost in second["costs"]}
    assert all(cost["layer"] for cost in second["costs"])
    kinds = [event["event"] for event in events if event["event"] not in ("progress", "telemetry")]
    assert kinds.index("profile") > max(i for i, kind in enumerate(kinds) if kind in ("done", "samples"))


def test_a_dense_layer_is_found_under_its_other_name(tmp_path: Path) -> None:
    job = write_job(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")], profile=True)
    (found,) = of_kind(events_of(job), "profile")
    assert [cost["layer"] for cost in found["costs"] if cost["operator"].startswith("Fully")] == ["logits"]


def test_without_being_asked_nothing_is_profiled(tmp_path: Path) -> None:
    assert not of_kind(events_of(write_job(tmp_path, [chained(tmp_path / "a.tflite")])), "profile")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the process in /proc")
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGILL])
def test_a_crash_of_the_profiler_leaves_the_measurement_whole(tmp_path: Path, number: signal.Signals) -> None:
    job = write_job(tmp_path, [tiny_models.tflite(tmp_path / "a.tflite")], profile=True)
    with started(job) as process:
        assert process.stdout is not None
        events = []
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == "progress" and events[-1]["doing"] == "profile":
                os.kill(profiler_of(process.pid), number)
    (found,) = of_kind(events, "profile")
    assert found["absent"].startswith(f"the process was killed by {number.name}")
    assert [event["entry"] for event in of_kind(events, "done")] == [0]
    assert not of_kind(events, "error")
    assert not of_kind(events, "note")
    assert events[-1] == {"event": "end"}


def profiler_of(pid: int) -> int:
    end = time.monotonic() + 5.0
    while time.monotonic() < end:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"--profile" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    raise AssertionError("no profiler was started")


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        (("tflite_runtime", "tflite-runtime", "2.14.0"), "tflite-runtime has no profiler"),
        ((*RUNTIME, "2.1.0"), "the profiler of ai-edge-litert 2.1.0 is not known; that of 2.1.6 and newer is"),
        ((*RUNTIME, "3.0.0"), "the profiler of ai-edge-litert 3.0.0 is not known"),
        ((*RUNTIME, "unknown"), "the profiler of ai-edge-litert unknown is not known"),
    ],
)
def test_a_runtime_without_a_known_profiler_says_so(
    program: ModuleType, runtime: tuple[str, str, str], words: str
) -> None:
    with pytest.raises(program.Refused, match=words):
        program.tflite_costs(*runtime, {"model": "x", "threads": 1}, None)


@pytest.mark.skipif(sys.platform != "linux", reason="the name of a C library")
def test_a_library_without_the_symbols_says_which(program: ModuleType) -> None:
    library = program.LiteRt("libc.so.6")
    with pytest.raises(program.Refused, match="libLiteRt exports no LiteRtCreateEnvironment"):
        library.call("LiteRtCreateEnvironment")
    with pytest.raises(program.Refused, match="abs fails with status 7"):
        library.call("abs", -7)


def test_a_time_is_the_mean_of_the_middle_half(program: ModuleType) -> None:
    assert program.middle([1, 2, 2, 3, 2, 3, 0, 4000]) == 2.25
    assert program.middle([5]) == 5


def test_events_that_do_not_repeat_are_refused(program: ModuleType) -> None:
    assert program.by_place(["a", "b", "a", "b"], 2) == [["a", "a"], ["b", "b"]]
    for values, runs in ((["a", "b", "a"], 2), ([], 3)):
        with pytest.raises(program.Refused, match=f"{len(values)} events in {runs} runs"):
            program.by_place(values, runs)


def test_layers_are_told_only_where_they_can_be(program: ModuleType) -> None:
    def at(name: str, index: int, kind: int = 8) -> tuple[str, int, int, int]:
        return name, kind, 1, index

    kinds = ["CONV_2D", "HARD_SWISH", "CONV_2D", "ADD", "DEPTHWISE_CONV_2D"]
    ran = [
        at("Fully Connected (NC, F32) GEMM", 0),
        at("HARD_SWISH", 1, kind=2),
        at("Convolution (NHWC, F32) IGEMM", 0),
        at("Transpose (ND)", 1),
        at("Convolution (NHWC, F32) DWConv", 2),
    ]
    parts = [0, None, 1, 1, 1]
    assert program.places_in_file(ran, kinds, parts) == [0, 1, 2, None, 4]  # ADD was fused
    assert program.places_in_file(ran[:2], kinds, parts) == [None, 1]  # parts are missing
    twice = [*ran[:3], at("Convolution (NHWC, F32) IGEMM", 1)]
    assert program.places_in_file(twice, kinds, parts)[2:] == [None, None]  # more than the file has
    assert program.places_in_file([at("RELU", 1, kind=2)], kinds, parts) == [None]  # another graph
    again = [at("Convolution (NHWC, F32) IGEMM", 0), at("Convolution (NHWC, F32) IGEMM", 0)]
    assert program.places_in_file(again, ["CONV_2D", "CONV_2D"], [0, 1]) == [0, 1]  # each part counts anew


COSTS = (
    Cost(operator="HARD_SWISH", layer="stem/act<1>", delegated=False, mean_us=30.0),
    Cost(operator="Convolution (NHWC, F32) IGEMM", layer="x" * 60, delegated=True, mean_us=60.0),
    Cost(operator="HARD_SWISH", layer="", delegated=False, mean_us=10.0),
)
PROFILE = Profile(runs=50, total_us=104.0, costs=COSTS)


def shown(profile: Profile | None) -> tuple[str, str, Any]:
    """On the terminal, on the page, as JSON."""
    from io import StringIO

    comparison = compare([replace(report_samples.result(), profile=profile)])
    stream = StringIO()
    render_costs(comparison, make_console(stream))
    return stream.getvalue(), page(comparison, title="t", provenance={}), as_json(comparison)


def test_the_dearest_operators_are_shown() -> None:
    terminal, html, value = shown(PROFILE)
    assert terminal.splitlines() == [
        "tflite-fp32: 3 of 3 operators take 100 % of 0.1 ms (profiled in 50 runs apart from the timed ones)",
        "  by kind: Convolution (NHWC, F32) IGEMM x1 60 %, HARD_SWISH x2 40 %",
        f" 60.0 %      60.0 us  ...{'x' * 41}  Convolution (NHWC, F32) IGEMM",
        f" 30.0 %      30.0 us  {'stem/act<1>':<44}  HARD_SWISH, not delegated",
        f" 10.0 %      10.0 us  {'-':<44}  HARD_SWISH, not delegated",
        "",
    ]
    assert '<details class="operators"><summary><b class="name">tflite-fp32</b>: 3 operators' in html
    assert "stem/act&lt;1&gt;</td><td>HARD_SWISH</td><td>30.0</td><td>30.0 %</td><td>builtin</td>" in html
    assert "<td>HARD_SWISH</td><td>2</td><td>40.0</td><td>40.0 %</td>" in html
    assert value["groups"][0]["rows"][0]["profile"]["costs"][0]["mean_us"] == 30.0


def test_an_absent_profile_says_why_and_none_says_nothing() -> None:
    terminal, html, _ = shown(Profile(absent="killed by SIGSEGV <x>"))
    assert terminal.strip() == "tflite-fp32: no profile: killed by SIGSEGV <x>"
    assert "no profile: killed by SIGSEGV &lt;x&gt;</p>" in html
    terminal, html, value = shown(None)
    assert terminal == ""
    assert "<h3>Operators</h3>" not in html
    assert value["groups"][0]["rows"][0]["profile"] is None


def test_results_keep_both_and_those_of_before_are_read(tmp_path: Path) -> None:
    delegation = Delegation(total=3, taken=1, left={"HARD_SWISH": 2})
    kept = replace(report_samples.result(), profile=PROFILE, delegation=delegation)
    result.write(kept, tmp_path / "new.json")
    assert result.read(tmp_path / "new.json") == kept
    old = encode(kept)
    del old["profile"], old["delegation"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    found = result.read(tmp_path / "old.json")
    assert (found.profile, found.delegation) == (None, None)
    assert found.measurement == kept.measurement
    with pytest.raises(SchemaError, match="4 of 3 operators were taken"):
        decode(Delegation, {"total": 3, "taken": 4})


def test_bench_profiles_and_shows_it_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "QUICK", BenchSpec(samples=128, seconds=0.1, warmup_seconds=0.1, blocks=1))
    artifact = tiny_models.tflite(tmp_path / "a.tflite")
    write_sidecar(artifact)
    words = ["bench", str(artifact.path), "--quick", "--threads", "1", "--out"]
    assert main([*words, str(tmp_path / "with"), "--profile"]) == 0
    assert "operators take" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "without"), "--no-profile"]) == 0
    assert "operators take" not in capsys.readouterr().out
    assert result.read(tmp_path / "with/a.json").profile is not None
    assert result.read(tmp_path / "without/a.json").profile is None
