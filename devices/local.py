"""``local``: this machine, through the agent in a process of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgekit import agent, lock
from edgekit.device import BenchJob, Device, Interrupted, Outcome, Progress
from edgekit.errors import DeviceError, UsageError
from edgekit.preflight import boot_id
from edgekit.result import DeviceInfo

ADDRESS, ABOUT = "local", "this machine"


def connect(address: str, rest: str) -> Device:
    """This machine. Raises UsageError when the address has more to it than ``local``."""
    if rest:
        raise UsageError(f"{address}: this machine is just 'local'; another one is ssh://{rest}")
    if sys.platform == "win32":
        raise DeviceError("local: the agent runs on Linux and macOS; use WSL on Windows")
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        with _agent(Path(folder), "--describe") as process:
            assert process.stdout is not None
            line = process.stdout.readline()
        info, runtimes = agent.describe(line, address)
    return LocalDevice(info=info, runtimes=runtimes)


@dataclass(frozen=True, kw_only=True)
class LocalDevice:
    info: DeviceInfo
    runtimes: Mapping[str, str]

    @property
    def machine(self) -> str:
        return boot_id()

    def wait(self, limit_s: float, progress: Progress) -> None:
        lock.wait(lock.local_lock(), self.info.address, limit_s, lambda text: progress(text, 0.0))

    def run(self, job: BenchJob, progress: Progress) -> tuple[Outcome, ...]:
        visit = agent.Visit(job, self.info.address, progress)
        with lock.held(lock.local_lock(), self.info.address):
            try:
                return self._run(job, visit)
            except (KeyboardInterrupt, SystemExit) as stop:
                raise Interrupted(visit.outcomes("interrupted")) from stop

    def _run(self, job: BenchJob, visit: agent.Visit) -> tuple[Outcome, ...]:
        paths = [(str(entry.artifact.path.absolute()), str(entry.inputs.absolute())) for entry in job.entries]
        with tempfile.TemporaryDirectory(prefix="edgekit-") as name:
            folder = Path(name)
            (folder / "job.json").write_text(json.dumps(agent.job_json(job, paths)), encoding="utf-8")
            with _agent(folder, str(folder / "job.json")) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    visit.feed(line)
            words = (folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        text = f"the agent was cut off ({_status(process.returncode)})"
        return visit.outcomes(text + (f"; its last words: {words[-1]}" if words else ""))

    def close(self) -> None:
        """Nothing stays open between visits."""


@contextmanager
def _agent(folder: Path, argument: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The agent at work, in a group of its own, which is killed whole when the body raises or the agent dies."""
    # A copy in a folder of its own: beside the plug-ins, its imports would find them first.
    program = shutil.copy(agent.source(), folder / "agent.py")
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(program), argument],
            stdin=subprocess.PIPE,  # held open: its end tells the agent that we are gone
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            yield process
            process.wait(timeout=10)  # its stdout is closed: it is at its end
        finally:
            if process.returncode != 0:  # interrupted, or it died: its children must not outlive it
                with suppress(ProcessLookupError, PermissionError):  # macOS: not permitted when all are gone
                    os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _status(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"
