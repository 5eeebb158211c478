import argparse
from pathlib import Path

from edgekit.cli.terminal import STDOUT, Terminal, add_json, add_wait, show, wait_seconds, write_json

EXAMPLES = """examples:
  edgekit run quickstart
  edgekit run quickstart --data photos            a folder that holds one folder of images a class
  edgekit run my.toml --device local --until bench
  edgekit run quickstart --force bench            measure again; what was trained and converted stays
  edgekit run my.toml --device pi4 --device pi5   measures on both at the same time
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a shipped recipe (edgekit list recipes) or a .toml file")
    parser.add_argument(
        "--data", metavar="DIR|NAME", help="your images, or a dataset's name, in place of the recipe's"
    )
    parser.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="ADDR",
        help="where to measure; given several times, on all at the same time",
    )
    add_wait(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run folder; default runs/RECIPE")
    parser.add_argument(
        "--until", default="compare", metavar="STAGE", help="train, prune, convert, bench, compare"
    )
    parser.add_argument("--force", action="append", default=[], metavar="STAGE", help="redo a stage (repeatable)")
    parser.add_argument("--allow-invalid", action="store_true", help="rank latencies that do not count, too")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from edgekit import pipeline
    from edgekit.bench import Method

    terminal = Terminal()
    folder, comparison = pipeline.run(
        args.recipe,
        listener=terminal,
        data=args.data,
        devices=args.device,
        out=args.out,
        until=args.until,
        force=args.force,
        allow_invalid=args.allow_invalid,
        method=Method(wait_s=wait_seconds(args.wait)),
        command=args.typed,
    )
    over = pipeline.over_budget(folder) if args.until not in ("train", "prune") else []
    terminal.say_over("run", over)
    status = 1 if over else 0
    if comparison is None:
        if args.json != STDOUT:
            print(f"{folder.folder}: done up to {args.until}")
        write_json(args.json, {"run": str(folder.folder), "until": args.until})
        return status
    show(comparison, args.json)
    if args.json != STDOUT:
        print(f"report: {folder.report}")
    return status
