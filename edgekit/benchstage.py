"""The bench stage of a run: on all its devices at once, and where it was done before not again."""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from edgekit import files, result
from edgekit.artifact import Artifact
from edgekit.bench import Method, bench, check_threads
from edgekit.device import Device, Progress
from edgekit.errors import DeviceError, ResultError
from edgekit.recipe import BenchSpec
from edgekit.result import Result
from edgekit.runs import Run
from edgekit.schema import encode
from edgekit.together import Opened, at_once, opened
from edgekit.visit import Images, Prepared


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
            check_threads(threads, device)


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
        """Measure on each device what was not measured there yet. Raises Incomplete for those that fail."""
        with opened(addresses) as found:
            wanted: dict[str, list[Artifact]] = {}
            for address, device in found.devices.items():
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
                    seconds = len(able) * len(self.spec.threads) * (self.spec.seconds + self.spec.warmup_seconds)
                    self.listener.say(f"bench: {len(able)} files on {address}, about {seconds:.0f} s")
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
                        self.spec,
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

    def _done(self, address: str, device: Device, able: Sequence[Artifact]) -> bool:
        measured = all(_measured(self.run.results(address), artifact, self.spec) for artifact in able)
        return measured and self.run.is_done(f"bench/{address}", self._key(device, able))

    def _key(self, device: Device, able: Sequence[Artifact]) -> str:
        return files.sha256_of(
            [
                [artifact.sha256 for artifact in able],
                encode(replace(self.spec, devices=("any",)), defaults=False),
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
