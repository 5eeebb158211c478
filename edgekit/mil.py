"""Runs a saved Core ML program (MIL) with torch, operator by operator, in the file's own precision.

Core ML itself runs on Apple systems only. This reference gives a package's numbers on any machine: it reads
the program back from the file, weights from its blob, and rounds to fp16 wherever the program does. Its
logits count; its speed says nothing. Operators as defined in coremltools's MIL documentation.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    with _reading(path) as ct:
        from coremltools.converters.mil.frontend.milproto.load import load as load_program

        model = ct.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        if spec.WhichOneof("Type") != "mlProgram":
            raise ArtifactError(f"{path} holds a {spec.WhichOneof('Type')}; only ML programs are supported")
        return load_program(spec, spec.specificationVersion, model.weights_dir).functions["main"]


def describe(path: Path) -> Any:
    """The package's description: inputs, outputs, metadata. Raises ArtifactError for anything that has none."""
    with _reading(path) as ct:
        return ct.models.MLModel(str(path), skip_model_load=True).get_spec().description


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Gives coremltools. It reports damaged packages by many kinds of errors."""
    with quiet():
        ct = require("coremltools", feature="Reading coreml files", extra="coreml")
        from google.protobuf.message import DecodeError

        try:
            yield ct
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, DecodeError) as error:
            raise ArtifactError(f"{path} is not a sound Core ML package: {error}") from error


def labels(function: Any) -> tuple[str, ...]:
    """The class names in a classifier's program; none in another."""
    return tuple(
        str(label)
        for operation in function.operations
        if operation.op_type == "classify"
        for label in operation.inputs["classes"].val
    )


def operators(function: Any) -> list[str]:
    """The operator names in order, constants left out."""
    return [operation.op_type for operation in function.operations if operation.op_type != "const"]


def logits(function: Any, pixels_NCHW: Tensor) -> Tensor:
    """What goes into the program's final softmax, or its output without one: (N, K), N = 1."""
    values: dict[str, Any] = {next(iter(function.inputs)): pixels_NCHW}
    wanted = _scores(function)
    for operation in function.operations:
        if wanted.name in values:
            break
        if operation.op_type == "const":
            continue
        run = _OPERATORS.get(operation.op_type)
        if run is None:
            raise ConversionError(f"the reference does not know the Core ML operator {operation.op_type!r}")
        result = run({name: _value(values, variable) for name, variable in operation.inputs.items()})
        for output, tensor in zip(
            operation.outputs, result if isinstance(result, tuple) else (result,), strict=True
        ):
            values[output.name] = tensor.to(_dtype(output))
    found: Tensor = _value(values, wanted)
    return found.float()


def _scores(function: Any) -> Any:
    """The variable whose value `logits` gives. Attention has softmaxes, too: only the last one is meant."""
    variable = function.outputs[0]
    if variable.op is not None and variable.op.op_type == "classify":
        variable = variable.op.inputs["probabilities"]
    last = variable
    while last.op is not None and last.op.op_type == "cast":
        last = last.op.inputs["x"]
    return last.op.inputs["x"] if last.op is not None and last.op.op_type == "softmax" else variable


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


def _last_window(a: dict[str, Any], padding: list[int]) -> list[int]:
    """What ceil_mode adds after the padding, so that the last window is whole. It must not start in there."""
    extra = [0] * len(padding)
    if not a["ceil_mode"]:
        return extra
    for i, (size, stride) in enumerate(
        zip(_ints(a["kernel_sizes"])[::-1], _ints(a["strides"])[::-1], strict=True)
    ):
        before, after, length = padding[2 * i], padding[2 * i + 1], a["x"].shape[-1 - i]
        span = before + length + after - size
        steps = -(-span // stride)
        if steps * stride >= before + length:
            steps -= 1
        extra[2 * i + 1] = max(0, steps * stride - span)
    return extra


def _max_pool(a: dict[str, Any]) -> Tensor:
    padding = _spatial_padding(a, 2)
    x = F.pad(F.pad(a["x"], padding, value=-torch.inf), _last_window(a, padding), value=-torch.inf)
    return F.max_pool2d(x, _ints(a["kernel_sizes"]), _ints(a["strides"]))


def _avg_pool(a: dict[str, Any]) -> Tensor:
    """Zeros of the padding count unless they are excluded; those that only complete the last window never do."""
    padding = _spatial_padding(a, 2)
    extra, counts = _last_window(a, padding), not a["exclude_padding_from_average"]

    def summed(x: Tensor, value: float) -> Tensor:
        padded = F.pad(F.pad(x, padding, value=value), extra)
        return F.avg_pool2d(padded, _ints(a["kernel_sizes"]), _ints(a["strides"]), divisor_override=1)

    return summed(a["x"], 0.0) / summed(torch.ones_like(a["x"]), float(counts))


def _pad(a: dict[str, Any]) -> Tensor:
    """MIL pads the last axes, (before, after) of each in order; torch wants the last axis first."""
    if a["mode"] != "constant":
        raise ConversionError(f"the reference knows the Core ML operator 'pad' with constants, not {a['mode']!r}")
    pairs = np.array(_ints(a["pad"])).reshape(-1, 2)[::-1]
    return F.pad(a["x"], [int(side) for pair in pairs for side in pair], value=float(a.get("constant_val", 0.0)))


def _batch_norm(a: dict[str, Any]) -> Tensor:
    return F.batch_norm(a["x"], a["mean"], a["variance"], a.get("gamma"), a.get("beta"), eps=float(a["epsilon"]))


def _layer_norm(a: dict[str, Any]) -> Tensor:
    axes = sorted(axis % a["x"].dim() for axis in _ints(a["axes"]))
    if axes != list(range(axes[0], a["x"].dim())):
        raise ConversionError(f"the reference knows the Core ML operator 'layer_norm' over last axes, not {axes}")
    shape = a["x"].shape[axes[0] :]
    return F.layer_norm(a["x"], shape, a.get("gamma"), a.get("beta"), eps=float(a["epsilon"]))


def _gelu(a: dict[str, Any]) -> Tensor:
    if a["mode"] == "SIGMOID_APPROXIMATION":
        return a["x"] * (1.702 * a["x"]).sigmoid()  # type: ignore[no-any-return]
    return F.gelu(a["x"], approximate="tanh" if a["mode"] == "TANH_APPROXIMATION" else "none")


def _split(a: dict[str, Any]) -> tuple[Tensor, ...]:
    axis = int(a["axis"])
    if "split_sizes" in a:
        return torch.split(a["x"], _ints(a["split_sizes"]), dim=axis)
    return torch.tensor_split(a["x"], int(a["num_splits"]), dim=axis)


def _matmul(a: dict[str, Any]) -> Tensor:
    x = a["x"].mT if a["transpose_x"] else a["x"]
    product: Tensor = x @ (a["y"].mT if a["transpose_y"] else a["y"])
    return product


def _reduce(function: Callable[..., Tensor]) -> Callable[[dict[str, Any]], Tensor]:
    def reduce(a: dict[str, Any]) -> Tensor:
        axes = _ints(a["axes"]) if "axes" in a else list(range(a["x"].dim()))
        return function(a["x"], dim=axes, keepdim=bool(a["keep_dims"]))

    return reduce


def _concat(a: dict[str, Any]) -> Tensor:
    axis, values = int(a["axis"]) % a["values"][0].dim(), a["values"]
    if a["interleave"]:
        return torch.stack(values, dim=axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, dim=axis)


def _slice_by_index(a: dict[str, Any]) -> Tensor:
    """NumPy's slicing; a set mask frees that end, or keeps *begin* alone and drops the axis."""
    x: Tensor = a["x"]
    begins, ends = _ints(a["begin"]), _ints(a["end"])
    strides = _ints(a["stride"]) if "stride" in a else [1] * x.dim()
    free_begin, free_end, single = (
        [bool(flag) for flag in a[name]] if name in a else [False] * x.dim()
        for name in ("begin_mask", "end_mask", "squeeze_mask")
    )
    for axis, length in enumerate(x.shape):
        begin, end = (None if free_begin[axis] else begins[axis]), (None if free_end[axis] else ends[axis])
        rows = [begins[axis] % length] if single[axis] else list(range(length)[begin : end : strides[axis]])
        x = x.index_select(axis, torch.tensor(rows))
    return x.squeeze([axis for axis, dropped in enumerate(single) if dropped])


_OPERATORS: dict[str, Callable[[dict[str, Any]], Tensor | tuple[Tensor, ...]]] = {
    "add": lambda a: a["x"] + a["y"],
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "cast": lambda a: a["x"].to(_DTYPES[a["dtype"]]),
    "clip": lambda a: a["x"].clamp(float(a["alpha"]), float(a["beta"])),
    "concat": _concat,
    "conv": _conv,
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "linear": lambda a: F.linear(a["x"], a["weight"], a.get("bias")),
    "matmul": _matmul,
    "max_pool": _max_pool,
    "mul": lambda a: a["x"] * a["y"],
    "pad": _pad,
    "real_div": lambda a: a["x"] / a["y"],
    "reduce_mean": _reduce(torch.mean),
    "reduce_sum": _reduce(torch.sum),
    "relu": lambda a: a["x"].relu(),
    "relu6": lambda a: a["x"].clamp(0, 6),
    "reshape": lambda a: a["x"].reshape(_ints(a["shape"])),
    "sigmoid": lambda a: a["x"].sigmoid(),
    "sigmoid_hard": lambda a: (a["x"] * float(a["alpha"]) + float(a["beta"])).clamp(0, 1),
    "silu": lambda a: F.silu(a["x"]),
    "slice_by_index": _slice_by_index,
    "softmax": lambda a: a["x"].softmax(int(a["axis"])),
    "split": _split,
    "sub": lambda a: a["x"] - a["y"],
    "thresholded_relu": lambda a: a["x"] * (a["x"] >= a["alpha"]),
    "transpose": lambda a: a["x"].permute(_ints(a["perm"])),
}
