"""Measures artifacts on a device: one visit, every artifact and thread count in turn, one result file each."""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit import files, inputs
from edgekit.artifact import Artifact
from edgekit.data import Dataset, Split
from edgekit.device import BenchJob, Device, Entry, Progress
from edgekit.errors import ArtifactError, DataError, DeviceError, UsageError
from edgekit.preprocess import Pixels, Preprocess
from edgekit.recipe import BenchSpec
from edgekit.result import Result
from edgekit.stable import until_stable
from edgekit.visit import Images, Plan, Prepared, Say, ignore, visit, write

TOP_K = 5
SWEEP = (1, 2, 4)
SUSTAINED_SAMPLES = 200_000  # are kept of a sustained run at most, however long it is
# Why a target does not run on a device that lacks its runtime.
CURES = {
    "tflite": "edgekit device setup, or pip install ai-edge-litert there",
    "onnx": "pip install onnxruntime there",
    "coreml": "coreml files run on a Mac; --device reference gives their accuracy anywhere",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """What a bench does beyond its spec.

    *wait_s*: for a device that is in use. *repeat*: until it is stable. *sustained_min*: minutes without a pause
    instead of the spec's blocks, of one artifact with one thread count. *profile*: also tell what each operator
    costs, where the runtime tells.
    """

    wait_s: float = 0.0
    repeat: bool = False
    sustained_min: float = 0.0
    profile: bool = True


PLAIN = Method()


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
    chosen = _chosen(total, count)

    def read(preprocess: Preprocess) -> Pixels:
        return images.read(preprocess)[chosen]

    return replace(
        images,
        name=f"{images.name}, {count} of {total}",
        images_sha256=_sampled_sha256(images.images_sha256, chosen),
        truth=tuple(images.truth[i] for i in chosen),
        read=read,
    )


def choice(split: Split, count: int) -> tuple[Split, str]:
    """The images that `sample` takes of the split, and the hash of their list that a result holds."""
    if count >= len(split):
        return split, split.images_sha256
    chosen = _chosen(len(split), count)
    return split.take(chosen.tolist()), _sampled_sha256(split.images_sha256, chosen)


def _chosen(total: int, count: int) -> npt.NDArray[np.int64]:
    return np.sort(np.random.default_rng(0).permutation(total)[:count])


def _sampled_sha256(images_sha256: str, chosen: npt.NDArray[np.int64]) -> str:
    return files.sha256_of([images_sha256, chosen.tolist()])


class Incomplete(DeviceError):
    """Some of what was asked for failed; *results* are the others, written by then."""

    def __init__(self, text: str, results: Sequence[Result] = ()) -> None:
        self.results = tuple(results)
        super().__init__(text)


def sweep(artifacts: Sequence[Artifact], cores: int) -> tuple[int, ...]:
    """The thread counts where none are named: one, and for a single file those up to four that the cores allow.

    More than four seldom helps: a phone's other cores are slow ones, and LiteRT waits for the slowest.
    """
    several = len(artifacts) == 1 and artifacts[0].target != "coreml"  # which has no number of threads
    return tuple(n for n in SWEEP if n <= max(1, cores)) if several else SWEEP[:1]


def bench(
    artifacts: Sequence[Artifact],
    device: Device,
    spec: BenchSpec,
    out: Path,
    *,
    images: Images | None,
    progress: Progress,
    threads: Sequence[int] | None = None,
    method: Method = PLAIN,
    prepared: Prepared | None = None,
    say: Say = ignore,
) -> list[Result]:
    """The results, each also in ``out/NAME.json`` (``NAME-tN.json`` when there are several thread counts).

    Without *images* the inputs are noise and nothing is predicted. *prepared*: inputs that several devices share.
    Raises Incomplete at the end, naming the entries that failed; those that ran are written by then, and what a
    failed one had measured stands in ``out/partial``, as all does after an interrupt. Raises it also for what did
    not become stable where the method repeats; the last valid try is written then, and every try in ``out/tries``.
    """
    counts = tuple(dict.fromkeys(threads or spec.threads))
    _check(artifacts, device, images, counts, method)
    truths = tuple(_truth(artifact, images) for artifact in artifacts) if images else ()
    with ExitStack() as stack:
        if prepared is None:
            prepared = stack.enter_context(Prepared.for_images(images))
        # Before the inputs are made, which takes time of this machine's.
        deadline = time.monotonic() + method.wait_s
        device.wait(method.wait_s, progress)
        paths = prepared.paths(artifacts, progress)
        plan = Plan(
            device=device,
            job=_job(artifacts, paths, counts, spec, method, predict=images is not None),
            images=images,
            truths=tuple(truth for truth in truths for _ in counts),
            names=tuple(_name(artifact, n, counts, method) for artifact in artifacts for n in counts),
            sustained_min=method.sustained_min,
            deadline=deadline,
        )
        if method.repeat:
            visited, unstable = until_stable(plan, out / "tries", progress, say)
        else:
            visited, unstable = visit(plan, progress), ""
    write(visited, out)
    if visited.stop:
        raise visited.stop
    progress("measured", 1.0)
    results = list(visited.whole.values())
    if visited.failed:
        listed = "\n  ".join(f"{name}: {error}" for name, error in visited.failed.items())
        total = len(plan.job.entries)
        raise Incomplete(f"{len(visited.failed)} of {total} failed on {device.info.address}:\n  {listed}", results)
    if unstable:
        raise Incomplete(f"{device.info.address}: {unstable}", results)
    return results


def _job(
    artifacts: Sequence[Artifact],
    paths: Sequence[Path],
    counts: Sequence[int],
    spec: BenchSpec,
    method: Method,
    *,
    predict: bool,
) -> BenchJob:
    job = BenchJob(
        entries=tuple(
            Entry(artifact=artifact, threads=count, inputs=path, predict=predict and not method.sustained_min)
            for artifact, path in zip(artifacts, paths, strict=True)
            for count in counts
        ),
        samples=spec.samples,
        seconds=spec.seconds,
        blocks=spec.blocks,
        warmup=spec.warmup,
        warmup_seconds=spec.warmup_seconds,
        top_k=TOP_K,
        cool_down_seconds=spec.cool_down_seconds,
        profile=method.profile,
    )
    if not method.sustained_min:
        return job
    seconds = 60 * method.sustained_min
    spacing_ms = max(job.spacing_ms, 1e3 * seconds / SUSTAINED_SAMPLES)
    return replace(
        job, samples=1, seconds=seconds, blocks=1, cool_down_seconds=0.0, spacing_ms=spacing_ms, sustained=True
    )


def _name(artifact: Artifact, count: int, counts: Sequence[int], method: Method) -> str:
    name = f"{artifact.name}-t{count}" if len(counts) > 1 else artifact.name
    return f"{name}-sustained" if method.sustained_min else name


def check_threads(counts: Sequence[int], device: Device) -> None:
    """Raise UsageError for more threads than the device has cores."""
    if max(counts) > device.info.cores:
        cores = "1 core" if device.info.cores == 1 else f"{device.info.cores} cores"
        raise UsageError(
            f"{max(counts)} threads: {device.info.address} has {cores}, and more threads would wait for each "
            f"other: --threads {device.info.cores} at most"
        )


def _check(
    artifacts: Sequence[Artifact], device: Device, images: Images | None, counts: Sequence[int], method: Method
) -> None:
    """Find what would fail later, before the long work starts."""
    if not artifacts:
        raise UsageError("nothing to measure: give at least one artifact")
    check_threads(counts, device)
    if method.sustained_min and (len(artifacts) > 1 or len(counts) > 1):
        raise UsageError("--sustained runs one file with one thread count: name them")
    if device.info.reference and (method.repeat or method.sustained_min):
        raise UsageError(
            f"{device.info.address} gives accuracy and no latency: leave out --repeat-until-stable and --sustained"
        )
    if method.repeat and (device.info.fake or device.info.emulated):
        kind = "a fake" if device.info.fake else "an emulated"
        raise UsageError(
            f"{device.info.address} is {kind} device, whose runs are never valid: it cannot become stable"
        )
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
