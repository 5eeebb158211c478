import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import files
from edgekit.cli.terminal import STDOUT, Terminal, add_json, count, show
from edgekit.errors import UsageError, unknown

if TYPE_CHECKING:
    from edgekit.artifact import Artifact
    from edgekit.data import Split
    from edgekit.gate import Check
    from edgekit.preprocess import Preprocess
    from edgekit.report import Comparison, Extras
    from edgekit.report.budget import Budget
    from edgekit.report.flips import Flips
    from edgekit.result import Result
    from edgekit.runs import Run

EXAMPLES = """examples:
  edgekit compare runs/quickstart
  edgekit compare results/2026-11-21-pi results/2026-11-21-laptop --html report.html
  edgekit compare runs/quickstart --reference tflite-fp16 --json -
  edgekit compare runs/quickstart --html report.html --flips 20      with the images that a file answers otherwise
  edgekit compare runs/quickstart --max-latency 20ms --max-size 4MB       the most accurate that fits
  edgekit compare results/new --baseline results/old --fail-if 'latency>5%' --fail-if 'top1<-0.5'
                                    exit status 1 where a file is worse by more than that, and really so
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", type=Path, help="run folders, folders of results, result files")
    parser.add_argument(
        "--reference", default="", metavar="NAME", help="compare with this file; default the fp32 one"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page, one file that needs no network")
    parser.add_argument(
        "--flips", type=count, metavar="N", help="on the page up to N images a file that it answers otherwise"
    )
    parser.add_argument(
        "--data", metavar="DIR|NAME", help="the images of --flips, as they were given to bench; default the run's"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all figures, a line a file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table for a README or a comment")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw latency against accuracy")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="the same, as vectors")
    parser.add_argument("--device", metavar="NAME", help="of results of several devices only those of this one")
    parser.add_argument("--max-drop", type=float, metavar="PTS", help="pick the fastest that loses at most this")
    parser.add_argument("--max-latency", metavar="TIME", help="pick the most accurate within this p50, as 20ms")
    parser.add_argument("--max-size", metavar="SIZE", help="pick the most accurate within this size, as 4MB")
    parser.add_argument(
        "--baseline",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="what the results are held against",
    )
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="LIMIT",
        help="'latency>5%%', 'size>5%%', 'top1<-0.5' (points)",
    )
    parser.add_argument("--allow-invalid", action="store_true", help="rank latencies that do not count, too")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from edgekit import __version__, gate, report, runs
    from edgekit.schema import encode

    if bool(args.baseline) != bool(args.fail_if):
        raise UsageError("--baseline and --fail-if go together: --baseline results/old --fail-if 'latency>5%'")
    if (args.flips or args.data) and not (args.flips and args.html):
        raise UsageError("--flips N shows images on the page: give --html FILE with it (and --data belongs to it)")
    limits = [gate.parse(text) for text in args.fail_if]
    budget = _budget(args)
    found, made = runs.collect(args.results)
    if args.device:
        found = _of_device(found, args.device)
    comparison = report.compare(
        found, made, reference=args.reference, allow_invalid=args.allow_invalid, budget=budget
    )
    checks: Sequence[Check] = ()
    if limits:
        old, _ = runs.collect(args.baseline)
        checks = gate.gate(old, found, limits, allow_invalid=args.allow_invalid)
    extras = _extras(args, comparison, made) if args.html else None
    show(comparison, args.json, more={"gate": [encode(one) for one in checks]} if checks else None)
    if extras:
        provenance = {
            "Results": ", ".join(map(str, args.results)),
            "Command": args.typed,
            **{f"Recipe of {path}": runs.recipe_text(path) for path in args.results if runs.is_run(path)},
            "edgekit": __version__,
        }
        report.write_page(comparison, args.html, title="Comparison", provenance=provenance, extras=extras)
    for path, written in ((args.csv, report.as_csv), (args.markdown, report.as_markdown)):
        if path:
            files.write_text(path, written(comparison))
    for path, kind in ((args.png, "png"), (args.svg, "svg")):
        if path:
            report.draw(comparison, path, kind)
    if args.json != STDOUT:
        _say(checks)
        if args.html:
            print(f"report: {args.html}")
    return 1 if any(one.failed for one in checks) else 0


def _budget(args: argparse.Namespace) -> "Budget":
    from edgekit.report import budget

    if args.max_drop is not None and not 0 <= args.max_drop <= 100:
        raise UsageError(f"--max-drop is {args.max_drop:g}: points of top-1, from 0 to 100")
    return budget.Budget(
        max_drop=args.max_drop,
        max_latency_ms=budget.milliseconds(args.max_latency) if args.max_latency else None,
        max_size_bytes=budget.size_bytes(args.max_size) if args.max_size else None,
    )


def _extras(args: argparse.Namespace, comparison: "Comparison", made: "Sequence[Artifact]") -> "Extras":
    from edgekit import report

    flips = _flips(args, comparison) if args.flips else None
    return report.Extras(contents=report.read_contents(made), flips=flips)


def _flips(args: argparse.Namespace, comparison: "Comparison") -> "Flips":
    """The images that were classified: of --data, else of the runs that are compared."""
    from edgekit import report, runs

    folders = [runs.Run(folder=path) for path in args.results if runs.is_run(path)]
    if not args.data and not folders:
        raise UsageError("--flips needs the images: give --data DIR, as it was given to edgekit bench")
    first = next(row.artifact.preprocess for group in comparison.groups for row in group.rows)
    source = args.data or ", ".join(state.source for run in folders if (state := run.state()))
    return report.find_flips(comparison, _splits(args.data, folders, first), args.flips, source)


def _splits(source: str | None, folders: "list[Run]", preprocess: "Preprocess") -> "Iterator[Split]":
    """Whatever of the data may have been measured on, the likeliest first."""
    from edgekit import data, runs

    confirm = Terminal().confirm
    for run in (one for one in folders if runs.recipe_text(one.folder)):
        state, spec = run.state(), run.recipe().data
        if state is not None and source in (None, state.source):
            yield data.held_out(spec, state.source, confirm=confirm)
    parts: tuple[data.Part | None, ...] = (None, "val", "all", "train")
    for part in parts if source else ():
        yield data.evaluation(str(source), preprocess, part, confirm=confirm).split


def _of_device(found: "list[Result]", name: str) -> "list[Result]":
    """The results of the device of that address or model."""
    kept = [one for one in found if name in (one.device.address, one.device.model)]
    if not kept:
        known = {text for one in found for text in (one.device.address, one.device.model)}
        raise unknown("device", name, known or {"(no results)"})
    return kept


def _say(checks: "Sequence[Check]") -> None:
    if not checks:
        return
    failed = sum(one.failed for one in checks)
    print(f"\ngate: {failed} of {len(checks)} checks failed" if failed else f"\ngate: {len(checks)} checks passed")
    for one in checks:
        print(f"  {'FAIL' if one.failed else 'ok  '}  {one.name}: {one.text}")
