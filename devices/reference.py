"""``reference``: accuracy of Core ML files on any machine, by edgekit's own execution of them. It times nothing.

Core ML runs on Apple systems only; `edgekit.mil` computes what the file says with torch. So predictions count, and
results say ``reference``; there are no samples, because the time that this takes says nothing about any device.
A file is executed once on the same inputs: what it gave stands in the user's cache.
"""

import json
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from edgekit import __version__, files
from edgekit.device import BenchJob, Device, Entry, Outcome, Progress
from edgekit.errors import EdgekitError, UsageError
from edgekit.measure import Measurement
from edgekit.preflight import boot_id
from edgekit.requires import require
from edgekit.result import DeviceInfo

ADDRESS, ABOUT = "reference", "any machine: the accuracy of Core ML files, and no latency"
NOTE = "computed by edgekit's reference, not by Core ML: accuracy only"
TIMED = Measurement(samples_ns=(), starts_ns=(), blocks=(), load_ms=0.0, first_ms=0.0)
CHUNK = 64  # images from the file of inputs at a time


def connect(address: str, rest: str) -> Device:
    """The reference. Raises UsageError for anything behind its name, MissingDependency without coremltools."""
    if rest:
        raise UsageError(f"the device reference takes nothing behind its name, but got {rest!r}: give `reference`")
    require("torch", feature="The reference of coreml files", extra="coreml")
    return Reference(address=address)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    address: str

    @property
    def info(self) -> DeviceInfo:
        return DeviceInfo(
            address=self.address,
            model="edgekit's reference of Core ML",
            cpu=platform.processor() or platform.machine(),
            architecture=platform.machine(),
            cores=1,  # one setting: threads change nothing that counts
            os=f"{platform.system()} {os.uname().release}" if hasattr(os, "uname") else platform.system(),
            reference=True,
        )

    @property
    def runtimes(self) -> Mapping[str, str]:
        return {"coreml": f"edgekit {__version__} reference, torch {version('torch')}"}

    @property
    def machine(self) -> str:
        return boot_id()

    def wait(self, limit_s: float, progress: Progress) -> None:
        """Whoever measures here does not disturb what is computed."""

    def run(self, job: BenchJob, progress: Progress) -> tuple[Outcome, ...]:
        outcomes, hashed = [], cache(files.sha256)  # the inputs, which entries share, are large
        for place, entry in enumerate(job.entries):

            def done(share: float, name: str = entry.artifact.name, place: int = place) -> None:
                progress(f"{name}: reference", (place + share) / len(job.entries))

            try:
                top = _remembered(entry, job.top_k, hashed, done) if entry.predict else ()
            except EdgekitError as error:  # a damaged file, an unknown operator: the others still run
                outcomes.append(Outcome(measurement=None, error=str(error)))
                continue
            outcomes.append(
                Outcome(
                    measurement=TIMED,
                    runtime="edgekit reference",
                    runtime_version=__version__,
                    delegate="none",
                    top=top,
                    notes=(NOTE,),
                )
            )
        return tuple(outcomes)

    def close(self) -> None:
        """Nothing is open."""


def _remembered(
    entry: Entry, count: int, hashed: Callable[[Path], str], done: Callable[[float], None]
) -> tuple[int, ...]:
    """The likeliest classes of each input, row by row; computed where this code did not do so before."""
    done(0.0)
    key = files.sha256_of([hashed(entry.artifact.path), hashed(entry.inputs), count, _code()])
    path = files.cache() / "reference" / f"{key[:32]}.json"
    with suppress(OSError, ValueError, TypeError):  # not there, or damaged: it is computed
        return tuple(int(one) for one in json.loads(path.read_text(encoding="utf-8")))
    top = _top(entry, count, done)
    with suppress(OSError):  # where nothing can be kept, the answer counts all the same
        files.write_json(path, top, compact=True)
    return top


@cache
def _code() -> str:
    """What computes: another edgekit.mil or torch may round otherwise."""
    from edgekit import mil

    return files.sha256_of([version("torch"), *map(files.sha256, sorted(Path(mil.__file__).parent.glob("*.py")))])


def _top(entry: Entry, count: int, done: Callable[[float], None]) -> tuple[int, ...]:
    import torch

    from edgekit import mil

    reference = mil.reference(entry.artifact.path)
    pixels = np.load(entry.inputs, mmap_mode="r")  # (N, 3, H, W)
    found = []
    for start in range(0, len(pixels), CHUNK):
        done(start / len(pixels))
        logits = reference.logits(torch.from_numpy(np.array(pixels[start : start + CHUNK])).float())
        found.append(logits.topk(min(count, logits.shape[1]), dim=1).indices)
    return tuple(int(one) for one in torch.cat(found).reshape(-1))
