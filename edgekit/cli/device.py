import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit import units
from edgekit.cli.terminal import STDOUT, Terminal, add_json, add_wait, table, wait_seconds, write_json
from edgekit.errors import DeviceError, UsageError, unknown

if TYPE_CHECKING:
    from edgekit.check import Checked
    from edgekit.device import Device
    from edgekit.inventory import Options
    from edgekit.preflight import Facts
    from edgekit.transport import Transport

EXAMPLES = """examples:
  edgekit device list                              the kinds of devices, and those that you named
  edgekit device setup ssh://pi@raspberrypi.local  put LiteRT on it, in a folder of its own; asks first
  edgekit device check ssh://pi@raspberrypi.local  reach it, look at it, run a model for two seconds
  edgekit device setup pi5 --remove                take away all that edgekit put there
"""
VERBS = ("list", "check", "setup")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", help=", ".join(VERBS))
    parser.add_argument("address", nargs="?", metavar="ADDR", help="an address, or a name in your devices.toml")
    parser.add_argument("--yes", action="store_true", help="setup: do not ask")
    add_wait(parser)
    parser.add_argument("--remove", action="store_true", help="setup: take away what edgekit put there")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.verb not in VERBS:
        raise unknown("verb", args.verb, VERBS)
    if (args.yes or args.remove) and args.verb != "setup":
        raise UsageError("--yes and --remove go with `edgekit device setup`")
    if args.wait and args.verb != "check":
        raise UsageError("--wait goes with `edgekit device check`")
    if args.verb == "list":
        if args.address:
            raise UsageError("`edgekit device list` takes no address")
        return _list(args)
    if not args.address:
        raise UsageError(f"`edgekit device {args.verb}` takes an address, as ssh://pi@raspberrypi.local")
    return _check(args) if args.verb == "check" else _setup(args)


def _list(args: argparse.Namespace) -> int:
    from edgekit import inventory, plugins

    kinds = [(name, plugins.load("devices", name)) for name in plugins.names("devices")]
    named = inventory.read()
    if args.json != STDOUT:
        rows = [(module.ADDRESS, module.ABOUT) for _, module in kinds]
        print(table(("address", "what it is"), rows), end="\n\n")
        if named:
            print(table(("your name", "address"), [(name, one.full) for name, one in named.items()]))
        else:
            print(
                f'names of your own go into {inventory.path()}:\n\n  [pi5]\n  address = "ssh://pi@raspberrypi.local"'
            )
    write_json(
        args.json,
        {
            "kinds": [{"name": name, "address": m.ADDRESS, "about": m.ABOUT} for name, m in kinds],
            "named": {name: one.full for name, one in named.items()},
        },
    )
    return 0


def _check(args: argparse.Namespace) -> int:
    import time

    from edgekit import check
    from edgekit.device import open_device
    from edgekit.schema import encode

    began = time.perf_counter()
    device = open_device(args.address)
    try:
        opened_ms = 1e3 * (time.perf_counter() - began)
        facts: Facts | None = getattr(device, "facts", None)
        if args.json != STDOUT:
            _print([("opened", f"in {opened_ms:.0f} ms"), *(_facts(facts, args.address) if facts else ())])
            _print(_about(device))
        with Terminal().bar(f"check {args.address}") as progress:
            device.wait(wait_seconds(args.wait), progress)
            checked = check.check(device, progress, args.address)
    finally:
        device.close()
    if args.json != STDOUT:
        _print(_ran(checked))
    write_json(
        args.json,
        {
            "opened_ms": opened_ms,
            "device": encode(device.info),
            "runtimes": dict(device.runtimes),
            "preflight": encode(facts) if facts else None,
            "checked": encode(checked),
        },
    )
    return 0


def _setup(args: argparse.Namespace) -> int:
    from edgekit import inventory, plugins, preflight, provision, runtimes
    from edgekit.device import split

    address, scheme, rest = split(args.address)
    module, terminal = plugins.load("devices", scheme), Terminal()
    show = terminal.say if args.json == STDOUT else print
    if not hasattr(module, "transport"):
        raise UsageError(f"{address} needs no setup: what runs there is installed with pip")
    _, options = inventory.split(rest, getattr(module, "TAKES", inventory.TAKES))
    channel: Transport = module.transport(address, rest)
    address = channel.address
    try:
        facts = preflight.read(channel, options.folder, options.python)
        if args.remove:
            _agreed(args, terminal, f"remove {facts.folder} from {address}?")
            provision.remove(channel, facts)
            show(f"{address}: {facts.folder} is gone")
            write_json(args.json, {"address": address, "removed": facts.folder})
            return 0
        if facts.system == "Android" and options.benchmark_model:
            return _setup_phone(args, channel, facts, options)
        if found := preflight.faults(facts):
            raise DeviceError(f"{address}: {'; '.join(found)}")
        runtime = runtimes.choose(facts, address)
        terminal.say(f"{address}: {runtime.label} fits; its wheels are fetched here, once")
        plan = provision.plan(facts, runtime, address)
        if plan.done:
            show(f"{address}: is set up already: {plan}")
        else:
            _agreed(args, terminal, f"{address}: install {plan}?")
            with terminal.bar(f"setup {args.address}") as progress:
                provision.install(channel, facts, plan, progress)
            show(f"{address}: installed {plan}")
        write_json(args.json, {"address": address, "packages": plan.packages, "folder": plan.folder})
    finally:
        channel.close()
    return 0


def _setup_phone(args: argparse.Namespace, channel: "Transport", facts: "Facts", options: "Options") -> int:
    """Bring the program that measures, fetched first where it is named by an address."""
    from edgekit import phone_tool
    from edgekit.phone_device import open_phone

    named, terminal = options.benchmark_model, Terminal()
    url = named.partition("#")[0] if phone_tool.is_url(named) else ""
    _agreed(args, terminal, f"{channel.address}: {f'fetch {url} and ' if url else ''}put benchmark_model there?")
    with terminal.bar(f"setup {args.address}") as progress:
        if url:
            phone_tool.fetch(named, progress)
        device = open_phone(channel, options, facts)
    if args.json != STDOUT:
        print(f"{channel.address}: installed benchmark_model in {device.program}")
    write_json(args.json, {"address": channel.address, "program": device.program, "sha256": device.digest})
    return 0


def _agreed(args: argparse.Namespace, terminal: Terminal, question: str) -> None:
    """Raises UsageError when the user does not want it, or cannot be asked."""
    if not args.yes and not terminal.confirm(question):
        raise UsageError("nothing was changed: say yes, or --yes")


def _print(rows: Sequence[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"{name:12} {value}", flush=True)


def _facts(facts: "Facts", address: str) -> list[tuple[str, str]]:
    from edgekit import preflight, runtimes

    try:
        fits = runtimes.choose(facts, address).label
    except DeviceError as error:
        fits = str(error).removeprefix(f"{address}: ")
    libc = f"glibc {facts.glibc}" if facts.glibc else "no glibc"
    return [
        ("system", f"{facts.system} {facts.machine}, {facts.bits} bits, {libc}"),
        ("python", ", ".join(f"{one.version} ({one.path})" for one in facts.pythons) or "none"),
        ("folder", facts.folder + (f", {units.size(facts.free_bytes)} free" if facts.free_bytes else "")),
        ("set up", ", ".join(facts.runtime.get("packages", ())) or "nothing yet"),
        ("fits", fits),
        *(("fault", one) for one in preflight.faults(facts)),
    ]


def _about(device: "Device") -> list[tuple[str, str]]:
    info = device.info
    kind = " (emulated: its latency is never ranked)" if info.emulated else ""
    rows = [("device", f"{info.model}{kind}"), ("cpu", f"{info.cpu}, {info.cores} cores"), ("os", info.os)]
    rows[1:1] = [("soc", info.soc)] if info.soc and info.soc != info.cpu else []
    rows += [("cores", ", ".join(cluster.words for cluster in info.clusters))] if info.clusters else []
    rows += [("features", " ".join(info.features))] if info.features else []
    if info.memory_bytes:
        rows.append(("memory", units.size(info.memory_bytes)))
    return [*rows, ("runs", ", ".join(device.runtimes.values()) or "nothing yet")]


def _ran(checked: "Checked") -> list[tuple[str, str]]:
    rows = [
        ("inference", f"{checked.median_us:.1f} us, the median of {checked.inferences} of a tiny model, 1 thread"),
        ("delegate", checked.delegate),
    ]
    if reading := checked.telemetry:
        throttled = ", ".join(reading.throttle) or "yes" if reading.throttled else "no"
        told = {
            "temperature": reading.temperature_c is not None and f"{reading.temperature_c:.0f} C",
            "clock": reading.clock_mhz is not None and f"{reading.clock_mhz:.0f} MHz",
            "governor": reading.governor,
            "throttled": reading.throttled is not None and throttled,
            "headroom": reading.headroom_c is not None and f"{reading.headroom_c:.0f} C to its limit",
            "other load": reading.other_load is not None and f"{reading.other_load:.2f} cores",
        }
        rows += [(name, str(value) if value else "it does not tell") for name, value in told.items()]
    return [*rows, *(("note", note) for note in checked.notes)]
