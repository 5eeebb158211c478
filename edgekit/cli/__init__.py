"""The command line. One module a command, loaded when it is called: `edgekit --help` loads none."""

import sys
from collections.abc import Sequence

from edgekit import __version__

COMMANDS = {
    "run": "the whole flow: train, prune, convert, bench, compare; finished stages are skipped",
    "train": "train a recipe's model, or a model by name, on a folder of images",
    "prune": "remove channels until a share of the work or of the time is left, and train again",
    "sweep": "prune a recipe to several budgets, convert each, and compare all files on one page",
    "convert": "turn a trained model into TFLite, Core ML or ONNX files, checked for parity",
    "bench": "measure files on a device: latency with a verdict, accuracy on real images",
    "compare": "say which file to ship, and whether the differences are real",
    "device": "list devices, check one, set one up",
    "inspect": "show what stands in a model file",
    "list": "list recipes, models, targets, precisions, devices or datasets",
    "show": "print a recipe",
    "copy": "copy a recipe to a file of your own",
    "doctor": "show what is installed, what is missing and how to get it",
}


def overview() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    return f"""edgekit {__version__}: from a trained mobile vision model to a measured choice on a real device

usage: edgekit COMMAND ...

{rows}

examples:
  edgekit run quickstart                    train, convert, measure and compare a small model
  edgekit run quickstart --data photos      the same with your folder of class folders
  edgekit convert runs/quickstart --target tflite --quantize all
  edgekit bench model.tflite --data photos
  edgekit COMMAND --help                    options and examples of a command
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for a failure, 2 for wrong usage, 130 when interrupted."""
    words = [*(sys.argv[1:] if arguments is None else arguments)]  # the command `list` hides the builtin here
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(), end="")
        return 0
    if words[0] in ("-V", "--version"):
        print(f"edgekit {__version__}")
        return 0
    from edgekit.cli.dispatch import dispatch

    return dispatch(words[0], words[1:])
