"""Constructed results for the tests of the report: seeded samples, so every figure is known."""

from dataclasses import replace

import numpy as np

from edgekit.artifact import Artifact, Parity, TensorSpec
from edgekit.measure import Measurement
from edgekit.preprocess import Preprocess
from edgekit.result import DeviceInfo, Predictions, Result, Settings

LABELS = tuple("0123456789")
DEVICE = DeviceInfo(
    address="local",
    model="ThinkPad X1",
    cpu="Intel Core i7-1365U",
    architecture="x86_64",
    cores=10,
    memory_bytes=32_000_000_000,
    os="Debian GNU/Linux 12",
    kernel="6.1.0",
)


def artifact(
    target: str, precision: str, *, size: int = 1_000_000, parity: Parity | None = None, file: str = ""
) -> Artifact:
    name = f"{target}-{precision}"
    suffix = {"tflite": ".tflite", "onnx": ".onnx", "coreml": ".mlpackage"}[target]
    return Artifact(
        file=file or name + suffix,
        target=target,
        precision=precision,
        input=TensorSpec(name="pixels", shape=(1, 32, 32, 3), dtype="uint8"),
        output=TensorSpec(name="logits", shape=(1, 10), dtype="float32"),
        labels=LABELS,
        preprocess=Preprocess(height=32, width=32),
        size_bytes=size,
        sha256=_hash(f"{file or name} {size}"),
        tools={"edgekit": "0.1.0"},
        parity=parity or Parity(images=64, sqnr_db=120.0, top1_agreement=1.0, largest_difference=1e-5),
    )


def _hash(text: str) -> str:
    from edgekit.files import sha256_of

    return sha256_of(text)


def measurement(
    p50_ms: float, *, seed: int = 0, count: int = 1_025, blocks: int = 5, drift: float = 0.0, noise: float = 0.03
) -> Measurement:
    """Log-normal samples with a short right tail; *drift* is what the last block has over the first."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(1, 1 + drift, count)
    samples = p50_ms * 1e6 * slope * np.exp(noise * rng.standard_normal(count))
    samples *= 1 + (rng.random(count) < 0.04) * rng.exponential(0.25, count)
    samples_ns = samples.astype(int)
    return Measurement(
        samples_ns=tuple(samples_ns.tolist()),
        starts_ns=tuple(np.cumsum(samples_ns).tolist()),
        blocks=tuple(np.sort(np.arange(count) % blocks).tolist()),
        load_ms=4.2,
        first_ms=1.3,
        peak_memory_bytes=21_000_000,
    )


def predictions(wrong: int, *, count: int = 360, first: int = 0, images: str = "digits-val") -> Predictions:
    """*wrong* images, from number *first* on, are classified as the next class; the rest are right."""
    truth = np.arange(count) % 10
    top1 = truth.copy()
    top1[first : first + wrong] = (top1[first : first + wrong] + 1) % 10
    top = np.stack([(top1 + 2 * k) % 10 for k in range(5)], axis=1)
    return Predictions(
        dataset="digits val",
        images_sha256=_hash(images),
        truth=tuple(truth.tolist()),
        k=5,
        top=tuple(top.reshape(-1).tolist()),
    )


def result(
    target: str = "tflite",
    precision: str = "fp32",
    p50_ms: float = 0.4,
    wrong: int | None = 6,
    *,
    first: int = 0,
    seed: int = 0,
    drift: float = 0.0,
    noise: float = 0.03,
    size: int = 1_000_000,
    threads: int = 1,
    device: DeviceInfo = DEVICE,
    visit: str = "visit-1",
    notes: tuple[str, ...] = (),
    parity: Parity | None = None,
    file: str = "",
) -> Result:
    runtime = {"tflite": "LiteRT", "onnx": "ONNX Runtime"}.get(target, target)
    return Result(
        edgekit="0.1.0",
        created="2026-01-05T12:00:00Z",
        visit=visit,
        artifact=artifact(target, precision, size=size, parity=parity, file=file),
        device=device,
        settings=Settings(
            threads=threads,
            runtime=runtime,
            runtime_version={"LiteRT": "2.1.0"}.get(runtime, "1.23.0"),
            delegate="xnnpack" if target == "tflite" else "cpu",
            input="digits val",
        ),
        measurement=measurement(p50_ms, seed=seed, drift=drift, noise=noise),
        notes=notes,
        predictions=None if wrong is None else predictions(wrong, first=first),
    )


def quickstart() -> tuple[list[Result], list[Artifact]]:
    """What the quickstart gives: five measured files and one that cannot run here."""
    parity = Parity(images=256, sqnr_db=29.4, top1_agreement=0.992, largest_difference=0.61)
    results = [
        result("tflite", "fp32", 0.392, 6, seed=1, size=1_021_000),
        result("tflite", "fp16", 0.395, 6, seed=2, size=531_000),
        result("tflite", "dyn8", 0.262, 7, first=1, seed=3, size=318_000, parity=parity),
        result("tflite", "int8", 0.118, 8, first=2, seed=4, size=335_000, parity=parity),
        result("onnx", "fp32", 0.171, 6, seed=5, size=989_000, drift=0.16),
    ]
    coreml = artifact(
        "coreml",
        "fp16",
        size=542_000,
        parity=Parity(images=256, sqnr_db=62.0, top1_agreement=1.0, largest_difference=4e-3),
    )
    return results, [*(r.artifact for r in results), replace(coreml, notes=("runs on Apple devices",))]
