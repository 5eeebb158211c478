"""What computes in int8: the ranges of activations and the operators left in fp16, both judged by the answers.

Candidates are changed in memory and run by edgekit's reference; none is written.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgekit import mil
from edgekit.calibrate.choose import Chosen, Ranges
from edgekit.coreml import activations, plan, program
from edgekit.coreml.activations import Logits
from edgekit.coreml.layers import Bench, Judged
from edgekit.parity import divergence
from edgekit.preprocess import Pixels

if TYPE_CHECKING:
    from edgekit.export import CalibrationImages, Source

JUDGES = 128  # images that ranges are compared on
FEW, PIXELS = (8, 32), 2**17  # images that each operator is judged on: as many as have so many pixels
ENOUGH = 0.0005  # nats: the harm of all operators in int8 together by which they are not told from fp16
LITTLE = 0.0001  # nats, of one
LEFT_WEIGHTS, LEFT_MACS = 0.05, 0.25  # shares of the network that may be left for its answers' sake
_LEAST_COST = 0.01  # of the network: to fp16 and back costs something, however small the operator
UNARY, BINARY = ("conv", "linear", "avg_pool", "max_pool"), ("add",)  # as coremltools's passes have them


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """An operator that can compute in int8.

    *harm*: the divergence (nats) of the answers when nothing else is in int8, its input and output rounded.
    *weights*, *macs*: its shares of the network.
    """

    name: str
    harm: float
    weights: float
    macs: float

    @property
    def cost(self) -> float:
        return self.weights + self.macs + _LEAST_COST

    def __str__(self) -> str:
        return f"{self.name} ({self.harm:.2g})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Integers:
    """The range of each activation, and what each operator but the *stem* in int8 does to the answers.

    The stem takes the image, which is exact.
    """

    ranges: Chosen
    operators: tuple[Operator, ...]
    stem: str

    def change_(self, whole: Any, main: Any, stored: Mapping[str, Judged], keep: Collection[str]) -> None:
        """Put integers into a float program, but for the operators *keep*."""
        _change_(whole, main, self.ranges.ranges, stored, self.stem, keep)

    def left(self, keep: Collection[str] = ()) -> tuple[Operator, ...]:
        """Those to leave in fp16 beside *keep*: the most harm for their cost first, until the rest do little."""
        chosen: list[Operator] = []
        rest = [one for one in self.operators if one.name not in keep]
        for one in sorted(rest, key=lambda one: -one.harm / one.cost):
            if sum(other.harm for other in rest if other not in chosen) <= ENOUGH:
                break
            joined = [*chosen, one]
            weights, macs = sum(other.weights for other in joined), sum(other.macs for other in joined)
            if one.harm >= LITTLE and weights <= LEFT_WEIGHTS and macs <= LEFT_MACS:
                chosen = joined
        return tuple(chosen)


def judge(source: "Source", float_model: Any, bench: Bench, images: "CalibrationImages") -> Integers:
    """The ranges, and every operator by itself; found once per source and images."""
    key = f"coreml int8 {replace(images.record, repairs=())}"
    return source.once(key, lambda: _judge(source, float_model, bench, images))


def _judge(source: "Source", float_model: Any, bench: Bench, images: "CalibrationImages") -> Integers:
    scheme = plan.SCHEMES["int8"]
    stored = plan.choose(bench.judge(scheme.encode)).stored
    function, stem = mil.load(Path(float_model.package_path)), bench.layers[0].name
    pixels, area = images.pixels_NHWC, images.pixels_NHWC.shape[1] * images.pixels_NHWC.shape[2]
    observed = activations.observe(function, pixels, images.ids)

    def predicted(ranges: Ranges, keep: Collection[str], pixels_NHWC: Pixels) -> Logits:
        def change(whole: Any, main: Any) -> None:
            _change_(whole, main, ranges, stored, stem, keep)

        tried = mil.Reference(program.changed(float_model, change, scheme.target))
        pixels_NCHW = torch.from_numpy(np.array(pixels_NHWC)).permute(0, 3, 1, 2).float()
        return np.asarray(tried.logits(pixels_NCHW).numpy())

    judges = _spread(pixels, JUDGES)
    ranges = activations.choose(
        observed, source.logits(judges), lambda found: predicted(found, (), judges), images.record.method
    )
    few = _spread(pixels, min(max(PIXELS // area, FEW[0]), FEW[1]))
    wanted, names = source.logits(few), quantizable(function)
    layers = {layer.name: layer for layer in bench.layers}
    weights, macs = sum(one.size_bytes for one in bench.layers), sum(one.macs for one in bench.layers)

    def operator(name: str) -> Operator:
        alone = predicted(ranges.ranges, set(names) - {name}, few)
        layer = layers.get(name)
        return Operator(
            name=name,
            harm=divergence(wanted, alone),
            weights=layer.size_bytes / weights if layer else 0.0,
            macs=layer.macs / macs if layer else 0.0,
        )

    found = tuple(operator(name) for name in names if name != stem)
    return Integers(ranges=ranges, operators=found, stem=stem)


def _change_(
    whole: Any, main: Any, ranges: Ranges, stored: Mapping[str, Judged], stem: str, keep: Collection[str]
) -> None:
    activations.quantize_(whole, ranges, {stem, *keep})
    plan.store_(main, {name: one for name, one in stored.items() if name not in keep}, correct_biases=True)


def quantizable(function: Any) -> tuple[str, ...]:
    """The names of the operators that coremltools's passes quantize, in the order of the program."""
    return tuple(one.name for one in function.operations if _is_quantizable(one))


def _is_quantizable(operation: Any) -> bool:
    if operation.op_type in BINARY:
        return all(operation.inputs[name].val is None for name in ("x", "y"))
    return operation.op_type in UNARY


def _spread(pixels_NHWC: Pixels, count: int) -> Pixels:
    """So many of them, evenly: they may be sorted by class."""
    total = len(pixels_NHWC)
    rows = np.linspace(0, total - 1, min(count, total)).astype(int)
    return np.asarray(pixels_NHWC[rows])


def named(left: Sequence[Operator]) -> str:
    """For the sidecar: why operators stay in fp16, and what that takes."""
    macs = 100 * sum(one.macs for one in left)
    listed = ", ".join(map(str, left))
    return (
        f"computed in fp16, {macs:.1f} % of the products, by what int8 there does to the answers (nats): {listed}"
    )
