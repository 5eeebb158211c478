import argparse
from collections.abc import Sequence

from edgekit.cli.terminal import add_json, table, write_json
from edgekit.errors import UsageError, unknown

EXAMPLES = """examples:
  edgekit list recipes
  edgekit list precisions --target tflite
"""
KINDS = ("recipes", "models", "targets", "precisions", "devices", "datasets")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", help=", ".join(KINDS))
    parser.add_argument("--target", help="only the precisions of this target")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.kind not in KINDS:
        raise unknown("kind", args.kind, KINDS)
    if args.target and args.kind != "precisions":
        raise UsageError("--target goes with `edgekit list precisions`")
    head, rows = globals()[f"_{args.kind}"](args)
    if args.json != "-":
        print(table(head, rows))
    write_json(args.json, [dict(zip(head, row, strict=True)) for row in rows])
    return 0


Rows = tuple[tuple[str, ...], Sequence[tuple[str, ...]]]


def _recipes(args: argparse.Namespace) -> Rows:
    from edgekit import plugins, recipe

    return ("recipe", "what it does"), [(name, recipe.load(name).description) for name in plugins.names("recipes")]


def _models(args: argparse.Namespace) -> Rows:
    from edgekit import models

    rows = [(name, f"{models.resolution(name)} px", "built in") for name in models.names()]
    rows += [
        ("torchvision:NAME", "", "a classifier of torchvision's"),
        ("timm:NAME", "", "a model of timm's"),
        ("FILE.py:FACTORY", "", "your own: a function that returns a torch module"),
        ("FILE.pt2", "", "your own: a program that torch.export.save wrote"),
    ]
    return ("model", "published for", "source"), rows


def _targets(args: argparse.Namespace) -> Rows:
    from edgekit import plugins
    from edgekit.convert import converter

    found = [converter(name) for name in plugins.names("converters")]
    return ("target", "file", "precisions"), [(t.target, t.suffix, ", ".join(t.precisions)) for t in found]


def _precisions(args: argparse.Namespace) -> Rows:
    from edgekit import plugins
    from edgekit.convert import converter

    targets = plugins.names("converters")
    if args.target and args.target not in targets:
        raise unknown("target", args.target, targets)
    rows = [
        (target, name, found.size, found.does, found.lacks)
        for target in ([args.target] if args.target else targets)
        for name, found in converter(target).precisions.items()
    ]
    return ("target", "precision", "size", "what it does", "what it does not cover"), rows


def _devices(args: argparse.Namespace) -> Rows:
    from edgekit import plugins

    found = [
        (name, plugins.load("devices", name).ADDRESS, plugins.load("devices", name).ABOUT)
        for name in plugins.names("devices")
    ]
    return ("device", "address", "what it is"), found


def _datasets(args: argparse.Namespace) -> Rows:
    rows = [
        ("digits", "1,797 handwritten digits of scikit-learn, 10 classes; nothing to download"),
        ("cifar10", "60,000 pictures of 32x32, 10 classes; torchvision asks before it downloads"),
        ("DIR", "your own: one folder of images a class, or train/ and val/ of such"),
    ]
    return ("dataset", "what it is"), rows
