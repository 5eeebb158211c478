"""The host's side of the agent's protocol: jobs out, events in. The agent itself, devices/_agent.py, defines it.

Every device that runs the agent uses this: it brings the job and the agent to the device and feeds each line
that comes back to a `Visit`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgekit import plugins
from edgekit.device import BenchJob, Entry, Outcome, Progress
from edgekit.errors import DeviceError
from edgekit.measure import Cooling, Measurement, Telemetry
from edgekit.operators import Delegation, Placed, Profile
from edgekit.processor import Cluster
from edgekit.result import DeviceInfo
from edgekit.schema import SchemaError, decode

PROTOCOL = 1
T = TypeVar("T")


def source() -> Path:
    """The agent's file."""
    return plugins.folder("devices") / "_agent.py"


def job_json(job: BenchJob, paths: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The job as the agent reads it. *paths*: each entry's model and inputs as the device names them."""
    numbers = {key: value for key, value in asdict(job).items() if key != "entries"}
    entries = [_entry(entry, *where) for entry, where in zip(job.entries, paths, strict=True)]
    return {"protocol": PROTOCOL, **numbers, "entries": entries}


def _entry(entry: Entry, model: str, inputs: str) -> dict[str, Any]:
    artifact = entry.artifact
    return {
        "model": model,
        "target": artifact.target,
        "precision": artifact.precision,
        "output": artifact.output.name,
        "threads": entry.threads,
        "inputs": inputs,
        "predict": entry.predict,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    protocol: int
    model: str
    cpu: str
    architecture: str
    cores: int
    memory_bytes: int | None
    os: str
    kernel: str
    emulated: bool
    runtimes: dict[str, str]
    soc: str = ""
    clusters: tuple[Cluster, ...] = ()
    features: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    entry: int
    pid: int
    runtime: str
    runtime_version: str
    delegate: str
    operators: Delegation | None
    load_ms: float
    first_ms: float
    peak_memory_bytes: int | None
    compile_ms: float | None = None
    plan: tuple[Placed, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Doing:
    entry: int
    doing: str
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    entry: int
    block: int
    start_ns: tuple[int, ...]
    duration_ns: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    entry: int
    first: int
    k: int
    top: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    entry: int | None
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Busy:
    holder: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    entry: int


@dataclass(slots=True)
class _Heard:
    """What one entry has told so far."""

    loaded: Loaded | None
    samples_ns: list[int]
    starts_ns: list[int]
    blocks: list[int]
    top: list[int]
    notes: list[str]
    telemetry: list[Telemetry]
    cooling: list[Cooling]
    done: bool
    error: str
    profile: Profile | None = None


def describe(line: str | bytes, address: str) -> tuple[DeviceInfo, Mapping[str, str]]:
    """What the device is and what runs on it, from the agent's `device` event. Raises DeviceError."""
    event = _event(line, address)
    if event is None or event.pop("event") != "device":
        raise DeviceError(f"{address}: the agent did not describe the device; it said {line[:200]!r}")
    found = _decode(Described, event, address)
    if found.protocol != PROTOCOL:
        raise DeviceError(f"{address}: the agent speaks protocol {found.protocol}, this edgekit {PROTOCOL}")
    info = DeviceInfo(
        address=address,
        model=found.model,
        cpu=found.cpu,
        architecture=found.architecture,
        cores=found.cores,
        memory_bytes=found.memory_bytes,
        os=found.os,
        kernel=found.kernel,
        emulated=found.emulated,
        soc=found.soc,
        clusters=found.clusters,
        features=found.features,
    )
    return info, found.runtimes


def busy(line: str | bytes, address: str) -> str:
    """Who holds the device, from a `busy` event; nothing for another line."""
    event = _event(line, address)
    if event is None or event.pop("event") != "busy":
        return ""
    return _decode(Busy, event, address).holder


class Visit:
    """The events of one job, collected. Feed it every line, then take the outcomes."""

    def __init__(self, job: BenchJob, address: str, progress: Progress) -> None:
        self.job, self.address, self.progress = job, address, progress
        self.share = 0.0  # done of the whole job, as far as is known
        self._heard = [_Heard(None, [], [], [], [], [], [], [], False, "") for _ in job.entries]

    def feed(self, line: str | bytes) -> None:
        """Take in one line of the agent's. Raises DeviceError when it makes no sense or refuses the job."""
        event = _event(line, self.address)
        if event is None:
            return
        kind = event.pop("event")
        if kind in ("device", "end"):
            return
        if kind == "progress":
            doing = self._decode(Doing, event)
            entry, self.share = self.job.entries[doing.entry], doing.share
            self.progress(f"{entry.artifact.name}: {doing.doing}", doing.share)
        elif kind == "loaded":
            loaded = self._decode(Loaded, event)
            self._of(loaded.entry).loaded = loaded
        elif kind == "samples":
            samples = self._decode(Samples, event)
            heard = self._of(samples.entry)
            heard.samples_ns += samples.duration_ns
            heard.starts_ns += samples.start_ns
            heard.blocks += [samples.block] * len(samples.start_ns)
        elif kind == "telemetry":
            heard = self._of(event.pop("entry", None))
            heard.telemetry.append(self._decode(Telemetry, event))
        elif kind == "cooled":
            heard = self._of(event.pop("entry", None))
            heard.cooling.append(self._decode(Cooling, event))
        elif kind == "predictions":
            self._of(event.get("entry")).top += self._decode(Rows, event).top
        elif kind == "note":
            note = self._decode(Text, event)
            self._of(note.entry).notes.append(note.text)
        elif kind == "profile":
            heard = self._of(event.pop("entry", None))
            heard.profile = self._decode(Profile, event)
        elif kind == "done":
            self._of(self._decode(Done, event).entry).done = True
        elif kind == "error":
            error = self._decode(Text, event)
            if error.entry is None:
                raise DeviceError(f"{self.address}: the agent refuses the job: {error.text}")
            self._of(error.entry).error = _plain(error.text, self.address)
        else:
            raise DeviceError(f"{self.address}: the agent sent an unknown event {kind!r}")

    def outcomes(self, cut_off: str) -> tuple[Outcome, ...]:
        """One outcome an entry. *cut_off*: the error of those that were not done when the agent stopped."""
        return tuple(_outcome(heard, cut_off) for heard in self._heard)

    def _of(self, entry: object) -> _Heard:
        if isinstance(entry, int) and 0 <= entry < len(self._heard):
            return self._heard[entry]
        raise DeviceError(f"{self.address}: the agent spoke of entry {entry!r} of {len(self._heard)}")

    def _decode(self, cls: type[T], event: dict[str, Any]) -> T:
        return _decode(cls, event, self.address)


def _plain(text: str, address: str) -> str:
    """What a runtime says, in one line; where it lacks an operator, what helps."""
    if found := re.search(r"Didn't find op for builtin opcode '(\w+)' version '(\d+)'", text):
        newer = "pip install --upgrade ai-edge-litert" if address == "local" else f"edgekit device setup {address}"
        return f"the runtime lacks operator {found[1]} version {found[2]}: it is older than the file; try: {newer}"
    if found := re.search(r"Encountered unresolved custom op: (\S+?)\.?(?:\s|$)", text):
        return f"the file has the custom operator {found[1]}, which LiteRT lacks: take a model without it"
    return " ".join(text.split())


def _outcome(heard: _Heard, cut_off: str) -> Outcome:
    loaded, measurement = heard.loaded, None
    # An interrupt may have come between the three.
    count = min(len(heard.samples_ns), len(heard.starts_ns), len(heard.blocks))
    if loaded and count:
        measurement = Measurement(
            samples_ns=tuple(heard.samples_ns[:count]),
            starts_ns=tuple(heard.starts_ns[:count]),
            blocks=tuple(heard.blocks[:count]),
            load_ms=loaded.load_ms,
            first_ms=loaded.first_ms,
            peak_memory_bytes=loaded.peak_memory_bytes,
            compile_ms=loaded.compile_ms,
        )
    return Outcome(
        measurement=measurement,
        runtime=loaded.runtime if loaded else "",
        runtime_version=loaded.runtime_version if loaded else "",
        delegate=loaded.delegate if loaded else "",
        plan=loaded.plan if loaded else (),
        top=tuple(heard.top),
        notes=tuple(heard.notes),
        telemetry=tuple(heard.telemetry),
        delegation=loaded.operators if loaded else None,
        profile=heard.profile,
        cooling=tuple(heard.cooling),
        error=heard.error or ("" if heard.done else cut_off),
    )


def _event(line: str | bytes, address: str) -> dict[str, Any] | None:
    """The event of a line; None for a line that is none, such as a login shell's greeting."""
    text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
    if not text.startswith('{"event":'):
        return None
    try:
        event: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise DeviceError(f"{address}: the agent's line is damaged: {text[:80]!r}") from error
    return event


def _decode(cls: type[T], event: dict[str, Any], address: str) -> T:
    try:
        return decode(cls, event)
    except SchemaError as error:
        raise DeviceError(f"{address}: the agent sent a malformed event: {error.faults[0]}") from error
