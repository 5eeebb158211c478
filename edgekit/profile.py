"""What each layer of an int8 TFLite file costs more in float, in time on this machine.

A layer is timed by itself, twice: as it stands in the int8 file, and as it stands in the float file, with the
DEQUANTIZE and QUANTIZE around it that it needs among integers. (The runtime's own profiler tells XNNPACK's
operators, which are fused and do not bear the names of layers; how its events lie in memory is nowhere declared.)
All layers run one after the other, round after round, so that each finds the caches as others leave them, and what
slows the machine down slows all of them; of the rounds the median difference counts.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import flatbuffer
from edgekit.dissect import File, runner

ROUNDS = 60
SECONDS = 30.0  # at most
LEAST_ROUNDS = 10
DOUBT = 0.5  # of the whole: where two halves of the rounds differ by more, the machine is too busy to tell


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """For each layer that is in integers the time that it takes more in float, as a share of the network's.

    ``doubt``: by how much two halves of the rounds differ, layer by layer, as a share of all that was found.
    """

    shares: dict[str, float]
    doubt: float
    int8_ms: float

    @property
    def sound(self) -> bool:
        return self.doubt <= DOUBT


def costs(float_file: Path, quantized: Path, clock: Callable[[], int] = time.perf_counter_ns) -> Costs:
    """The costs of the layers of an int8 file, against the float file that it was made of; *clock* in nanoseconds.

    Raises ArtifactError for damaged files.
    """
    with flatbuffer.reading(float_file) as model:
        wanted = File(model)
    with flatbuffer.reading(quantized) as model:
        given = File(model, wanted.names.values())
    names = [
        name
        for name, operator in given.operators.items()
        if not operator.in_float and name in wanted.operators and wanted.shapes(name) == given.shapes(name)
    ]
    whole = runner(given.model)
    pairs = [(_integers(given, name), _floats(wanted, given, name)) for name in names]
    totals, rounds, end = list[int](), list[list[tuple[int, int]]](), clock() + int(SECONDS * 1e9)
    for turn in range(ROUNDS + 2):
        total = _time(whole, clock)
        taken = [(_time(one, clock), _time(other, clock)) for one, other in pairs]
        if turn >= 2:  # the first ones pack weights
            totals.append(total)
            rounds.append(taken)
        if len(rounds) >= LEAST_ROUNDS and clock() > end:
            break
    extra_RL = np.diff(np.array(rounds, np.float64).reshape(len(rounds), len(names), 2))[..., 0]
    extra_L, int8_ns = np.median(extra_RL, 0), float(np.median(totals))
    halves = np.median(extra_RL[::2], 0) - np.median(extra_RL[1::2], 0)
    return Costs(
        shares={name: float(extra) / int8_ns for name, extra in zip(names, extra_L, strict=True)},
        doubt=float(np.abs(halves).sum() / max(np.abs(extra_L).sum(), 1.0)),
        int8_ms=int8_ns / 1e6,
    )


def _time(interpreter: Any, clock: Callable[[], int]) -> int:
    start = clock()
    interpreter.invoke()
    return clock() - start


class _Piece:
    """One operator of a file as a model of its own."""

    def __init__(self, file: File, name: str) -> None:
        operator = file.operators[name]
        self.file, self.name, self.inputs, self.output = file, name, operator.inputs, operator.output
        self.model = copy.copy(file.model)
        self.model.subgraphs = [copy.copy(file.model.subgraphs[0])]
        self.model.operatorCodes = list(file.model.operatorCodes)
        self.graph = self.model.subgraphs[0]
        self.graph.tensors = list(self.graph.tensors)
        by_output = {int(one.outputs[0]): one for one in self.graph.operators}
        unpacked = [by_output[index] for index in sorted(file.constants & by_output.keys())]
        self.operators = [*unpacked, by_output[self.output]]
        # A tensor that it takes twice is one input.
        self.taken = list(dict.fromkeys(self.inputs))
        self.given = [self.output]

    def runner(self) -> Any:
        self.graph.operators, self.graph.inputs, self.graph.outputs = self.operators, self.taken, self.given
        used = {self.graph.tensors[index].buffer for one in self.operators for index in one.inputs if index >= 0}
        empty = flatbuffer.schema().BufferT()
        self.model.buffers = [buffer if i in used else empty for i, buffer in enumerate(self.model.buffers)]
        found, random = runner(self.model), np.random.default_rng(0)
        for detail in found.get_input_details():
            kind, shape = detail["dtype"], detail["shape"]
            values = random.random(shape) if kind == np.float32 else random.integers(0, 100, shape)
            found.set_tensor(detail["index"], values.astype(kind))
        return found


def _integers(given: File, name: str) -> Any:
    return _Piece(given, name).runner()


def _floats(wanted: File, given: File, name: str) -> Any:
    """The float operator among integers: what the int8 file has around it stands for what it takes and gives."""
    piece, other = _Piece(wanted, name), given.operators[name]
    for place, index in enumerate(piece.taken):
        like = other.inputs[piece.inputs.index(index)]
        if given.scale(like):
            piece.taken[place] = stored = _tensor(piece, given, like)
            piece.operators.insert(0, _operator(piece, "DEQUANTIZE", stored, index))
    if given.scale(other.output):
        piece.given = [stored := _tensor(piece, given, other.output)]
        piece.operators.append(_operator(piece, "QUANTIZE", piece.output, stored))
    return piece.runner()


def _tensor(piece: _Piece, given: File, like: int) -> int:
    """A new tensor of integers, of the type and scale of one in the int8 file."""
    made = copy.copy(given.tensors[like])
    made.name, made.buffer = f"stored {len(piece.graph.tensors)}", 0
    piece.graph.tensors.append(made)
    return len(piece.graph.tensors) - 1


def _operator(piece: _Piece, kind: str, before: int, after: int) -> Any:
    schema = flatbuffer.schema()
    code, made = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind)
    code.version = 1
    made.opcodeIndex, made.inputs, made.outputs = len(piece.model.operatorCodes), [before], [after]
    piece.model.operatorCodes.append(code)
    return made
