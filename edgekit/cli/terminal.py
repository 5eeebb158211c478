"""What commands share: progress on stderr, tables and JSON on stdout, common options."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import files
from edgekit.device import Progress
from edgekit.errors import UsageError
from edgekit.preprocess import PRESETS, Preprocess, preset
from edgekit.schema import SchemaError, decode

if TYPE_CHECKING:
    from edgekit.artifact import Artifact
    from edgekit.report import Comparison

STDOUT = "-"
FOREVER = 60.0 * 24 * 365  # minutes


class Terminal:
    """Tells the user what happens, on stderr; bars are quiet off a terminal."""

    def say(self, text: str) -> None:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)

    def say_over(self, stage: str, over: "Sequence[Artifact]") -> None:
        """Name the files that lose more than their budget of accuracy."""
        for artifact in over:
            assert artifact.repair is not None
            self.say(
                f"{stage}: {artifact.name} loses {artifact.repair.drop:.2f} points of top-1, more than its "
                f"max_drop of {artifact.repair.max_drop:g}"
            )

    @contextmanager
    def bar(self, stage: str) -> Iterator[Progress]:
        from tqdm import tqdm

        layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        with tqdm(total=1.0, desc=stage, bar_format=layout, disable=None, leave=False) as bar:

            def progress(text: str, share: float) -> None:
                bar.set_postfix_str(text, refresh=False)
                bar.update(share - bar.n)
                bar.refresh()

            yield progress

    def confirm(self, question: str) -> bool:
        if not sys.stdin.isatty():
            return False
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


class Silent(Terminal):
    """For the processes of a training that are not the main one."""

    def say(self, text: str) -> None:
        pass

    def confirm(self, question: str) -> bool:
        return False


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="also write the figures as JSON; - for stdout")


def write_json(target: str | None, value: Any) -> None:
    """Write *value* where ``--json`` says, if it was given."""
    if target == STDOUT:
        print(json.dumps(value, indent=1, ensure_ascii=False))
    elif target:
        files.write_json(Path(target), value)


def show(
    comparison: "Comparison",
    json_target: str | None,
    *,
    more: Mapping[str, Any] | None = None,
    costs: bool = False,
) -> None:
    """Print the tables, with *costs* the operators' too, or with ``--json -`` the figures.

    The JSON is also written where it was asked for, with *more* in it.
    """
    from edgekit import report

    if json_target != STDOUT:
        console = report.make_console(sys.stdout)
        report.render(comparison, console)
        if costs:
            report.render_costs(comparison, console)
    write_json(json_target, {**report.as_json(comparison), **(more or {})})


def add_preprocess(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preprocess",
        metavar="NAME|FILE",
        help=f"how pixels become input, for a model that brings none: {', '.join(PRESETS)}, or a TOML file",
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="class names, one a line, in the model's order"
    )


def read_preprocess(name: str, height: int, width: int) -> Preprocess:
    """The contract that ``--preprocess`` names. A file's own height and width must be those of the model."""
    if name in PRESETS:
        return preset(name, height, width)
    import tomllib

    path = Path(name)
    if not path.is_file():
        raise UsageError(f"--preprocess {name!r} is neither a file nor one of {', '.join(PRESETS)}")
    try:
        value = {"height": height, "width": width, **tomllib.loads(path.read_text(encoding="utf-8-sig"))}
        found = decode(Preprocess, value)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, SchemaError) as error:
        raise UsageError(f"--preprocess {path}: {error}") from error
    if (found.height, found.width) != (height, width):
        raise UsageError(
            f"--preprocess {path} says {found.width}x{found.height} pixels, but the model takes {width}x{height}"
        )
    return found


def read_labels(path: Path) -> tuple[str, ...]:
    """The class names in a file, one a line. Raises UsageError for none or for one that stands twice."""
    if not path.is_file():
        raise UsageError(f"--labels: no such file: {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"--labels: {path} is not UTF-8 text: {error}") from error
    labels = tuple(line.strip() for line in lines if line.strip())
    if not labels:
        raise UsageError(f"--labels: {path} is empty; it should hold one class name a line")
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise UsageError(f"--labels: {path} names {', '.join(twice)} twice; make the names distinct")
    return labels


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def numbers(text: str) -> tuple[int, ...]:
    """``1,2,4`` as numbers, for argparse."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"expected numbers like 1,2,4, got {text!r}")
    return values


def pixels(text: str) -> int:
    """A height and width, for argparse."""
    return _between(text, 1, 4096)


def count(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    return _between(text, 1, 1_000_000)


def _between(text: str, low: int, high: int) -> int:
    if not text.isdigit() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"expected a whole number between {low} and {high}, got {text!r}")
    return int(text)


def minutes(text: str) -> float:
    """Minutes, also parts of one, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 1440:
        raise argparse.ArgumentTypeError(f"expected minutes between 0.1 and 1440, got {text!r}")
    return value


def add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait",
        nargs="?",
        type=minutes,
        const=FOREVER,
        metavar="MIN",
        help="wait for a device that is in use, so many minutes or without end; put it last",
    )


def wait_seconds(given: float | None) -> float:
    """What --wait says; 0 where it is not given."""
    return 60 * (given or 0.0)
