import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.terminal import (
    STDOUT,
    Terminal,
    add_json,
    add_wait,
    count,
    show,
    table,
    wait_seconds,
    write_json,
)

if TYPE_CHECKING:
    from edgekit.sweep import Point

EXAMPLES = """examples:
  edgekit sweep quickstart --keep-macs 1.0,0.7,0.5,0.35 --quantize fp32,int8
  edgekit sweep my.toml --keep-macs 1.0,0.5 --data photos --device ssh://pi@raspberrypi.local
  edgekit sweep my.toml --keep-macs 1.0,0.5 --trained runs/my      takes the training of that run
  edgekit sweep my.toml --keep-macs 1.0,0.7,0.5 --jobs 3           three budgets at once
  edgekit sweep my.toml --keep-macs 1.0,0.7,0.5 --ray 10.0.0.1:6379 --out /shared/my-sweep
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a shipped recipe (edgekit list recipes) or a .toml file")
    parser.add_argument(
        "--keep-macs",
        required=True,
        type=shares,
        metavar="S[,S...]",
        help="shares of the multiply-accumulates, such as 1.0,0.7,0.5; 1.0 is the dense network",
    )
    parser.add_argument(
        "--quantize", metavar="P[,P...]", help="precisions, or all; default the recipe's own variants"
    )
    parser.add_argument("--target", metavar="T", help="of --quantize: tflite (default), coreml or onnx")
    parser.add_argument("--data", metavar="DIR|NAME", help="your images, or a dataset's name, not the recipe's")
    parser.add_argument(
        "--device", action="append", default=[], metavar="ADDR", help="where to measure (repeatable)"
    )
    add_wait(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="the sweep's folder; default runs/RECIPE-sweep")
    parser.add_argument("--trained", type=Path, metavar="RUN", help="a run of this recipe that is trained already")
    places = parser.add_mutually_exclusive_group()
    places.add_argument(
        "--jobs", type=count, metavar="N", help="budgets that are pruned at once; default one a GPU, else one"
    )
    places.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDR",
        help="prune on the machines of a Ray cluster, which share the folder and the data; without ADDR on the "
        "cluster that runs here, else on this machine",
    )
    parser.add_argument(
        "--until", default="compare", metavar="STAGE", help="train, prune, convert, bench, compare"
    )
    parser.add_argument("--force", action="append", default=[], metavar="STAGE", help="redo a stage (repeatable)")
    parser.add_argument("--allow-invalid", action="store_true", help="rank latencies that do not count, too")
    add_json(parser)


def shares(text: str) -> tuple[float, ...]:
    """``1.0,0.5`` as shares, for argparse."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected shares such as 1.0,0.7,0.5, got {text!r}") from None


def run(args: argparse.Namespace) -> int:
    from edgekit import grid, jobs, pipeline, sweep
    from edgekit.bench import Method
    from edgekit.errors import UsageError

    if args.target and not args.quantize:
        raise UsageError("--target is of --quantize, which is not given: without it all of the recipe's are made")
    if args.jobs and args.jobs > (cores := os.cpu_count() or 1):
        raise UsageError(f"--jobs {args.jobs}: this machine has {cores} cores")
    target, terminal = args.target or "tflite", Terminal()
    asked = args.quantize or ""
    precisions = grid.all_precisions(target) if asked == "all" else tuple(filter(None, asked.split(",")))
    folder, points, comparison = sweep.sweep(
        args.recipe,
        args.keep_macs,
        listener=terminal,
        precisions=precisions,
        target=target,
        data=args.data,
        devices=args.device,
        out=args.out,
        trained=args.trained,
        until=args.until,
        force=args.force,
        where=sweep.Where(count=args.jobs or (1 if args.ray is not None else jobs.usual()), ray=args.ray),
        allow_invalid=args.allow_invalid,
        method=Method(wait_s=wait_seconds(args.wait)),
    )
    over = pipeline.over_budget(folder) if args.until not in ("train", "prune") else []
    terminal.say_over("sweep", over)
    more = {"sweep": str(folder.folder), "until": args.until, "networks": [_figures(one) for one in points]}
    if args.json != STDOUT and points:
        _print(points)
    if comparison is None:
        write_json(args.json, more)
    else:
        show(comparison, args.json, more=more)
    if args.json != STDOUT:
        print(f"report: {folder.report}" if comparison else f"{folder.folder}: done up to {args.until}")
    return 1 if over else 0


def _figures(point: "Point") -> dict[str, object]:
    from edgekit.schema import encode

    return {**encode(point), "run": str(point.run)}


def _print(points: "list[Point]") -> None:
    rows = [
        (
            one.name,
            f"{100 * one.kept_macs:.2f} %",
            f"{100 * one.kept_parameters:.2f} %",
            "" if one.top1 is None else f"{100 * one.top1:.2f} %",
        )
        for one in points
    ]
    print(table(("network", "MACs kept", "parameters kept", "top-1 held out"), rows) + "\n")
