"""The bench stage of a run: on all its devices at once, and where it was done before not again."""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from edgekit import files, result
from edgekit.artifact import Artifact
from edgekit.bench import Incomplete, Method, bench, check_threads
from edgekit.device import Device, Progress
from edgekit.errors import DeviceError, ResultError
from edgekit.recipe import BenchSpec
from edgekit.result import Result
from edgekit.runs import Run
from edgekit.schema import encode
from edgekit.together import Opened, at_once, opened
from edgekit.visit import Images, Prepared

COREML = "coreml"  # a target that few machines run
REFERENCE = "reference"  # the device that executes it anywhere


class Listener(Protocol):
    """Who is told what happens: the command line prints, a library user may stay silent."""

    def say(self, text: str) -> None: ...
    def bar(self, stage: str) -> AbstractContextManager[Progress]: ...
    def confirm(self, question: str) -> bool: ...


def check_devices(addresses: Sequence[str], threads: Sequence[int]) -> None:
    """Find what would fail hours later: addresses, devices that do not answer, thread counts."""
    with opened(addresses) as found:
        for error in found.failed.values():
            raise DeviceError("\n".join(map(str, found.failed.values()))) from error
        for device in found.devices.values():
            check_threads(_threads(threads, device), device)


def _threads(counts: Sequence[int], device: Device) -> tuple[int, ...]:
    """Those of a recipe; to a reference, which times nothing, they are all one."""
    return (1,) if device.info.reference else tuple(counts)


@dataclass(frozen=True, kw_only=True)
class BenchStage:
    """*images* is called when there is something to measure; *train_key* stands for what was trained on what."""

    run: Run
    spec: BenchSpec
    listener: Listener
    train_key: str
    images: Callable[[], Images]
    method: Method

    def measure(self, made: Sequence[Artifact], addresses: Sequence[str]) -> None:
        """Measure on each device what was not measured there yet. Raises Incomplete for those that fail.

        Core ML files that run on none of them are executed by edgekit's reference, which gives their accuracy.
        """
        ran: set[str] = set()  # targets
        failed: list[Incomplete] = []
        try:
            self._round(made, addresses, ran)
        except Incomplete as error:
            failed.append(error)
        left = [one for one in made if one.target == COREML and COREML not in ran]
        if left:
            names = ", ".join(one.name for one in left)
            self.listener.say(f"bench: accuracy of {names} by edgekit's reference execution, no latency")
            try:
                self._round(left, [REFERENCE], ran)
            except Incomplete as error:
                failed.append(error)
        if failed:
            results = [one for error in failed for one in error.results]
            raise Incomplete("\n".join(map(str, failed)), results) from failed[0]

    def _round(self, made: Sequence[Artifact], addresses: Sequence[str], ran: set[str]) -> None:
        """Measure at the same time on these devices; *ran* gets the targets that they can run."""
        with opened(addresses) as found:
            wanted: dict[str, list[Artifact]] = {}
            for address, device in found.devices.items():
                ran |= device.runtimes.keys()
                able = [artifact for artifact in made if artifact.target in device.runtimes]
                for artifact in made:
                    if artifact not in able:
                        self.listener.say(
                            f"bench: {artifact.name} is not measured: {address} cannot run {artifact.target}"
                        )
                if self._done(address, device, able):
                    self.listener.say(f"bench: {address} done already")
                elif not able:
                    self.listener.say(f"bench: nothing to measure on {address}")
                else:
                    self.listener.say(f"bench: {len(able)} files on {address}{self._about(device, len(able))}")
                    wanted[address] = able
            if not wanted and not found.failed:
                return
            some = Opened(devices={name: found.devices[name] for name in wanted}, failed=found.failed)
            images, marking = self.images(), threading.Lock()
            with Prepared.for_images(images) as prepared:

                def work(address: str, device: Device, progress: Progress) -> list[Result]:
                    results = bench(
                        wanted[address],
                        device,
                        self._spec(device),
                        self.run.results(address),
                        images=images,
                        progress=progress,
                        method=self.method,
                        prepared=prepared,
                    )
                    with marking:
                        self.run.mark(f"bench/{address}", self._key(device, wanted[address]))
                    return results

                at_once(some, work, self.listener.bar, self.listener.say)

    def _spec(self, device: Device) -> BenchSpec:
        return replace(self.spec, threads=_threads(self.spec.threads, device))

    def _about(self, device: Device, count: int) -> str:
        if device.info.reference:
            return ""  # what it computed before takes no time, and the rest is no matter of the recipe's seconds
        seconds = count * len(self.spec.threads) * (self.spec.seconds + self.spec.warmup_seconds)
        return f", about {seconds:.0f} s"

    def _done(self, address: str, device: Device, able: Sequence[Artifact]) -> bool:
        out, spec = self.run.results(address), self._spec(device)
        measured = all(_measured(out, artifact, spec) for artifact in able)
        return measured and self.run.is_done(f"bench/{address}", self._key(device, able))

    def _key(self, device: Device, able: Sequence[Artifact]) -> str:
        return files.sha256_of(
            [
                [artifact.sha256 for artifact in able],
                encode(replace(self._spec(device), devices=("any",)), defaults=False),
                device.info.fingerprint,
                dict(device.runtimes),
                self.train_key,
            ]
        )


def _measured(out: Path, artifact: Artifact, spec: BenchSpec) -> bool:
    """Whether the artifact has whole results for every thread count."""
    names = [f"{artifact.name}-t{n}" for n in spec.threads] if len(spec.threads) > 1 else [artifact.name]
    try:
        return all(result.read(out / f"{name}.json").artifact.sha256 == artifact.sha256 for name in names)
    except ResultError:  # missing or damaged: it is measured again
        return False
