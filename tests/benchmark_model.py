"""A stand-in for TFLite's `benchmark_model`: real inference, and just the flags, lines and files of the real one.

The test that uses it writes the first line, which names a Python with LiteRT. What stands in the file `is` beside
it makes it another one: `old` writes no result, `even` has all times equal, `gpu` has a GPU.
"""

import struct
import sys
import time
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

FLAGS = dict(word[2:].split("=", 1) for word in sys.argv[1:])
IS = Path(__file__).with_name("is")
KIND = IS.read_text() if IS.is_file() else ""


def say(text: str) -> None:
    print(f"INFO: {text}", flush=True)


def fail(*lines: str) -> None:
    for line in lines:
        print(f"ERROR: {line}", flush=True)
    print("ERROR: Benchmarking failed.", flush=True)
    sys.exit(1)


def loaded() -> Interpreter:
    say(f"Loaded model {FLAGS['graph']}")
    if FLAGS["use_gpu"] == "true" and KIND != "gpu":
        fail("Failed to apply GPU delegate.")
    plain = FLAGS["use_xnnpack"] != "true"
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if plain else OpResolverType.AUTO
    try:
        found = Interpreter(
            FLAGS["graph"], num_threads=int(FLAGS["num_threads"]), experimental_op_resolver_type=resolver
        )
        found.allocate_tensors()
    except ValueError as error:
        if "Flatbuffer" in str(error):
            fail(f"Failed to mmap model {FLAGS['graph']}")
        fail(*str(error).splitlines(), "Failed to allocate tensors!")
    if FLAGS["use_gpu"] == "true":
        print(
            "INFO: Replacing 2 out of 3 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 2 partitions."
        )
        part = "partially executed by the delegate w/ 1 delegate kernels."
        say(f"Explicitly applied GPU delegate, and the model graph will be {part}")
    elif not plain:
        say(
            "Explicitly applied XNNPACK delegate, and the model graph will be completely executed by the delegate."
        )
    return found


def series(model: Interpreter, row: np.ndarray, runs: int, least_s: float, most_s: float) -> list[int]:
    """Durations in microseconds."""
    least = f"at least {runs} iterations and at least {least_s:g} seconds"
    say(f"Running benchmark for {least} but terminate if exceeding {most_s:g} seconds.")
    durations: list[int] = []
    index, began = model.get_input_details()[0]["index"], time.monotonic()
    while (len(durations) < runs or time.monotonic() - began < least_s) and time.monotonic() - began <= most_s:
        model.set_tensor(index, row)
        start = time.perf_counter_ns()
        model.invoke()
        durations.append(1000 if KIND == "even" else (time.perf_counter_ns() - start) // 1000 + 1)
    if len(set(durations)) == 1:
        say(f"count={len(durations)} curr={durations[-1]}\n")
    elif durations:
        p5, median, p95 = np.percentile(durations, (5, 50, 95)).astype(int)
        say(
            f"count={len(durations)} first={durations[0]} curr={durations[-1]} min={min(durations)} "
            f"max={max(durations)} avg={np.mean(durations):.6g} std={np.std(durations):.0f} p5={p5} "
            f"median={median} p95={p95}\n"
        )
    return durations


def real(number: int, value: float) -> bytes:
    return bytes([number << 3 | 5]) + struct.pack("<f", value)


def whole(number: int, value: int) -> bytes:
    data = bytes([number << 3])
    while value > 0x7F:
        data, value = data + bytes([value & 0x7F | 0x80]), value >> 7
    return data + bytes([value])


def message(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2, len(data)]) + data


def main() -> None:
    began = time.perf_counter()
    model = loaded()
    init_us = (time.perf_counter() - began) * 1e6
    say(f"Initialized session in {init_us / 1e3:g}ms.")
    detail = model.get_input_details()[0]
    name, file = FLAGS["input_layer_value_files"].split(":")
    assert name == FLAGS["input_layer"]
    data = Path(file).read_bytes()
    shape = tuple(map(int, FLAGS["input_layer_shape"].split(",")))
    row = np.frombuffer(data, detail["dtype"])
    if len(row) != np.prod(shape):
        fail(f"Input file size of {len(data)} bytes does not match the tensor's")
    row = row.reshape(shape)
    most = float(FLAGS.get("max_secs", "150"))
    warm = series(model, row, int(FLAGS["warmup_runs"]), float(FLAGS["warmup_min_secs"]), most)
    timed = series(model, row, int(FLAGS["num_runs"]), float(FLAGS["min_secs"]), most)
    first, average = (warm[0], np.mean(warm)) if warm else (0, 0.0)
    say(
        f"Inference timings in us: Init: {init_us:.0f}, First inference: {first}, Warmup (avg): {average:g}, "
        f"Inference (avg): {np.mean(timed):g}"
    )
    if "output_filepath" in FLAGS:
        with open(FLAGS["output_filepath"], "wb") as stream:
            for output in model.get_output_details():
                stream.write(model.get_tensor(output["index"]).tobytes())
    if "result_file_path" in FLAGS and KIND != "old":
        ms = [
            value / 1e3
            for value in (
                np.mean(timed),
                min(timed),
                max(timed),
                np.std(timed),
                *np.percentile(timed, (50, 5, 95)),
            )
        ]
        latency = b"".join(real(n + 1, v) for n, v in enumerate([*ms, init_us / 1e3, first / 1e3, average / 1e3]))
        memory = real(3, 12.5) if FLAGS.get("report_peak_memory_footprint") == "true" else b""
        with open(FLAGS["result_file_path"], "wb") as stream:
            stream.write(
                message(1, b"x") + message(2, latency) + message(3, memory) + message(4, whole(2, len(timed)))
            )


main()
