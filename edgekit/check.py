"""`edgekit device check`: a short real inference with a tiny model, and what the device tells of itself."""

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from edgekit import files, plugins
from edgekit.artifact import Artifact, TensorSpec
from edgekit.device import BenchJob, Device, Entry, Progress
from edgekit.errors import DeviceError
from edgekit.measure import Telemetry, latency
from edgekit.preprocess import Preprocess

SECONDS = 2.0
SIDE, CLASSES = 8, 4  # of the model in devices/_check.tflite


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """One thread, the median of what was measured; of each kind of reading the last."""

    runtime: str
    delegate: str
    median_us: float
    inferences: int
    telemetry: Telemetry | None
    notes: tuple[str, ...]


def check(device: Device, progress: Progress, given: str = "") -> Checked:
    """A two-second visit to the device. Raises DeviceError when nothing there runs a TFLite file, or it fails.

    *given*: the address as the user gave it, or its name.
    """
    address = device.info.address
    if "tflite" not in device.runtimes and "coreml" in device.runtimes:
        raise DeviceError(
            f"{address} runs coreml files, and the model of this check is none: edgekit bench FILE.mlpackage "
            f"--device {address} --quick"
        )
    if "tflite" not in device.runtimes:
        cure = f"edgekit device setup {shlex.quote(given or address)}"
        raise DeviceError(f"{address}: nothing there runs tflite files: {cure}")
    with tempfile.TemporaryDirectory(prefix="edgekit-check-") as folder:
        images = Path(folder, "images.npy")
        np.save(images, np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8))
        job = BenchJob(
            entries=(Entry(artifact=model(), threads=1, inputs=images, predict=True),),
            samples=10,
            seconds=SECONDS,
            blocks=1,
            warmup=3,
            warmup_seconds=0.0,
            top_k=1,
        )
        (outcome,) = device.run(job, progress)
    if outcome.error or outcome.measurement is None:
        raise DeviceError(f"{address}: {outcome.error or 'nothing was measured'}")
    return Checked(
        runtime=f"{outcome.runtime} {outcome.runtime_version}",
        delegate=outcome.delegate,
        median_us=1e3 * latency(outcome.measurement).p50_ms,
        inferences=outcome.measurement.count,
        telemetry=_latest(outcome.telemetry),
        notes=outcome.notes,
    )


def _latest(readings: Sequence[Telemetry]) -> Telemetry | None:
    told = {
        field.name: value
        for reading in readings
        for field in fields(Telemetry)
        if (value := getattr(reading, field.name)) is not None
    }
    return Telemetry(**told) if told else None


def model() -> Artifact:
    """One dense layer over pixels of 8x8, in random numbers."""
    path = plugins.folder("devices") / "_check.tflite"
    return Artifact(
        file=path.name,
        target="tflite",
        precision="fp32",
        input=TensorSpec(name="input", shape=(1, SIDE, SIDE, 3), dtype="uint8"),
        output=TensorSpec(name="logits", shape=(1, CLASSES), dtype="float32"),
        labels=tuple(map(str, range(CLASSES))),
        preprocess=Preprocess(height=SIDE, width=SIDE),
        size_bytes=files.size_bytes(path),
        sha256=files.sha256(path),
        path=path,
    )
