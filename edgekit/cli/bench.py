import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.terminal import (
    STDOUT,
    Terminal,
    add_json,
    add_preprocess,
    add_wait,
    minutes,
    numbers,
    read_labels,
    read_preprocess,
    show,
    wait_seconds,
)
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekit.artifact import Artifact
    from edgekit.device import Device, Progress
    from edgekit.preprocess import Pixels, Preprocess
    from edgekit.result import Result
    from edgekit.together import Work
    from edgekit.visit import Images, Prepared

EXAMPLES = """examples:
  edgekit bench runs/quickstart/artifacts/*.tflite --data digits
  edgekit bench runs/quickstart --quick            every file of a run that the device can run
  edgekit bench model.tflite --data photos --threads 1,2,4
  edgekit bench model.tflite --quick --profile     also which operators take the time
  edgekit bench other.tflite --data photos --preprocess imagenet --labels labels.txt
                                                   a file that edgekit did not make
  edgekit bench runs/photos --device pi4 --device pi5 --device local
                                                   several devices, all at the same time
  edgekit bench runs/photos --device 'mac+ssh://me@mac.local?unit=each'
                                                   Core ML files on CPU, GPU and Neural Engine, one after the other
  edgekit bench runs/photos --device pi5 --wait    when somebody else measures there: wait; 30 minutes: --wait 30
  edgekit bench runs/photos --repeat-until-stable  at most 5 visits, until two agree within 5 %
  edgekit bench model.tflite --device pi5 --threads 4 --sustained 10
                                                   ten minutes without a pause: does it throttle, and when
"""
RESUMES = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="model files, folders of them, or run folders"
    )
    parser.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="ADDR",
        help="default local; given several times, all are measured at the same time",
    )
    parser.add_argument("--data", metavar="DIR|NAME", help="labelled images, for the accuracy on the device")
    parser.add_argument(
        "--split",
        choices=("val", "train", "all"),
        help="which images of --data; default those held out, else all",
    )
    parser.add_argument(
        "--accuracy-samples", type=int, metavar="N", help="so many of the images only, always the same: for phones"
    )
    parser.add_argument(
        "--threads",
        type=numbers,
        help="thread counts, as 1,2,4; default 1, and for one file 1, 2 and 4 as far as there are cores",
    )
    parser.add_argument("--quick", action="store_true", help="128 inferences and 10 s a file, not 1,024 and 60 s")
    parser.add_argument(
        "--profile",
        action=argparse.BooleanOptionalAction,
        help="show the dearest operators of each file; --no-profile does not look (a second or two a file)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go; default results/TIME")
    parser.add_argument("--allow-invalid", action="store_true", help="rank latencies that do not count, too")
    add_wait(parser)
    parser.add_argument(
        "--cool-down",
        type=_cool_down,
        metavar="SECONDS|off",
        help="how long a block waits at most for a device that is too hot; default 120",
    )
    parser.add_argument(
        "--repeat-until-stable",
        action="store_true",
        help="measure again until all is valid and within 5 %% of the time before, at most 5 times; else exit 1",
    )
    parser.add_argument(
        "--sustained",
        type=minutes,
        metavar="MIN",
        help="run one file for so many minutes without a pause, and draw latency, clock and temperature",
    )
    add_preprocess(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from datetime import datetime

    from edgekit import report, together
    from edgekit.bench import Incomplete, sample
    from edgekit.mac import placement
    from edgekit.visit import Prepared

    _check(args)
    terminal = Terminal()
    found, whole = _artifacts(args)
    if args.sustained and len(found) > 1:
        raise UsageError(f"--sustained runs one file, not {len(found)}: name it")
    rounds = _rounds(args, found, whole, terminal)
    images = _images(args, found[0].preprocess) if args.data else None
    if images and args.accuracy_samples:
        images = sample(images, args.accuracy_samples)
    if images is None:
        terminal.say("bench: no --data, so latency on noise and no accuracy")
    out = args.out or Path("results") / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    failed: Incomplete | None = None
    results: list[Result] = []
    folders = _folders(out, [address for addresses, _ in rounds for address in addresses])
    try:
        with Prepared.for_images(images) as prepared:
            for addresses, files in rounds:
                try:
                    with together.opened(addresses) as opened:
                        work = _work(args, files, whole, opened.devices, prepared, folders, terminal)
                        results += together.at_once(opened, work, terminal.bar, terminal.say)
                except Incomplete as error:
                    results += error.results
                    failed = Incomplete(f"{failed}\n{error}" if failed else str(error))
    except KeyboardInterrupt:
        if any(out.rglob("*.json")):
            terminal.say(f"bench: what was measured stands in {out}, what was not finished in partial/ there")
        raise
    for one in results:
        if told := placement(one.plan):
            on = f" with {one.settings.delegate}" if one.settings.delegate else ""
            terminal.say(f"bench: {one.name}{on}: {told}")
    if results or not failed:
        show(report.compare(results, allow_invalid=args.allow_invalid), args.json, costs=bool(args.profile))
        if args.json != STDOUT:
            for chart in sorted(out.rglob("*-sustained.svg")) if args.sustained else ():
                print(f"chart: {chart}")
            print(f"results: {out}")
    if failed:
        raise failed
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise UsageError for options that contradict each other, or would do nothing."""
    if args.accuracy_samples is not None and (args.accuracy_samples < 1 or not args.data):
        raise UsageError("--accuracy-samples takes a number from 1 on, and goes with --data")
    if args.split and not args.data:
        raise UsageError(f"--split {args.split} chooses among the images of --data: give --data DIR too")
    if args.sustained:
        given = {
            "--repeat-until-stable": args.repeat_until_stable,
            "--quick": args.quick,
            "--cool-down": args.cool_down is not None,
        }
        if wrong := [name for name, value in given.items() if value]:
            raise UsageError(f"--sustained is one run without a pause: leave out {' and '.join(wrong)}")
        if args.threads and len(args.threads) > 1:
            raise UsageError("--sustained runs with one thread count: --threads 4, for instance")


def _work(
    args: argparse.Namespace,
    found: "list[Artifact]",
    whole: bool,
    devices: "Mapping[str, Device]",
    prepared: "Prepared",
    folders: dict[str, Path],
    terminal: Terminal,
) -> "Work":
    """What is done on each device, all that can be checked checked before the first begins."""
    from edgekit import report
    from edgekit.bench import Method, bench, check_threads, sweep
    from edgekit.recipe import QUICK, BenchSpec

    spec = QUICK if args.quick else BenchSpec()
    if args.cool_down is not None:
        spec = replace(spec, cool_down_seconds=args.cool_down)
    method = Method(
        wait_s=wait_seconds(args.wait),
        repeat=args.repeat_until_stable,
        sustained_min=args.sustained or 0.0,
        profile=args.profile is not False,
    )
    able: dict[str, list[Artifact]] = {}
    for address, device in devices.items():
        if args.threads:
            check_threads(args.threads, device)
        able[address] = [one for one in found if one.target in device.runtimes]
        for one in found:
            if whole and one not in able[address]:  # a file named by the user is an error in bench() instead
                terminal.say(f"bench: {one.name} is not measured: {address} cannot run {one.target}")

    def work(address: str, device: "Device", progress: "Progress") -> "list[Result]":
        chosen = able[address] if whole else found
        results = bench(
            chosen,
            device,
            spec,
            folders[address],
            images=prepared.images,
            progress=progress,
            threads=args.threads or ((1,) if args.sustained else sweep(chosen, device.info.cores)),
            method=method,
            prepared=prepared,
            say=lambda text: terminal.say(f"bench {address}: {text}"),
        )
        for one in results if args.sustained else ():
            report.write_chart(one, folders[address] / f"{one.name}-sustained.svg")
        return results

    return work


def _folders(out: Path, addresses: "list[str]") -> dict[str, Path]:
    """A folder a device, where there are several."""
    from edgekit.runs import folder_of

    if len(addresses) == 1:
        return {addresses[0]: out}
    names: dict[str, str] = {}
    for address in addresses:
        name = folder_of(address)
        names[address] = name if name not in names.values() else f"{name}-{len(names) + 1}"
    return {address: out / name for address, name in names.items()}


def _rounds(
    args: argparse.Namespace, found: "list[Artifact]", whole: bool, terminal: Terminal
) -> "list[tuple[list[str], list[Artifact]]]":
    """Which files go to which devices, one round after the other.

    Without a --device Core ML files that are named go where they run; on this machine, so not at the same time.
    """
    coreml = [one for one in found if one.target == "coreml"]
    if args.device or whole or not coreml:
        return [(addresses, found) for addresses in _by_unit(args.device or ["local"])]
    others = [one for one in found if one not in coreml]
    local = [(["local"], others)] if others else []
    if sys.platform == "darwin":
        return [*local, (["mac"], coreml)]
    names = ", ".join(one.name for one in coreml)
    if not args.data:
        raise UsageError(
            f"Core ML runs on Apple systems only: give --data DIR for the accuracy of {names} by edgekit's "
            "reference execution, or --device mac+ssh://USER@HOST"
        )
    terminal.say(
        f"bench: Core ML runs on Apple systems only: accuracy of {names} by edgekit's reference execution, no "
        "latency (--device mac+ssh://USER@HOST measures it)"
    )
    return [*local, (["reference"], coreml)]


def _by_unit(addresses: list[str]) -> list[list[str]]:
    """Rounds of addresses: of a Mac with several units one in each, since they disturb each other."""
    from itertools import zip_longest

    from edgekit import inventory

    columns = [inventory.by_unit(address) for address in addresses]
    return [[address for address in row if address] for row in zip_longest(*columns)]


def _artifacts(args: argparse.Namespace) -> "tuple[list[Artifact], bool]":
    """The artifacts, and whether they come from run folders: then those that cannot run are passed over."""
    from edgekit import artifact as artifacts
    from edgekit import runs
    from edgekit.convert import foreign

    found: list[Artifact] = []
    whole = False
    for path in args.artifacts:
        if runs.is_run(path):
            whole, found = True, [*found, *runs.read_artifacts(path / "artifacts")]
        elif path.is_dir() and path.suffix != ".mlpackage":
            if not (inside := runs.read_artifacts(path)):
                raise UsageError(f"{path} is neither a run nor a folder of files that edgekit made")
            whole, found = True, [*found, *inside]
        elif args.preprocess and not artifacts.sidecar(path).is_file():
            found.append(foreign(path, lambda h, w: read_preprocess(args.preprocess, h, w), _labels(args)))
        else:
            found.append(artifacts.read(path))
            if args.preprocess or args.labels:
                raise UsageError(
                    f"{path} has a sidecar with preprocess and labels: leave out --preprocess, --labels"
                )
    if not found:
        raise UsageError(f"no artifacts in {', '.join(map(str, args.artifacts))}")
    return found, whole


def _labels(args: argparse.Namespace) -> tuple[str, ...]:
    if args.labels:
        return read_labels(args.labels)
    if args.data:
        raise UsageError(
            "accuracy of a file that edgekit did not make needs --labels FILE: class names, one a line"
        )
    return ()


def _images(args: argparse.Namespace, first: "Preprocess") -> "Images":
    from edgekit import data
    from edgekit.visit import Images

    confirm = Terminal().confirm
    known = {first: data.evaluation(args.data, first, args.split, confirm=confirm)}

    def read(preprocess: "Preprocess") -> "Pixels":
        if preprocess not in known:
            known.clear()  # one size in memory at a time
            known[preprocess] = data.evaluation(args.data, preprocess, args.split, confirm=confirm)
        return known[preprocess].split.read()

    evaluation = known[first]
    return Images(
        name=f"{evaluation.name}/{args.split or 'held-out'}",
        images_sha256=evaluation.split.images_sha256,
        truth=evaluation.split.labels,
        classes=evaluation.classes,
        read=read,
    )


def _cool_down(text: str) -> float:
    """Seconds, for argparse."""
    if text == "off":
        return 0.0
    if not text.isdigit() or int(text) > 3600:
        raise argparse.ArgumentTypeError(f"expected seconds up to 3600, or off, got {text!r}")
    return float(text)
