"""The gate of a build: what it lets pass, what it stops, what it refuses to compare."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit import result as results
from edgekit.errors import UsageError
from edgekit.gate import Check, gate, parse
from edgekit.measure import Measurement
from edgekit.result import Result
from tests.report_samples import DEVICE, predictions, result
from tests.test_cli import Told

LATENCY, TOP1, SIZE = parse("latency>5%"), parse("top1<-0.5"), parse("size > 2 %")


def timed(found: Result, medians_ms: Sequence[float], visit: str = "") -> Result:
    """The result with blocks of these medians, 30 inferences each."""
    count = 30 * len(medians_ms)
    samples = np.repeat(np.asarray(medians_ms) * 1e6, 30).astype(int)
    measured = Measurement(
        samples_ns=tuple(samples.tolist()),
        starts_ns=tuple(range(count)),
        blocks=tuple(np.repeat(np.arange(len(medians_ms)), 30).tolist()),
        load_ms=1.0,
        first_ms=1.0,
    )
    return replace(found, measurement=measured, visit=visit or found.visit)


def only(checks: tuple[Check, ...]) -> Check:
    [check] = checks
    return check


STEADY = timed(result(), [1.0, 1.01, 0.99, 1.0, 1.0])


def test_a_slower_file_is_stopped_and_a_little_slower_one_passes() -> None:
    slow = only(gate([STEADY], [timed(result(), [1.1, 1.11, 1.09, 1.1, 1.1], "later")], [LATENCY]))
    assert slow.failed
    assert slow.change == pytest.approx(10, abs=0.1)
    assert slow.text.startswith("latency +10.0 % (")
    assert slow.text.endswith("p < 0.001), limit +5 %")
    near = only(gate([STEADY], [timed(result(), [1.03, 1.04, 1.02, 1.03, 1.03], "later")], [LATENCY]))
    assert not near.failed
    assert near.p_value is not None
    assert near.p_value < 0.05, "it is really slower, within its limit"


def test_a_large_change_that_may_be_chance_passes_and_says_so() -> None:
    noisy = timed(result(), [0.9, 1.04, 1.1, 1.15, 1.17], "later")
    check = only(gate([STEADY], [noisy], [LATENCY], allow_invalid=True))
    assert not check.failed
    assert "beyond the limit of +5 %, but it may be chance" in check.text


def test_blocks_of_one_visit_are_compared_in_pairs() -> None:
    """All blocks double in time together: pairs see 10 %, which between two visits would be lost."""
    shape = [1.0, 2.0, 1.0, 2.0, 1.0]
    slower = [1.1 * value for value in shape]
    check = only(gate([timed(STEADY, shape)], [timed(STEADY, slower)], [LATENCY], allow_invalid=True))
    assert check.failed
    apart = timed(STEADY, slower, "later")
    assert not only(gate([timed(STEADY, shape)], [apart], [LATENCY], allow_invalid=True)).failed


def test_top1_fails_only_where_the_paired_test_says_so() -> None:
    old = result(wrong=6)
    worse = replace(old, predictions=predictions(20))
    check = only(gate([old], [worse], [TOP1]))
    assert check.failed
    assert check.change == pytest.approx(-100 * 14 / 360)
    assert check.text == "top-1 -3.9 pt (p < 0.001), limit -0.5 pt"
    chance = only(gate([old], [replace(old, predictions=predictions(9))], [TOP1]))
    assert not chance.failed
    assert (
        "-0.8 pt (p = 0.25): beyond the limit of -0.5 pt, but it may be chance; 360 images cannot" in chance.text
    )


def test_a_file_that_edgekit_executed_has_an_accuracy_and_no_latency() -> None:
    executed = result("coreml", "fp16", device=replace(DEVICE, reference=True))
    worse = replace(executed, predictions=predictions(30))
    assert only(gate([executed], [worse], [TOP1])).failed
    # Beside a file that was timed, its latency is not asked for; alone there is none to judge.
    timed_too = result()
    found = gate([executed, timed_too], [worse, timed_too], [LATENCY, TOP1])
    assert [(check.metric, check.failed) for check in found] == [
        ("top1", True),
        ("latency", False),
        ("top1", False),
    ]
    with pytest.raises(
        UsageError, match="no result tells latency: edgekit's execution of Core ML files gives accuracy"
    ):
        gate([executed], [worse], [LATENCY])


def test_a_size_needs_no_test() -> None:
    old = result(size=1_000_000)
    assert only(gate([old], [result(size=1_030_000)], [SIZE])).failed
    assert not only(gate([old], [result(size=1_010_000)], [SIZE])).failed


def test_the_tests_of_a_gate_share_their_level() -> None:
    """A p-value of 0.03 counts alone, and not among ten."""
    old = result(wrong=6)
    lost = replace(old, predictions=predictions(12))
    alone = only(gate([old], [lost], [TOP1]))
    assert alone.p_value == pytest.approx(0.03125)
    assert alone.failed
    many = [replace(one, artifact=replace(one.artifact, file=f"{n}.tflite")) for n in range(10) for one in (old,)]
    new = [replace(one, predictions=lost.predictions if n == 0 else one.predictions) for n, one in enumerate(many)]
    checks = gate(many, new, [TOP1])
    assert checks[0].p_value == pytest.approx(0.3125)
    assert not any(check.failed for check in checks)


def test_the_level_and_the_power_of_the_gate() -> None:
    """1,000 visits of the same file, and 1,000 of one 10 % slower: blocks vary by 1 %, visits by 1.5 %."""
    rng = np.random.default_rng(11)

    def visit(factor: float) -> Result:
        level = factor * np.exp(0.015 * rng.standard_normal())
        return timed(
            result(), (level * np.exp(0.01 * rng.standard_normal(5))).tolist(), f"{rng.integers(1 << 40)}"
        )

    alarms = found = 0
    for _ in range(1000):
        old = visit(1.0)
        alarms += only(gate([old], [visit(1.0)], [LATENCY], allow_invalid=True)).failed
        found += only(gate([old], [visit(1.1)], [LATENCY], allow_invalid=True)).failed
    assert alarms <= 50
    assert found >= 950


def test_the_level_of_the_gate_on_accuracy() -> None:
    """1,000 pairs of files that flip 3 % of 500 images at random, none of them better."""
    rng, alarms = np.random.default_rng(12), 0
    truth = np.zeros(500, int)
    old = result()
    for _ in range(1000):
        first, second = ((rng.random(500) < 0.015).astype(int) for _ in range(2))
        a, b = (
            replace(
                old,
                predictions=results.Predictions(
                    dataset="d", images_sha256="0" * 64, truth=tuple(truth.tolist()), k=1, top=tuple(top.tolist())
                ),
            )
            for top in (first, second)
        )
        alarms += only(gate([a], [b], [TOP1])).failed
    assert alarms <= 50


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"device": replace(DEVICE, model="Raspberry Pi 5")}, "other device: Raspberry Pi 5"),
        ({"threads": 4}, "other threads: 4 and not 1"),
        (
            {"visit": "v", "target": "onnx", "file": "tflite-fp32.tflite"},
            "other runtime: ONNX Runtime 1.23.0 and not LiteRT",
        ),
        ({"file": "mine.tflite"}, "mine, 1 thread: it is not in the baseline, which holds tflite-fp32"),
        ({"drift": 0.4}, "the new run is invalid (drift"),
        ({"device": replace(DEVICE, model="x", fake=True)}, "other device"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(changed: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError, match="cannot be compared with the baseline") as caught:
        gate([result()], [result(**changed)], [LATENCY])  # type: ignore[arg-type]
    assert what in str(caught.value)


def test_other_images_and_fake_devices_are_refused() -> None:
    old = result()
    other = replace(old, predictions=predictions(6, images="others"))
    with pytest.raises(UsageError, match=r"other images than the baseline \(digits val, 360 images\)"):
        gate([old], [other], [TOP1])
    fake = result(device=replace(DEVICE, fake=True))
    with pytest.raises(UsageError, match="the baseline is of a device that is fake: its latency says nothing"):
        gate([fake], [fake], [LATENCY], allow_invalid=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latency", "write it as 'latency>5%' or 'size>5%' or 'top1<-0.5' "),
        (
            "latncy>5%",
            "unknown metric of --fail-if 'latncy'; choose from latency, size, top1; did you mean 'latency'",
        ),
        ("latency<5%", "for latency write it as 'latency>5%'"),
        ("latency>5pt", "for latency write it as"),
        ("top1<0.5", "for top1 write it as 'top1<-0.5'"),
        ("top1<-0.5%", "for top1 write it as"),
    ],
)
def test_limits_that_are_none(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_the_command_ends_with_1_only_for_a_real_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, slow = STEADY, timed(result(), [1.2, 1.21, 1.19, 1.2, 1.2], "later")
    results.write(old, tmp_path / "old" / "tflite-fp32.json")
    results.write(slow, tmp_path / "new" / "tflite-fp32.json")
    words = ("compare", str(tmp_path / "new"), "--baseline", str(tmp_path / "old"))
    told = Told(capsys, *words, "--fail-if", "latency>5%", "--fail-if", "top1<-0.5")
    assert told.status == 1
    assert "gate: 1 of 2 checks failed" in told.out
    assert "FAIL  tflite-fp32, 1 thread: latency +20.0 %" in told.out
    assert "ok    tflite-fp32, 1 thread: top-1 +0.0 pt (p = 1), limit -0.5 pt" in told.out
    told = Told(capsys, *words, "--fail-if", "latency>25%", "--json", "-")
    assert told.status == 0
    assert '"gate"' in told.out
    told = Told(capsys, *words)
    assert told.status == 2
    assert "--baseline and --fail-if go together" in told.err
