"""The agent on a machine behind a transport: files are pushed, it works apart from us, and we follow its events.

A link that is lost in the middle loses nothing: the agent goes on and writes its events to a file, and we follow
from where we were. It ends by itself when nobody has followed for a while, or when its time is over.
"""

import json
import math
import shlex
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgekit import agent, lock, preflight
from edgekit.device import BenchJob, Interrupted, Outcome, Progress
from edgekit.errors import DeviceBusy, DeviceError
from edgekit.inventory import Options
from edgekit.preflight import Facts
from edgekit.result import DeviceInfo
from edgekit.transport import LOST, Ended, Feed, LinkLost, Transport, check, output, reconnect
from edgekit.transport.push import parcel, push

PATIENCE_S = 60.0  # for a link to come back
LONELY_S = 120.0  # that the agent goes on without us
BEAT_S = 5.0  # how often who follows there is told that we hear him
STOP_S = 30.0
OLD_DAYS = 7  # what a visit that nobody came back for has left goes then
FULL_BYTES = 1_000_000
TURN_S = 3600.0  # that one command waits for its turn
DESCRIBE_S = 240.0  # an iPhone may have to be woken
REFUSED = 4  # the agent's status where it says why a device cannot be used


@dataclass(frozen=True, kw_only=True)
class AgentDevice:
    """*program*: the shell command that starts the agent there."""

    transport: Transport
    facts: Facts
    program: str
    info: DeviceInfo
    runtimes: Mapping[str, str]
    patience_s: float = PATIENCE_S
    limit_s: float | None = None

    @property
    def machine(self) -> str:
        return self.facts.boot

    def wait(self, limit_s: float, progress: Progress) -> None:
        end, holder = time.monotonic() + limit_s, ""

        def take(line: bytes) -> None:
            nonlocal holder
            if found := agent.busy(line, self.info.address):
                holder = found
                progress(DeviceBusy.words(holder), 0.0)

        while True:
            left_s = max(0.0, min(TURN_S, end - time.monotonic()))
            command = f"--wait {shlex.quote(self._lock)} {left_s:.0f}"
            try:
                ended = self._agent(command, left_s + 60.0, take)
            except LinkLost:
                reconnect(self.transport, self.patience_s, lambda: progress(LOST, 0.0))
                continue
            if ended.status == 3:
                if time.monotonic() + 1.0 > end:
                    raise DeviceBusy(self.info.address, holder, lost=f"{LONELY_S / 60:.0f} minutes")
                continue
            return check(self.transport, "agent.py --wait", ended)

    def run(self, job: BenchJob, progress: Progress) -> tuple[Outcome, ...]:
        def sending(text: str, share: float) -> None:
            progress(f"{text} {100 * share:.0f} %", 0.0)

        artifacts = [parcel(entry.artifact.path) for entry in job.entries]
        images = {path: parcel(path) for path in dict.fromkeys(entry.inputs for entry in job.entries)}
        there = push(
            self.transport,
            f"{self.facts.folder}/cache",
            [*artifacts, *images.values()],
            sending,
            patience_s=self.patience_s,
        )
        paths = [
            (there[one], there[images[entry.inputs]]) for one, entry in zip(artifacts, job.entries, strict=True)
        ]
        folder = f"{self.facts.folder}/visits/{uuid.uuid4().hex[:12]}"
        visit = agent.Visit(job, self.info.address, progress)
        try:
            self._start(job, paths, folder)
            lost = self._follow(visit, folder, self._limit_s(job), lambda: progress(LOST, visit.share))
            words = "" if lost else self._last_words(folder)
        except (KeyboardInterrupt, SystemExit) as stop:
            raise Interrupted(visit.outcomes("interrupted")) from stop
        finally:
            with suppress(DeviceError):  # where the link is gone the agent ends by itself
                self._clean(folder)
        return visit.outcomes(lost or f"the agent was cut off{words}")

    def close(self) -> None:
        self.transport.close()

    @property
    def _lock(self) -> str:
        return f"{self.facts.folder}/lock"

    def _limit_s(self, job: BenchJob) -> float:
        """When the agent ends at the latest: a slow model takes its samples long after the planned seconds."""
        planned_s = len(job.entries) * (job.seconds + job.blocks * (job.warmup_seconds + job.cool_down_seconds))
        return self.limit_s if self.limit_s is not None else 3600.0 + 20 * planned_s

    def _start(self, job: BenchJob, paths: list[tuple[str, str]], folder: str) -> None:
        """The agent at work on the job, apart from us. Raises DeviceError, as when another visit goes on there."""
        extra = {
            "limit_s": self._limit_s(job),
            "patience_s": LONELY_S,
            "lock": self._lock,
            "holder": lock.me(),
        }
        output(self.transport, f"mkdir -p {shlex.quote(folder)}")
        with tempfile.TemporaryDirectory(prefix="edgekit-") as temporary:
            file = Path(temporary, "job.json")
            file.write_text(json.dumps({**agent.job_json(job, paths), **extra}), encoding="utf-8")
            self.transport.send(file, f"{folder}/job.json", offset=0, sent=lambda count: None)
        said: list[bytes] = []
        # Once the lock is ours: when the clock was set forward a living visit's files are old, too.
        old = f"find {shlex.quote(self.facts.folder)}/visits -mindepth 1 -maxdepth 1 -mtime +{OLD_DAYS}"
        start = f"{self.program} --detach {shlex.quote(folder)} || exit $?; {old} -exec rm -rf {{}} +; true"
        ended = self.transport.run(start, limit_s=60.0, feed=said.append)
        if ended.status == 3:
            holder = agent.busy(said[-1] if said else b"", self.info.address)
            raise DeviceBusy(self.info.address, holder, lost=f"{LONELY_S / 60:.0f} minutes")
        if ended.status:
            raise DeviceError(f"{self.info.address}: the agent did not start{self._last_words(folder)}")

    def _follow(self, visit: agent.Visit, folder: str, limit_s: float, lost: Callable[[], None]) -> str:
        """Feed the visit what the agent tells until it ends. Why not all was heard, or nothing."""
        heard = 0

        def take(line: bytes) -> None:
            nonlocal heard
            # Half a line comes again; what is no event is a login shell's and not the agent's.
            if line.endswith(b"\n") and line.startswith(b'{"event":'):
                heard += len(line)
                visit.feed(line)

        stuck = 0
        while True:
            before = heard
            try:
                ended = self._agent(f"--follow {shlex.quote(folder)} {heard}", limit_s + 60.0, take, beat_s=BEAT_S)
                if not ended.status:
                    return ""
                cause = (ended.stderr.strip().splitlines() or [f"status {ended.status}"])[-1]
                cause = f"the agent's events cannot be read there: {cause}"
            except LinkLost as error:
                cause = str(error)
                try:
                    reconnect(self.transport, self.patience_s, lost)
                except LinkLost:
                    return f"{cause}, and did not come back within {self.patience_s:.0f} s"
                except DeviceError as refused:
                    return f"{cause}, and then: {refused}"
            stuck = stuck + 1 if heard == before else 0
            if stuck == 3:
                return cause

    def _last_words(self, folder: str) -> str:
        """Why the agent ended, as far as it is known."""
        place = shlex.quote(folder)
        try:
            text = output(
                self.transport, f"df -Pk {place} | awk 'NR == 2 {{ print $4 }}'; tail -c 2000 {place}/stderr"
            )
        except DeviceError as error:
            return f" ({error})"
        free, _, words = text.partition("\n")
        if free.isdigit() and int(free) * 1024 < FULL_BYTES:
            return ": its disk is full"
        lines = words.strip().splitlines()
        return f"; its last words: {lines[-1]}" if lines else ""

    def _clean(self, folder: str) -> None:
        place = shlex.quote(folder)
        ended = self.transport.run(
            f"[ ! -f {place}/pid ] || {self.program} --stop {place}; rm -rf {place}", limit_s=STOP_S
        )
        check(self.transport, "--stop", ended)

    def _agent(self, arguments: str, limit_s: float, feed: Feed, beat_s: float = math.inf) -> Ended:
        command = f"exec {self.program} {arguments}"
        return self.transport.run(command, limit_s=limit_s, feed=feed, beat_s=beat_s)


def open_agent(
    transport: Transport,
    options: Options,
    facts: Facts | None = None,
    environment: Mapping[str, str] | None = None,
) -> AgentDevice:
    """The device behind a connected transport, the agent brought there. Raises DeviceError.

    *environment*: variables that the agent starts with.
    """
    facts = facts or preflight.read(transport, options.folder, options.python)
    if found := preflight.faults(facts):
        raise DeviceError(f"{transport.address}: {'; '.join(found)}")
    program = agent_program(transport, facts)
    if environment:
        given = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        program = f"env {given} {program}"
    said: list[bytes] = []
    ended = transport.run(f"exec {program} --describe", limit_s=DESCRIBE_S, feed=said.append)
    if ended.status == REFUSED:  # in words of its own
        raise DeviceError(f"{transport.address}: {ended.stderr.strip().splitlines()[-1]}")
    check(transport, "agent.py --describe", ended)
    info, runtimes = agent.describe(said[-1] if said else b"", transport.address)
    return AgentDevice(transport=transport, facts=facts, program=program, info=info, runtimes=runtimes)


def agent_program(transport: Transport, facts: Facts) -> str:
    """The shell command that starts the agent there, which is pushed."""
    source = parcel(agent.source(), ".agent.py")
    where = push(transport, f"{facts.folder}/agent", [source], lambda text, share: None)[source]
    python = facts.runtime.get("python", "") or facts.pythons[0].path
    return f"{python_program(python, facts.runtime.get('site', ''))} {shlex.quote(where)}"


def python_program(python: str, site: str) -> str:
    """The shell command that starts a Python there with the packages in *site*, if that is no empty name."""
    path = f"PYTHONPATH={shlex.quote(site)} " if site else ""
    return f"env {path}PYTHONDONTWRITEBYTECODE=1 {shlex.quote(python)}"
