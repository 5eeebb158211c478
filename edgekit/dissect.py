"""A TFLite file taken apart on this machine: the values inside it, and each of its operators fed on its own."""

import copy
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekit import flatbuffer
from edgekit.preprocess import Pixels
from edgekit.quiet import quiet
from edgekit.requires import require

BORDERS = ("QUANTIZE", "DEQUANTIZE")
Array = npt.NDArray[Any]


class Operator(NamedTuple):
    """*inputs*: the tensors that it takes and that are no constants. *in_float*: it computes on floats only."""

    kind: str
    macs: int
    inputs: tuple[int, ...]
    output: int
    in_float: bool


class File:
    """A file's operators and tensors by the names that the float file of the same network has for them.

    A value may stand in a quantized file twice, in integers and as floats: both have its name.
    """

    def __init__(self, model: Any, known: Collection[str] | None = None) -> None:
        graph = model.subgraphs[0]
        self.model, self.tensors, self.input = model, graph.tensors, int(graph.inputs[0])
        self.steps = [
            (found, [int(index) for index in operator.inputs if index >= 0], int(operator.outputs[0]))
            for found, operator in zip(flatbuffer.details(model), graph.operators, strict=True)
        ]
        self.constants = {
            index
            for index, tensor in enumerate(graph.tensors)
            if (data := model.buffers[tensor.buffer].data) is not None and len(data)
        }
        for found, taken, output in self.steps:  # weights that are stored in fewer bits than they are used in
            if found.kind == "DEQUANTIZE" and taken[0] in self.constants:
                self.constants.add(output)
        self.names = {
            output: found.name for found, _, output in self.steps if known is None or found.name in known
        }
        self.integers: dict[int, int] = {}  # floats, and the integers that they are made of
        for found, (before, *_), output in self.steps:
            if found.kind in BORDERS and output not in self.constants:
                if name := self.names.get(before) or self.names.get(output):
                    self.names.setdefault(before, name)
                    self.names.setdefault(output, name)
                if found.kind == "DEQUANTIZE":
                    self.integers[output] = before
        self.operators = {
            name: Operator(
                kind=found.kind,
                macs=found.macs,
                inputs=tuple(index for index in taken if index not in self.constants),
                output=output,
                in_float=not any(map(self.scale, (*taken, output))),
            )
            for found, taken, output in self.steps
            if found.kind not in BORDERS and (name := self.names.get(output))
        }

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        """Those of an operator's inputs and of its output."""
        operator = self.operators[name]
        return [tuple(map(int, self.tensors[index].shape)) for index in (*operator.inputs, operator.output)]

    def scale(self, index: int) -> tuple[np.float32, int] | None:
        """Scale and zero point of a tensor of integers."""
        found = self.tensors[index].quantization
        if found is None or found.scale is None or not len(found.scale):
            return None
        return np.float32(found.scale[0]), int(found.zeroPoint[0])

    def stored(self, index: int, value: Array) -> Array:
        """The value as the tensor stores it: rounded where it, or what it is made of, is of integers."""
        if index in self.integers:
            integers = self.integers[index]
            return self.floats(integers, self.stored(integers, value))
        if (found := self.scale(index)) is None:
            return value
        scale, zero_point = found
        kinds = flatbuffer.schema().TensorType
        name = {kinds.INT8: "int8", kinds.UINT8: "uint8", kinds.INT16: "int16"}[self.tensors[index].type]
        limits = np.iinfo(name)
        steps: Array = np.clip(np.rint(value / scale) + zero_point, limits.min, limits.max).astype(name)
        return steps

    def floats(self, index: int, stored: Array) -> Array:
        """What the stored values of the tensor stand for."""
        if (found := self.scale(index)) is None:
            return stored
        scale, zero_point = found
        return (stored.astype(np.float32) - zero_point) * scale


class Values:
    """Everything that a file computes of an image, as floats by name.

    Each value is made an output: so the runtime keeps it, and computes it with the kernels that ship.
    """

    def __init__(self, file: File) -> None:
        self.file, model = file, copy.deepcopy(file.model)
        self.holders = {name: index for index, name in file.names.items()}
        # Where a value is there twice, the integers are what was rounded.
        self.holders |= {name: index for index, name in file.names.items() if file.scale(index)}
        model.subgraphs[0].outputs = sorted(set(self.holders.values()) - {file.input})
        self.runner = runner(model)

    def run_(self, image_HWC: Pixels) -> None:
        self.image_NHWC = self.file.stored(self.file.input, image_HWC[None])
        self.runner.set_tensor(self.file.input, self.image_NHWC)
        self.runner.invoke()

    def __getitem__(self, name: str) -> Array:
        index = self.holders[name]
        stored = self.image_NHWC if index == self.file.input else self.runner.get_tensor(index)
        return self.file.floats(index, stored)


class Pieces:
    """The operators of a file cut apart: each takes inputs of its own. All of them run in one inference."""

    def __init__(self, file: File, names: Sequence[str]) -> None:
        self.file, model = file, copy.deepcopy(file.model)
        graph = model.subgraphs[0]
        by_output = {int(operator.outputs[0]): operator for operator in graph.operators}
        self.inputs: dict[str, tuple[int, ...]] = {}
        kept = [by_output[index] for index in sorted(file.constants & by_output.keys())]
        for name in names:
            wanted = file.operators[name]
            own = {index: len(graph.tensors) + place for place, index in enumerate(dict.fromkeys(wanted.inputs))}
            for index in own:
                tensor = copy.copy(graph.tensors[index])
                tensor.name = f"input {len(graph.tensors)}"
                graph.tensors.append(tensor)
            piece = by_output[wanted.output]
            piece.inputs = [own.get(int(index), int(index)) for index in piece.inputs]
            kept.append(piece)
            self.inputs[name] = tuple(own[index] for index in wanted.inputs)
        graph.operators = kept
        graph.inputs = sorted({index for inputs in self.inputs.values() for index in inputs})
        graph.outputs = [file.operators[name].output for name in names]
        self.runner = runner(model)

    def run_(self, fed: dict[str, list[Array]]) -> None:
        """*fed*: for each operator its inputs, as they are stored."""
        for name, values in fed.items():
            for index, value in zip(self.inputs[name], values, strict=True):
                self.runner.set_tensor(index, value)
        self.runner.invoke()

    def __getitem__(self, name: str) -> Array:
        output = self.file.operators[name].output
        return self.file.floats(output, self.runner.get_tensor(output))


def until(file: File, index: int) -> Any:
    """An interpreter of the file up to the operator that gives the tensor, which is its only output."""
    model = copy.copy(file.model)
    model.subgraphs = [graph := copy.copy(model.subgraphs[0])]
    last = next(place for place, operator in enumerate(graph.operators) if index in operator.outputs)
    graph.operators, graph.outputs = graph.operators[: last + 1], [index]
    return runner(model)


def constant(model: Any, tensor: int) -> Array:
    """The values of a constant, as they are stored."""
    stored, kinds = model.subgraphs[0].tensors[tensor], flatbuffer.schema().TensorType
    name = {kinds.FLOAT32: "float32", kinds.INT8: "int8", kinds.INT32: "int32"}[stored.type]
    values: Array = np.asarray(model.buffers[stored.buffer].data).view(name).reshape(stored.shape)
    return values


def replace_constant_(model: Any, tensor: int, values: Array) -> None:
    """Store other values of the same shape and type; a constant of the same bytes elsewhere stays as it is."""
    data, tensors = np.array(values, constant(model, tensor).dtype, order="C"), model.subgraphs[0].tensors
    if sum(one.buffer == tensors[tensor].buffer for one in tensors) > 1:
        tensors[tensor].buffer = len(model.buffers)
        model.buffers.append(flatbuffer.schema().BufferT())
    model.buffers[tensors[tensor].buffer].data = data.reshape(-1).view(np.uint8)


def runner(model: Any) -> Any:
    """An interpreter of the model; its signature, which names other ends, is left away."""
    runtime = require("ai_edge_litert.interpreter", feature="Looking into tflite files", extra="tflite")
    model.signatureDefs = []
    with quiet():
        interpreter = runtime.Interpreter(model_content=flatbuffer.pack(model), num_threads=1)
        interpreter.allocate_tensors()
    return interpreter
