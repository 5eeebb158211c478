"""Which Apple systems run a Core ML file: each precision needs one that knows how its weights are stored."""

from edgekit.errors import UsageError
from edgekit.recipe import Variant

TARGETS = {"iOS15": 6, "iOS16": 7, "iOS17": 8, "iOS18": 9}  # and their specification versions
SYSTEMS = {  # what else runs what an iOS does
    "iOS15": "iOS 15, macOS 12",
    "iOS16": "iOS 16, macOS 13",
    "iOS17": "iOS 17, macOS 14",
    "iOS18": "iOS 18, macOS 15",
    "iOS26": "iOS 26, macOS 26",
}
OLDEST = {
    "fp32": "iOS15",
    "fp16": "iOS15",
    "w8": "iOS16",
    "w4": "iOS18",
    "pal8": "iOS16",
    "pal6": "iOS16",
    "pal4": "iOS16",
    "pal2": "iOS16",
    "sparse50": "iOS16",
    "sparse75": "iOS16",
    "sparse50-pal4": "iOS18",
    "int8": "iOS17",
}


def target(variant: Variant) -> str:
    """The system that the variant's file is made for: the oldest that can hold it, or a later one that was asked.

    Raises UsageError for one that was asked and is too old.
    """
    needed = "iOS18" if variant.group is not None else OLDEST[variant.precision]
    if variant.deploy is None:
        return needed
    if TARGETS[variant.deploy] < TARGETS[needed]:
        held = [name for name, system in OLDEST.items() if TARGETS[system] <= TARGETS[variant.deploy]]
        what = f"{variant.precision} with group" if variant.group is not None else variant.precision
        raise UsageError(
            f"coreml {what} needs {SYSTEMS[needed]} or later, but the file is to run from {variant.deploy} on: "
            f"ask for {needed}, or for {', '.join(held)}"
        )
    return variant.deploy
