"""One pass of the calibration images through the float file: what is known of each activation tensor after it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import flatbuffer
from edgekit.calibrate.histogram import Histogram
from edgekit.calibrate.images import check
from edgekit.errors import ConversionError
from edgekit.preprocess import Pixels
from edgekit.quiet import quiet
from edgekit.requires import require

# Of a larger tensor this many values an image, evenly spread, go into the histogram; its ends are always exact.
SAMPLE = 32_768
SMOOTHING = 0.95  # of the moving averages, as Google's quantizer has it


@dataclass(kw_only=True, slots=True)
class Observed:
    """What is known of a tensor: ends over all images, moving averages of each image's ends, a histogram."""

    low: float = math.inf
    high: float = -math.inf
    average_low: float = math.nan
    average_high: float = math.nan
    histogram: Histogram = field(default_factory=Histogram)

    def add_(self, values: npt.NDArray[np.float32], low: float, high: float, turn: int) -> None:
        """Take in the tensor of another image, all finite, and its ends; *turn* counts the images."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.average_low = SMOOTHING * self.average_low + (1 - SMOOTHING) * low if turn else low
        self.average_high = SMOOTHING * self.average_high + (1 - SMOOTHING) * high if turn else high
        self.histogram.add_(_sample(values.reshape(-1), turn))


def _sample(values: npt.NDArray[np.float32], turn: int) -> npt.NDArray[np.float32]:
    """Evenly spread values. The step has no divisor in common with the size, or some channels were never seen."""
    step = -(-values.size // SAMPLE)
    while math.gcd(step, values.size) > 1:
        step += 1
    return values[turn % step :: step]


def observe(content: bytes, pixels_NHWC: Pixels, ids: Sequence[str] = ()) -> dict[str, Observed]:
    """What each float tensor that an operator gives is over the images, by name, in the order of the operators.

    The file takes pixels as floats, 0 to 255; *ids* name the images. Raises DataError for images that cannot set
    ranges, ConversionError for NaN or infinite activations.
    """
    check(pixels_NHWC)
    interpreter = loaded(content, keep=True)
    tensors = activations(flatbuffer.unpack(content))
    observed = {name: Observed() for name in tensors}
    [entry] = interpreter.get_input_details()
    # Images come sorted, often by class, and a moving average remembers the last of them.
    for turn, number in enumerate(np.random.default_rng(0).permutation(len(pixels_NHWC))):
        interpreter.set_tensor(entry["index"], pixels_NHWC[number][None].astype(np.float32))
        interpreter.invoke()
        for name, index in tensors.items():
            values = interpreter.tensor(index)()  # a view: nothing is copied
            low, high = float(values.min()), float(values.max())
            if not (math.isfinite(low) and math.isfinite(high)):  # a NaN anywhere is the minimum
                which = ids[number] if ids else f"number {number}"
                bad = int((~np.isfinite(values)).sum())
                raise ConversionError(
                    f"calibration: {bad} of {values.size} values of {name} are NaN or infinite for image {which}: "
                    "the float model is broken there; train it again, or leave the image out"
                )
            observed[name].add_(values, low, high, turn)
            del values  # the interpreter refuses to run while a view of its memory is alive
    return observed


def activations(model: Any) -> dict[str, int]:
    """Index by name of the float tensors that operators give, in the order in which they run."""
    graph, kinds = model.subgraphs[0], flatbuffer.schema().TensorType
    return {
        flatbuffer.text(graph.tensors[index].name): int(index)
        for operator in graph.operators
        for index in operator.outputs
        if graph.tensors[index].type == kinds.FLOAT32
    }


def logits(content: bytes, pixels_NHWC: Pixels) -> npt.NDArray[np.float32]:
    """What the file gives for the images (N, K), as floats."""
    interpreter = loaded(content)
    [before], [after] = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for image in pixels_NHWC:
        interpreter.set_tensor(before["index"], image[None].astype(before["dtype"]))
        interpreter.invoke()
        rows.append(interpreter.get_tensor(after["index"]))
    found: npt.NDArray[np.float32] = np.concatenate(rows)
    return found


def loaded(content: bytes, *, keep: bool = False) -> Any:
    """Ready to run. *keep*: all tensors can be read afterwards; XNNPACK then computes operator by operator."""
    runtime = require("ai_edge_litert.interpreter", feature="Calibrating", extra="tflite")
    with quiet():  # it warns of the memory that keeping all takes
        interpreter = runtime.Interpreter(
            model_content=content, num_threads=1, experimental_preserve_all_tensors=keep
        )
        interpreter.allocate_tensors()
    return interpreter
