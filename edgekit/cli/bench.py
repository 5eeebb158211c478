import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.terminal import (
    STDOUT,
    Terminal,
    add_json,
    add_preprocess,
    numbers,
    read_labels,
    read_preprocess,
    show,
)
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.artifact import Artifact
    from edgekit.bench import Images
    from edgekit.preprocess import Pixels, Preprocess

EXAMPLES = """examples:
  edgekit bench runs/quickstart/artifacts/*.tflite --data digits
  edgekit bench runs/quickstart --quick            every file of a run that the device can run
  edgekit bench model.tflite --data photos --threads 1,2,4
  edgekit bench model.tflite --quick --profile     also which operators take the time
  edgekit bench other.tflite --data photos --preprocess imagenet --labels labels.txt
                                                   a file that edgekit did not make
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="model files or run folders")
    parser.add_argument("--device", action="append", default=[], metavar="ADDR", help="default local (repeatable)")
    parser.add_argument("--data", metavar="DIR|NAME", help="labelled images, for the accuracy on the device")
    parser.add_argument(
        "--split", choices=("val", "train", "all"), help="which images; default those held out, else all"
    )
    parser.add_argument(
        "--accuracy-samples", type=int, metavar="N", help="so many of the images only, always the same: for phones"
    )
    parser.add_argument("--threads", type=numbers, help="thread counts, as 1,2,4; default 1, a sweep for one file")
    parser.add_argument("--quick", action="store_true", help="128 inferences and 10 s a file, not 1,024 and 60 s")
    parser.add_argument(
        "--profile",
        action=argparse.BooleanOptionalAction,
        help="show the dearest operators of each file; --no-profile does not look (a second or two a file)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go; default results/TIME")
    parser.add_argument("--allow-invalid", action="store_true", help="rank latencies that do not count, too")
    add_preprocess(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from datetime import datetime

    from edgekit import report
    from edgekit.bench import bench, sample
    from edgekit.device import open_device
    from edgekit.recipe import QUICK, BenchSpec

    terminal, spec = Terminal(), QUICK if args.quick else BenchSpec()
    found, whole = _artifacts(args)
    if args.accuracy_samples is not None and (args.accuracy_samples < 1 or not args.data):
        raise UsageError("--accuracy-samples takes a number from 1 on, and goes with --data")
    images = _images(args, found[0].preprocess) if args.data else None
    if images and args.accuracy_samples:
        images = sample(images, args.accuracy_samples)
    if images is None:
        terminal.say("bench: no --data, so latency on noise and no accuracy")
    out = args.out or Path("results") / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    results = []
    for address in args.device or ["local"]:
        device = open_device(address)
        try:
            able = [one for one in found if one.target in device.runtimes]
            for one in found:
                if whole and one not in able:  # a file named by the user is an error in bench() instead
                    terminal.say(f"bench: {one.name} is not measured: {address} cannot run {one.target}")
            sweep = tuple(n for n in (1, 2, 4) if n <= device.info.cores) if len(found) == 1 else (1,)
            folder = out / address.replace("://", "-").replace("/", "-") if len(args.device) > 1 else out
            with terminal.bar(f"bench {address}") as progress:
                results += bench(
                    able if whole else found,
                    device,
                    spec,
                    folder,
                    images=images,
                    progress=progress,
                    threads=args.threads or sweep,
                    profile=args.profile is not False,
                )
        finally:
            device.close()
    show(report.compare(results, allow_invalid=args.allow_invalid), args.json, costs=bool(args.profile))
    if args.json != STDOUT:
        print(f"results: {out}")
    return 0


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
    from edgekit.bench import Images

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
