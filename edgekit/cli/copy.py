import argparse
from pathlib import Path

from edgekit.errors import UsageError

EXAMPLES = """examples:
  edgekit copy quickstart my.toml                then edit my.toml, and: edgekit run my.toml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a shipped recipe or a .toml file")
    parser.add_argument("file", type=Path, help="the file to write; it must not exist, and end in .toml")


def run(args: argparse.Namespace) -> int:
    from edgekit import files, recipe

    text = recipe.text_of(args.recipe)
    if args.file.suffix != ".toml":
        raise UsageError(f"a recipe's name ends in .toml, got {str(args.file)!r}")
    if args.file.exists():
        raise UsageError(f"{args.file} exists already: choose another name, or remove it")
    files.write_text(args.file, text)
    print(args.file)
    return 0
