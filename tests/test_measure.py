"""Latency statistics of known samples, and each reason for which a run does not count."""

from collections.abc import Sequence

import pytest

from edgekit.measure import Measurement, Summary, Telemetry, judge, latency


def measured(samples_us: Sequence[float], blocks: int = 1) -> Measurement:
    """The samples in equal blocks, one after the other."""
    samples = tuple(int(value * 1000) for value in samples_us)
    per_block = len(samples) // blocks
    return Measurement(
        samples_ns=samples,
        starts_ns=tuple(range(0, len(samples) * 10**6, 10**6)),
        blocks=tuple(min(i // per_block, blocks - 1) for i in range(len(samples))),
        load_ms=1.0,
        first_ms=2.0,
    )


def reasons(measurement: Measurement, *telemetry: Telemetry, notes: Sequence[str] = ()) -> tuple[str, ...]:
    return judge(measurement, telemetry, notes).reasons


STEADY = measured([1000.0] * 200, blocks=5)


def test_percentiles_are_those_of_all_samples() -> None:
    found = latency(measured(range(1, 1002)))  # 1 to 1001 us
    assert found.count == 1001
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == pytest.approx((0.501, 0.901, 0.991))
    assert found.min_ms == pytest.approx(0.001)


def test_p99_needs_a_thousand_samples() -> None:
    assert latency(measured([1.0] * 999)).p99_ms is None
    assert latency(measured([1.0] * 1000)).p99_ms == pytest.approx(0.001)


def test_blocks_drift_and_spread() -> None:
    found = latency(measured([1000.0] * 10 + [1100.0] * 10, blocks=2))
    assert found.block_medians_ms == (1.0, 1.1)
    assert found.drift == pytest.approx(0.1)
    assert found.spread == pytest.approx(0.05 / 1.05)
    assert latency(measured([5.0])).drift == 0.0


def test_no_samples_have_no_latency() -> None:
    empty = Measurement(samples_ns=(), starts_ns=(), blocks=(), load_ms=1.0, first_ms=1.0)
    with pytest.raises(ValueError, match="no samples"):
        latency(empty)
    assert reasons(empty) == ("too few samples: 0 of 128",)


def test_lists_of_other_lengths_are_no_measurement() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        Measurement(samples_ns=(1, 2), starts_ns=(1,), blocks=(0, 0), load_ms=1.0, first_ms=1.0)


def test_a_steady_run_is_valid() -> None:
    calm = Telemetry(time_ns=0, clock_mhz=2400.0, governor="performance", throttled=False, other_load=0.1)
    verdict = judge(STEADY, (calm, calm))
    assert verdict.valid
    assert verdict.reasons == ()


def test_too_few_samples() -> None:
    assert reasons(measured([1000.0] * 127)) == ("too few samples: 127 of 128",)
    assert reasons(measured([1000.0] * 128)) == ()


def test_drift_in_either_direction() -> None:
    assert reasons(measured([1000.0] * 100 + [1060.0] * 100)) == ("drift of +6 % between the halves of the run",)
    assert reasons(measured([1000.0] * 100 + [940.0] * 100)) == ("drift of -6 % between the halves of the run",)
    assert reasons(measured([1000.0] * 100 + [1040.0] * 100)) == ()


def test_blocks_that_spread_without_drifting() -> None:
    wave = [1000.0] * 80 + [1120.0] * 80 + [1000.0] * 80 + [1120.0] * 80
    assert reasons(measured(wave, blocks=4)) == ("a block's median lies 6 % off",)


def test_throttled_once_is_throttled() -> None:
    calm, hot = Telemetry(time_ns=0, throttled=False), Telemetry(time_ns=1, throttled=True)
    silent = Telemetry(time_ns=2)
    assert reasons(STEADY, calm, hot, calm, silent) == ("the device throttled in 1 of 3 readings",)
    weak = Telemetry(time_ns=1, throttled=True, throttle=("under-voltage", "throttled"))
    words = "the device throttled (under-voltage, throttled) in 2 of 3 readings"
    assert reasons(STEADY, calm, weak, weak) == (words,)


def test_a_temperature_at_its_limit() -> None:
    warm = Telemetry(time_ns=0, temperature_c=84.0, headroom_c=1.0)
    hot = Telemetry(time_ns=1, temperature_c=85.5, headroom_c=-0.5)
    assert reasons(STEADY, warm, warm) == ()
    assert reasons(STEADY, warm, hot, Telemetry(time_ns=2)) == (
        "a temperature of 86 C at its limit in 1 of 2 readings",
    )
    bare = Telemetry(time_ns=1, headroom_c=0.0)
    assert reasons(STEADY, bare) == ("a temperature at its limit in 1 of 1 readings",)


def test_another_governor() -> None:
    readings = [Telemetry(time_ns=i, governor=name) for i, name in enumerate(("powersave", "performance"))]
    assert reasons(STEADY, *readings) == ("the clock governor changed: performance, powersave",)


def test_a_clock_that_falls() -> None:
    falling = [Telemetry(time_ns=i, clock_mhz=2400.0 if i < 5 else 1500.0) for i in range(10)]
    assert reasons(STEADY, *falling) == ("the clock changed by 38 % (1500 to 2400 MHz)",)
    one_odd = [Telemetry(time_ns=i, clock_mhz=1500.0 if i == 7 else 2400.0) for i in range(20)]
    assert reasons(STEADY, *one_odd) == ()


def test_other_load_is_a_mean_of_those_that_tell() -> None:
    readings = [Telemetry(time_ns=0), Telemetry(time_ns=1, other_load=0.1), Telemetry(time_ns=2, other_load=0.9)]
    assert reasons(STEADY, *readings) == ("other programs kept 0.5 cores busy",)
    assert reasons(STEADY, *readings[:2]) == ()


def test_the_devices_own_doubts_come_first() -> None:
    hot = Telemetry(time_ns=0, throttled=True)
    found = reasons(STEADY, hot, notes=("the delegate fell back",))
    assert found == ("the delegate fell back", "the device throttled in 1 of 1 readings")


def test_blocks_of_which_only_a_summary_is_known() -> None:
    def block(number: int, median_ms: float) -> Summary:
        times = dict.fromkeys(("p5_ns", "median_ns", "p95_ns", "max_ns", "mean_ns"), median_ms * 1000000.0)
        return Summary(block=number, start_ns=number, count=50, min_ns=9e5, std_ns=0.0, **times)

    def of(*medians_ms: float) -> Measurement:
        summaries = tuple(block(number, value) for number, value in enumerate(medians_ms))
        return Measurement(samples_ns=(), starts_ns=(), blocks=(), summaries=summaries, load_ms=1.0, first_ms=1.0)

    found = latency(of(1.0, 1.01, 1.02))
    assert found.summarized
    assert found.p50_ms == pytest.approx(1.01)
    assert (found.count, found.p90_ms, found.p99_ms) == (150, None, None)
    assert found.min_ms == pytest.approx(0.9)
    assert judge(of(1.0, 1.01, 1.02), ()).valid
    assert judge(of(1.0, 1.01), ()).reasons == ("too few samples: 100 of 128",)
    reasons = " ".join(judge(of(1.0, 1.0, 1.2, 1.2), ()).reasons)
    assert "drift of +20 %" in reasons
    assert "a block's median lies 9 % off" in reasons
    with pytest.raises(ValueError, match="exclude each other"):
        Measurement(
            samples_ns=(1,), starts_ns=(1,), blocks=(0,), summaries=(block(0, 1.0),), load_ms=1.0, first_ms=1.0
        )
