"""The lines that load a model file and classify an image: Swift, Kotlin or Python, with the file's own names."""

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from string import Template

from edgekit.artifact import TensorSpec
from edgekit.convert import Inspection
from edgekit.errors import ArtifactError, UsageError
from edgekit.preprocess import Preprocess
from edgekit.schema import SchemaError, decode

SUFFIXES = {"swift": ".mlpackage", "kotlin": ".tflite", "python": ".tflite"}
WIDTH = 100  # of what is printed

SWIFT = """\
// Drag $file into Xcode, which compiles it. It takes $taken.
// It runs from $needs on.
import CoreML
import UIKit
import Vision

func classify(_ picture: UIImage) throws -> $gives {
    let model = try MLModel(contentsOf: Bundle.main.url(forResource: $stem, withExtension: "mlmodelc")!)
    let image = try MLFeatureValue(
        cgImage: picture.cgImage!, pixelsWide: $width, pixelsHigh: $height,
        pixelFormatType: kCVPixelFormatType_32BGRA,
        options: [.cropAndScale: VNImageCropAndScaleOption.$crop.rawValue])
    let output = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: [$input: image]))
$result
}
"""
SWIFT_CLASSES = """\
    let label = output.featureValue(for: "classLabel")!.stringValue  // $labels
    return (label, output.featureValue(for: $output)!.dictionaryValue[label]!.doubleValue)"""
SWIFT_SCORES = """\
    return output.featureValue(for: $output)!.multiArrayValue!  // $labels"""

KOTLIN = """\
// Put $file into app/src/main/assets. It takes $taken and gives $given.
// build.gradle.kts: implementation("com.google.ai.edge.litert:litert:1.4.0")
import android.content.Context
import android.graphics.*
import android.media.ThumbnailUtils
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.Interpreter

fun classify(picture: Bitmap, context: Context): String {
    val file = context.assets.open($name).readBytes()
    val model = Interpreter(ByteBuffer.allocateDirect(file.size).order(ByteOrder.nativeOrder()).put(file))
$scale
    val input = ByteBuffer.allocateDirect($width * $height * 3)
    for (y in 0 until $height) for (x in 0 until $width) scaled.getPixel(x, y).let {
        for (value in listOf(Color.red(it), Color.green(it), Color.blue(it))) input.put($value)
    }
    val scores = arrayOf($scores)
    model.run(input.rewind(), scores)
    return LABELS[scores[0].indices.maxByOrNull { scores[0][it] }!!]
}

$labels
"""
KOTLIN_SCALE = {
    "crop": "    val scaled = ThumbnailUtils.extractThumbnail(picture, $width, $height)  // the middle",
    "squash": "    val scaled = Bitmap.createScaledBitmap(picture, $width, $height, true)",
    "pad": """\
    val scaled = Bitmap.createBitmap($width, $height, Bitmap.Config.ARGB_8888)  // on black
    val factor = minOf($width / picture.width.toFloat(), $height / picture.height.toFloat())
    val w = factor * picture.width
    val h = factor * picture.height
    val place = RectF(($width - w) / 2, ($height - h) / 2, ($width + w) / 2, ($height + h) / 2)
    Canvas(scaled).drawBitmap(picture, null, place, Paint(Paint.FILTER_BITMAP_FLAG))""",
}

PYTHON = """\
# pip install ai-edge-litert pillow. $file takes $taken and gives $given.
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps

$labels


def classify(picture: str) -> str:
    model = Interpreter($name)
    model.allocate_tensors()
    image = ImageOps.exif_transpose(Image.open(picture)).convert("RGB")
$scale
    model.set_tensor(model.get_input_details()[0]["index"], $value[None])
    model.invoke()
    return LABELS[model.get_tensor(model.get_output_details()[0]["index"])[0].argmax()]
"""
PYTHON_SCALE = {
    "crop": "    image = ImageOps.fit(image, ($outer_width, $outer_height), Image.Resampling.$method)",
    "squash": "    image = image.resize(($width, $height), Image.Resampling.$method)",
    "pad": """\
    inside = ImageOps.contain(image, ($width, $height), Image.Resampling.$method)
    image = Image.new("RGB", ($width, $height))  # on black
    image.paste(inside, (($width - inside.width) // 2, ($height - inside.height) // 2))""",
}
PYTHON_MIDDLE = """
    image = image.crop(($left, $top, $left + $width, $top + $height))  # the middle"""


def snippet(language: str, path: Path, found: Inspection, preprocess: Preprocess | None) -> str:
    """The source text for the file. *preprocess*: the sidecar's; without one what the file itself tells.

    Raises UsageError for a language that does not go with the file, ArtifactError for a file of no raw pixels.
    """
    if path.suffix != SUFFIXES[language]:
        fit = " or ".join(f"--{name}" for name, suffix in SUFFIXES.items() if suffix == path.suffix)
        cure = f": give {fit}" if fit else ""
        raise UsageError(f"--{language} is for {SUFFIXES[language]} files, and {path.name} is none{cure}")
    height, width = found.input.shape[1:3] if language != "swift" else found.input.shape[2:4]
    contract = preprocess or _embedded(path, found) or Preprocess(height=height, width=width)
    makers: dict[str, Callable[..., str]] = {"swift": _swift, "kotlin": _kotlin, "python": _python}
    return makers[language](path, found, contract, {"file": path.name, "height": height, "width": width})


def _embedded(path: Path, found: Inspection) -> Preprocess | None:
    if "preprocess" not in found.metadata:
        return None
    try:
        return decode(Preprocess, json.loads(found.metadata["preprocess"]))
    except (json.JSONDecodeError, SchemaError) as error:
        raise ArtifactError(f"{path}: the preprocess in it cannot be read: {error}") from error


def _swift(path: Path, found: Inspection, contract: Preprocess, known: dict[str, object]) -> str:
    names = {"input": found.input.name, "output": found.output.name, "stem": path.stem}
    quoted = {key: _quoted(value, "swift") for key, value in names.items()}
    classes = found.output.dtype == "dictionary"
    labels = _shortened(found.labels) or "the scores; the file names no classes"
    result = Template(SWIFT_CLASSES if classes else SWIFT_SCORES).substitute(quoted, labels=labels)
    crops = {"crop": "centerCrop", "squash": "scaleFill", "pad": "scaleFit"}
    return Template(SWIFT).substitute(
        known,
        **quoted,
        taken=f"an image of {known['width']}x{known['height']}, {found.input.name}",
        needs=found.needs,
        gives="(label: String, probability: Double)" if classes else "MLMultiArray",
        crop=crops[contract.resize],
        result=result,
    )


def _kotlin(path: Path, found: Inspection, contract: Preprocess, known: dict[str, object]) -> str:
    _raw(path, found.input)
    count = found.output.shape[-1]
    return Template(KOTLIN).substitute(
        known,
        name=_quoted(path.name, "kotlin"),
        taken=_told(found.input),
        given=_told(found.output),
        scale=Template(KOTLIN_SCALE[contract.resize]).substitute(known),
        value="value.toByte()" if found.input.dtype == "uint8" else "(value - 128).toByte()",
        scores=f"FloatArray({count})" if found.output.dtype == "float32" else f"ByteArray({count})",
        labels=f"val LABELS = listOf(\n{_listed(_names(found), 'kotlin')}\n)",
    )


def _python(path: Path, found: Inspection, contract: Preprocess, known: dict[str, object]) -> str:
    _raw(path, found.input)
    outer_height, outer_width = (
        round(side / contract.crop_fraction) for side in (contract.height, contract.width)
    )
    left, top = round((outer_width - contract.width) / 2), round((outer_height - contract.height) / 2)
    cut = contract.resize == "crop" and (outer_height, outer_width) != (contract.height, contract.width)
    scale = Template(PYTHON_SCALE[contract.resize] + (PYTHON_MIDDLE if cut else "")).substitute(
        known,
        outer_width=outer_width,
        outer_height=outer_height,
        left=left,
        top=top,
        method=contract.interpolation.upper(),
    )
    return Template(PYTHON).substitute(
        known,
        name=_quoted(str(path), "python"),
        taken=_told(found.input),
        given=_told(found.output),
        scale=scale,
        value="np.asarray(image)"
        if found.input.dtype == "uint8"
        else "(np.asarray(image) - 128.0).astype(np.int8)",
        labels=f"LABELS = [\n{_listed(_names(found), 'python')}\n]",
    )


def _raw(path: Path, spec: TensorSpec) -> None:
    """Raise ArtifactError for a file that takes anything but raw pixels, or pixels less 128."""
    raw = spec.dtype == "uint8" and spec.scale in (None, 1.0)
    if not raw and (spec.dtype, spec.scale, spec.zero_point) != ("int8", 1.0, -128):
        raise ArtifactError(
            f"{path} takes {_told(spec)}, not raw pixels, and does not tell how to normalize them: only of files "
            "that edgekit made the lines are known"
        )


def _told(spec: TensorSpec) -> str:
    return f"{spec.name} ({spec.dtype} {'x'.join(map(str, spec.shape))})"


def _names(found: Inspection) -> tuple[str, ...]:
    """The class names; their numbers where the file has none."""
    return found.labels or tuple(map(str, range(found.output.shape[-1])))


def _shortened(labels: tuple[str, ...], most: int = 5) -> str:
    if not labels:
        return ""
    shown = ", ".join(" ".join(label.split()) for label in labels[:most])
    return f"{len(labels)} classes: {shown}" + (", ..." if len(labels) > most else "")


def _listed(labels: tuple[str, ...], language: str) -> str:
    text = ", ".join(_quoted(label, language).replace(" ", "\0") for label in labels) + ","
    lines = textwrap.wrap(
        text, WIDTH - 4, break_long_words=False, break_on_hyphens=False, drop_whitespace=True, expand_tabs=False
    )
    return "\n".join(f"    {line}" for line in lines).replace("\0", " ")


def _quoted(text: str, language: str) -> str:
    """A string of the language."""
    found = []
    for sign in text:
        if sign in '"\\' or (sign == "$" and language == "kotlin"):
            found.append(f"\\{sign}")
        elif ord(sign) < 32:
            found.append(f"\\u{{{ord(sign):x}}}" if language == "swift" else f"\\u{ord(sign):04x}")
        else:
            found.append(sign)
    return f'"{"".join(found)}"'
