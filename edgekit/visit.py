"""One visit to a device, from the files of inputs to a result an entry."""

import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from edgekit import __version__, files, inputs, result
from edgekit.artifact import Artifact
from edgekit.device import BenchJob, Device, Entry, Interrupted, Outcome, Progress
from edgekit.errors import DataError, DeviceBusy
from edgekit.preprocess import Pixels, Preprocess
from edgekit.result import Predictions, Result, Settings

NOISE = "noise"
Say = Callable[[str], None]  # takes a line for the user


def ignore(text: str) -> None:
    """For what nobody listens to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Labelled pictures. *truth* holds indices into *classes*; *read* gives the pixels (N, H, W, 3)."""

    name: str
    images_sha256: str
    truth: tuple[int, ...]
    classes: tuple[str, ...]
    read: Callable[[Preprocess], Pixels]


@dataclass(kw_only=True)
class Prepared:
    """The inputs of artifacts as files, made when they are first asked for; several devices may share them."""

    images: Images | None
    folder: Path
    made: dict[tuple[object, ...], Path] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    @contextmanager
    def for_images(images: Images | None) -> Iterator["Prepared"]:
        """Noise without *images*. The files go in the end."""
        with tempfile.TemporaryDirectory(prefix="edgekit-inputs-") as folder:
            yield Prepared(images=images, folder=Path(folder))

    def paths(self, artifacts: Sequence[Artifact], progress: Progress) -> list[Path]:
        """Each artifact's inputs; those that take the same share one file."""
        with self.lock:
            read: dict[Preprocess, Pixels] = {}
            for artifact in artifacts:
                if (key := inputs.key(artifact)) in self.made:
                    continue
                progress(f"inputs for {artifact.name}", 0.0)
                if artifact.preprocess not in read:
                    source = self.images.read if self.images else inputs.noise(artifact)
                    read = {artifact.preprocess: source(artifact.preprocess)}
                pixels = read[artifact.preprocess]
                if self.images and len(pixels) != len(self.images.truth):
                    raise DataError(
                        f"{self.images.name}: {len(pixels)} pictures, but {len(self.images.truth)} true classes"
                    )
                path = self.folder / f"{len(self.made)}.npy"
                inputs.write(artifact, pixels, path)
                self.made[key] = path
            return [self.made[inputs.key(artifact)] for artifact in artifacts]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is asked of a device. *truths* and *names*: one an entry; *deadline*: until when it waits."""

    device: Device
    job: BenchJob
    images: Images | None
    truths: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    sustained_min: float = 0.0
    deadline: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Visited:
    """By name: whole results, what entries that failed had measured, and why they failed.

    *stop*: what the user ended the visit with.
    """

    whole: Mapping[str, Result]
    partial: Mapping[str, Result]
    failed: Mapping[str, str]
    stop: BaseException | None = None


def visit(plan: Plan, progress: Progress) -> Visited:
    """What one visit gives, when it is this one's turn. Raises DeviceError when the device cannot be used."""
    stop: BaseException | None = None
    try:
        outcomes = _in_turn(plan, progress)
    except Interrupted as error:
        outcomes, stop = error.outcomes, error.__cause__ or error
    number, created = uuid.uuid4().hex[:12], datetime.now(UTC).isoformat(timespec="seconds")
    whole, partial, failed = dict[str, Result](), dict[str, Result](), dict[str, str]()
    for index, (name, outcome) in enumerate(zip(plan.names, outcomes, strict=True)):
        found = _result(plan, index, outcome, number, created)
        if outcome.error:
            failed[name] = outcome.error
        if found:
            (partial if outcome.error else whole)[name] = found
    return Visited(whole=whole, partial=partial, failed=failed, stop=stop)


def write(visited: Visited, out: Path) -> None:
    """Write whole results to *out*, and what the others had measured to ``out/partial``."""
    for name, one in visited.partial.items():
        result.write(one, out / "partial" / f"{name}.json")
    for name, one in visited.whole.items():
        result.write(one, out / f"{name}.json")
        files.remove(out / "partial" / f"{name}.json")


def _in_turn(plan: Plan, progress: Progress) -> tuple[Outcome, ...]:
    while True:
        try:
            return plan.device.run(plan.job, progress)
        except DeviceBusy:  # somebody else was quicker
            if time.monotonic() >= plan.deadline:
                raise
            plan.device.wait(plan.deadline - time.monotonic(), progress)


def _result(plan: Plan, index: int, outcome: Outcome, visit: str, created: str) -> Result | None:
    """The result of one entry, as far as it came; None when nothing was measured."""
    if outcome.measurement is None:
        return None
    entry: Entry = plan.job.entries[index]
    info, images, notes = plan.device.info, plan.images, outcome.notes
    if info.emulated:
        notes = (*notes, "an emulated device: its latency says nothing about a real one")
    if outcome.error:
        notes = (*notes, f"cut off: {outcome.error}")
    predictions = None
    if images and entry.predict and not outcome.error:
        truth = plan.truths[index]
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
        device=info,
        settings=Settings(
            threads=entry.threads,
            runtime=outcome.runtime,
            runtime_version=outcome.runtime_version,
            delegate=outcome.delegate,
            input=images.name if images else NOISE,
            sustained_min=plan.sustained_min,
        ),
        measurement=outcome.measurement,
        telemetry=outcome.telemetry,
        cooling=outcome.cooling,
        notes=notes,
        predictions=predictions,
        delegation=outcome.delegation,
        profile=outcome.profile,
        plan=outcome.plan,
    )
