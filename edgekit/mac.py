"""Core ML files on a Mac, through coremltools and the agent: on what `unit` in the address lets Core ML use."""

import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit import preflight
from edgekit.device import BenchJob, Entry, Outcome, Progress
from edgekit.errors import DeviceError
from edgekit.inventory import TAKES as FOLDER_AND_PYTHON
from edgekit.inventory import Options
from edgekit.operators import Placed
from edgekit.remote import AgentDevice, open_agent
from edgekit.result import DeviceInfo
from edgekit.transport import Transport

TAKES = (*FOLDER_AND_PYTHON, "unit")
OLDEST = (3, 10)  # Python of coremltools 9
FAKE = "+fake"  # in the version of a coremltools that only stands in for the real one, as in tests
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of what a .zip holds: the same package is the same file


@dataclass(frozen=True, kw_only=True)
class MacDevice:
    agent: AgentDevice

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
            entries = tuple(_packed(entry, Path(folder), packed) for entry in job.entries)
            return self.agent.run(replace(job, entries=entries), progress)

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
    device = open_agent(transport, options, facts)
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
            program=f"env EDGEKIT_UNIT={options.unit or 'ALL'} {device.program}",
        )
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
