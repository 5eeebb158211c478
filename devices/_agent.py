"""The edgekit agent: measures model files on the machine it runs on. One file, Python 3.9 or newer.

It needs NumPy and one runtime: ai-edge-litert, tflite-runtime or tensorflow for ``tflite``, onnxruntime for
``onnx``, on a Mac coremltools and Pillow for ``coreml`` (Python 3.10 or newer), and Xcode where EDGEKIT_IPHONE
names an iPhone there that is measured in its place. It imports nothing else, and never executes anything that it
was sent: a job is data.

    python agent.py JOB.json      runs the job; events on stdout, one JSON object a line
    python agent.py --describe    the `device` event alone
    python agent.py --worker PID  (used by itself) one entry, driven by commands on stdin
    python agent.py --profile PID (used by itself) what each operator of one entry costs

Over a link that may be lost the agent works apart from the host, in FOLDER, the job's own:

    python agent.py --detach FOLDER         starts on FOLDER/job.json and returns; events go to FOLDER/events
    python agent.py --follow FOLDER OFFSET  passes the events from that byte on to stdout until the agent ends;
                                            the host writes a line break to its stdin every few seconds
    python agent.py --stop FOLDER           ends it, its workers with it
    python agent.py --wait LOCK SECONDS     waits until nobody holds that lock; status 3 when somebody still does

JOB      {protocol, samples, seconds, blocks, warmup, warmup_seconds, top_k, entries: [ENTRY]}, where it is wanted
         {profile: true} and {cool_down_seconds, spacing_ms}: how long it waits before a block for a hot machine to
         cool down, and how far apart the inferences are that are kept; and for --detach
         {limit_s, patience_s, lock, holder}: it ends after limit_s, or when nobody has followed for patience_s;
         lock is a file that one visit at a time holds, holder what stands in it for the others
ENTRY    {model, target, precision, output, threads, inputs, predict}; paths are relative to the job's folder,
         inputs is an .npy file (N, ...) whose rows are in the shape and type that the model takes
Events   device       {protocol, model, soc, cpu, architecture, cores, clusters: [{cores, part, max_mhz}],
                       features, memory_bytes, os, kernel, emulated, runtimes}
         loaded       {entry, pid, runtime, runtime_version, delegate, load_ms, first_ms, peak_memory_bytes,
                       operators: {total, taken, left: {kind: count}} or null where there is no delegate}
                      of coreml also compile_ms, and plan: [{name, kind, unit, share}] of the operators
         progress     {entry, doing, share}                  share: done of the whole job, 0 to 1
         samples      {entry, block, start_ns, duration_ns}  lists, one value an inference; at least every second
         telemetry    {entry, time_ns, ...}                  while that entry works; what cannot be read is absent
         predictions  {entry, first, k, top}                 rows from `first` on, k indices a row
         cooled       {entry, block, seconds, from_c, to_c, enough}  it waited before that block
         busy         {holder}                               --wait: who holds the lock; every second
         note         {entry, text}                          a doubt about what was measured
         done         {entry}
         profile      {entry, runs, total_us, costs: [{operator, layer, delegated, mean_us}]}  after `done`;
                      {entry, absent}: why there is none
         error        {entry, text}                          that entry is over; entry is null: the job is
         end          {}                                     the last event; without it the agent was cut off
Times are `time.perf_counter_ns`, one clock for all processes of a machine on Linux and macOS.

Every entry runs in a fresh process; their blocks take turns (A B C A B C ...), so a machine that grows warm or
busy slows all of them alike. One works while the others sleep in a read of their stdin. When the host is gone
(stdin or stdout closed) or on SIGTERM, SIGINT or SIGHUP the agent ends and takes its children with it.
"""

from __future__ import annotations

import fcntl
import gc
import glob
import json
import os
import platform
import re
import select
import selectors
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib import import_module, metadata, util
from typing import Any, Callable

PROTOCOL = 1
CYCLE = 32  # distinct inputs that a latency run cycles through
FLUSH_NS = 1_000_000_000  # samples go out once a second: seldom enough not to disturb what is measured
# Of a model that takes microseconds one inference every half millisecond is kept: a minute gives 120,000 samples,
# and handling millions would itself keep a core busy. The inferences between run all the same.
SPACING_NS = 500_000
FLUSH_ROWS = 1024
FOLLOW_S = 30  # a follower whose host says nothing for so long ends: a dead link looks alive for a long time
STALL_S = 600.0  # a child that works and says nothing for so long hangs
# A child that slept finds cold caches and a lower clock. Caches need a few inferences, clock governors up to
# some tenths of a second: a quarter of the first warm-up (0.5 s of 2 s) covers both.
REWARM = 0.25
# Where the kernel does not say from when on it slows the processor down; a Pi's firmware does from 80 on.
HOT_C = {"arm": 80.0, "x86": 95.0}
HEADROOM_C = 5.0  # below that a block may begin
COOLER_C = 10.0  # that a pause brings, so that the next block does not pause again at once
# Import name and distribution of what can run a target, best first.
RUNTIMES = {
    "tflite": (
        ("ai_edge_litert", "ai-edge-litert"),
        ("tflite_runtime", "tflite-runtime"),
        ("tensorflow", "tensorflow"),
    ),
    "onnx": (("onnxruntime", "onnxruntime"),),
    "coreml": (("coremltools", "coremltools"),),
}
LOAD_S, PREDICT_S, PROFILE_S = 1.0, 5.0, 1.0  # guesses, for the progress only
# A profile takes the runs that fit into 0.4 s, and at least 3: it shows where the time goes, to some per cent.
PROFILE_NS, PROFILE_RUNS = 400_000_000, range(3, 201)
PROFILE_STALL_S = 120.0
JOB_KEYS = ("samples", "seconds", "blocks", "warmup", "warmup_seconds", "top_k", "entries")
ENTRY_KEYS = ("model", "target", "precision", "output", "threads", "inputs", "predict")
PHONE = "EDGEKIT_IPHONE"  # in the environment: the UDID of the iPhone that is measured, or any
ROOT = ""  # where /proc and /sys lie; the tests put others in their place
Event = dict[str, Any]
clock = time.perf_counter_ns


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def emit(event: Event, fd: int = 1) -> None:
    write_all(fd, json.dumps(event, separators=(",", ":")).encode() + b"\n")


def find_runtime(target: str) -> tuple[str, str, str] | None:
    """Import name, distribution and version of the first installed runtime for *target*, without importing it."""
    for module, distribution in RUNTIMES.get(target, ()):
        if (found := util.find_spec(module)) and (target != "coreml" or runs_coreml(found)):
            try:
                return module, distribution, metadata.version(distribution)
            except metadata.PackageNotFoundError:  # unpacked without its metadata, or a nightly build
                return module, distribution, "unknown"
    return None


def runs_coreml(package: Any) -> bool:
    """Whether coremltools has what calls Core ML, which is built for Macs only: elsewhere it converts."""
    return any(
        glob.glob(os.path.join(folder, "libcoremlpython*")) for folder in package.submodule_search_locations
    )


class Refused(Exception):
    """An entry that cannot run here, in words for the user."""


# ---- a worker: one entry in a process of its own ------------------------------------------------------------


class TfliteModel:
    """A .tflite file through the Interpreter API (CompiledModel crashes on CPUs without LSE atomics)."""

    def __init__(self, module: str, distribution: str, version: str, entry: Event) -> None:
        import numpy

        if distribution == "tflite-runtime":
            if int(numpy.__version__.partition(".")[0]) >= 2:
                raise Refused(
                    f"tflite-runtime {version} does not work with NumPy {numpy.__version__}: pip install 'numpy<2'"
                )
            if entry["precision"].startswith("dyn8"):
                raise Refused(
                    f"tflite-runtime {version} computes dyn8 wrongly without a word: use ai-edge-litert, "
                    "or another precision"
                )
        if module == "tensorflow":
            interpreter_class = import_module("tensorflow").lite.Interpreter
        else:
            interpreter_class = import_module(f"{module}.interpreter").Interpreter
        start = clock()
        self.interpreter = interpreter_class(model_path=entry["model"], num_threads=entry["threads"])
        self.interpreter.allocate_tensors()
        self.load_ms = (clock() - start) / 1e6
        self.invoke: Callable[[], None] = self.interpreter.invoke
        inputs, outputs = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        self.input_index = inputs[0]["index"]
        self.output_index = pick([detail["name"] for detail in outputs], entry["output"], outputs)["index"]
        # The default resolver may apply XNNPACK and nothing else: a delegate in the prepared graph is XNNPACK's.
        own, parts = parts_of(self.interpreter._get_ops_details())
        left = [own[place] for place, part in enumerate(parts) if part is None]
        self.delegate = "xnnpack" if len(left) < len(own) else "none"
        self.operators: Event | None = {
            "total": len(own),
            "taken": len(own) - len(left),
            "left": {kind: left.count(kind) for kind in dict.fromkeys(left)},
        }
        self.note = ""
        # Of the other precisions it knows no operator: that is the file's, and no doubt about the measurement.
        if self.delegate == "none" and entry["precision"].startswith(("fp32", "fp16", "int8", "w8")):
            self.note = f"the delegate fell back: XNNPACK took none of the {len(own)} operators"

    def set_input(self, row: Any) -> None:
        self.interpreter.set_tensor(self.input_index, row)

    def output(self) -> Any:
        return self.interpreter.get_tensor(self.output_index)


def parts_of(operators: list[Event]) -> tuple[list[str], list[int | None]]:
    """Of each of the file's operators its kind, and the number of the delegate's part that it lies in, or None.

    A prepared graph lists the file's operators and behind them one of kind DELEGATE for each part that was taken,
    with the tensors on its border: what lies between those is inside.
    """
    own = [node for node in operators if not is_delegate(node)]
    makers = {int(tensor): place for place, node in enumerate(own) for tensor in node["outputs"]}
    parts: list[int | None] = [None] * len(own)
    for number, delegate in enumerate(filter(is_delegate, operators)):
        border, waiting = {int(t) for t in delegate["inputs"]}, [int(t) for t in delegate["outputs"]]
        while waiting:
            place = makers.get(waiting.pop())
            if place is not None and parts[place] is None:
                parts[place] = number
                waiting += [t for tensor in own[place]["inputs"] if (t := int(tensor)) not in border]
    return [str(node["op_name"]) for node in own], parts


def is_delegate(node: Event) -> bool:
    return node["op_name"] == "DELEGATE" or "XNNPACK" in node["op_name"].upper()


class OnnxModel:
    """An .onnx file through onnxruntime's CPU provider; bound input, so that setting it is not timed."""

    def __init__(self, module: str, distribution: str, version: str, entry: Event) -> None:
        runtime = import_module(module)
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = entry["threads"], 1
        start = clock()
        session = runtime.InferenceSession(entry["model"], options, providers=["CPUExecutionProvider"])
        self.load_ms = (clock() - start) / 1e6
        outputs = [output.name for output in session.get_outputs()]
        self.input_name = session.get_inputs()[0].name
        self.binding = session.io_binding()
        self.binding.bind_output(pick(outputs, entry["output"], outputs))
        self.invoke: Callable[[], None] = lambda: session.run_with_iobinding(self.binding)
        self.delegate = session.get_providers()[0]
        self.operators = None  # it has no delegate: its own kernels run all
        self.note = ""

    def set_input(self, row: Any) -> None:
        self.row = row  # the binding borrows its memory
        self.binding.bind_cpu_input(self.input_name, row)

    def output(self) -> Any:
        return self.binding.copy_outputs_to_cpu()[0]


class CoremlModel:
    """An .mlpackage (in a .zip, as a folder cannot be sent) through coremltools, on the units EDGEKIT_UNIT allows.

    What is timed is `predict`: Core ML and coremltools's way to it and back.
    """

    def __init__(self, module: str, distribution: str, version: str, entry: Event) -> None:
        if not util.find_spec("PIL"):
            raise Refused("coremltools takes images of Pillow: pip install pillow")
        unit = os.environ.get("EDGEKIT_UNIT", "ALL")
        self.image = import_module("PIL.Image")
        tools, models = import_module(module), import_module(f"{module}.models")
        self.folder = tempfile.TemporaryDirectory(prefix="edgekit-coreml-")
        package = entry["model"]
        if package.endswith(".zip"):
            with zipfile.ZipFile(package) as archive:
                archive.extractall(self.folder.name)
            (package,) = glob.glob(os.path.join(self.folder.name, "*.mlpackage"))
        description = tools.utils.load_spec(package).description
        self.input_name = description.input[0].name
        self.labels = json.loads(description.metadata.userDefined["labels"] or "[]")
        if description.predictedFeatureName and not self.labels and entry["predict"]:
            raise Refused("the package does not tell the order of its classes: it was not made by edgekit")
        self.output_name = entry["output"]
        start = clock()
        compiled = models.utils.compile_model(package, os.path.join(self.folder.name, "compiled.mlmodelc"))
        middle = clock()
        model = models.CompiledMLModel(compiled, compute_units=tools.ComputeUnit[unit])
        self.compile_ms, self.load_ms = (middle - start) / 1e6, (clock() - middle) / 1e6
        self.delegate, self.plan = unit, compute_plan(tools, compiled, unit)
        self.operators, self.note = taken_by_units(self.plan, unit)

        def invoke() -> None:
            self.given = model.predict(self.row)

        self.invoke: Callable[[], None] = invoke

    def set_input(self, row: Any) -> None:
        """*row*: uint8 RGB (1, 3, H, W)."""
        self.row = {self.input_name: self.image.fromarray(row[0].transpose(1, 2, 0).copy())}

    def output(self) -> Any:
        import numpy

        found = pick(list(self.given), self.output_name, list(self.given.values()))
        if not isinstance(found, dict):
            return numpy.asarray(found)
        return numpy.array([found[label] for label in self.labels])


class IphoneModel:
    """An .mlpackage of plain tensors on an iPhone, in the app that coremltools builds and drives through Xcode.

    An inference is sent there and back in files, which takes a second or more; what counts is the app's own time
    for it, which is Core ML's prediction alone.
    """

    def __init__(self, module: str, distribution: str, version: str, entry: Event) -> None:
        import asyncio
        from pathlib import Path

        os.environ["TQDM_DISABLE"] = "1"  # a bar for every file that is sent
        unit, team, told = os.environ.get("EDGEKIT_UNIT", "ALL"), os.environ["EDGEKIT_TEAM"], phone()
        tools, parts = import_module(module), f"{module}.models.ml_program.experimental"
        remote, wrapper = import_module(f"{parts}.remote_device"), import_module(f"{parts}.async_wrapper")
        self.folder = tempfile.TemporaryDirectory(prefix="edgekit-coreml-")
        with zipfile.ZipFile(entry["model"]) as archive:
            archive.extractall(self.folder.name)
        (package,) = glob.glob(os.path.join(self.folder.name, "*.mlpackage"))
        self.input_name = tools.utils.load_spec(package).description.input[0].name
        # Kept for the next time: building takes a minute, and the keychain that signs may be locked then.
        base = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        self.place = os.path.join(base, f"modelrunner-{version}-{team}")
        os.makedirs(self.place, exist_ok=True)
        loop = asyncio.new_event_loop()
        self.wait: Callable[[Any], Any] = loop.run_until_complete
        (device,) = [one for one in remote.Device.get_devices() if one.udid == told["udid"]]
        signing = remote.AppSigningCredentials(
            development_team=team, bundle_identifier=f"com.edgekit.modelrunner.{team.lower()}"
        )
        try:
            self.device = self.wait(device.prepare_for_model_debugging(signing, Path(self.place)))
        except Exception as error:  # of many kinds, and Xcode's own words are lost in coremltools
            raise Refused(
                f"the app that measures could not be brought onto {told['name']} ({type(error).__name__}: "
                f"{error}): unlock the phone; is the team right, and may its key sign here (security "
                "unlock-keychain)?"
            ) from error
        self.model = wrapper.MLModelAsyncWrapper.from_spec_or_path(
            package,
            os.path.join(package, "Data", "com.apple.CoreML", "weights"),
            compute_units=tools.ComputeUnit[unit],
            device=self.device,
        )
        self.wait(self.model.load())
        self.load_ms = (self.model.load_duration_in_nano_seconds or 0) / 1e6
        self.delegate, self.plan = unit, list[Event]()
        if release(told["os"]) >= (17, 4):
            self.plan = plan_rows(self.wait(self.model.retrieve_compute_plan()))
        self.operators, self.note = taken_by_units(self.plan, unit)

    def invoke(self) -> None:
        self.given = self.wait(self.model.predict(self.row))

    def elapsed_ns(self) -> int:
        """What the last inference took by the phone's own clock."""
        duration = self.model.last_predict_duration_in_nano_seconds
        if duration is None:
            raise Refused("the app on the phone did not tell how long an inference took")
        return int(duration)

    def set_input(self, row: Any) -> None:
        """*row*: uint8 RGB (1, 3, H, W)."""
        self.row = {self.input_name: row.astype("float32")}

    def output(self) -> Any:
        return pick(list(self.given), "", list(self.given.values()))

    def close(self) -> None:
        """End the app, and remove what was sent to it and what came."""
        self.device.session.stop()
        for pattern in ("*/requests", "build/*/requests"):
            for folder in glob.glob(os.path.join(self.place, pattern)):
                shutil.rmtree(os.path.dirname(folder), ignore_errors=True)


def release(system: str) -> tuple[int, ...]:
    """Of ``iOS 18.1`` (18, 1)."""
    return tuple(map(int, re.findall(r"\d+", system)[:2]))


def compute_plan(tools: Any, compiled: str, unit: str) -> list[Event]:
    """The unit that Core ML plans each operator for, and its share of the cost. Older systems do not tell."""
    if sys.platform == "darwin" and tuple(map(int, platform.mac_ver()[0].split(".")[:2])) < (14, 4):
        return []
    module = import_module(f"{tools.__name__}.models.compute_plan")
    return plan_rows(module.MLComputePlan.load_from_path(compiled, compute_units=tools.ComputeUnit[unit]))


def taken_by_units(plan: list[Event], unit: str) -> tuple[Event | None, str]:
    """How many operators other units than the CPU take, None where that is not told or asked; and a doubt."""
    if not plan or unit == "CPU_ONLY":
        return None, ""
    left = [row["kind"] for row in plan if row["unit"] == "CPU"]
    operators = {
        "total": len(plan),
        "taken": len(plan) - len(left),
        "left": {kind: left.count(kind) for kind in dict.fromkeys(left)},
    }
    if unit == "ALL" or len(left) < len(plan):
        return operators, ""
    return operators, f"the delegate fell back: Core ML plans all {len(left)} operators for the CPU"


def plan_rows(plan: Any) -> list[Event]:
    kinds = {"MLCPUComputeDevice": "CPU", "MLGPUComputeDevice": "GPU", "MLNeuralEngineComputeDevice": "NE"}
    rows: list[Event] = []
    for one in plan.model_structure.program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(one)
        cost = plan.get_estimated_cost_for_mlprogram_operation(one)
        if usage is None:  # a constant
            continue
        device = type(usage.preferred_compute_device).__name__
        rows.append(
            {
                "name": one.outputs[0].name if one.outputs else "",
                "kind": one.operator_name.rpartition(".")[2],
                "unit": kinds.get(device, device),
                "share": cost.weight if cost is not None else None,
            }
        )
    return rows


def pick(names: list[str], wanted: str, values: list[Any]) -> Any:
    """The value of the output named *wanted*, or the only one, whatever the runtime calls it."""
    if wanted in names:
        return values[names.index(wanted)]
    if len(names) == 1:
        return values[0]
    raise Refused(f"no output {wanted!r} among {', '.join(names)}")


def load_model(entry: Event) -> tuple[Any, str, str]:
    """The loaded model, its runtime and that runtime's version."""
    found = find_runtime(entry["target"])
    if found is None:
        needed = " or ".join(distribution for _, distribution in RUNTIMES.get(entry["target"], ()))
        if entry["target"] == "coreml" and sys.platform != "darwin":
            needed = ""
        raise Refused(f"nothing here runs {entry['target']} files" + (f": install {needed}" if needed else ""))
    coreml: Any = IphoneModel if os.environ.get(PHONE) else CoremlModel
    kind = {"tflite": TfliteModel, "onnx": OnnxModel, "coreml": coreml}[entry["target"]]
    return kind(*found, entry), found[1], found[2]


def worker(parent: int, work: Callable[[Event, Callable[..., None]], None]) -> int:
    """Do the work on the entry that is the first line on stdin. It tells its events."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the agent decides
    die_with(parent)
    channel = os.dup(1)
    os.dup2(2, 1)  # what a native library prints must not mix with the events
    entry: Event = json.loads(sys.stdin.readline())
    number = entry["entry"]
    # Broad on purpose: whatever a runtime raises is told, and this process ends.
    try:
        work(entry, lambda kind, **fields: emit({"event": kind, "entry": number, **fields}, channel))
    except Exception as error:
        text = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        emit({"event": "error", "entry": number, "text": text}, channel)
        return 1
    return 0


def die_with(parent: int) -> None:
    """Be killed when the agent dies in any way, even in the middle of a long inference (Linux)."""
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit(1)


def serve(entry: Event, send: Callable[..., None]) -> None:
    """Load the model, then carry out commands until stdin closes; `ready` after each."""
    import numpy

    model, runtime, version = load_model(entry)
    inputs = numpy.load(entry["inputs"], mmap_mode="r")
    model.set_input(numpy.array(inputs[:1]))
    start = clock()
    model.invoke()
    own = getattr(model, "elapsed_ns", None)
    first_ms = (own() if own else clock() - start) / 1e6
    for _ in range(2):  # a memory arena may still grow once
        model.invoke()
    send(
        "loaded",
        pid=os.getpid(),
        runtime=runtime,
        runtime_version=version,
        delegate=model.delegate,
        operators=model.operators,
        load_ms=model.load_ms,
        first_ms=first_ms,
        # Before the test images are touched: their pages would count as this process's memory.
        peak_memory_bytes=None if own else peak_memory_bytes(),
        **{key: getattr(model, key) for key in ("compile_ms", "plan") if hasattr(model, key)},
    )
    if model.note:
        send("note", text=model.note)
    chosen = numpy.linspace(0, len(inputs) - 1, min(CYCLE, len(inputs))).astype(int)
    rows = [numpy.array(inputs[i : i + 1]) for i in chosen]
    send("ready")
    for line in iter(sys.stdin.readline, ""):
        command = json.loads(line)
        if command["do"] == "block":
            measure(model, rows, command, send)
        else:
            predict(model, inputs, command["top_k"], send)
        send("ready")
    if hasattr(model, "close"):
        model.close()


def measure(model: Any, rows: list[Any], command: Event, send: Callable[..., None]) -> None:
    """One block: warm up, then time single inferences; only `invoke` lies between the two clock readings.

    A model that runs elsewhere tells the time itself.
    """
    set_input, invoke, many = model.set_input, model.invoke, len(rows)
    own = getattr(model, "elapsed_ns", None)
    count, end = 0, clock() + int(command["warmup_seconds"] * 1e9)
    while count < command["warmup"] or clock() < end:
        set_input(rows[count % many])
        invoke()
        count += 1
    send("warm")
    starts: list[int] = []
    durations: list[int] = []

    def flush() -> None:
        for at in range(0, len(starts), FLUSH_ROWS):
            piece = slice(at, at + FLUSH_ROWS)
            send("samples", block=command["block"], start_ns=starts[piece], duration_ns=durations[piece])
        starts.clear()
        durations.clear()

    count, kept, wanted, duration = 0, 0, command["samples"], int(command["seconds"] * 1e9)
    spacing_ns = command["spacing_ns"]
    gc.collect()
    gc.disable()
    flushed = due = began = clock()
    while kept < wanted or clock() - began < duration:
        set_input(rows[count % many])
        start = clock()
        invoke()
        stop = clock()
        count += 1
        if start >= due:
            starts.append(start)
            durations.append(own() if own else stop - start)
            kept, due = kept + 1, start + spacing_ns
        if stop - flushed >= FLUSH_NS:
            flush()
            flushed = clock()
    gc.enable()
    flush()


def predict(model: Any, inputs: Any, top_k: int, send: Callable[..., None]) -> None:
    """The likeliest classes of every input; equal scores in the order of their index."""
    import numpy

    top: list[int] = []
    first, k, broken, flushed = 0, top_k, 0, clock()
    for row in range(len(inputs)):
        model.set_input(numpy.array(inputs[row : row + 1]))
        model.invoke()
        # Integers of one scale, which is positive, stand in the same order as what they mean.
        scores = model.output().reshape(-1).astype(numpy.float64)
        k = min(top_k, len(scores))
        broken += not numpy.isfinite(scores).all()
        top += numpy.argsort(-scores, kind="stable")[:k].tolist()
        if clock() - flushed >= FLUSH_NS or row + 1 - first >= FLUSH_ROWS:
            send("predictions", first=first, k=k, top=top)
            top, first, flushed = [], row + 1, clock()
    if top:
        send("predictions", first=first, k=k, top=top)
    if broken:
        send("note", text=f"infinite or undefined outputs for {broken} of {len(inputs)} images")


# ---- a profile: what each operator costs ---------------------------------------------------------------------


def profile(entry: Event, send: Callable[..., None]) -> None:
    """Tell what each operator of one entry costs."""
    import numpy

    found = find_runtime(entry["target"])
    assert found is not None  # it was measured
    if entry["target"] == "coreml":
        raise Refused("Core ML has no profiler; the plan tells its estimate of each operator's share")
    row = numpy.array(numpy.load(entry["inputs"], mmap_mode="r")[:1])
    runs, total_us, costs = {"tflite": tflite_costs, "onnx": onnx_costs}[entry["target"]](*found, entry, row)
    costs = [dict(zip(("operator", "layer", "delegated", "mean_us"), cost)) for cost in costs]  # noqa: B905
    send("profile", runs=runs, total_us=total_us, costs=costs)
    send("ready")


def middle(values: list[int]) -> float:
    """The mean of the middle half: whole microseconds want a mean, and interruptions want none of it."""
    quarter = len(values) // 4
    kept = sorted(values)[quarter : len(values) - quarter]
    return round(sum(kept) / len(kept), 3)


def several(run: Callable[[], None]) -> int:
    """Run it as often as a profile wants. Returns how often."""
    count, end = 0, clock() + PROFILE_NS
    while count < PROFILE_RUNS.start or (clock() < end and count < PROFILE_RUNS.stop - 1):
        run()
        count += 1
    return count


def by_place(values: list[Any], runs: int) -> list[list[Any]]:
    """For each place in a run what the runs have there. Raises Refused where they do not repeat."""
    size = len(values) // max(runs, 1)
    if not size or len(values) != size * runs:
        raise Refused(f"the profiler told {len(values)} events in {runs} runs, which do not repeat")
    return [values[place::size] for place in range(size)]


def onnx_costs(
    module: str, distribution: str, version: str, entry: Event, row: Any
) -> tuple[int, float, list[Any]]:
    """By onnxruntime's own profiler, which writes a file."""
    runtime = import_module(module)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = entry["threads"], 1
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        options.profile_file_prefix = os.path.join(folder, "profile")
        session = runtime.InferenceSession(entry["model"], options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        runs = several(lambda: session.run(None, {name: row}))
        with open(session.end_profiling(), encoding="utf-8") as stream:
            events = json.load(stream)
    events.sort(key=lambda event: event.get("ts", 0))
    wholes = [event["dur"] for event in events if event.get("name") == "model_run"]
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    costs = []
    for same in by_place(nodes, runs):
        layer, kind = same[0]["name"][: -len("_kernel_time")], same[0]["args"]["op_name"]
        costs.append((kind, layer, False, middle([event["dur"] for event in same])))
    return runs, middle(wholes), costs


def tflite_costs(
    module: str, distribution: str, version: str, entry: Event, row: Any
) -> tuple[int, float, list[Any]]:
    """By the C profiler of LiteRT, and the interpreter's graph for the names of layers."""
    numbers = [int(part) for part in version.split(".")[:3] if part.isdigit()]
    if distribution != "ai-edge-litert":
        raise Refused(f"{distribution} has no profiler")
    if not [2, 1, 6] <= numbers < [3]:
        raise Refused(f"the profiler of {distribution} {version} is not known; that of 2.1.6 and newer is")
    package = util.find_spec(module)
    assert package is not None
    folders = package.submodule_search_locations or ()
    libraries = [path for folder in folders for path in glob.glob(f"{folder}/libLiteRt.*")]
    if not libraries:
        raise Refused(f"{distribution} {version} brings no libLiteRt here")
    interpreter = import_module(f"{module}.interpreter").Interpreter(model_path=entry["model"], num_threads=1)
    interpreter.allocate_tensors()
    graph = interpreter._get_ops_details()
    kinds, parts = parts_of(graph)
    layers = [interpreter._get_tensor_details(node["outputs"][0], 0)["name"] for node in graph[: len(kinds)]]
    del interpreter
    runs, events = LiteRt(libraries[0]).profile(entry["model"], entry["threads"], row.tobytes())
    wholes = [event for event in events if event[0] == "Invoke" and event[1] == 1]
    inner = [event for event in events if event[1] in OPERATOR_EVENTS and not is_delegate({"op_name": event[0]})]
    places = by_place(inner, runs)
    if any(len({event[:2] for event in same}) > 1 for same in places):
        raise Refused("the profiler told other operators in each run")
    ran = [same[0] for same in places]
    names = [layers[index] if index is not None else "" for index in places_in_file(ran, kinds, parts)]
    costs = [
        (event[0], name, event[1] != BUILTIN, middle([us for _, _, us, _ in same]))
        for event, name, same in zip(ran, names, places)  # noqa: B905
    ]
    return runs, middle([event[2] for event in wholes]), costs


BUILTIN, OPERATOR_EVENTS = 2, (2, 4, 8)  # of the profiler's kinds of events: an operator's, or one of a delegate's
# What XNNPACK calls the file's operators. Where one runs as another kind, such as a 1x1 convolution as a dense
# layer, both are of one class.
CLASSES = {
    "CONV_2D": "matrix", "FULLY_CONNECTED": "matrix", "DEPTHWISE_CONV_2D": "depthwise", "ADD": "Add",
    "SUB": "Subtract", "MUL": "Multiply", "MEAN": "Mean", "SOFTMAX": "Softmax", "LOGISTIC": "Sigmoid",
    "HARD_SWISH": "HardSwish", "MAX_POOL_2D": "Max Pooling", "AVERAGE_POOL_2D": "Average Pooling",
}  # fmt: skip


def xnnpack_class(name: str) -> str:
    """Of ``Fully Connected (NC, QS8, QC8W) GEMM`` and such."""
    head = name.partition(" (")[0]
    if head in ("Convolution", "Fully Connected"):
        return "depthwise" if "DWConv" in name else "matrix"
    return head


def places_in_file(
    ran: list[tuple[str, int, int, int]], kinds: list[str], parts: list[int | None]
) -> list[int | None]:
    """Of each operator that ran its place in the file, where that can be told.

    A builtin kernel's event holds it. XNNPACK counts for itself in each part, leaves out what it fuses and adds
    what it needs: where a part has as many of a class as the file, they are the same in their order.
    """
    found: list[int | None] = [None] * len(ran)
    groups: list[list[int]] = []
    for place, (name, kind, _, index) in enumerate(ran):
        if kind == BUILTIN:
            found[place] = index if index < len(kinds) and kinds[index] == name else None
        elif not groups or groups[-1][-1] != place - 1 or ran[place - 1][3] >= index:
            groups.append([place])
        else:
            groups[-1].append(place)
    numbers = sorted({part for part in parts if part is not None})
    if len(groups) != len(numbers):
        return found
    for number, group in zip(numbers, groups):  # noqa: B905
        for wanted in set(CLASSES.values()):
            told = [place for place in group if xnnpack_class(ran[place][0]) == wanted]
            own = [i for i, part in enumerate(parts) if part == number and CLASSES.get(kinds[i]) == wanted]
            if len(told) == len(own):
                for place, index in zip(told, own):  # noqa: B905
                    found[place] = index
    return found


class LiteRt:
    """The C API of libLiteRt, as its headers declare it since 2.1.6 (litert/c of google-ai-edge/LiteRT)."""

    CPU, ACCELERATORS, INT = 1, 24, 2  # an accelerator, an option of an environment, a type of a value

    def __init__(self, path: str) -> None:
        import ctypes

        class Value(ctypes.Structure):
            _fields_ = [("kind", ctypes.c_int), ("value", ctypes.c_int64)]

        class Option(ctypes.Structure):
            _fields_ = [("tag", ctypes.c_int), ("value", Value)]

        class Happened(ctypes.Structure):
            _fields_ = [
                ("tag", ctypes.c_char_p),
                ("kind", ctypes.c_int),
                ("start_us", ctypes.c_uint64),
                ("elapsed_us", ctypes.c_uint64),
                ("memory", ctypes.c_size_t * 6),
                ("index", ctypes.c_uint64),
                ("more", ctypes.c_uint64),
                ("source", ctypes.c_int),
            ]

        self.c, self.library, self.Happened = ctypes, ctypes.CDLL(path), Happened
        # Only the CPU: the WebGPU library that else is loaded crashes on CPUs without LSE atomics.
        self.option = Option(self.ACCELERATORS, Value(self.INT, self.CPU))

    def call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self.library, name)
        except AttributeError:
            raise Refused(f"libLiteRt exports no {name}") from None
        if status := function(*arguments):
            raise Refused(f"{name} fails with status {status}")

    def made(self, name: str, *arguments: Any) -> Any:
        """What a function gives through its last argument: a handle."""
        handle = self.c.c_void_p()
        self.call(name, *arguments, self.c.byref(handle))
        return handle

    def profile(self, model_path: str, threads: int, data: bytes) -> tuple[int, list[tuple[str, int, int, int]]]:
        """How many runs there were, and their events: name, kind, microseconds, the operator's number."""
        c, count = self.c, self.c.c_size_t
        environment = self.made("LiteRtCreateEnvironment", 1, c.byref(self.option))
        model = self.made("LiteRtCreateModelFromFile", environment, model_path.encode())
        options = self.made("LiteRtCreateOptions")
        self.call("LiteRtSetOptionsHardwareAccelerators", options, self.CPU)
        kept = c.CFUNCTYPE(None, c.c_void_p)(lambda pointer: None)  # the texts are ours
        texts = {
            b"runtime_options_string": b"enable_profiling = true\n",
            b"xnnpack": b"num_threads = %d\n" % threads,
        }
        buffers = {key: c.create_string_buffer(text) for key, text in texts.items()}
        for key, buffer in buffers.items():
            option = self.made("LiteRtCreateOpaqueOptions", key, buffer, kept)
            self.call("LiteRtAddOpaqueOptions", options, option)
        compiled = self.made("LiteRtCreateCompiledModel", environment, model, options)
        profiler = self.made("LiteRtCompiledModelGetProfiler", compiled)
        graph = self.made("LiteRtGetModelSubgraph", model, count(0))

        def tensors(side: str) -> Any:
            number = count()
            self.call(f"LiteRtGetNumSubgraph{side}s", graph, c.byref(number))
            found = []
            for i in range(number.value):
                tensor = self.made(f"LiteRtGetSubgraph{side}", graph, count(i))
                shape = c.create_string_buffer(1024)  # more than a LiteRtRankedTensorType takes
                self.call("LiteRtGetRankedTensorType", tensor, shape)
                needs = self.made(f"LiteRtGetCompiledModel{side}BufferRequirements", compiled, count(0), count(i))
                made = self.made("LiteRtCreateManagedTensorBufferFromRequirements", environment, shape, needs)
                found.append(made.value)
            return (c.c_void_p * len(found))(*found)

        inputs, outputs = tensors("Input"), tensors("Output")
        size, place = count(), c.c_void_p()
        first = c.c_void_p(inputs[0])
        self.call("LiteRtGetTensorBufferPackedSize", first, c.byref(size))
        if size.value != len(data):
            raise Refused(f"the model takes {size.value} bytes, and an input has {len(data)}")
        self.call("LiteRtLockTensorBuffer", first, c.byref(place), 1)  # to write
        c.memmove(place, data, len(data))
        self.call("LiteRtUnlockTensorBuffer", first)
        sides = (count(len(inputs)), inputs, count(len(outputs)), outputs)

        def run() -> None:
            self.call("LiteRtRunCompiledModel", compiled, count(0), *sides)

        for _ in range(3):
            run()
        self.call("LiteRtStartProfiler", profiler)
        runs = several(run)
        self.call("LiteRtStopProfiler", profiler)
        number = c.c_int()
        self.call("LiteRtGetNumProfilerEvents", profiler, c.byref(number))
        events = (self.Happened * number.value)()
        self.call("LiteRtGetProfilerEvents", profiler, number, events)
        return runs, [((one.tag or b"").decode(), one.kind, one.elapsed_us, one.index) for one in events]


# ---- the machine: what it is, and how it fares ---------------------------------------------------------------


def read(path: str) -> str:
    """The text of a file of the system's, or nothing where it is absent or barred."""
    try:
        with open(ROOT + path, encoding="utf-8", errors="replace") as stream:
            return stream.read().strip("\0\n ")
    except OSError:
        return ""


def paths(pattern: str) -> list[str]:
    """The system's files of that pattern, in the order of their numbers."""
    found = [path[len(ROOT) :] for path in glob.glob(ROOT + pattern)]
    return sorted(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path)])


def output_of(*command: str, limit_s: float = 5.0) -> str:
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
        return ran.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def in_kb(path: str, key: str) -> int | None:
    """Bytes of a line like ``VmHWM:   1234 kB``."""
    for line in read(path).splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None


def peak_memory_bytes() -> int | None:
    """Of this process: Python, the runtime and the model."""
    if qemu_user():
        return None  # it tells the emulator's
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return in_kb("/proc/self/status", "VmHWM")


def qemu_user() -> bool:
    """Whether an emulator of processes runs this one: the kernel below tells what the processor really is."""
    below = read("/sys/devices/system/cpu/modalias")
    return "type:x86" in below and platform.uname().machine not in ("x86_64", "i686")


ARM_PARTS = {
    0xD03: "A53", 0xD04: "A35", 0xD05: "A55", 0xD07: "A57", 0xD08: "A72", 0xD09: "A73", 0xD0A: "A75",
    0xD0B: "A76", 0xD0D: "A77", 0xD0E: "A76AE", 0xD40: "Neoverse-V1", 0xD41: "A78", 0xD44: "X1", 0xD46: "A510",
    0xD47: "A710", 0xD48: "X2", 0xD4D: "A715", 0xD4E: "X3", 0xD0C: "Neoverse-N1", 0xD49: "Neoverse-N2",
    0xD80: "A520", 0xD81: "A720", 0xD82: "X4",
    0xC07: "A7", 0xC08: "A8", 0xC09: "A9", 0xC0E: "A17", 0xC0F: "A15",
}  # fmt: skip


def cpu_name() -> str:
    if sys.platform == "darwin":
        return output_of("sysctl", "-n", "machdep.cpu.brand_string")
    pairs = [line.partition(":") for line in read("/proc/cpuinfo").splitlines()]
    fields = [(key.strip(), value.strip()) for key, _, value in pairs]
    for key, value in fields:
        if key == "model name" and value and not value.startswith("ARMv"):  # that says less than the part
            return value
    # 64-bit ARM gives numbers; two kinds of cores give two.
    parts = sorted({int(value, 16) for key, value in fields if key == "CPU part"})
    named = [ARM_PARTS.get(part, f"ARM-{part:#x}") for part in parts]
    return " + ".join(name if "-" in name else f"Cortex-{name}" for name in named) or platform.machine()


# What the kernels of runtimes look for: integer dot products, half precision, matrix instructions.
FEATURES = (
    "neon", "vfpv4", "asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "atomics", "sve", "sve2", "sme",
    "sme2", "sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw",
    "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
)  # fmt: skip


def clusters_and_features() -> tuple[list[Event], list[str]]:
    """The kinds of cores, each with how many there are, its part and its highest clock; what they all can do."""
    clusters: list[Event] = []
    able = set(FEATURES)
    fields: dict[str, str] = {}
    for line in [*read("/proc/cpuinfo").splitlines(), ""]:
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
        if line.strip():
            continue
        if "processor" in fields:
            part = ""
            if "CPU part" in fields:
                numbers = [
                    fields.get("CPU " + name, "?") for name in ("implementer", "part", "variant", "revision")
                ]
                variant = int(numbers[2], 16) if numbers[2] != "?" else "?"
                part = f"{numbers[0]}/{numbers[1]} r{variant}p{numbers[3]}"
            elif "vendor_id" in fields:
                numbers = [fields.get(name, "?") for name in ("vendor_id", "cpu family", "model", "stepping")]
                part = "{} family {} model {} stepping {}".format(*numbers)
            kilohertz = read(f"/sys/devices/system/cpu/cpu{fields['processor']}/cpufreq/cpuinfo_max_freq")
            kind = {"part": part, "max_mhz": int(kilohertz) / 1000 if kilohertz.isdigit() else None}
            same = [one for one in clusters if {**kind, "cores": one["cores"]} == one]
            if same:
                same[0]["cores"] += 1
            else:
                clusters.append({"cores": 1, **kind})
            able &= set((fields.get("Features") or fields.get("flags", "")).split())
        fields = {}
    return clusters, [name for name in FEATURES if clusters and name in able]


def describe() -> Event:
    system = platform.uname()
    model = read("/proc/device-tree/model") or read("/sys/class/dmi/id/product_name")
    if sys.platform == "darwin":
        model = output_of("sysctl", "-n", "hw.model")
    release = dict(line.partition("=")[::2] for line in read("/etc/os-release").splitlines())
    name = release.get("PRETTY_NAME", "").strip('"')
    cpu = cpu_name()
    found = {target: find_runtime(target) for target in RUNTIMES}
    clusters, features = clusters_and_features()
    return {
        "event": "device",
        "protocol": PROTOCOL,
        "model": model or f"{system.system} {system.machine}",
        # The board stands first, the chip last: raspberrypi,4-model-b, brcm,bcm2711.
        "soc": read("/proc/device-tree/compatible").rpartition("\0")[2],
        "cpu": cpu,
        "architecture": system.machine,
        "cores": os.cpu_count() or 1,
        "clusters": clusters,
        "features": features,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": name or f"{system.system} {system.release}",
        "kernel": system.release,
        "emulated": "QEMU TCG" in cpu or qemu_user(),  # the first is a whole machine
        "runtimes": {target: f"{item[1]} {item[2]}" for target, item in found.items() if item},
        **(phone_described(found["coreml"]) if os.environ.get(PHONE) else {}),
    }


def phone_described(runtime: tuple[str, str, str] | None) -> Event:
    """What is told of the iPhone in place of the Mac that it is on."""
    one = phone()
    package = util.find_spec(runtime[0]) if runtime else None
    for folder in (package.submodule_search_locations or ()) if package else ():
        if not os.path.exists(os.path.join(folder, "models/ml_program/experimental/remote_device.py")):
            assert runtime is not None
            raise Refused(
                f"coremltools {runtime[2]} there does not reach an iPhone; 9.0 does: "
                f"{sys.executable} -m pip install -U coremltools"
            )
    return {
        "model": one["model"],
        "soc": "",
        "cpu": one["cpu"] or one["model"],
        "architecture": "arm64",
        "cores": 1,  # not told, and Core ML has no number of threads
        "clusters": [],
        "features": [],
        "memory_bytes": None,
        "os": one["os"],
        "kernel": one["build"],
        "runtimes": {"coreml": f"{runtime[1]} {runtime[2]}"} if runtime else {},
    }


def phone() -> Event:
    """The iPhone that the environment names, ready to be used. Raises Refused."""
    wanted = os.environ[PHONE]
    # coremltools calls some of Xcode's programs by their bare names.
    tools = os.path.join(output_of("xcode-select", "-p") or "/", "usr/bin")
    if tools not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] += os.pathsep + tools
    if not output_of("xcodebuild", "-version", limit_s=60.0):
        raise Refused(
            "measuring on an iPhone needs Xcode on the Mac: install it from the App Store, open it once, then "
            "sudo xcode-select -s /Applications/Xcode.app"
        )
    if not shutil.which("devicectl"):
        raise Refused("measuring on an iPhone needs Xcode 15 or newer on the Mac: this one has no devicectl")
    known = phones()
    named = ", ".join(f"{one['name']} (iphone={one['udid']})" for one in known)
    if not known:
        raise Refused("the Mac knows no iPhone: connect one with a cable, unlock it, and trust the Mac on it")
    found = [one for one in known if wanted in ("any", one["udid"])]
    if not found:
        raise Refused(f"the Mac knows no iPhone {wanted}; it knows {named}")
    attached = [one for one in found if one["state"] == "connected"]
    if len(attached or found) > 1:
        raise Refused(f"the Mac knows several iPhones: name one of {named}")
    one = (attached or found)[0]
    if one["developer"] == "disabled":
        raise Refused(
            f"Developer Mode is off on {one['name']}: turn it on in Settings, Privacy & Security, Developer Mode"
        )
    if not attached:
        # Its connection sleeps while nobody uses it: a question wakes it up.
        output_of("xcrun", "devicectl", "device", "info", "details", "-d", one["udid"], limit_s=60.0)
        one = next((again for again in phones() if again["udid"] == one["udid"]), one)
    if one["state"] != "connected":
        raise Refused(f"{one['name']} is {one['state'] or 'not connected'}: connect its cable, and unlock it")
    return one


def phones() -> list[Event]:
    """The iPhones that Xcode knows, also those that are away."""
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        path = os.path.join(folder, "devices.json")
        output_of("xcrun", "devicectl", "list", "devices", "-j", path, limit_s=60.0)
        try:
            with open(path, encoding="utf-8") as stream:
                listed = json.load(stream)["result"]["devices"]
        except (OSError, ValueError, LookupError) as error:
            raise Refused(f"xcrun devicectl list devices gives no list of devices: {error}") from error
    found = []
    for one in listed:
        about, hardware = one.get("deviceProperties", {}), one.get("hardwareProperties", {})
        if hardware.get("deviceType", "").lower() == "iphone":
            found.append(
                {
                    "udid": hardware.get("udid", ""),
                    "name": about.get("name", "iPhone"),
                    "model": hardware.get("marketingName") or hardware.get("productType", "iPhone"),
                    "cpu": hardware.get("platform", ""),
                    "os": f"iOS {about.get('osVersionNumber', '')}",
                    "build": about.get("osBuildUpdate", ""),
                    "developer": about.get("developerModeStatus", ""),
                    "state": one.get("connectionProperties", {}).get("tunnelState", "").lower(),
                }
            )
    return found


PI_FLAGS = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")  # bits 0-3, and 16-19


def degrees(path: str) -> float | None:
    text = read(path)
    return int(text) / 1000 if text.lstrip("-").isdigit() else None


def limit_c(zone: str) -> float | None:
    """The lowest temperature at which the system slows the processor down or worse; a fan (active) does not."""
    kinds = {path[: -len("type")]: read(path) for path in paths(zone + "/trip_point_*_type")}
    values = [degrees(path + "temp") for path, kind in kinds.items() if kind in ("passive", "hot", "critical")]
    return min((value for value in values if value is not None and value > 0), default=None)


class Probe:
    """Readings of the machine. Load is what neither the agent nor its children *pids* used."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self.pids = pids
        zones = [path[: -len("/type")] for path in paths("/sys/class/thermal/thermal_zone*/type")]
        cpu = [
            zone for zone in zones if any(word in read(zone + "/type").lower() for word in ("cpu", "soc", "pkg"))
        ]
        self.zones = cpu or zones[:1]
        self.limits_c = {zone: limit for zone in self.zones if (limit := limit_c(zone)) is not None}
        self.policies = paths("/sys/devices/system/cpu/cpufreq/policy*")
        self.throttle_counts = paths("/sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")
        self.pi_flags = paths("/sys/devices/platform/soc/soc:firmware/get_throttled")
        self.has_vcgencmd = not self.pi_flags and "throttled=" in output_of("vcgencmd", "get_throttled")
        # An iPhone on it tells nothing of its own heat, and the Mac's is not what matters.
        self.mac = not os.environ.get(PHONE) and bool(output_of("sw_vers", "-productVersion"))
        self.flags_before, self.count_before = self.flags(), self.count()
        self.before: tuple[int, float] | None = None
        self.hot_c, self.last_count = self.slows_at() - HEADROOM_C, self.count_before

    def flags(self) -> int | None:
        """A Raspberry Pi's flags: bits 0-3 what goes on now, 16-19 what happened since it was booted."""
        text = read(self.pi_flags[0]) if self.pi_flags else ""
        if self.has_vcgencmd:
            text = output_of("vcgencmd", "get_throttled").partition("=")[2]
        return int(text, 16) if text else None

    def count(self) -> int | None:
        """How often an x86 processor throttled since it was booted."""
        values = [int(text) for text in map(read, self.throttle_counts) if text.isdigit()]
        return sum(values) if values else None

    def throttle(self) -> list[str] | None:
        """What slows the processor down, now or at any time since this was asked before."""
        if self.mac:
            level = output_of("notifyutil", "-g", "com.apple.system.thermalpressurelevel").rpartition(" ")[2]
            return (["thermal pressure"] if int(level) else []) if level.isdigit() else None
        if (flags := self.flags()) is not None and self.flags_before is not None:
            new, self.flags_before = flags & ~self.flags_before, flags
            return [name for bit, name in enumerate(PI_FLAGS) if (flags | new >> 16) >> bit & 1]
        if (count := self.count()) is not None and self.count_before is not None:
            more, self.count_before = count - self.count_before, count
            return ["thermal throttling"] if more > 0 else []
        return None

    def slows_at(self) -> float:
        """The temperature from which on the processor is slowed down."""
        kinds = {path[: -len("type")]: read(path) for z in self.zones for path in paths(z + "/trip_point_*_type")}
        values = [degrees(path + "temp") for path, kind in kinds.items() if kind == "passive"]
        if passive := [value for value in values if value is not None and 40 < value < 120]:
            return max(passive)
        return HOT_C["x86" if platform.machine() in ("x86_64", "i686") and self.flags_before is None else "arm"]

    def temperature(self) -> float | None:
        found = [value for zone in self.zones if (value := degrees(zone + "/temp")) is not None]
        if not self.zones and self.has_vcgencmd:
            text = output_of("vcgencmd", "measure_temp").partition("=")[2].rstrip("'C")
            found = [float(text)] if text.replace(".", "", 1).isdigit() else []
        return max(found) if found else None

    def slowed(self) -> bool:
        """Whether heat slows the machine down now, or did since this was asked last. A weak supply is none."""
        count, before = self.count(), self.last_count
        self.last_count = count
        if self.mac:
            return bool(self.throttle())
        return bool((self.flags() or 0) & 0xE) or (count is not None and before is not None and count > before)

    def other_busy(self) -> float | None:
        """Seconds of CPU time, over all cores, that anything else has used (stolen time too)."""
        total = read("/proc/stat").partition("\n")[0].split()[1:]
        if len(total) < 8:
            return None
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, total[:8])
        own = 0
        for pid in self.pids():
            fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()  # the name may hold spaces
            own += int(fields[11]) + int(fields[12]) if fields else 0
        ticks = user + nice + system + irq + softirq + steal - own
        return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])

    def read(self, *, restart: bool = False) -> Event:
        """What can be read. Load is the mean since the reading before; *restart*: begin anew."""
        now, busy = clock(), self.other_busy()
        temperatures = {zone: value for zone in self.zones if (value := degrees(zone + "/temp")) is not None}
        headrooms = [limit - temperatures[zone] for zone, limit in self.limits_c.items() if zone in temperatures]
        clocks = [int(text) / 1000 for p in self.policies if (text := read(p + "/scaling_cur_freq")).isdigit()]
        governors = {text for policy in self.policies if (text := read(policy + "/scaling_governor"))}
        load, throttle = None, self.throttle()
        if busy is not None:
            if self.before and not restart:
                seconds = (now - self.before[0]) / 1e9
                if seconds >= 0.5:  # CPU time comes in steps of 10 ms
                    load = max(0.0, round((busy - self.before[1]) / seconds, 3))
            if load is not None or restart or not self.before:
                self.before = (now, busy)
        reading = {
            "time_ns": now,
            "temperature_c": self.temperature(),
            "headroom_c": round(min(headrooms), 1) if headrooms else None,
            "clock_mhz": max(clocks) if clocks else None,
            "governor": "+".join(sorted(governors)) or None,
            "throttled": None if throttle is None else bool(throttle),
            "throttle": throttle or None,
            "other_load": load,
            "free_memory_bytes": in_kb("/proc/meminfo", "MemAvailable"),
        }
        return {key: value for key, value in reading.items() if value is not None}


# ---- the agent: starts the workers and gives them their turns ------------------------------------------------


class Child:
    """One entry's process, seen from the agent. Its stderr is kept for the cause of a crash."""

    def __init__(self, number: int, entry: Event, task: str = "--worker") -> None:
        self.number, self.entry, self.task, self.failed = number, entry, task, False
        self.stderr = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            # EDGEKIT_PYTHON: what starts Python, where sys.executable cannot be started by itself (qemu-user).
            [
                os.environ.get("EDGEKIT_PYTHON", sys.executable),
                os.path.abspath(__file__),
                task,
                str(os.getpid()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # NumPy's idle threads would count as memory
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.pending = b""

    def command(self, value: Event) -> None:
        try:
            emit(value, self.stdin)
        except BrokenPipeError:
            pass  # it died: the end of its stdout tells

    def end(self) -> None:
        if os.environ.get(PHONE) and self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()  # it ends the app on the phone, too
            try:
                self.process.wait(10.0)
            except subprocess.TimeoutExpired:
                pass
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.stderr):
            if stream is not None:
                stream.close()

    def cause_of_death(self) -> str:
        status = self.process.wait()
        text = f"the process ended with status {status}"
        if status < 0:
            hint = " (out of memory?)" if -status == signal.SIGKILL else ""
            text = f"the process was killed by {signal.Signals(-status).name}{hint}"
        self.stderr.seek(0)
        said = self.stderr.read().decode(errors="replace").strip().splitlines()
        words = [line for line in said if not line.startswith("INFO:")]  # LiteRT's, on every start
        return text + (f"; its last words: {words[-1][-300:]}" if words else "")


class Visit:
    """One job on its way: who lives, and how far it is. *folder*: what the job's paths are relative to."""

    def __init__(self, job: Event, folder: str) -> None:
        self.job, self.folder = job, folder
        self.children: list[Child] = []
        self.probe = Probe(lambda: [child.process.pid for child in self.children if not child.failed])
        self.selector = selectors.DefaultSelector()
        # A host holds the other end of a pipe; a terminal or /dev/null tells nothing about one.
        mode = os.fstat(0).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            self.selector.register(0, selectors.EVENT_READ)
        warmups = job["warmup_seconds"] * (1 + REWARM * (job["blocks"] - 1))
        self.host = Host(folder, job["patience_s"]) if "patience_s" in job else None
        self.spent_s, self.total_s = 0.0, 0.0  # as planned, for the progress
        for entry in job["entries"]:
            self.total_s += LOAD_S + warmups + job["seconds"] + (PREDICT_S if entry["predict"] else 0.0)
            self.total_s += PROFILE_S if job.get("profile") else 0.0

    def run(self) -> None:
        job = self.job
        try:
            for number, entry in enumerate(job["entries"]):
                paths = {key: os.path.join(self.folder, entry[key]) for key in ("model", "inputs")}
                self.children.append(Child(number, {**entry, **paths, "entry": number}))
                self.turn(self.children[-1], self.children[-1].entry, "load", LOAD_S)
            for block in range(job["blocks"]):
                command = {
                    "do": "block",
                    "block": block,
                    "samples": -(-job["samples"] // job["blocks"]),
                    "seconds": job["seconds"] / job["blocks"],
                    "warmup": job["warmup"],
                    "warmup_seconds": job["warmup_seconds"] * (REWARM if block else 1.0),
                    "spacing_ns": int(job["spacing_ms"] * 1e6) if "spacing_ms" in job else SPACING_NS,
                }
                for child in self.children:
                    self.cool(child, block)
                    planned_s = command["warmup_seconds"] + command["seconds"]
                    self.turn(child, command, f"block {block + 1} of {job['blocks']}", planned_s)
            for child in self.children:
                if child.entry["predict"]:
                    self.turn(child, {"do": "predict", "top_k": job["top_k"]}, "predict", PREDICT_S)
                if not child.failed:
                    emit({"event": "done", "entry": child.number})
            if job.get("profile"):
                self.profile()
        finally:
            for child in self.children:
                child.end()

    def profile(self) -> None:
        """Let a process of its own profile each entry, after all that is timed: if it crashes, that is all."""
        for child in [child for child in self.children if not child.failed]:
            child.end()  # its memory may be needed
            self.children.append(Child(child.number, child.entry, "--profile"))
            self.turn(self.children[-1], child.entry, "profile", PROFILE_S)
            self.children[-1].end()

    def cool(self, child: Child, block: int) -> None:
        """Wait while the machine is so hot that it slows down, or is about to; tell for how long."""
        most_s, probe, from_c = self.job.get("cool_down_seconds", 0.0), self.probe, self.probe.temperature()
        slowed = probe.slowed()
        if child.failed or not most_s or not (slowed or (from_c is not None and from_c >= probe.hot_c)):
            return
        began = now = time.monotonic()
        to_c, enough = from_c, False
        while not enough and now - began < most_s:
            degrees = "" if to_c is None else f" from {to_c:.0f} C"
            self.progress(child, f"cools down{degrees}, {now - began:.0f} s", 0.0)
            self.rest(1.0)
            now, to_c, slowed = time.monotonic(), probe.temperature(), probe.slowed()
            enough = not slowed and (to_c is None or to_c <= probe.hot_c - COOLER_C)
        if not enough and to_c is not None:  # it does not get cooler here: the other blocks need not wait for it
            probe.hot_c = max(probe.hot_c, to_c + HEADROOM_C)
        cooled = {"seconds": round(now - began, 1), "from_c": from_c, "to_c": to_c, "enough": enough}
        emit({"event": "cooled", "entry": child.number, "block": block, **cooled})

    def rest(self, seconds: float) -> None:
        """Do nothing, unless the host goes."""
        if self.host:
            self.host.check()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if any(key.fd == 0 for key, _ in self.selector.select(left)) and not os.read(0, 4096):
                raise SystemExit("the host is gone")

    def turn(self, child: Child, command: Event, doing: str, planned_s: float) -> None:
        """Let *child* carry out *command* and pass on what it says, with a reading of the machine every second."""
        if not child.failed:
            self.progress(child, doing, 0.0)
            self.selector.register(child.stdout, selectors.EVENT_READ)
            child.command(command)
            self.listen(child, doing, planned_s)
            self.selector.unregister(child.stdout)
        self.spent_s += planned_s

    def listen(self, child: Child, doing: str, planned_s: float) -> None:
        began = heard = tick = time.monotonic()
        measuring = False
        while True:
            now = time.monotonic()
            if now - tick >= 1.0:
                tick = now
                if self.host:
                    self.host.check()
                self.progress(child, doing, min(now - began, planned_s))
                if measuring:
                    self.telemetry(child)
            stall_s = STALL_S if child.task == "--worker" else PROFILE_STALL_S
            if now - heard > stall_s:
                return self.fail(child, f"no sign of life for {stall_s:.0f} s in: {doing}")
            ready = [key.fd for key, _ in self.selector.select(max(0.0, tick + 1.0 - now))]
            if 0 in ready and not os.read(0, 4096):
                raise SystemExit("the host is gone")
            if child.stdout not in ready:
                continue
            heard = now
            data = os.read(child.stdout, 1 << 16)
            if not data:
                return None if child.failed else self.fail(child, child.cause_of_death())
            *lines, child.pending = (child.pending + data).split(b"\n")
            for line in lines:
                # The samples pass unread: decoding them would take CPU time from the one that is measured.
                if line.startswith(b'{"event":"warm"'):
                    self.telemetry(child, restart=True)
                    measuring = True
                elif line.startswith(b'{"event":"ready"'):
                    return self.telemetry(child) if measuring else None
                else:
                    child.failed = child.failed or line.startswith(b'{"event":"error"')
                    if child.failed and child.task == "--profile":
                        emit({"event": "profile", "entry": child.number, "absent": json.loads(line)["text"]})
                    else:
                        write_all(1, line + b"\n")

    def fail(self, child: Child, text: str) -> None:
        child.failed = True
        child.process.kill()
        child.process.wait()
        if child.task == "--profile":
            emit({"event": "profile", "entry": child.number, "absent": text})
        else:
            emit({"event": "error", "entry": child.number, "text": text})

    def telemetry(self, child: Child, *, restart: bool = False) -> None:
        emit({"event": "telemetry", "entry": child.number, **self.probe.read(restart=restart)})

    def progress(self, child: Child, doing: str, spent_s: float) -> None:
        share = round((self.spent_s + spent_s) / max(self.total_s, 1e-9), 4)
        emit({"event": "progress", "entry": child.number, "doing": doing, "share": min(1.0, share)})


# ---- apart from the host: a visit that outlives a lost link ---------------------------------------------------


class Host:
    """A host that follows touches the file `seen`. Times of files are compared with each other only: the device's
    clock may be set meanwhile."""

    def __init__(self, folder: str, patience_s: float) -> None:
        self.path, self.patience_s = os.path.join(folder, "seen"), patience_s
        self.seen, self.since = 0, time.monotonic()

    def check(self) -> None:
        now, seen = time.monotonic(), os.stat(self.path).st_mtime_ns
        if seen != self.seen:
            self.seen, self.since = seen, now
        elif now - self.since > self.patience_s:
            raise SystemExit(f"nobody has followed for {self.patience_s:.0f} s")


def touch(path: str) -> None:
    with open(path, "a"):
        os.utime(path)


def detach(folder: str) -> int:
    """Start the agent on the folder's job, apart from whoever started it. Returns when its id stands in `pid`."""
    path = os.path.join(folder, "job.json")
    job = read_job(path)
    touch(os.path.join(folder, "seen"))
    lock = open(
        job["lock"], "a+"
    )  # its file descriptor is inherited, and holds the lock as long as the agent lives
    if not taken(lock, 0.5):  # one that only looks whether it is free holds it for a moment
        emit({"event": "busy", "holder": holder_in(lock)})
        return 3
    lock.truncate(0)
    lock.write(job["holder"])
    lock.flush()
    begun, child = os.pipe(), os.fork()
    if child:
        os.close(begun[1])
        os.waitpid(child, 0)
        pid = os.read(begun[0], 32).decode()
        # Asked from here: under QEMU a process sees itself as others do not.
        if not pid or not (start := started(int(pid))):
            return 1
        with open(os.path.join(folder, "pid.part"), "w") as stream:
            stream.write(f"{pid} {start}")
        os.rename(os.path.join(folder, "pid.part"), os.path.join(folder, "pid"))
        return 0
    os.setsid()
    if os.fork():
        os._exit(0)
    os.setpgid(0, 0)
    for name, target in (("events", 1), ("stderr", 2)):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.write(begun[1], str(os.getpid()).encode())
    os.close(begun[1])
    signal.signal(signal.SIGALRM, late)
    signal.alarm(max(1, int(job["limit_s"])))
    return run(path)


def taken(lock: Any, patience_s: float = 0.0) -> bool:
    """Whether the open file could be locked."""
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
        time.sleep(0.05)


def holder_in(lock: Any) -> str:
    lock.seek(0)
    return lock.read().strip() or "somebody"


def wait(path: str, seconds: float) -> int:
    """0 when nobody holds the lock, 3 when somebody does after so many seconds, or the host is gone."""
    end = time.monotonic() + seconds
    while True:
        with open(path, "a+") as lock:
            if taken(lock):
                return 0
            emit({"event": "busy", "holder": holder_in(lock)})
        left = end - time.monotonic()
        if left <= 0 or (select.select([0], [], [], min(1.0, left))[0] and not os.read(0, 4096)):
            return 3


def late(number: int, frame: Any) -> None:
    raise SystemExit("its time limit is over")


def started(pid: int) -> str:
    """When a process that lives was started, so that its number taken by another one is not mistaken for it."""
    if sys.platform.startswith("linux"):
        fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        return fields[19] if fields and fields[0] not in "ZX" else ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    return "alive"


def living(folder: str) -> int:
    """The id of the folder's agent, 0 when it has ended."""
    pid, _, start = read(os.path.join(folder, "pid")).partition(" ")
    return int(pid) if pid and started(int(pid)) == start else 0


def follow(folder: str, offset: int) -> int:
    """Pass on the events from byte *offset* on, until the agent or the host ends."""

    def host_is_there() -> None:
        touch(os.path.join(folder, "seen"))
        signal.alarm(FOLLOW_S)  # also in the middle of a write that a dead link blocks

    host_is_there()
    with open(os.path.join(folder, "events"), "rb", buffering=0) as stream:
        stream.seek(offset)
        while True:
            alive = living(folder)  # asked before, so that its last words are read
            while data := stream.read(1 << 16):
                write_all(1, data)
            if not alive:
                return 0
            if select.select([0], [], [], 0.25)[0]:
                if not os.read(0, 4096):
                    return 0
                host_is_there()


def end_detached(folder: str) -> int:
    for number in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + 5.0
        if pid := living(folder):
            os.killpg(pid, number)
        while living(folder) and time.monotonic() < end:
            time.sleep(0.05)
    return 1 if living(folder) else 0


def read_job(path: str) -> Event:
    """The job in the file at *path*. Raises ValueError for another protocol or one that lacks a key."""
    with open(path, encoding="utf-8") as stream:
        job: Event = json.load(stream)
    if job.get("protocol") != PROTOCOL:
        raise ValueError(f"the job speaks protocol {job.get('protocol')!r}; this agent speaks {PROTOCOL}")
    missing = [key for key in JOB_KEYS if key not in job]
    missing += [
        f"entries[{i}].{key}" for i, e in enumerate(job.get("entries", ())) for key in ENTRY_KEYS if key not in e
    ]
    if missing:
        raise ValueError(f"the job lacks {', '.join(missing)}")
    return job


def stop(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)  # through every `finally`


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--worker"]:
        return worker(int(arguments[1]), serve)
    if arguments[:1] == ["--profile"]:
        return worker(int(arguments[1]), profile)
    if arguments[:1] == ["--follow"]:
        return follow(arguments[1], int(arguments[2]))
    if arguments[:1] == ["--stop"]:
        return end_detached(arguments[1])
    if arguments[:1] == ["--wait"]:
        return wait(arguments[1], float(arguments[2]))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        if arguments[:1] == ["--detach"]:
            return detach(os.path.abspath(arguments[1]))
        if arguments == ["--describe"]:
            emit(describe())
            return 0
        return run(arguments[0])
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        return 4
    except BrokenPipeError:
        return 1  # the host is gone


def run(path: str) -> int:
    """The job in the file at *path*, its events on stdout."""
    try:
        emit(describe())
        job = read_job(path)
    except (OSError, ValueError, Refused) as error:
        emit({"event": "error", "entry": None, "text": str(error)})
        return 2
    if shutil.which("caffeinate"):  # a Mac that falls asleep measures nothing; it ends when this process does
        subprocess.Popen(["caffeinate", "-i", "-w", str(os.getpid())], stdin=subprocess.DEVNULL)
    Visit(job, os.path.dirname(os.path.abspath(path))).run()
    emit({"event": "end"})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
