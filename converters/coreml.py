"""Core ML through coremltools: an RGB image in, class label and probabilities out, normalisation inside.

``predict`` runs the saved package with edgekit's own reference (`edgekit.mil`), since Core ML needs a Mac.
"""

from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import calibrate, files
from edgekit.artifact import Artifact, Calibration, TensorSpec
from edgekit.convert import Conversion, Inspection, Part, Precision, converting, labels_in, noise
from edgekit.errors import ArtifactError, UsageError, nearest
from edgekit.preprocess import Pixels
from edgekit.quiet import quiet
from edgekit.recipe import Variant
from edgekit.requires import require

if TYPE_CHECKING:
    from edgekit.coreml.integers import Integers
    from edgekit.coreml.layers import Bench
    from edgekit.export import CalibrationImages, Logits, Source

target = "coreml"
suffix = ".mlpackage"
LEFT = "layers that are too small or too sensitive, listed in the notes: fp16"
precisions = {
    "fp32": Precision(
        does="32-bit floating point; runs on CPU and GPU, not on the Neural Engine", size="1", lacks="nothing"
    ),
    "fp16": Precision(
        does="16-bit floating point, weights and activations: the default of Core ML", size="0.50", lacks="nothing"
    ),
    "w8": Precision(does="int8 weights per channel, computed in fp16; iOS 16", size="0.26-0.29", lacks=LEFT),
    "w4": Precision(does="int4 weights in blocks of 32, computed in fp16; iOS 18", size="0.15-0.19", lacks=LEFT),
    "pal8": Precision(does="weights from a table of 256 numbers; iOS 16", size="0.26-0.30", lacks=LEFT),
    "pal6": Precision(does="weights from a table of 64 numbers; iOS 16", size="0.20-0.24", lacks=LEFT),
    "pal4": Precision(does="weights from a table of 16 numbers; iOS 16", size="0.14-0.18", lacks=LEFT),
    "pal2": Precision(
        does="weights from a table of 4 numbers; broken without training for it; iOS 16",
        size="0.08-0.12",
        lacks=LEFT,
    ),
    "sparse50": Precision(
        does="half of the weights zero and not stored, computed in fp16; iOS 16", size="0.29-0.32", lacks=LEFT
    ),
    "sparse75": Precision(
        does="three quarters of the weights zero; for networks that were pruned so in training; iOS 16",
        size="0.16-0.20",
        lacks=LEFT,
    ),
    "sparse50-pal4": Precision(
        does="half of the weights zero, the others from a table of 16; iOS 18", size="0.11-0.15", lacks=LEFT
    ),
    "int8": Precision(
        does="int8 weights and activations, ranges by calibration images; iOS 17",
        size="0.26-0.30",
        lacks="the first layer, activation functions but ReLU, products, what does most to the answers: fp16",
    ),
}
extra = "coreml"
AUTHOR = "made with edgekit"


def check() -> None:
    with quiet():
        for module in ("torch", "coremltools"):
            require(module, feature="Converting to coreml", extra=extra)


def convert(source: "Source", variant: Variant, out: Path) -> Conversion:
    from edgekit.coreml import program, systems

    notes: tuple[str, ...] = ()
    record: Calibration | None = None
    with quiet(), converting("coremltools"):
        if variant.precision in ("fp32", "fp16"):
            model = program.floats(source, variant.precision)
            if variant.deploy is not None:
                model = program.edit(model, lambda _, function: None, systems.target(variant))
        else:
            model, record, notes = _compressed(source, variant)
        program.describe_(model, source, variant.author or AUTHOR, variant.license)
        model.save(str(out))
        # For debugging coremltools itself: no part of the package, but a tenth of its size.
        files.remove(out / "executorch_debug_handle_mapping.json")
        needs = _needs(model)
    return Conversion(
        input=TensorSpec(name="image", shape=(1, 3, *source.shape_NHWC[1:3]), dtype="image"),
        output=TensorSpec(name="classLabel_probs", shape=(1, len(source.labels)), dtype="dictionary"),
        tools={name: version(name) for name in ("torch", "coremltools")},
        calibration=record,
        notes=(f"runs from {needs} on", *notes, "parity by edgekit's reference execution, not by Core ML"),
    )


def _needs(model: Any) -> str:
    from edgekit import mil
    from edgekit.coreml.systems import SYSTEMS

    found = mil.TARGETS[model.get_spec().specificationVersion]
    return SYSTEMS[found]


def _compressed(source: "Source", variant: Variant) -> tuple[Any, Calibration | None, tuple[str, ...]]:
    """The model with compressed weights, and for int8 activations; what it was calibrated on; what to tell."""
    from edgekit.coreml import integers, layers, plan, program

    scheme = plan.scheme_of(variant)
    images, float_model = _images(source, variant), program.floats(source, "fp16")
    pixels = images.pixels_NHWC if images else noise(source.shape_NHWC[1:], layers.IMAGES)
    bench = layers.bench(source, float_model, pixels)
    if variant.precision == "int8" and images is not None:  # `_images` asks for them
        return _integers(variant, float_model, bench, images, integers.judge(source, float_model, bench, images))
    _check_names(variant, [one.name for one in bench.layers])
    chosen = plan.choose(bench.judge(scheme.encode), variant.keep_float)

    def weights_only(_: Any, function: Any) -> None:
        plan.store_(function, chosen.stored, correct_biases=images is not None)

    record = replace(images.record, method="weight error") if images else None
    notes = chosen.notes() if images else (*chosen.notes(), "no images: layers were judged on noise")
    return program.edit(float_model, weights_only, scheme.target), record, notes


def _integers(
    variant: Variant, float_model: Any, bench: "Bench", images: "CalibrationImages", int8: "Integers"
) -> tuple[Any, Calibration, tuple[str, ...]]:
    from edgekit.coreml import integers, plan, program

    _check_names(variant, [bench.layers[0].name, *(one.name for one in int8.operators)])
    scheme = plan.scheme_of(variant)
    chosen, left = plan.choose(bench.judge(scheme.encode), variant.keep_float), int8.left(variant.keep_float)
    fp16 = (*variant.keep_float, *(one.name for one in left))

    def change(whole: Any, function: Any) -> None:
        int8.change_(whole, function, chosen.stored, fp16)

    model = program.edit(float_model, change, scheme.target)
    notes = (*calibrate.doubts(images), *chosen.notes(), *((integers.named(left),) if left else ()))
    return model, int8.ranges.recorded(images.record), notes


def _check_names(variant: Variant, known: list[str]) -> None:
    if strange := [name for name in variant.keep_float if name not in known]:
        cure = nearest(strange[0], known) or f"; its layers are {', '.join(known)}"
        raise UsageError(f"keep_float: the model has no layer {strange[0]!r}{cure}")


def _images(source: "Source", variant: Variant) -> "CalibrationImages | None":
    if source.calibrate is not None:
        return source.calibrate(variant.calibration)
    if variant.precision == "int8":
        raise UsageError("int8 needs calibration images: give --calibrate DIR, or --data for a recipe's own")
    return None


def predict(artifact: Artifact, pixels_NHWC: Pixels) -> "Logits":
    return _logits(artifact.path, pixels_NHWC)


def _logits(path: Path, pixels_NHWC: Pixels) -> "Logits":
    """What stands before the package's softmax (N, K), by edgekit's reference."""
    import torch

    from edgekit import mil

    images = torch.from_numpy(np.array(pixels_NHWC)).permute(0, 3, 1, 2).float()
    return mil.reference(path).logits(images).numpy()


def inspect(path: Path) -> Inspection:
    from edgekit import mil
    from edgekit.coreml.systems import SYSTEMS

    description, function = mil.describe(path), mil.load(path)
    if not description.input or description.input[0].type.WhichOneof("Type") != "imageType":
        raise ArtifactError(f"{path} does not take an image; edgekit reads image classifiers")
    image, told = description.input[0], description.metadata
    written = {"author": told.author, "license": told.license}
    metadata = {name: text for name, text in written.items() if text} | dict(told.userDefined)
    mil.takes_bgr(path)
    labels = mil.labels(function) or labels_in(metadata)
    scores = (1, len(labels)) if mil.labels(function) else tuple(function.outputs[-1].shape)
    return Inspection(
        input=TensorSpec(
            name=image.name, shape=(1, 3, image.type.imageType.height, image.type.imageType.width), dtype="image"
        ),
        output=TensorSpec(
            name=description.output[-1].name,
            shape=scores,
            dtype="dictionary" if mil.labels(function) else "float32",
        ),
        operators=tuple(Counter([*mil.operators(function), *mil.forms(function)]).most_common()),
        weights=mil.weights(function),
        parts=tuple(
            Part(layer=name, kind=kind, dtype=dtype, size_bytes=size_bytes)
            for name, kind, dtype, size_bytes in mil.constants(function)
        ),
        labels=labels,
        metadata=metadata,
        needs=SYSTEMS.get(found := mil.target(function), found),
    )
