"""Keras and TensorFlow models as sources: TFLiteConverter writes the float file, edgekit does the rest.

Shapes: N images, H height, W width, K classes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import flatbuffer
from edgekit.errors import ConversionError, UsageError
from edgekit.export import BaseSource, Logits, Lowered, PixelClassifier
from edgekit.files import sha256
from edgekit.keras_model import Network, check_input, line, load
from edgekit.preprocess import Pixels, Preprocess
from edgekit.quiet import quiet

BATCH = 32
SAME = 1e-3  # of the largest score: what sums in another order may differ by
RESERVED = ("pixels", "pixels_as_float", "logits")  # what the converter calls the ends of a file
WITH_WEIGHTS = ("convolution", "depthwise", "MatMul")
ENDS = {"SOFTMAX": "softmax", "LOGISTIC": "sigmoid"}


@dataclass(frozen=True, kw_only=True)
class KerasSource(BaseSource):
    """A Keras model on its way to TFLite files: a `edgekit.export.Source`."""

    network: Network

    def logits(self, pixels_NHWC: Pixels) -> Logits:
        batch = self.network.shape[0]
        function = self.once("keras", lambda: _function(self.network, self.preprocess, batch or None))
        step = batch or BATCH
        with quiet():
            rows = [
                function(pixels_NHWC[at : at + step].astype(np.float32)).numpy()
                for at in range(0, len(pixels_NHWC), step)
            ]
        return np.concatenate(rows).astype(np.float32)

    def torch_model(self, target: str) -> PixelClassifier:
        raise ConversionError(
            f"a Keras model goes to tflite only, not to {target}: give --target tflite, or the network in torch"
        )

    def float_tflite(self) -> Lowered:
        """What TFLiteConverter makes of it for one image. Raises ConversionError."""
        function = _function(self.network, self.preprocess, 1)
        model = flatbuffer.unpack(_converted(function, self.network.layers))
        flatbuffer.unshare_biases_(model)
        _name_(model, self.network.layers)
        last = flatbuffer.details(model)[-1].kind
        notes: tuple[str, ...] = ()
        if last in ENDS:
            notes = (f"the model ends in {ENDS[last]}: its scores are probabilities, and so are the file's",)
        return Lowered(content=flatbuffer.pack(model), tools=("tensorflow", "keras"), notes=notes)


def find(path: Path, preprocess: Preprocess, labels: tuple[str, ...] | None) -> KerasSource:
    """The source in a file or folder. Raises UsageError, CheckpointError, ConversionError or MissingDependency."""
    network = load(path)
    check_input(path, network, preprocess)
    source = KerasSource(network=network, preprocess=preprocess, labels=(), parent=sha256(path))
    outputs = _outputs(path, source)
    if labels and len(labels) != outputs:
        raise UsageError(f"{path} gives {outputs} scores, but there are {len(labels)} labels")
    return replace(source, labels=labels or tuple(map(str, range(outputs))))


def _outputs(path: Path, source: KerasSource) -> int:
    """How many scores it gives. Raises ConversionError where it is no classifier, or is in training mode."""
    _, height, width, _ = source.shape_NHWC
    images = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), np.uint8)
    try:
        together = source.logits(images)
    except Exception as error:  # TensorFlow, Keras and a model's own code raise anything
        raise ConversionError(f"{path} does not run on {width}x{height} pixels: {line(error)}") from error
    if together.ndim != 2 or together.shape[1] < 2:
        shape = (1, *together.shape[1:])
        raise ConversionError(f"{path} gives {shape}; a classifier gives scores of shape (1, classes)")
    if not np.isfinite(together).all():
        raise ConversionError(
            f"{path} gives NaN or infinite scores for noise: its weights are broken, or its arithmetic"
        )
    alone = np.concatenate([source.logits(image[None]) for image in images])
    if not np.allclose(together, alone, rtol=0, atol=SAME * float(np.abs(alone).max())):
        raise ConversionError(
            f"{path} answers differently for an image alone and among others: batch normalization or dropout is "
            "in training mode; save the model for inference (training=False)"
        )
    return int(together.shape[1])


def _function(network: Network, preprocess: Preprocess, batch: int | None) -> Any:
    """A concrete function of pixels as floats (batch, H, W, 3), 0 to 255."""
    import tensorflow as tf

    mean, std = (np.array(values, np.float32) * np.float32(255) for values in (preprocess.mean, preprocess.std))

    def scores(pixels: Any) -> Any:
        x = pixels
        if preprocess.channel_order == "BGR":  # a convolution: XNNPACK takes no reversal
            x = tf.nn.conv2d(x, np.eye(3, dtype=np.float32)[None, None, ::-1], 1, "VALID")
        if mean.any():
            x = x - mean
        if (std != 1).any():
            x = x * (1 / std)
        return network.call(x)

    spec = tf.TensorSpec((batch, preprocess.height, preprocess.width, 3), tf.float32, name="pixels")
    with quiet():
        return tf.function(scores, autograph=False).get_concrete_function(spec)


def _converted(function: Any, layers: frozenset[str]) -> bytes:
    """The float file of a concrete function. Raises ConversionError that names what TFLite lacks, and where."""
    import tensorflow as tf

    try:
        with quiet():
            # Without the object that holds the variables, they are frozen first: three times as fast.
            return bytes(tf.lite.TFLiteConverter.from_concrete_functions([function]).convert())
    except Exception as error:  # its errors have no common class
        lacking = re.findall(r"^\s*(?:Flex|Custom) ops: (.+)$", str(error), re.MULTILINE)
        if lacking:
            kinds = [kind.strip().removeprefix("Flex") for line in lacking for kind in line.split(",")]
            raise ConversionError(
                f"TFLite has no operator for TensorFlow's {', '.join(lacking)}{_places(function, kinds, layers)}, "
                "and edgekit's files run without TensorFlow (Flex): replace it in the model by what it is made of"
            ) from error
        raise ConversionError(f"TFLiteConverter cannot convert this model: {line(error)}") from error


def _places(function: Any, kinds: Sequence[str], layers: frozenset[str]) -> str:
    """Which layers have operators of these kinds, where the graph tells."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for part in graph.library.function for node in part.node_def)]
    paths = [_path(node.name, layers)[:-1] for node in nodes if node.op in kinds]
    names = list(dict.fromkeys("/".join(path) for path in paths if path))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f" (in {', '.join(names[:3])}{more})" if names else ""


def _name_(model: Any, layers: frozenset[str]) -> None:
    """Name tensors by the layers that give them, shortly: constants by whom they serve.

    TFLiteConverter joins the names of all that it fused; with them a small file is some percent larger.
    """
    graph = model.subgraphs[0]
    taken = {*RESERVED, *(flatbuffer.text(graph.tensors[index].name) for index in graph.inputs)}
    for operator in graph.operators:
        for index in operator.outputs:
            parts = _path(flatbuffer.text(graph.tensors[index].name), layers)
            graph.tensors[index].name = _free(taken, "/".join(parts[:-1]), "/".join(parts))
    for operator in graph.operators:
        owner = flatbuffer.text(graph.tensors[operator.outputs[0]].name)
        for place, index in enumerate(operator.inputs):
            data = model.buffers[graph.tensors[index].buffer].data if index >= 0 else None
            if data is not None and len(data):
                graph.tensors[index].name = f"{owner}:{place}"


def _path(name: str, layers: frozenset[str]) -> list[str]:
    """Layers and operation of a tensor's name, without the model's own: of the layer with weights, of several."""
    fused = [one.split("/") for one in name.split(";") if one]
    first, *parts = next((path for path in fused if path[-1].rstrip("0123456789") in WITH_WEIGHTS), fused[0])
    if first not in layers:  # Keras numbers its scopes anew when it is traced: model_1/stem_1 is model/stem
        parts = [plain if (plain := re.sub(r"_\d+$", "", part)) in layers else part for part in parts]
    return parts or [first]


def _free(taken: set[str], *names: str) -> str:
    """The first of the names that is not taken yet, or the last with a number; taken from now on."""
    wanted = [name for name in names if name]
    numbered = (f"{wanted[-1]}_{number}" for number in range(1, len(taken) + 2))
    found = next(name for name in (*wanted, *numbered) if name not in taken)
    taken.add(found)
    return found
