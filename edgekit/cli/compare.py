import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.terminal import STDOUT, add_json, show
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.gate import Check

EXAMPLES = """examples:
  edgekit compare runs/quickstart
  edgekit compare results/2026-11-21-pi results/2026-11-21-laptop --html report.html
  edgekit compare runs/quickstart --reference tflite-fp16 --json -
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
    limits = [gate.parse(text) for text in args.fail_if]
    found, made = runs.collect(args.results)
    comparison = report.compare(found, made, reference=args.reference, allow_invalid=args.allow_invalid)
    checks: Sequence[Check] = ()
    if limits:
        old, _ = runs.collect(args.baseline)
        checks = gate.gate(old, found, limits, allow_invalid=args.allow_invalid)
    show(comparison, args.json, {"gate": [encode(one) for one in checks]} if checks else None)
    if args.html:
        provenance = {"Results": ", ".join(map(str, args.results)), "edgekit": __version__}
        report.write_page(comparison, args.html, title="Comparison", provenance=provenance)
    if args.json != STDOUT:
        _say(checks)
        if args.html:
            print(f"report: {args.html}")
    return 1 if any(one.failed for one in checks) else 0


def _say(checks: "Sequence[Check]") -> None:
    if not checks:
        return
    failed = sum(one.failed for one in checks)
    print(f"\ngate: {failed} of {len(checks)} checks failed" if failed else f"\ngate: {len(checks)} checks passed")
    for one in checks:
        print(f"  {'FAIL' if one.failed else 'ok  '}  {one.name}: {one.text}")
