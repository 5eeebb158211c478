"""Measures artifacts on a device: one visit, every artifact and thread count in turn, one result file each."""

import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from edgekit import __version__, files, inputs, result
from edgekit.artifact import Artifact
from edgekit.data import Dataset
from edgekit.device import BenchJob, Device, Entry, Outcome, Progress
from edgekit.errors import ArtifactError, DataError, DeviceError, UsageError
from edgekit.preprocess import Pixels, Preprocess
from edgekit.recipe import BenchSpec
from edgekit.result import Predictions, Result, Settings

NOISE = "noise"
TOP_K = 5
# Why a target does not run on a device that lacks its runtime.
CURES = {
    "tflite": "edgekit device setup, or pip install ai-edge-litert there",
    "onnx": "pip install onnxruntime there",
    "coreml": "coreml files run on a Mac",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Labelled pictures. *truth* holds indices into *classes*; *read* gives the pixels (N, H, W, 3)."""

    name: str
    images_sha256: str
    truth: tuple[int, ...]
    classes: tuple[str, ...]
    read: Callable[[Preprocess], Pixels]


def held_out(dataset: Dataset) -> Images:
    """The dataset's held-out images."""
    val = dataset.val

    def read(preprocess: Preprocess) -> Pixels:
        assert preprocess == dataset.preprocess
        return val.read()

    return Images(
        name=f"{dataset.name}/val",
        images_sha256=val.images_sha256,
        truth=val.labels,
        classes=dataset.classes,
        read=read,
    )


def sample(images: Images, count: int) -> Images:
    """*count* of the images, always the same ones; all of them where there are no more."""
    total = len(images.truth)
    if count >= total:
        return images
    chosen = np.sort(np.random.default_rng(0).permutation(total)[:count])

    def read(preprocess: Preprocess) -> Pixels:
        return images.read(preprocess)[chosen]

    return replace(
        images,
        name=f"{images.name}, {count} of {total}",
        images_sha256=files.sha256_of([images.images_sha256, chosen.tolist()]),
        truth=tuple(images.truth[i] for i in chosen),
        read=read,
    )


def bench(
    artifacts: Sequence[Artifact],
    device: Device,
    spec: BenchSpec,
    out: Path,
    *,
    images: Images | None,
    progress: Progress,
    threads: Sequence[int] | None = None,
    profile: bool = True,
) -> list[Result]:
    """The results, each also in ``out/NAME.json`` (``NAME-tN.json`` when there are several thread counts).

    Without *images* the inputs are noise and nothing is predicted. Raises DeviceError at the end, naming the
    entries that failed; those that ran are written by then, and what a failed one had measured stands in
    ``out/partial``.
    """
    counts = tuple(dict.fromkeys(threads or spec.threads))
    _check(artifacts, device, images)
    truths = [_truth(artifact, images) for artifact in artifacts] if images else []
    with tempfile.TemporaryDirectory(prefix="edgekit-inputs-") as folder:
        prepared = _prepare(artifacts, images, Path(folder), progress)
        job = BenchJob(
            entries=tuple(
                Entry(artifact=artifact, threads=count, inputs=path, predict=images is not None)
                for artifact, path in zip(artifacts, prepared, strict=True)
                for count in counts
            ),
            samples=spec.samples,
            seconds=spec.seconds,
            blocks=spec.blocks,
            warmup=spec.warmup,
            warmup_seconds=spec.warmup_seconds,
            top_k=TOP_K,
            profile=profile,
        )
        outcomes = device.run(job, progress)
    visit, created = uuid.uuid4().hex[:12], datetime.now(UTC).isoformat(timespec="seconds")
    results, failed = [], []
    for index, (entry, outcome) in enumerate(zip(job.entries, outcomes, strict=True)):
        name = f"{entry.artifact.name}-t{entry.threads}" if len(counts) > 1 else entry.artifact.name
        truth = truths[index // len(counts)] if images else ()
        found = _result(entry, outcome, device, images, truth, visit, created)
        if outcome.error:
            failed.append(f"{name}: {outcome.error}")
        if found is None:
            continue
        if outcome.error:
            result.write(found, out / "partial" / f"{name}.json")
        else:
            result.write(found, out / f"{name}.json")
            files.remove(out / "partial" / f"{name}.json")
            results.append(found)
    progress("measured", 1.0)
    if failed:
        total = len(job.entries)
        raise DeviceError(f"{len(failed)} of {total} failed on {device.info.address}:\n  " + "\n  ".join(failed))
    return results


def _check(artifacts: Sequence[Artifact], device: Device, images: Images | None) -> None:
    """Find what would fail later, before the long work starts."""
    if not artifacts:
        raise UsageError("nothing to measure: give at least one artifact")
    for artifact in artifacts:
        if not artifact.path.exists():
            raise ArtifactError(f"no such file: {artifact.path}")
        if artifact.target not in device.runtimes:
            runs = ", ".join(f"{target} ({runtime})" for target, runtime in sorted(device.runtimes.items()))
            cure = CURES.get(artifact.target, f"nothing there runs {artifact.target} files")
            raise DeviceError(
                f"{device.info.address} cannot run {artifact.file}: {cure}; it runs {runs or 'nothing'}"
            )
        inputs.layout(artifact)
    names = Counter(artifact.name for artifact in artifacts)
    for name, count in names.items():
        if count > 1:
            same = ", ".join(str(artifact.path) for artifact in artifacts if artifact.name == name)
            raise UsageError(
                f"results are named after files, and {same} have one name: rename them, or bench them apart"
            )
    if images and not images.truth:
        raise DataError(f"{images.name} holds no images")


def _truth(artifact: Artifact, images: Images) -> tuple[int, ...]:
    """The true classes as indices into the artifact's labels."""
    labels, classes = artifact.labels, images.classes
    outputs = artifact.output.shape[-1] if artifact.output.shape else 0
    if outputs != len(labels):
        raise DataError(f"{artifact.file} gives {outputs} scores, but has {len(labels)} labels: give its --labels")
    if classes == labels:
        return images.truth
    known = Counter(labels)
    if missing := [name for name in classes if not known[name]]:
        raise DataError(
            f"{images.name} has classes that {artifact.file} does not know: {_some(missing)}; "
            f"it knows {_some(labels)}"
        )
    if twice := [name for name in classes if known[name] > 1]:
        raise DataError(f"{artifact.file} has several labels called {_some(twice)}: make them distinct")
    index = [labels.index(name) for name in classes]
    return tuple(index[value] for value in images.truth)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def _prepare(artifacts: Sequence[Artifact], images: Images | None, folder: Path, progress: Progress) -> list[Path]:
    """Each artifact's inputs; those that take the same share one file."""
    paths: dict[tuple[object, ...], Path] = {}
    read: dict[Preprocess, Pixels] = {}
    for artifact in artifacts:
        if (key := inputs.key(artifact)) in paths:
            continue
        progress(f"inputs for {artifact.name}", 0.0)
        if artifact.preprocess not in read:
            read = {artifact.preprocess: (images.read if images else inputs.noise(artifact))(artifact.preprocess)}
        pixels = read[artifact.preprocess]
        if images and len(pixels) != len(images.truth):
            raise DataError(f"{images.name}: {len(pixels)} pictures, but {len(images.truth)} true classes")
        paths[key] = folder / f"{len(paths)}.npy"
        inputs.write(artifact, pixels, paths[key])
    return [paths[inputs.key(artifact)] for artifact in artifacts]


def _result(
    entry: Entry,
    outcome: Outcome,
    device: Device,
    images: Images | None,
    truth: tuple[int, ...],
    visit: str,
    created: str,
) -> Result | None:
    """The result of one entry, as far as it came; None when nothing was measured."""
    if outcome.measurement is None:
        return None
    notes = outcome.notes
    if device.info.emulated:
        notes = (*notes, "an emulated device: its latency says nothing about a real one")
    if outcome.error:
        notes = (*notes, f"cut off: {outcome.error}")
    predictions = None
    if images and not outcome.error:
        predictions = Predictions(
            dataset=images.name,
            images_sha256=images.images_sha256,
            truth=truth,
            k=len(outcome.top) // len(truth),
            top=outcome.top,
        )
    return Result(
        edgekit=__version__,
        created=created,
        visit=visit,
        artifact=entry.artifact,
        device=device.info,
        settings=Settings(
            threads=entry.threads,
            runtime=outcome.runtime,
            runtime_version=outcome.runtime_version,
            delegate=outcome.delegate,
            input=images.name if images else NOISE,
        ),
        measurement=outcome.measurement,
        telemetry=outcome.telemetry,
        notes=notes,
        predictions=predictions,
        delegation=outcome.delegation,
        profile=outcome.profile,
    )
