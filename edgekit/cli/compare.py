import argparse
from pathlib import Path

from edgekit.cli.terminal import STDOUT, add_json, show

EXAMPLES = """examples:
  edgekit compare runs/quickstart
  edgekit compare results/2026-11-21-pi results/2026-11-21-laptop --html report.html
  edgekit compare runs/quickstart --reference tflite-fp16 --json -
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", type=Path, help="run folders, folders of results, result files")
    parser.add_argument(
        "--reference", default="", metavar="NAME", help="compare with this file; default the fp32 one"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page, one file that needs no network")
    parser.add_argument("--allow-invalid", action="store_true", help="rank latencies that do not count, too")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from edgekit import __version__, report, runs

    found, made = runs.collect(args.results)
    comparison = report.compare(found, made, reference=args.reference, allow_invalid=args.allow_invalid)
    show(comparison, args.json)
    if args.html:
        provenance = {"Results": ", ".join(map(str, args.results)), "edgekit": __version__}
        report.write_page(comparison, args.html, title="Comparison", provenance=provenance)
        if args.json != STDOUT:
            print(f"report: {args.html}")
    return 0
