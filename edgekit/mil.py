"""Runs a saved Core ML program (MIL) with torch, operator by operator, in the file's own precision.

Core ML itself runs on Apple systems only. This reference gives a package's numbers on any machine: it reads
the program back from the file, weights from its blob, and rounds to fp16 wherever the program does. Its
logits count; its speed says nothing. Operators as defined in coremltools's MIL documentation.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.errors import ArtifactError, ConversionError
from edgekit.quiet import quiet
from edgekit.requires import require

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "int32": torch.int32, "bool": torch.bool}
_WIDE = torch.float32  # fp16 values are computed in fp32 and rounded, as kernels with wide accumulators do


def load(path: Path) -> Any:
    """The main function of the package's program. Raises ArtifactError for anything that is not one."""
    ct = require("coremltools", feature="Reading coreml files", extra="coreml")
    with quiet():
        from coremltools.converters.mil.frontend.milproto.load import load as load_program

        try:
            model = ct.models.MLModel(str(path), skip_model_load=True)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise ArtifactError(f"{path} is not a Core ML package: {error}") from error
        spec = model.get_spec()
        if spec.WhichOneof("Type") != "mlProgram":
            raise ArtifactError(f"{path} holds a {spec.WhichOneof('Type')}; only ML programs are supported")
        return load_program(spec, spec.specificationVersion, model.weights_dir).functions["main"]


def operators(function: Any) -> list[str]:
    """The operator names in order, constants left out."""
    return [operation.op_type for operation in function.operations if operation.op_type != "const"]


def logits(function: Any, pixels_NCHW: Tensor) -> Tensor:
    """What goes into the program's final softmax, or its output without one: (N, K), N = 1."""
    values: dict[str, Any] = {next(iter(function.inputs)): pixels_NCHW}
    for operation in function.operations:
        if operation.op_type == "const":
            continue
        if operation.op_type == "softmax":
            return _tensor(values, operation.inputs["x"])
        run = _OPERATORS.get(operation.op_type)
        if run is None:
            raise ConversionError(f"the reference does not know the Core ML operator {operation.op_type!r}")
        result = run(*_arguments(values, operation))
        for output, tensor in zip(
            operation.outputs, result if isinstance(result, tuple) else (result,), strict=True
        ):
            values[output.name] = tensor.to(_dtype(output))
    return _tensor(values, function.outputs[0])


def _tensor(values: dict[str, Any], variable: Any) -> Tensor:
    found: Tensor = _value(values, variable)
    return found.float()


def _arguments(values: dict[str, Any], operation: Any) -> tuple[dict[str, Any]]:
    return ({name: _value(values, variable) for name, variable in operation.inputs.items()},)


def _value(values: dict[str, Any], variable: Any) -> Any:
    if isinstance(variable, list | tuple):
        return [_value(values, item) for item in variable]
    if variable.name in values:
        value = values[variable.name]
        return value.to(_WIDE) if value.dtype == torch.float16 else value
    constant = variable.val
    if isinstance(constant, str | bool | np.bool_):
        return constant
    tensor = torch.from_numpy(np.array(constant))
    return tensor.to(_WIDE) if tensor.dtype == torch.float16 else tensor


def _dtype(variable: Any) -> torch.dtype:
    from coremltools.converters.mil.mil import types

    return _DTYPES[types.builtin_to_string(variable.dtype)]


def _ints(value: Any) -> list[int]:
    return [int(item) for item in value.reshape(-1)]


def _spatial_padding(a: dict[str, Any], rank: int) -> list[int]:
    """MIL pads (top, bottom, left, right); torch wants the last axis first. ``same`` puts the odd one last."""
    kind = a["pad_type"]
    if kind == "valid":
        return [0] * (2 * rank)
    if kind == "custom":
        pairs = np.array(_ints(a["pad"])).reshape(rank, 2)
    else:
        sizes = a["weight"].shape[2:] if "weight" in a else _ints(a["kernel_sizes"])
        strides, dilations = _ints(a["strides"]), _ints(a.get("dilations", torch.ones(rank)))
        pairs = np.zeros((rank, 2), int)
        for axis in range(rank):
            length = a["x"].shape[2 + axis]
            reach = (sizes[axis] - 1) * dilations[axis] + 1
            total = max(0, (-(-length // strides[axis]) - 1) * strides[axis] + reach - length)
            pairs[axis] = (
                (total - total // 2, total // 2) if kind == "same_lower" else (total // 2, total - total // 2)
            )
    return [int(side) for pair in pairs[::-1] for side in pair]


def _conv(a: dict[str, Any]) -> Tensor:
    rank = a["x"].dim() - 2
    x = F.pad(a["x"], _spatial_padding(a, rank))
    convolution = {1: F.conv1d, 2: F.conv2d}[rank]
    return convolution(
        x,
        a["weight"],
        a.get("bias"),
        stride=_ints(a["strides"]),
        dilation=_ints(a["dilations"]),
        groups=int(a["groups"]),
    )


def _max_pool(a: dict[str, Any]) -> Tensor:
    x = F.pad(a["x"], _spatial_padding(a, 2), value=float("-inf"))
    return F.max_pool2d(
        x, _ints(a["kernel_sizes"]), _ints(a["strides"]), ceil_mode=bool(a.get("ceil_mode", False))
    )


def _avg_pool(a: dict[str, Any]) -> Tensor:
    padding = _spatial_padding(a, 2)
    sizes, strides = _ints(a["kernel_sizes"]), _ints(a["strides"])
    ceil_mode = bool(a.get("ceil_mode", False))
    summed = F.avg_pool2d(F.pad(a["x"], padding), sizes, strides, ceil_mode=ceil_mode, divisor_override=1)
    if not a["exclude_padding_from_average"]:
        return summed / float(np.prod(sizes))
    ones = F.pad(torch.ones_like(a["x"]), padding)
    return summed / F.avg_pool2d(ones, sizes, strides, ceil_mode=ceil_mode, divisor_override=1)


def _matmul(a: dict[str, Any]) -> Tensor:
    x = a["x"].mT if a["transpose_x"] else a["x"]
    product: Tensor = x @ (a["y"].mT if a["transpose_y"] else a["y"])
    return product


def _reduce(function: Callable[..., Tensor]) -> Callable[[dict[str, Any]], Tensor]:
    return lambda a: function(a["x"], dim=_ints(a["axes"]), keepdim=bool(a["keep_dims"]))


_OPERATORS: dict[str, Callable[[dict[str, Any]], Tensor]] = {
    "add": lambda a: a["x"] + a["y"],
    "avg_pool": _avg_pool,
    "cast": lambda a: a["x"].to(_DTYPES[a["dtype"]]),
    "clip": lambda a: a["x"].clamp(float(a["alpha"]), float(a["beta"])),
    "concat": lambda a: torch.cat(a["values"], dim=int(a["axis"])),
    "conv": _conv,
    "linear": lambda a: F.linear(a["x"], a["weight"], a.get("bias")),
    "matmul": _matmul,
    "max_pool": _max_pool,
    "mul": lambda a: a["x"] * a["y"],
    "real_div": lambda a: a["x"] / a["y"],
    "reduce_mean": _reduce(torch.mean),
    "reduce_sum": _reduce(torch.sum),
    "relu": lambda a: a["x"].relu(),
    "relu6": lambda a: a["x"].clamp(0, 6),
    "reshape": lambda a: a["x"].reshape(_ints(a["shape"])),
    "sigmoid": lambda a: a["x"].sigmoid(),
    "sigmoid_hard": lambda a: (a["x"] * float(a["alpha"]) + float(a["beta"])).clamp(0, 1),
    "silu": lambda a: F.silu(a["x"]),
    "sub": lambda a: a["x"] - a["y"],
    "transpose": lambda a: a["x"].permute(_ints(a["perm"])),
}
