import argparse

from edgekit.cli.terminal import add_json, write_json

EXAMPLES = """examples:
  edgekit show quickstart
  edgekit show my.toml --json -                  every value, the defaults too
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a shipped recipe or a .toml file")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from edgekit import recipe
    from edgekit.schema import encode

    found = recipe.load(args.recipe)
    if args.json != "-":
        print(recipe.text_of(args.recipe), end="")
    write_json(args.json, encode(found))
    return 0
