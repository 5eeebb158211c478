"""Runs a program: constants once, then operator by operator, each result rounded to the type that the file says.

fp16 values are computed in fp32 and rounded, as kernels with wide accumulators do.
Shapes: N images, K classes, C channels, H height, W width.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekit.errors import ConversionError
from edgekit.mil.arguments import DTYPES, Operator
from edgekit.mil.constexpr import expand
from edgekit.mil.pointwise import POINTWISE
from edgekit.mil.read import is_constant, load, takes_bgr
from edgekit.mil.shapes import SHAPES
from edgekit.mil.sums import SUMS
from edgekit.mil.windows import WINDOWS

OPERATORS: dict[str, Operator] = {**POINTWISE, **SHAPES, **SUMS, **WINDOWS}
# They give numbers that they were given, or bounds: those of an fp16 program need no rounding.
CHOOSING = (
    *(
        "clip",
        "concat",
        "expand_dims",
        "identity",
        "max_pool",
        "pad",
        "relu",
        "reshape",
        "slice_by_index",
        "split",
    ),
    *("squeeze", "stack", "transpose"),
)
_BATCH_PIXELS = 2**17  # of the images that run at once: more waits for memory


class Reference:
    """A program ready to run. Raises ConversionError, when run, for an operator that it does not know.

    *bgr*: `logits` turns the channels of what it is given, as Core ML does.
    """

    def __init__(self, function: Any, *, bgr: bool = False) -> None:
        self._function, self._bgr = function, bgr
        self._scores = _scores(function)
        constants = _constants(function)
        self._constants = {id(variable): value for variable, value in constants}
        self._named = {variable.name: value for variable, value in constants}
        self._last: dict[str, int] = {}
        for place, operation in enumerate(function.operations):
            for variable in _variables(operation):
                self._last[variable.name] = place

    @torch.no_grad()
    def output(self, given: Tensor) -> Tensor:
        """What goes into the program's final softmax, or its output without one, for an input of its own shape."""
        return self._run(given, ())[self._scores.name].float()

    @torch.no_grad()
    def logits(self, pixels_NCHW: Tensor) -> Tensor:
        """The same (N, K) of a program of one image, for many: `torch.vmap` computes each as if it were alone."""
        if self._bgr:
            pixels_NCHW = pixels_NCHW.flip(1)
        step = max(1, _BATCH_PIXELS // (pixels_NCHW.shape[2] * pixels_NCHW.shape[3]))
        single = torch.vmap(lambda image: self._run(image[None], ())[self._scores.name].float())
        rows = [single(pixels_NCHW[start : start + step]) for start in range(0, len(pixels_NCHW), step)]
        return torch.cat(rows).flatten(1)

    @torch.no_grad()
    def values(self, given: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """The variables of these names for one input, fp16 as fp32."""
        found = self._run(given, names)
        return {name: found[name] if name in found else self._named[name] for name in names}

    def constant(self, name: str) -> Any:
        """A constant of the program by name, expanded; None where it is none."""
        return self._named.get(name)

    def arguments(self, operation: Any, values: dict[str, Tensor]) -> dict[str, Any]:
        """What the operator takes, given the variables that are no constants."""
        return {name: self._value(values, variable) for name, variable in operation.inputs.items()}

    def _run(self, given: Tensor, kept: Collection[str]) -> dict[str, Tensor]:
        """The wanted scores and the *kept* variables; others go when nobody reads them any more."""
        values: dict[str, Tensor] = {next(iter(self._function.inputs)): given}
        wanted = {self._scores.name, *kept} - self._named.keys()
        for place, operation in enumerate(self._function.operations):
            if wanted <= values.keys():
                break
            if is_constant(operation):
                continue
            results = apply(operation.op_type, self.arguments(operation, values))
            for output, tensor in zip(operation.outputs, results, strict=True):
                values[output.name] = _rounded(operation.op_type, tensor, dtype(output))
            for variable in _variables(operation):
                if self._last[variable.name] == place and variable.name not in wanted:
                    values.pop(variable.name, None)
        return values

    def _value(self, values: dict[str, Tensor], variable: Any) -> Any:
        if isinstance(variable, list | tuple):
            return [self._value(values, item) for item in variable]
        # Constants first, by themselves: coremltools gives two without a name the same one.
        if id(variable) in self._constants:
            return self._constants[id(variable)]
        return values[variable.name]


def reference(path: Path) -> Reference:
    """The package's program, ready to run on RGB pixels. Raises ArtifactError for anything that is not one."""
    return Reference(load(path), bgr=takes_bgr(path))


def apply(kind: str, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    """What the operator gives, not yet rounded. Raises ConversionError for one that is not known."""
    if kind not in OPERATORS:
        raise ConversionError(f"the reference does not know the Core ML operator {kind!r}")
    try:
        result = OPERATORS[kind](arguments)
    except (RuntimeError, LookupError, TypeError, ValueError) as error:  # a form of it that our tools do not make
        line = (str(error).strip().splitlines() or [""])[0]
        message = f"the reference cannot run the Core ML operator {kind!r} as it stands here"
        raise ConversionError(f"{message}: {type(error).__name__}: {line}") from error
    return result if isinstance(result, tuple) else (result,)


def dtype(variable: Any) -> torch.dtype:
    """The type that the program gives a variable."""
    from coremltools.converters.mil.mil import types

    return DTYPES[types.builtin_to_string(variable.dtype)]


def _rounded(kind: str, tensor: Tensor, wanted: torch.dtype) -> Tensor:
    """The result as the program's type holds it; numbers of fp16 stay in fp32 until they are used."""
    if wanted != torch.float16:
        return tensor.to(wanted)
    return tensor.float() if kind in CHOOSING else tensor.half().float()


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def _variables(operation: Any) -> list[Any]:
    return [
        item
        for variable in operation.inputs.values()
        for item in (variable if isinstance(variable, list | tuple) else [variable])
    ]


def _constants(function: Any) -> list[tuple[Any, Any]]:
    """Every constant and what it holds, compressed ones expanded; fp16 as fp32, strings and flags as they are."""
    stored: dict[int, Any] = {}
    variables = []
    for operation in function.operations:
        if operation.op_type == "const":
            stored[id(operation.outputs[0])] = operation.outputs[0].val
        elif is_constant(operation):
            inputs = {name: stored[id(variable)] for name, variable in operation.inputs.items()}
            for output, value in zip(operation.outputs, expand(operation, inputs), strict=True):
                stored[id(output)] = value
        else:
            continue
        variables += operation.outputs
    return [(variable, _held(stored[id(variable)])) for variable in variables]


def _held(value: Any) -> Any:
    if isinstance(value, str | bool | np.bool_) or not isinstance(value, np.ndarray | np.generic):
        return value
    return value if np.asarray(value).dtype.kind in "US" else _wide(_tensor(np.array(value)))


def _tensor(value: Any) -> Tensor:
    """A tensor of its own; torch lacks most of the unsigned types."""
    if value.dtype.kind == "u" and value.dtype != np.uint8:
        value = value.astype(np.int64)
    return torch.from_numpy(np.array(value, order="C"))  # no view, and a scalar stays one


def _scores(function: Any) -> Any:
    """The variable that `output` gives. Attention has softmaxes, too: only the last one is meant."""
    variable = function.outputs[0]
    if variable.op is not None and variable.op.op_type == "classify":
        variable = variable.op.inputs["probabilities"]
    last = variable
    while last.op is not None and last.op.op_type == "cast":
        last = last.op.inputs["x"]
    return last.op.inputs["x"] if last.op is not None and last.op.op_type == "softmax" else variable
