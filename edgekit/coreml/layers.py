"""What compressed weights do to each layer by itself: fed what the float program has for it, on images.

Legend: N images, O outputs, I inputs of a group.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgekit import mil
from edgekit.coreml.encode import Array, Stored
from edgekit.coreml.program import linear_layers
from edgekit.mil.run import apply
from edgekit.parity import CAP_DB
from edgekit.preprocess import Pixels

if TYPE_CHECKING:
    from edgekit.export import Source

IMAGES = 16  # enough for means over thousands of values each

Encode = Callable[[Array, Array], Stored]  # weights, importance


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A convolution or dense layer of the float program.

    *weights* (O, I, ...); *importance*, broadcast to them: the mean square of what each is multiplied by.
    """

    name: str
    kind: str
    weights: Array
    importance: Array
    macs: int

    @property
    def size_bytes(self) -> int:
        return 2 * self.weights.size


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A layer with compressed weights. *own_db*: signal to noise of what it gives, were it alone compressed.

    *shift*: the mean error (O,) of each output, which the bias can take away.
    """

    layer: Layer
    stored: Stored
    own_db: float
    shift: npt.NDArray[np.float64]

    @property
    def noise(self) -> float:
        """The power of its error over that of the signal."""
        return float(10 ** (-self.own_db / 10))


class Bench:
    """A float program and images to judge its layers on."""

    def __init__(self, function: Any, pixels_NHWC: Pixels) -> None:
        self._operations = {one.name: one for one in linear_layers(function)}
        self._reference = mil.Reference(function)
        self._images = torch.from_numpy(np.array(pixels_NHWC[:IMAGES])).permute(0, 3, 1, 2).float()
        self.layers = self._measured()

    def _measured(self) -> tuple[Layer, ...]:
        """One pass over the images."""
        squares: dict[str, Tensor] = {}
        for image in self._images:
            values = self._values(image)
            for name, operation in self._operations.items():
                x = values[operation.inputs["x"].name]
                axis = 1 if operation.op_type == "conv" else x.dim() - 1
                mean = x.square().mean([place for place in range(x.dim()) if place != axis])
                squares[name] = squares.get(name, torch.zeros(())) + mean / len(self._images)
        found = []
        for name, operation in self._operations.items():
            weights = self._reference.constant(operation.inputs["weight"].name)
            shape = operation.outputs[0].shape
            found.append(
                Layer(
                    name=name,
                    kind=operation.op_type,
                    weights=weights.numpy(),
                    importance=_importance(squares[name].numpy(), weights.shape),
                    macs=int(np.prod(shape) * np.prod(weights.shape[1:])),
                )
            )
        return tuple(found)

    def _values(self, image: Tensor) -> dict[str, Tensor]:
        names = {one.inputs["x"].name for one in self._operations.values()}
        return self._reference.values(
            image[None], names | {one.outputs[0].name for one in self._operations.values()}
        )

    @torch.no_grad()
    def judge(self, encode: Encode, names: Sequence[str] | None = None) -> dict[str, Judged]:
        """Each layer (or those *names*) as *encode* stores it."""
        stored = {
            layer.name: (layer, encode(layer.weights, layer.importance))
            for layer in self.layers
            if names is None or layer.name in names
        }
        changes = {name: torch.from_numpy(one.values - layer.weights) for name, (layer, one) in stored.items()}
        signal, noise = dict.fromkeys(stored, 0.0), dict.fromkeys(stored, 0.0)
        shifts = {name: torch.zeros(len(layer.weights)).double() for name, (layer, _) in stored.items()}
        for image in self._images:
            values = self._values(image)
            for name, change in changes.items():
                operation = self._operations[name]
                arguments = self._reference.arguments(operation, values) | {"weight": change}
                arguments.pop("bias", None)  # what is linear in the weights: the error alone
                (error,) = apply(operation.op_type, arguments)
                axis = 1 if operation.op_type == "conv" else error.dim() - 1
                mean = error.double().mean([place for place in range(error.dim()) if place != axis])
                shifts[name] += mean / len(self._images)
                signal[name] += float(values[operation.outputs[0].name].double().square().sum())
                noise[name] += float(error.double().square().sum())
        return {
            name: Judged(
                layer=layer,
                stored=one,
                own_db=_db(noise[name], signal[name]),
                shift=shifts[name].numpy(),
            )
            for name, (layer, one) in stored.items()
        }


def bench(source: "Source", float_model: Any, pixels_NHWC: Pixels) -> Bench:
    """The layers of a float model on some of the images (N, H, W, 3), made once; N may be sorted by class."""
    count = len(pixels_NHWC)
    rows = np.linspace(0, count - 1, min(IMAGES, count)).astype(int)
    key = hashlib.sha256(pixels_NHWC[rows].tobytes()).hexdigest()
    return source.once(
        f"coreml layers {key}", lambda: Bench(mil.load(Path(float_model.package_path)), pixels_NHWC[rows])
    )


def _importance(squares: npt.NDArray[np.float32], shape: Sequence[int]) -> Array:
    """The mean square (channels,) of each input, as broad as the weights (O, I, ...) of a group's own inputs.

    A floor keeps channels that these images leave silent from being given up.
    """
    squares = squares + np.float32(1e-3 * squares.mean() + 1e-12)
    outputs, inputs = shape[:2]
    groups = max(1, squares.size // inputs)
    rows = np.repeat(squares.reshape(groups, inputs), outputs // groups, axis=0)
    return rows.reshape(outputs, inputs, *[1] * (len(shape) - 2)).astype(np.float32)


def _db(noise: float, signal: float) -> float:
    return min(CAP_DB, round(float(10 * np.log10(max(signal, 1e-300) / max(noise, 1e-300))), 2))
