"""TFLite through our own lowering and ai-edge-quantizer. Raw uint8 NHWC pixels in, float logits out."""

import json
import re
import tempfile
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import artifact as artifacts
from edgekit import calibrate, flatbuffer, inputs, sparse
from edgekit.artifact import Artifact
from edgekit.calibrate import Chosen
from edgekit.convert import Conversion, Inspection, Part, Precision, converting
from edgekit.dissect import BORDERS
from edgekit.equalize import correct_biases, equalize, restored
from edgekit.errors import ConversionError, MissingDependency, UsageError
from edgekit.preprocess import Pixels
from edgekit.quantize import OUTPUT, layers, quantize, silent
from edgekit.recipe import QAT, Variant
from edgekit.requires import require
from edgekit.schema import encode

if TYPE_CHECKING:
    from edgekit.export import CalibrationImages, Lessons, Logits, Lowered, Source
    from edgekit.lower import UnknownOperator
    from edgekit.qat import Trained

target = "tflite"
suffix = ".tflite"
precisions = {
    "fp32": Precision(does="32-bit floating point", size="1", lacks="nothing"),
    "fp16": Precision(does="weights stored as 16-bit floats, computed in fp32", size="0.50", lacks="nothing"),
    "sparse": Precision(
        does="fp32 with the zeros of 1x1 convolutions left out, for networks made with edgekit prune --sparsity",
        size="0.4 at 75 %",
        lacks="nothing; XNNPACK's sparse kernels are for ARM",
    ),
    "w8": Precision(
        does="int8 weights per channel, computed in fp32",
        size="0.26-0.28",
        lacks="biases, constants of ADD, SUB, MUL",
    ),
    "w4": Precision(
        does="int4 weights per channel, computed in fp32; slow: XNNPACK has no int4",
        size="0.14-0.19",
        lacks="as w8; depthwise convolutions: int8",
    ),
    "dyn8": Precision(
        does="int8 weights, activations quantized at run time",
        size="0.26-0.30",
        lacks="all but convolutions and dense layers; depthwise ones would leave XNNPACK",
    ),
    "int8": Precision(
        does="int8 weights and activations, ranges by calibration images; --io int8: for microcontrollers",
        size="0.26-0.30",
        lacks="the first convolution, and a depthwise one after its h-swish or SiLU; HARD_SWISH: a look-up of 8 "
        "bits; RELU6 and LEAKY_RELU not fused",
    ),
    "int8-mixed": Precision(
        does="int8, but fp32 in the layers that cost most top-1, found on labelled images",
        size="0.26-0.6",
        lacks="as int8, and those layers",
    ),
    "int8-qat": Precision(
        does="int8 after training with its rounding in place, on labelled training images; slow to make",
        size="0.26-0.30",
        lacks="as int8",
    ),
    "int16x8": Precision(
        does="int8 weights, int16 activations, calibrated; many times slower: XNNPACK has none of it",
        size="0.26-0.31",
        lacks="as int8",
    ),
}
CALIBRATED = ("int8", "int8-mixed", "int8-qat", "int16x8")
extra = "tflite"
BIAS_IMAGES = 64  # each layer is measured on all of them, one layer after the other


def check() -> None:
    for module in ("torch", "flatbuffers", "ai_edge_litert", "ai_edge_quantizer"):
        require(module, feature="Converting to tflite", extra=extra)


def convert(source: "Source", variant: Variant, out: Path) -> Conversion:
    from edgekit.quiet import quiet

    lessons = _lessons(source) if variant.precision == QAT else None  # asked for before the long work
    # An equalized float file is what an equalized int8 file is compared with.
    wanted = variant.precision in CALIBRATED or (variant.precision == "fp32" and variant.calibration.equalize)
    images = _calibration_images(source, variant) if wanted else None
    embedded = {"labels": source.labels, "preprocess": encode(source.preprocess)}
    learnt: tuple[str, ...] = ()
    with quiet():
        lowered = source.once("tflite float", lambda: source.float_tflite() or _lower(source))
        with converting("ai-edge-quantizer"):
            if images and variant.precision in CALIBRATED:
                content, chosen = _calibrated(source, lowered.content, images, variant)
                exact = content
                content = quantize(exact, variant.precision, chosen.ranges, variant.keep_float, variant.io)
            else:
                exact = _equalized(source, lowered.content, images) if images else lowered.content
                content, chosen = quantize(exact, variant.precision, None), None
    if lessons:  # outside of quiet: it shows how far it is
        trained = _trained(lessons, variant, exact, content, out)
        with quiet(), converting("ai-edge-quantizer"):
            content = quantize(trained.content, QAT, trained.ranges, variant.keep_float)
        with quiet():
            learnt = (*trained.notes, _agreement(trained, content, images), *_unseen(lessons, source.labels))
    content = _finish(content, json.dumps(embedded), variant.io)
    content, doubt = sparse.stored(content) if variant.precision == "sparse" else (content, ())
    out.write_bytes(content)
    found = inspect(out)
    quantizer = () if variant.precision in ("fp32", "sparse") else ("ai-edge-quantizer",)
    return Conversion(
        input=found.input,
        output=found.output,
        tools={name: version(name) for name in (*lowered.tools, *quantizer, "ai-edge-litert")},
        calibration=(chosen.recorded(images.record) if chosen else images.record) if images else None,
        notes=(
            *lowered.notes,
            *(calibrate.doubts(images) if images else ()),
            *(_silent(chosen) if chosen else ()),
            *_kept(variant),
            *learnt,
            *doubt,
        ),
    )


def _lessons(source: "Source") -> "Lessons":
    if source.lessons is None:
        raise UsageError(
            f"{QAT} trains the network: give --data DIR, a folder that holds one folder of training images a class"
        )
    return source.lessons()


def _trained(lessons: "Lessons", variant: Variant, exact: bytes, int8: bytes, out: Path) -> "Trained":
    """The network after training. *exact*: its float file; *int8*: the file that it starts from."""
    from edgekit import qat

    return qat.train(exact, int8, lessons, variant.qat, artifacts.unfinished(out.with_name(variant.name + suffix)))


def _agreement(trained: "Trained", content: bytes, images: "CalibrationImages | None") -> str:
    """A note on how far the file gives what was trained."""
    from edgekit import qat

    assert images is not None
    pixels = images.pixels_NHWC
    return (
        f"file and trained network give one class for {qat.agreement(trained.network, content, pixels)} of "
        f"{len(pixels)} calibration images"
    )


def _unseen(lessons: "Lessons", labels: tuple[str, ...]) -> tuple[str, ...]:
    """A note on classes of which it was shown nothing in training."""
    names = [label for place, label in enumerate(labels) if place not in set(lessons.truth)]
    listed = f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
    return (f"no image to train on of {len(names)} of {len(labels)} classes: {listed}",) if names else ()


def _silent(chosen: Chosen) -> tuple[str, ...]:
    """A note on tensors of zeros, as of layers that died in training."""
    names = silent(chosen.ranges)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (f"no values but zeros on the calibration images: {', '.join(names[:5])}{more}",) if names else ()


def _kept(variant: Variant) -> tuple[str, ...]:
    """What stays in float, the first few by name: a search's own record has them all."""
    names = variant.keep_float
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (f"kept in float: {', '.join(names[:8])}{more}",) if names else ()


def _calibration_images(source: "Source", variant: Variant) -> "CalibrationImages":
    if source.calibrate is None:
        raise UsageError(
            f"{variant.precision} needs calibration images: give --calibrate DIR, or --data for a recipe's own"
        )
    return source.calibrate(variant.calibration)


def _lower(source: "Source") -> "Lowered":
    """The torch model as we write it; as litert-torch does where it holds an operator that we do not know."""
    from edgekit.export import Lowered
    from edgekit.lower import UnknownOperator, lower

    try:
        with converting("edgekit's lowering"):
            return Lowered(content=lower(source.torch_model(target), source.shape_NHWC))
    except UnknownOperator as unknown:
        return _lower_with_litert_torch(source, unknown)


def _lower_with_litert_torch(source: "Source", unknown: "UnknownOperator") -> "Lowered":
    import torch

    from edgekit.export import Lowered

    if find_spec("litert_torch") is None:
        raise MissingDependency(f"{unknown}; litert-torch may: pip install 'edgekit[tflite-full]'") from unknown
    litert_torch = require("litert_torch", feature="Converting to tflite", extra="tflite-full")
    try:
        with converting("litert-torch"), tempfile.TemporaryDirectory() as folder:
            channels_last = litert_torch.to_channel_last_io(source.torch_model(target), args=[0]).eval()
            path = Path(folder) / "lowered.tflite"
            litert_torch.convert(channels_last, (torch.zeros(source.shape_NHWC),)).export(str(path))
            flatbuffer.unshare_biases_(model := flatbuffer.unpack(path.read_bytes()))
            content = flatbuffer.pack(model)
            _loadable(content)
    except ConversionError as error:
        raise ConversionError(f"{error}; and {unknown}: replace it in the model by what it is made of") from error
    notes = (f"lowered by litert-torch, because {unknown}",)
    return Lowered(content=content, tools=("torch", "litert-torch"), notes=notes)


def _loadable(content: bytes) -> None:
    """Raise ConversionError where the runtime has no kernel for an operator that litert-torch wrote."""
    try:
        calibrate.loaded(content)
    except (RuntimeError, ValueError) as error:
        found = re.search(r"builtin opcode '(\w+)'|custom op: (\w+)", str(error))
        lacks = f"LiteRT has no operator {found[1] or found[2]}" if found else " ".join(str(error).split())
        raise ConversionError(f"the file that litert-torch makes does not run: {lacks}") from error


def _calibrated(
    source: "Source", lowered: bytes, images: "CalibrationImages", variant: Variant
) -> tuple[bytes, Chosen]:
    """The float file to quantize, repaired as asked, and the range of each tensor."""
    from edgekit.adaround import adaround

    record, pixels, precision = images.record, images.pixels_NHWC, variant.precision
    equalized = content = _equalized(source, lowered, images)
    chosen = _choose(source, content, images, precision)
    bits8 = "int16x8" if precision == "int16x8" else "int8"

    def quantized(file: bytes, keep_float: tuple[str, ...] = ()) -> bytes:
        return quantize(file, bits8, chosen.ranges, keep_float, io=variant.io)

    if "adaround" in record.repairs:  # learned without layers in float, since it takes long
        kept = tuple(name for name in record.repairs if name != "correct_biases")
        content = source.once(
            f"tflite rounded {bits8} {variant.io} {replace(record, repairs=kept)}",
            lambda: adaround(equalized, pixels, quantized)[0],
        )
        if variant.keep_float:  # in float the weights as they were are the better ones
            content = restored(content, equalized, layers(flatbuffer.unpack(content), variant.keep_float))
    if "correct_biases" in record.repairs:  # layers in float leave less to correct
        rounded = content

        def corrected() -> bytes:
            made = partial(quantized, keep_float=variant.keep_float)
            return correct_biases(rounded, pixels[:BIAS_IMAGES], made, wanted=equalized)[0]

        key = f"tflite corrected {bits8} {variant.io} {record}"
        content = corrected() if variant.keep_float else source.once(key, corrected)
    return content, chosen


def _equalized(source: "Source", lowered: bytes, images: "CalibrationImages") -> bytes:
    """The float file, its channels equalized if the images' record says so."""
    if "equalize" not in images.record.repairs:
        return lowered
    record = replace(images.record, method="", repairs=())
    return source.once(f"tflite equalized {record}", lambda: equalize(lowered, images.pixels_NHWC)[0])


def _choose(source: "Source", equalized: bytes, images: "CalibrationImages", precision: str) -> Chosen:
    """The range of each tensor. One pass over the images serves all precisions and methods."""
    bits = 16 if precision == "int16x8" else 8
    record = replace(images.record, repairs=tuple(name for name in images.record.repairs if name == "equalize"))
    observed = source.once(
        f"tflite pass {replace(record, method='')}",
        lambda: calibrate.observe(equalized, images.pixels_NHWC, images.ids),
    )
    if bits == 8 and record.method == "auto":
        return source.once(
            f"tflite ranges {record}",
            lambda: calibrate.choose(
                observed, equalized, images.pixels_NHWC, lambda ranges: quantize(equalized, "int8", ranges)
            ),
        )
    # Steps of 16 bits are so small that nothing is worth clipping.
    return calibrate.by_rule(observed, "min-max" if record.method == "auto" else record.method, bits)


def _finish(content: bytes, embedded: str, io: str) -> bytes:
    """The model with an input named ``pixels`` of the type *io*, an output named ``logits``, the metadata inside.

    Raises ConversionError for an int8 one that is not of integers throughout.
    """
    model = flatbuffer.unpack(content)
    if io == "uint8":
        flatbuffer.prepend_dequantize(model)
    elif kinds := flatbuffer.in_float(model):
        floats = [kind for kind in kinds if kind not in BORDERS] or kinds
        raise ConversionError(
            f"io int8 needs integers throughout, but ai-edge-quantizer has no int8 for {', '.join(floats)}: "
            "replace it in the model, or leave out io"
        )
    flatbuffer.rename_ends(model, "pixels", OUTPUT)
    flatbuffer.embed(model, embedded)
    return flatbuffer.pack(model)


def predict(artifact: Artifact, pixels_NHWC: Pixels) -> "Logits":
    interpreter = _interpreter(artifact.path)
    before, after = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    rows = []
    for image in pixels_NHWC:
        interpreter.set_tensor(before["index"], inputs.convert(image[None], artifact))
        interpreter.invoke()
        rows.append(interpreter.get_tensor(after["index"]).copy())
    return flatbuffer.dequantized(np.concatenate(rows), artifact.output)


def _interpreter(path: Path) -> Any:
    from edgekit.quiet import quiet

    runtime = require("ai_edge_litert.interpreter", feature="Running tflite files", extra=extra)
    with quiet():
        interpreter = runtime.Interpreter(model_path=str(path), num_threads=2)
        interpreter.allocate_tensors()
    return interpreter


def inspect(path: Path) -> Inspection:
    with flatbuffer.reading(path) as model:
        before, after = flatbuffer.ends(model)
        embedded = flatbuffer.embedded(model)
        details = flatbuffer.details(model)
        return Inspection(
            input=before,
            output=after,
            operators=flatbuffer.operators(model),
            details=details,
            parts=tuple(
                Part(layer=one.name, kind=one.kind, dtype=one.weights, size_bytes=one.size_bytes)
                for one in details
                if one.size_bytes
            ),
            weights=flatbuffer.weights(model),
            labels=tuple(embedded.get("labels", ())),
            sparsity=sparse.verdict(model),
            metadata={name: json.dumps(value) for name, value in embedded.items()},
        )
