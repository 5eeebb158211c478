"""Runs a saved Core ML program (MIL) with torch, operator by operator, in the file's own precision.

Core ML itself runs on Apple systems only. This reference gives a package's numbers on any machine: it reads the
program back from the file, weights from its blob, expands compressed weights as the format defines them, and
rounds to fp16 or int8 wherever the program does. Its logits count; its speed says nothing. Operators are as in
https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html
"""

from edgekit.mil.constexpr import expand
from edgekit.mil.read import (
    TARGETS,
    constants,
    describe,
    forms,
    is_constant,
    is_float,
    labels,
    load,
    operators,
    takes_bgr,
    target,
    weights,
)
from edgekit.mil.run import Reference, reference

__all__ = [
    "TARGETS",
    "Reference",
    "constants",
    "describe",
    "expand",
    "forms",
    "is_constant",
    "is_float",
    "labels",
    "load",
    "operators",
    "reference",
    "takes_bgr",
    "target",
    "weights",
]
