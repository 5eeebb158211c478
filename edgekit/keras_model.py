"""Keras files and TensorFlow's SavedModels, loaded as functions of images.

A `.keras` or `.h5` file is read by Keras without running code that it may hold; a SavedModel is a program of
TensorFlow's, and is run as it stands. Shapes: N images, H height, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgekit.errors import CheckpointError, ConversionError, EdgekitError, UsageError
from edgekit.preprocess import Preprocess
from edgekit.quiet import quiet
from edgekit.requires import require

SUFFIXES = (".keras", ".h5", ".hdf5")
SAVED_MODEL = "saved_model.pb"
SIGNATURE = "serving_default"


def is_keras(path: Path) -> bool:
    """Whether this is the path of a Keras file or of a SavedModel folder."""
    return path.suffix in SUFFIXES or (path / SAVED_MODEL).is_file()


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A loaded model: *call* gives the scores of a tensor (N, H, W, 3), *shape* is what it takes, 0 where free.

    *layers*: the names of its layers, as far as it tells.
    """

    call: Callable[[Any], Any]
    shape: tuple[int, ...]
    layers: frozenset[str] = frozenset()


def load(path: Path) -> Network:
    """The model in a file or folder. Raises UsageError, CheckpointError, ConversionError or MissingDependency."""
    if not path.exists():
        raise UsageError(f"no such file: {path}")
    with quiet():
        start()
        try:
            return _saved_model(path) if path.is_dir() else _keras_file(path)
        except EdgekitError:
            raise
        except Exception as error:  # a damaged file makes Keras, h5py, zipfile and TensorFlow raise anything
            raise CheckpointError(
                f"{path} cannot be read: {line(error)}; if it is sound and needs code of its own, save it as a "
                "SavedModel: model.export(FOLDER)"
            ) from error


def start() -> None:
    """Import TensorFlow and Keras. Raises MissingDependency."""
    if find_spec("triton"):  # torch imports it when it comes to that; behind TensorFlow, that ends the process
        import_module("triton")
    for name in ("tensorflow", "keras"):
        require(name, feature="Converting Keras models", extra="keras")


def _keras_file(path: Path) -> Network:
    import keras

    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    inputs, outputs = _of(model, "inputs", path), _of(model, "outputs", path)
    if len(inputs) != 1 or len(outputs) != 1:
        raise _several(path, len(inputs), len(outputs))
    return Network(
        call=lambda x: model(x, training=False),  # as `predict` does, whatever a layer was called with
        shape=_shape(path, inputs[0].shape, inputs[0].dtype),
        layers=frozenset(layer.name for layer in model._flatten_layers()),
    )


def _of(model: Any, what: str, path: Path) -> list[Any]:
    found = getattr(model, what, None)
    if not found:
        raise ConversionError(
            f"{path} does not tell its {what}: save a functional or Sequential model that was built, or a "
            "SavedModel (model.export)"
        )
    return list(found)


def _saved_model(path: Path) -> Network:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    if SIGNATURE not in loaded.signatures:
        there = ", ".join(loaded.signatures) or "none"
        raise ConversionError(f"{path} has no signature {SIGNATURE} (there: {there}): save it with model.export")
    signature = loaded.signatures[SIGNATURE]
    taken, given = signature.structured_input_signature[1], signature.structured_outputs
    if len(taken) != 1 or len(given) != 1:
        raise _several(path, len(taken), len(given))
    [(name, spec)], [output] = taken.items(), given

    def call(x: Any, owner: Any = loaded) -> Any:  # the signature alone does not keep the variables alive
        return signature(**{name: x})[output]

    return Network(call=call, shape=_shape(path, spec.shape, spec.dtype.name))


def _several(path: Path, inputs: int, outputs: int) -> ConversionError:
    return ConversionError(
        f"{path} has {inputs} {'input' if inputs == 1 else 'inputs'} and {outputs} "
        f"{'output' if outputs == 1 else 'outputs'}; a classifier takes one image and gives one row of scores"
    )


def _shape(path: Path, shape: Any, dtype: str) -> tuple[int, ...]:
    if dtype != "float32":
        raise ConversionError(f"{path} takes {dtype}; edgekit converts models that take images as float32")
    if getattr(shape, "rank", 0) is None:
        raise ConversionError(f"{path} takes a tensor of any shape: fix it to (None, height, width, 3)")
    return tuple(int(side or 0) for side in shape)


def check_input(path: Path, network: Network, preprocess: Preprocess) -> None:
    """Raises ConversionError or UsageError where it takes no RGB images (N, H, W, 3) of the contract's size."""
    shape = network.shape
    shown = f"({', '.join(str(side) if side else 'any' for side in shape)})"
    if len(shape) != 4 or shape[3] not in (0, 3):
        if len(shape) == 4 and shape[1] == 3:
            raise ConversionError(
                f"{path} takes {shown}, channels first: TFLite has no convolutions of it; build the model with "
                "data_format='channels_last'"
            )
        raise ConversionError(f"{path} takes {shown}; an image classifier takes (any, height, width, 3)")
    if shape[0] > 1:
        raise ConversionError(f"{path} takes {shape[0]} images at once: save it for 1, or for any number")
    height, width = shape[1] or preprocess.height, shape[2] or preprocess.width
    if (height, width) != (preprocess.height, preprocess.width):
        size = str(height) if height == width else f"{width}x{height}"
        raise UsageError(
            f"{path} takes {width}x{height} pixels, not {preprocess.width}x{preprocess.height}: give --size {size}"
        )


def line(error: Exception) -> str:
    """What an error says, in one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}{'...' if len(words) > 300 else ''}"
