"""TFLite's own `benchmark_model`: its flags, what it writes and prints, and why it failed.

It gives no single times: of each start a summary. The file that it writes is a protocol buffer of four messages,
read here by hand; of what it prints, six digits are left of each time.

https://github.com/tensorflow/tensorflow/tree/master/tensorflow/lite/tools/benchmark
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from edgekit.errors import DeviceError
from edgekit.measure import Summary
from edgekit.operators import Delegation

DELEGATES = {
    "xnnpack": ("--use_xnnpack=true", "--use_gpu=false", "--use_nnapi=false"),
    "gpu": ("--use_xnnpack=false", "--use_gpu=true", "--use_nnapi=false"),
    "nnapi": ("--use_xnnpack=false", "--use_gpu=false", "--use_nnapi=true"),
    "none": ("--use_xnnpack=false", "--use_gpu=false", "--use_nnapi=false"),
}
NAMES = {"xnnpack": "XNNPACK", "gpu": "GPU", "nnapi": "NNAPI"}  # in what it prints
FAILED = "Benchmarking failed."

# Fields of BenchmarkResult's messages: LatencyMetrics (2), MemoryMetrics (3), MiscMetrics (4).
LATENCY_MS = {1: "mean", 2: "min", 3: "max", 4: "std", 5: "median", 6: "p5", 7: "p95", 8: "load", 9: "first"}
PEAK_MEMORY_MB, COUNT = 3, 2
STATISTICS = {
    "min": "min",
    "max": "max",
    "avg": "mean",
    "std": "std",
    "p5": "p5",
    "median": "median",
    "p95": "p95",
}

# In the order in which they are looked for: the cause stands before what follows from it.
CAUSES = (
    (r"Didn't find op for builtin opcode '(\w+)' version '(\d+)'", "it lacks operator {0} version {1}: too old"),
    (r"Encountered unresolved custom op: (\S+?)\.?(?:\s|$)", "it lacks the custom operator {0}"),
    (r"Node number (\d+) \((\w+)\) failed to (\w+)", "operator {1} (number {0}) failed to {2}"),
    (r"Failed to apply (\w+) delegate", "the {0} delegate does not work there"),
    (r"Failed to (?:mmap|load) model (\S+)", "it cannot read {0}: is it a TFLite file?"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What one start told. Times in ms; *peak_memory_bytes* is None where it does not tell."""

    count: int
    times_ms: dict[str, float]
    peak_memory_bytes: int | None = None

    def summary(self, block: int, start_ns: int) -> Summary:
        """The timed inferences as one block. Raises DeviceError where the tool does not tell enough."""
        if missing := [name for name in STATISTICS.values() if name not in self.times_ms]:
            raise DeviceError(f"benchmark_model tells no {missing[0]} of its times: take a newer build")
        ns = {f"{name}_ns": self.times_ms[name] * 1e6 for name in STATISTICS.values()}
        return Summary(block=block, start_ns=start_ns, count=self.count, **ns)


def parse_result(data: bytes) -> Told:
    """What stands in the file that it writes. Raises DeviceError for one that is cut off or of another kind."""
    try:
        messages = {number: value for number, value in _fields(data) if isinstance(value, bytes)}
        latency, memory, other = (dict(_fields(messages.get(number, b""))) for number in (2, 3, 4))
        times = {name: float(latency[number]) for number, name in LATENCY_MS.items() if number in latency}
        peak = float(memory.get(PEAK_MEMORY_MB, 0.0))
        count = int(other[COUNT])
    except (ValueError, TypeError, KeyError, struct.error, IndexError) as error:
        raise DeviceError(f"the result of benchmark_model is damaged: {error}") from error
    return Told(count=count, times_ms=times, peak_memory_bytes=int(peak * 1e6) if peak > 0 else None)


def parse_text(text: str) -> Told:
    """What it prints, for builds that write no result. Raises DeviceError when the times are missing."""
    lines = re.findall(r"\bcount=(\d+) (.*)", text)
    if not lines:
        raise DeviceError("benchmark_model printed no times")
    count, rest = lines[-1]  # the warm-up has its own line before
    values = {name: float(value) for name, value in re.findall(r"(\w+)=([\d.e+]+)", rest)}
    if set(values) == {"curr"}:  # all were equal
        times = {**dict.fromkeys(STATISTICS.values(), values["curr"]), "std": 0.0}
    else:
        times = {name: values[key] for key, name in STATISTICS.items() if key in values}
    for name, pattern in (("load", r"Init: ([\d.e+]+)"), ("first", r"First inference: ([\d.e+]+)")):
        if match := re.search(pattern, text):
            times[name] = float(match[1])
    peak = re.search(r"Overall peak memory footprint \(MB\) via periodic monitoring: ([\d.e+]+)", text)
    return Told(
        count=int(count),
        times_ms={name: value / 1e3 for name, value in times.items()},
        peak_memory_bytes=int(float(peak[1]) * 1e6) if peak else None,
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Number and value of each field of a protocol buffer."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        value: int | float | bytes
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 1:
            (value,), at = struct.unpack_from("<d", data, at), at + 8
        elif kind == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
            if at > len(data):
                raise ValueError("it is cut off")
        elif kind == 5:
            (value,), at = struct.unpack_from("<f", data, at), at + 4
        else:
            raise ValueError(f"it has a field of kind {kind}")
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at


def failure(text: str, file: str) -> str:
    """Why it failed on *file*, in one line that names the operator where one is to blame."""
    for pattern, words in CAUSES:
        if match := re.search(pattern, text):
            return f"benchmark_model fails on {file}: {words.format(*match.groups())}"
    lines = [line.strip() for line in text.splitlines() if line.strip() and FAILED not in line]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["it says nothing"]
    return f"benchmark_model fails on {file}: {errors[-1].removeprefix('ERROR:').strip()}"


def delegation(text: str, wanted: str) -> tuple[str, str, Delegation | None]:
    """What ran the model, a doubt where it is not what was wanted, and how many operators it took if that is told.

    The log gives numbers and no names of what was left.
    """
    if wanted == "none":
        return "none", "", None
    name = NAMES[wanted]
    # One line for each subgraph that it was applied to; the first is the model's own.
    took = re.search(r"Replacing (\d+) out of (\d+) node\(s\) with delegate", text)
    counts = Delegation(taken=int(took[1]), total=int(took[2])) if took and int(took[1]) <= int(took[2]) else None
    if re.search(rf"{name} delegate.*, and the model graph will be completely", text):
        return wanted, "", counts
    if re.search(rf"{name} delegate.*, and the model graph will be partially", text):
        share = f"{counts.taken} of {counts.total} operators" if counts else "only a part of the operators"
        # What XNNPACK leaves runs on the same CPU, by slower code; what a GPU leaves runs elsewhere.
        return wanted, "" if wanted == "xnnpack" else f"the delegate fell back: {name} took {share}", counts
    return "none", f"the delegate fell back: {name} took none of the operators", None
