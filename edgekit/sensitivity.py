"""Which layers of a quantized TFLite file are to blame: the error of each on real images, and what would mend it.

`sqnr_db` compares what a layer gives with the float file: it holds the errors of all layers before it. `own_db` is
what the layer adds, as if it alone were quantized: it is fed what the float file has for it, rounded as in the
quantized file, and computes alone, in integers and in float. The rounding of what it gives is judged by what those
make of it who read it: the loss of a small channel beside a large one shows there only.

All layers are fed at once, by copies of both files whose operators are cut apart. So an image costs four runs,
whatever the number of layers. What an error does to the answers is another matter: one in the stem goes through
all of the network, one in the last layer through none of it. `rank` is told that, by who can measure it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import flatbuffer
from edgekit.dissect import File, Pieces, Values
from edgekit.errors import ArtifactError
from edgekit.parity import CAP_DB
from edgekit.preprocess import Pixels

SUFFIX = ".tflite"  # of the files that can be measured
IMAGES = 32  # enough: every image gives thousands of values a layer
# What these give has the scale of what they take: their rounding is that of who made it.
_PASSING = ("PAD", "PADV2", "RESHAPE", "TRANSPOSE", "MAX_POOL_2D", "SLICE", "STRIDED_SLICE", "CONCATENATION")
_BORDER_COST = 0.05  # of the network: to float and back costs something, however few products a layer has
_LEAST_COST = 0.01  # of the network's time: what is less cannot be told apart
_SOUND_DB = 90.0  # two float kernels differ by as much


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One operator of the float file, named as what it gives. *users*: the layers that take that.

    ``rounding``: the share (0 to 1) of its own error that comes from rounding and clipping what it gives; the rest
    is its weights' and its arithmetic's. ``in_float``: it computes in float already.
    """

    name: str
    kind: str
    sqnr_db: float
    own_db: float
    rounding: float
    macs: int
    users: tuple[str, ...] = ()
    in_float: bool = False

    @property
    def own_noise(self) -> float:
        """The power of its own error over that of the signal."""
        return 0.0 if self.own_db >= _SOUND_DB else float(10 ** (-self.own_db / 10))

    def __str__(self) -> str:
        cause = "the range of its output" if self.rounding >= 0.5 else "its weights"
        return f"{self.name} ({self.own_db:.1f} dB by {cause})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Remedy:
    """The layers to compute in float so that the one of this *name* adds no error.

    *cost*: the time that they and the way to float and back take more then, as a share of the network's; or their
    share of its *macs*.
    """

    name: str
    float_layers: tuple[str, ...]
    cost: float
    macs: tuple[int, ...] = ()


def sensitivity(float_file: Path, quantized: Path, pixels_NHWC: Pixels) -> tuple[Layer, ...]:
    """The layers that both files have by name, in the order in which they run, measured on images (N, H, W, 3).

    Raises ArtifactError for damaged files and for two that have no name in common.
    """
    with flatbuffer.reading(float_file) as model:
        wanted = File(model)
    with flatbuffer.reading(quantized) as model:
        given = File(model, wanted.names.values())
    both = _Both(wanted, given)
    if not both.sums:
        raise ArtifactError(
            f"{quantized} has no tensor of the names and shapes in {float_file}: it was not made of it"
        )
    for image in pixels_NHWC:
        both.add_(image)
    return both.layers()


def worst(layers: Sequence[Layer], count: int = 3) -> tuple[Layer, ...]:
    """The few that add most error, whatever they cost: none that adds less than a tenth of what the worst does."""
    found = sorted((one for one in layers if one.own_noise), key=lambda one: one.own_db)[:count]
    return tuple(one for one in found if one.own_db <= found[0].own_db + 10)


def remedies(layers: Sequence[Layer], costs: Mapping[str, float] | None = None) -> tuple[Remedy, ...]:
    """What to compute in float for each layer that adds error.

    *costs*: the time that each layer takes more in float, as a share of the network's; without them its products
    stand for it. A layer whose own error is the rounding of its output takes those who read that along: an integer
    layer would round it again.
    """
    by_name, total = {layer.name: layer for layer in layers}, sum(layer.macs for layer in layers)
    found = []
    for layer in layers:
        readers = _readers(layer, by_name) if layer.rounding >= 0.5 else ()
        names = [name for name in dict.fromkeys((layer.name, *readers)) if not by_name[name].in_float]
        if layer.own_noise and names:
            macs = tuple(by_name[name].macs for name in names)
            if costs is None:
                cost = sum(macs) / max(total, 1) + _BORDER_COST
            else:
                cost = max(sum(costs.get(name, 0.0) for name in names), 0.0) + _LEAST_COST
            found.append(Remedy(name=layer.name, float_layers=tuple(names), cost=cost, macs=macs))
    return tuple(found)


def rank(found: Sequence[Remedy], harms: Sequence[float], most_macs: float) -> tuple[Remedy, ...]:
    """The remedies against most harm for their cost first; those against none are left out.

    *harms*: what each remedy's layers do to the answers when they alone are in integers. All together have at most
    *most_macs* multiply-accumulates, and each adds a layer to those before.
    """
    taken: dict[str, int] = {}
    chosen = []
    for harm, one in sorted(zip(harms, found, strict=True), key=lambda pair: -pair[0] / pair[1].cost):
        joined = taken | dict(zip(one.float_layers, one.macs, strict=True))
        if harm > 0 and len(joined) > len(taken) and sum(joined.values()) <= most_macs:
            taken = joined
            chosen.append(one)
    return tuple(chosen)


def _readers(layer: Layer, by_name: dict[str, Layer]) -> Iterator[str]:
    for name in layer.users:
        if name in by_name:
            yield name
            if by_name[name].kind in _PASSING:
                yield from _readers(by_name[name], by_name)


@dataclass(slots=True)
class _Sums:
    """Powers over all values of all images: of what the float layer gives, and of errors in it.

    ``inputs``: the error that rounding each of its inputs makes of it. ``arithmetic``: that of its weights.
    ``output``: that of rounding what it gives.
    """

    inputs: list[float]
    signal: float = 0.0
    error: float = 0.0
    arithmetic: float = 0.0
    output: float = 0.0


class _Both:
    """The float file and the quantized one, whole and in pieces, run side by side; only sums are kept."""

    def __init__(self, wanted: File, given: File) -> None:
        self.wanted, self.given = wanted, given
        self.sums = {
            name: _Sums([0.0] * len(operator.inputs))
            for name, operator in wanted.operators.items()
            if name in given.operators and wanted.shapes(name) == given.shapes(name)
        }
        if self.sums:
            self.values, self.quantized = Values(wanted), Values(given)
            self.pieces, self.integers = Pieces(wanted, list(self.sums)), Pieces(given, list(self.sums))

    def add_(self, image_HWC: Pixels) -> None:
        self.values.run_(image_HWC)
        self.quantized.run_(image_HWC)
        exact = {name: [self.values[source] for source in self._sources(name)] for name in self.sums}
        stored = {
            name: [
                self.given.stored(index, value) for index, value in zip(self._inputs(name), values, strict=True)
            ]
            for name, values in exact.items()
        }
        rounded = {
            name: [
                self.given.floats(index, value) for index, value in zip(self._inputs(name), values, strict=True)
            ]
            for name, values in stored.items()
        }
        self.integers.run_(stored)
        self.pieces.run_(rounded)
        for name, sums in self.sums.items():
            signal, through, place = self.values[name], self.pieces[name], self.given.operators[name].output
            best = self.given.floats(place, self.given.stored(place, through))
            sums.signal += _power(signal)
            sums.error += _power(self.quantized[name] - signal)
            sums.arithmetic += _power(self.integers[name] - best)
            sums.output += _power(best - through)
            shares = [_power(a - b) for a, b in zip(rounded[name], exact[name], strict=True)]
            error = _power(through - signal) / max(sum(shares), 1e-300)
            sums.inputs = [before + share * error for before, share in zip(sums.inputs, shares, strict=True)]

    def _sources(self, name: str) -> list[str]:
        return [self.wanted.names[index] for index in self.wanted.operators[name].inputs]

    def _inputs(self, name: str) -> tuple[int, ...]:
        return self.given.operators[name].inputs

    def layers(self) -> tuple[Layer, ...]:
        users: dict[str, list[str]] = {name: [] for name in self.sums}
        rounding = dict.fromkeys(self.sums, 0.0)
        for name, sums in self.sums.items():
            for source, noise in zip(self._sources(name), sums.inputs, strict=True):
                for maker in self._makers(source):
                    rounding[maker] = max(rounding[maker], _share(noise, sums.signal))
                if source in users:
                    users[source].append(name)
        for name, sums in self.sums.items():
            if not users[name]:  # nobody but the user reads it
                rounding[name] = _share(sums.output, sums.signal)
        return tuple(
            Layer(
                name=name,
                kind=self.wanted.operators[name].kind,
                sqnr_db=_db(_share(sums.error, sums.signal)),
                own_db=_db(own := rounding[name] + _share(sums.arithmetic, sums.signal)),
                rounding=round(rounding[name] / own, 3) if own else 0.0,
                macs=self.wanted.operators[name].macs,
                users=tuple(dict.fromkeys(users[name])),
                in_float=self.given.operators[name].in_float,
            )
            for name, sums in self.sums.items()
        )

    def _makers(self, name: str) -> list[str]:
        """The layers that a value comes from, through those that pass it on."""
        if name not in self.sums:
            return []
        if self.wanted.operators[name].kind not in _PASSING:
            return [name]
        return [maker for source in self._sources(name) for maker in self._makers(source)]


def _power(values: npt.NDArray[Any]) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _share(noise: float, signal: float) -> float:
    return noise / max(signal, 1e-300)


def _db(noise: float) -> float:
    """The ratio of signal to noise in decibels, at most 150."""
    return min(CAP_DB, round(float(-10 * np.log10(max(noise, 1e-300))), 2))
