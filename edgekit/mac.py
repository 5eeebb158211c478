"""Core ML files on a Mac, through coremltools and the agent: on what `unit` in the address lets Core ML use.

With `iphone` in the address the agent measures an iPhone on that Mac, through the app that coremltools builds.
"""

import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit import preflight
from edgekit.coreml.tensors import as_tensors
from edgekit.device import BenchJob, Entry, Interrupted, Outcome, Progress
from edgekit.errors import DeviceError
from edgekit.inventory import TAKES as FOLDER_AND_PYTHON
from edgekit.inventory import Options
from edgekit.operators import Placed
from edgekit.remote import AgentDevice, open_agent
from edgekit.result import DeviceInfo
from edgekit.transport import Transport

TAKES = (*FOLDER_AND_PYTHON, "unit", "iphone", "team")
PHONE_LIMIT_S = 86400.0  # an inference on an iPhone takes a second on its way
OLDEST = (3, 10)  # Python of coremltools 9
FAKE = "+fake"  # in the version of a coremltools that only stands in for the real one, as in tests
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of what a .zip holds: the same package is the same file


@dataclass(frozen=True, kw_only=True)
class MacDevice:
    """*iphone*: the agent measures an iPhone on that Mac."""

    agent: AgentDevice
    iphone: bool = False

    @property
    def info(self) -> DeviceInfo:
        return self.agent.info

    @property
    def runtimes(self) -> Mapping[str, str]:
        return self.agent.runtimes

    @property
    def facts(self) -> preflight.Facts:
        return self.agent.facts

    @property
    def machine(self) -> str:
        return self.agent.machine

    def wait(self, limit_s: float, progress: Progress) -> None:
        self.agent.wait(limit_s, progress)

    def run(self, job: BenchJob, progress: Progress) -> tuple[Outcome, ...]:
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            packed: dict[Path, Path] = {}
            pack = _packed_tensors if self.iphone else _packed
            entries = tuple(pack(entry, Path(folder), packed) for entry in job.entries)
            return self._apart(job, entries, progress) if self.iphone else self._together(job, entries, progress)

    def _together(self, job: BenchJob, entries: Sequence[Entry], progress: Progress) -> tuple[Outcome, ...]:
        return self.agent.run(replace(job, entries=tuple(entries)), progress)

    def _apart(self, job: BenchJob, entries: Sequence[Entry], progress: Progress) -> tuple[Outcome, ...]:
        """One entry after the other: to install the app for the next one ends the one that runs."""
        found: list[Outcome] = []
        for place, entry in enumerate(entries):

            def tell(text: str, share: float, place: int = place) -> None:
                progress(text, (place + share) / len(entries))

            try:
                found += self._together(job, [entry], tell)
            except Interrupted as stop:
                rest = [Outcome(measurement=None, error="interrupted")] * (len(entries) - place - 1)
                raise Interrupted((*found, *stop.outcomes, *rest)) from stop.__cause__
        return tuple(found)

    def close(self) -> None:
        self.agent.close()


def open_mac(address: str, transport: Transport, options: Options) -> MacDevice:
    """The Mac behind a connected transport, the agent brought there. Raises DeviceError."""
    facts = preflight.read(transport, options.folder, options.python)
    if facts.system != "Darwin":
        raise DeviceError(
            f"{address} runs {facts.system}: Core ML is measured on a Mac; another machine is ssh://"
        )
    if not any(one.minor >= OLDEST for one in facts.pythons):
        found = f"its Python {facts.pythons[0].version} is too old" if facts.pythons else "it has no Python 3"
        raise DeviceError(
            f"{address}: {found}: coremltools needs 3.10 or newer (python.org, or brew install python)"
        )
    facts = replace(facts, pythons=tuple(one for one in facts.pythons if one.minor >= OLDEST))
    environment = {"EDGEKIT_UNIT": options.unit or "ALL"}
    if options.iphone:
        environment |= {"EDGEKIT_IPHONE": options.iphone, "EDGEKIT_TEAM": options.team}
    device = open_agent(transport, options, facts, environment)
    if "coreml" not in device.runtimes:
        python = facts.pythons[0].path
        raise DeviceError(
            f"{address}: nothing there runs coreml files: {python} -m pip install coremltools pillow, or name the "
            "Python that has them: ADDRESS?python=PATH"
        )
    return MacDevice(
        agent=replace(
            device,
            info=replace(device.info, address=address, fake=FAKE in device.runtimes["coreml"]),
            limit_s=PHONE_LIMIT_S if options.iphone else None,
        ),
        iphone=bool(options.iphone),
    )


def _packed(entry: Entry, folder: Path, packed: dict[Path, Path]) -> Entry:
    """The entry with its package in one file, since a folder is none that can be sent under its hash."""
    path = entry.artifact.path
    if not path.is_dir():
        return entry
    if path not in packed:
        packed[path] = folder / f"{len(packed)}.zip"
        with zipfile.ZipFile(packed[path], "w", zipfile.ZIP_DEFLATED) as archive:
            for one in sorted(path.rglob("*")):
                if one.is_file():
                    name = f"model.mlpackage/{one.relative_to(path).as_posix()}"
                    archive.writestr(zipfile.ZipInfo(name, _EPOCH), one.read_bytes(), zipfile.ZIP_DEFLATED)
    return replace(entry, artifact=replace(entry.artifact, path=packed[path]))


def _packed_tensors(entry: Entry, folder: Path, packed: dict[Path, Path]) -> Entry:
    """The same of the package as plain tensors, which is all that the app on an iPhone takes."""
    path = entry.artifact.path
    plain = folder / "tensors" / f"{len(packed)}.mlpackage"
    if path not in packed:
        plain.parent.mkdir(exist_ok=True)
        as_tensors(path, plain)
        packed[path] = _packed(
            replace(entry, artifact=replace(entry.artifact, path=plain)), folder, packed
        ).artifact.path
    return replace(entry, artifact=replace(entry.artifact, path=packed[path]))


def placement(plan: Sequence[Placed]) -> str:
    """Where Core ML plans the operators, in a line; nothing where it does not tell."""
    if not plan:
        return ""
    counts = Counter(one.unit for one in plan)
    shares = {unit: sum(one.share or 0.0 for one in plan if one.unit == unit) for unit in counts}
    whole = max(sum(shares.values()), 1e-12)
    told = [
        f"{count} on the {unit} ({100 * shares[unit] / whole:.0f} % of the estimated cost)"
        for unit, count in counts.most_common()
    ]
    return f"of {len(plan)} operators {', '.join(told)}"
