"""Several devices at once: a thread each. One that fails does not end the others; Ctrl-C ends all."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from edgekit.bench import Incomplete
from edgekit.device import Device, Progress, open_device, split
from edgekit.errors import EdgekitError, UsageError
from edgekit.result import Result
from edgekit.visit import Say

Work = Callable[[str, Device, Progress], list[Result]]
Bar = Callable[[str], AbstractContextManager[Progress]]
STOP_S = 60.0  # that a device has to end its visit after Ctrl-C


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """By address, in the order in which they were named. *emulated* ones may share a machine: none is ranked."""

    devices: dict[str, Device] = field(default_factory=dict)
    failed: dict[str, EdgekitError] = field(default_factory=dict)


@contextmanager
def opened(addresses: Sequence[str]) -> Iterator[Opened]:
    """The devices, all opened at once, and why some could not be. A single one that cannot be raises.

    Raises UsageError for an address that is none, and for two of one machine.
    """
    full = [split(address)[0] for address in addresses]
    for first, second in _pairs(full):
        if full[first] == full[second]:
            raise UsageError(f"--device {addresses[second]} stands twice: name it once")
    found = Opened()
    try:
        if len(addresses) == 1:
            found.devices[addresses[0]] = open_device(addresses[0])
        else:
            _open(addresses, found)
            _check_machines(found.devices)
        yield found
    finally:
        for device in found.devices.values():
            device.close()


def _open(addresses: Sequence[str], found: Opened) -> None:
    """Each in a thread of its own: one that does not answer takes half a minute."""
    devices: dict[str, Device] = {}
    errors: dict[str, BaseException] = {}

    def open_one(address: str) -> None:
        try:
            devices[address] = open_device(address)
        except BaseException as error:  # told below, in the thread of the caller
            errors[address] = error

    threads = _start([(open_one, (address,)) for address in addresses])
    try:
        _join(threads)
    finally:
        # In the order of the user's; after an interrupt those that are open by then.
        found.devices.update((address, devices[address]) for address in addresses if address in devices)
    for address in addresses:
        if isinstance(error := errors.get(address), UsageError) or (error and not isinstance(error, EdgekitError)):
            raise error
        if isinstance(error, EdgekitError):
            found.failed[address] = error


def _check_machines(devices: Mapping[str, Device]) -> None:
    """Raise UsageError for two addresses of one machine. Emulated ones are never ranked, so they may share it."""
    real = [(address, one.machine) for address, one in devices.items() if one.machine and not one.info.emulated]
    for first, second in _pairs(real):
        if real[first][1] == real[second][1]:
            raise UsageError(
                f"{real[first][0]} and {real[second][0]} are one machine, whose benches would disturb each other: "
                "name one of them"
            )


def _pairs(items: Sequence[object]) -> Iterator[tuple[int, int]]:
    return ((first, second) for second in range(len(items)) for first in range(second))


def at_once(found: Opened, work: Work, bar: Bar, say: Say) -> list[Result]:
    """What *work* gives on every device, in their order; a lone device works in this thread.

    Raises Incomplete at the end with what failed on each, and the results of the others.
    """
    if len(found.devices) + len(found.failed) == 1:
        ((address, device),) = found.devices.items()
        with bar(f"bench {address}") as progress:
            return work(address, device, progress)
    results: dict[str, list[Result]] = {}
    errors: dict[str, BaseException] = dict(found.failed)
    stop = threading.Event()

    def work_one(address: str, device: Device, progress: Progress) -> None:
        def tell(text: str, share: float) -> None:
            if stop.is_set():
                raise KeyboardInterrupt
            progress(text, share)

        try:
            results[address] = work(address, device, tell)
        except BaseException as error:  # told below, in the thread of the caller
            errors[address] = error
            if isinstance(error, EdgekitError) and not stop.is_set():
                say(f"bench: {address} failed; the others go on")

    with ExitStack() as stack:
        bars = {address: stack.enter_context(bar(f"bench {address}")) for address in found.devices}
        threads = _start([(work_one, (address, one, bars[address])) for address, one in found.devices.items()])
        try:
            _join(threads)
        except (KeyboardInterrupt, SystemExit):
            stop.set()
            say(f"bench: ends on {', '.join(found.devices)}; Ctrl-C again leaves at once")
            _join(threads, STOP_S)
            raise
    for error in errors.values():
        if not isinstance(error, EdgekitError):
            raise error
    addresses = [*found.devices, *found.failed]
    whole = [one for address in addresses for one in _results(results.get(address), errors.get(address))]
    if errors:
        listed = "\n".join(_told(address, error) for address, error in errors.items())
        raise Incomplete(f"{len(errors)} of {len(addresses)} devices failed:\n{listed}", whole)
    return whole


def _results(whole: list[Result] | None, error: BaseException | None) -> Sequence[Result]:
    return whole or (error.results if isinstance(error, Incomplete) else ())


def _told(address: str, error: BaseException) -> str:
    text = str(error)
    text = text if text.startswith(address) or f" on {address}:" in text else f"{address}: {text}"
    return "\n".join(f"  {line}" for line in text.splitlines())


def _start(calls: Sequence[tuple[Callable[..., None], tuple[object, ...]]]) -> list[threading.Thread]:
    # Daemons: a second Ctrl-C does not wait for them.
    threads = [threading.Thread(target=target, args=arguments, daemon=True) for target, arguments in calls]
    for thread in threads:
        thread.start()
    return threads


def _join(threads: Sequence[threading.Thread], limit_s: float = float("inf")) -> None:
    """Wait for all. In short steps, since a wait without end does not hear Ctrl-C everywhere."""
    end = time.monotonic() + limit_s
    for thread in threads:
        while thread.is_alive() and time.monotonic() < end:
            thread.join(0.2)
