"""What the network in torch takes from the files: their operators in order, and whose range each tensor has."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit import flatbuffer
from edgekit.dissect import File
from edgekit.qat.kernels import BY_OUTPUT, ONE_SCALE, PASSING


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """An operator. *inputs* and *output* are places of tensors; *round* says where its output's range stands."""

    kind: str
    inputs: tuple[int, ...]
    output: int
    options: Any
    round: int | None
    last_use: tuple[int, ...] = ()  # tensors that nobody reads after it


def constants(model: Any) -> dict[str, Any]:
    """The constants of a float file by name."""
    kinds, found = flatbuffer.schema().TensorType, {}
    types = {kinds.FLOAT32: np.float32, kinds.INT32: np.int32}
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data):
            value = np.asarray(data).view(types[tensor.type]).reshape([int(side) for side in tensor.shape])
            found[flatbuffer.text(tensor.name)] = value
    return found


def same_ranges(file: File) -> dict[int, int]:
    """For each integer activation the tensor whose range it has: itself, or one that it is passed from."""
    roots = {
        index: index
        for index in (file.input, *(output for _, _, output in file.steps))
        if file.scale(index) and index not in file.constants
    }

    def root(index: int) -> int:
        while roots[index] != index:
            index = roots[index]
        return index

    for found, taken, output in file.steps:
        if found.kind in ONE_SCALE and output in roots:
            for index in taken:
                if index in roots and file.scale(index) == file.scale(output):
                    roots[root(output)] = root(index)
    return {index: root(index) for index in roots}


def named(file: File, roots: dict[int, int]) -> dict[int, str]:
    """Integer tensors and the names under which the quantizer is told their ranges.

    What goes into a concatenation among others is rounded for it once more, in its range: that copy has no name.
    """
    copies = {index for found, taken, _ in file.steps if found.kind in BY_OUTPUT for index in taken}
    found: dict[str, int] = {}
    for index in sorted(roots, key=lambda index: index in copies):
        if index in file.names:
            found.setdefault(file.names[index], index)
    return {index: name for name, index in found.items()}


def steps(file: File, roots: dict[int, int]) -> Iterator[Step]:
    graph = file.model.subgraphs[0]
    kept = [
        (found, taken, output, operator.builtinOptions)
        for (found, taken, output), operator in zip(file.steps, graph.operators, strict=True)
    ]
    last = {index: place for place, (_, taken, _, _) in enumerate(kept) for index in taken}
    last |= dict.fromkeys(map(int, graph.outputs), len(kept))
    for place, (found, taken, output, options) in enumerate(kept):
        rounds = output in roots and not (
            found.kind in PASSING and all(roots.get(index) == roots[output] for index in taken if index in roots)
        )
        yield Step(
            kind=found.kind,
            inputs=tuple(taken),
            output=output,
            options=options,
            round=roots[output] if rounds else None,
            last_use=tuple(index for index in set(taken) if last[index] == place and index not in file.constants),
        )
