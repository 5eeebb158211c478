"""The latency of our TFLite files over the stock paths': litert-torch and ai-edge-quantizer's default int8 recipe,
and Keras and TFLiteConverter, in fp32 and in integers throughout, where those packages are installed.

    python benchmarks/artifact_latency.py [FAMILY...] [--side 224] [--rounds 20] [--invokes 10] [--keep DIR]

All files of a family are loaded in one process, at one thread, XNNPACK on, and run in turn: a few inferences each,
round after round. A ratio is that of two medians of the same round; printed are its median and its quartiles over
the rounds. Weights are random: latency does not depend on them. Below 1, ours is faster. The last ratio is that of
our own two. What XNNPACK does not take is counted. --keep leaves the files in DIR, and takes those that are there.
Keras's networks are those of keras.applications, for one image; MobileNetV3 and EfficientNet normalize inside.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from edgekit.export import ExportSource

FAMILIES = (
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_lite0",
)
CLASSES = 1000
IMAGES = 8  # for calibration: ranges do not change the latency
PAIRS = (
    ("ours fp32", "stock fp32"),
    ("ours int8", "stock int8"),
    ("ours fp32", "keras fp32"),
    ("ours int8", "keras int8"),
    ("ours int8", "ours fp32"),
)
KERAS = {
    "mobilenet_v1": "MobileNet",
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3_small": "MobileNetV3Small",
    "mobilenet_v3_large": "MobileNetV3Large",
    "efficientnet_b0": "EfficientNetB0",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=FAMILIES)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--invokes", type=int, default=10, help="per file and round")
    parser.add_argument("--keep", type=Path, help="a folder for the files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        for family in options.families:
            files = made(family, options.side, folder / f"{family}-{options.side}")
            report(family, files, options.rounds, options.invokes)


def made(family: str, side: int, folder: Path) -> dict[str, Path]:
    """The files of a family: two of ours, and two of each stock path whose packages are here."""
    makers: dict[str, Callable[..., None]] = {"ours": lambda *paths: ours(source(), *paths)}
    if find_spec("litert_torch"):
        makers["stock"] = lambda *paths: stock(source(), *paths)
    if find_spec("tensorflow"):
        makers["keras"] = lambda *paths: keras_files(family, side, *paths)
    source = cache(lambda: sample(family, side))
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    for whose, make in makers.items():
        paths = [folder / f"{whose}-{precision}.tflite" for precision in ("fp32", "int8")]
        if not all(path.is_file() for path in paths):
            make(*paths)
        found |= {f"{whose} fp32": paths[0], f"{whose} int8": paths[1]}
    return found


def sample(family: str, side: int) -> "ExportSource":
    from edgekit import models
    from edgekit.preprocess import preset
    from edgekit.recipe import ModelSpec

    return source_of(models.build(ModelSpec(name=family), CLASSES), preset("imagenet", side, side), CLASSES)


def source_of(network: Any, contract: Any, classes: int) -> "ExportSource":
    """A network to convert, calibrated on noise: latency does not depend on the ranges."""
    from edgekit import convert
    from edgekit.artifact import Calibration
    from edgekit.export import CalibrationImages, ExportSource, PixelClassifier

    pictures = convert.noise((contract.height, contract.width, 3), IMAGES)
    record = Calibration(count=IMAGES, seed=0, method="min-max", images_sha256="")
    return ExportSource(
        model=PixelClassifier(network, contract).eval(),
        preprocess=contract,
        labels=tuple(map(str, range(classes))),
        calibrate=lambda spec: CalibrationImages(pixels_NHWC=pictures, record=record),
    )


def ours(source: "ExportSource", fp32: Path, int8: Path) -> None:
    from edgekit.convert import converter
    from edgekit.recipe import Variant

    for precision, path in (("fp32", fp32), ("int8", int8)):
        converter("tflite").convert(source, Variant(target="tflite", precision=precision), path)


def stock(source: "ExportSource", fp32: Path, int8: Path, pictures: Any = None) -> None:
    """As the two packages' own guides have it: float pixels in, float logits out. *pictures* calibrate it."""
    import litert_torch
    import torch
    from ai_edge_quantizer import quantizer, recipe

    from edgekit.quiet import quiet

    with quiet():
        channels_last = litert_torch.to_channel_last_io(source.model, args=[0]).eval()
        litert_torch.convert(channels_last, (torch.zeros(source.shape_NHWC),)).export(str(fp32))
        tool = quantizer.Quantizer(str(fp32), recipe.static_wi8_ai8())
        if pictures is None:
            noise = np.random.default_rng(0).integers(0, 256, (IMAGES, *source.shape_NHWC))
            pictures = noise.astype(np.float32)
        ranges = tool.calibrate({"serving_default": [{"args_0": picture} for picture in pictures]})
        int8.write_bytes(bytes(tool.quantize(ranges).quantized_model))


def keras_files(family: str, side: int, fp32: Path, int8: Path) -> None:
    """As TensorFlow's guide has it: float pixels in and float logits out, and integers throughout."""
    from edgekit import keras_model
    from edgekit.quiet import quiet

    keras_model.start()
    import tensorflow as tf

    pictures = np.random.default_rng(0).uniform(-1, 1, (IMAGES, 1, side, side, 3)).astype(np.float32)
    if family not in ("mobilenet_v1", "mobilenet_v2"):
        pictures = (pictures + 1) * 127.5
    with quiet():
        network = keras_network(family, side)
        fp32.write_bytes(tf.lite.TFLiteConverter.from_keras_model(network).convert())
        converter = tf.lite.TFLiteConverter.from_keras_model(network)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([picture] for picture in pictures)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.uint8
        int8.write_bytes(converter.convert())


def keras_network(family: str, side: int) -> Any:
    import keras
    from keras.src.applications import efficientnet

    options = {"weights": None, "classes": 1000, "classifier_activation": None}
    image = keras.Input(batch_shape=(1, side, side, 3))
    if family in KERAS:
        return getattr(keras.applications, KERAS[family])(input_tensor=image, **options)
    # EfficientNet-Lite0 is B0 without squeeze and excitation, with ReLU6. Keras's own function can build it.
    blocks = [{**block, "se_ratio": 0.0} for block in efficientnet.DEFAULT_BLOCKS_ARGS]
    return efficientnet.EfficientNet(
        1.0, 1.0, side, activation="relu6", blocks_args=blocks, input_tensor=image, **options
    )


def report(family: str, files: dict[str, Path], rounds: int, invokes: int) -> None:
    from edgekit import xnnpack

    times = measured(files, rounds, invokes)
    print(family)
    for name, path in files.items():
        taken = xnnpack.taken(path)
        outside = f"{len(taken) - sum(taken)} of {len(taken)} operators outside XNNPACK"
        print(f"  {name:11} {np.median(times[name]):8.3f} ms  {path.stat().st_size / 1e6:6.2f} MB  {outside}")
    for name, other in PAIRS:
        if other not in times:
            continue
        low, middle, high = np.percentile(np.array(times[name]) / np.array(times[other]), (25, 50, 75))
        print(f"  {name} / {other}: {middle:.3f} ({low:.3f} to {high:.3f})", flush=True)


def measured(files: dict[str, Path], rounds: int, invokes: int) -> dict[str, list[float]]:
    """For each file the median latency of each round, in milliseconds."""
    ready = {name: interpreter(path) for name, path in files.items()}
    times: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(rounds):
        for name, one in ready.items():
            one.invoke()  # the caches are the last file's
            samples = []
            for _ in range(invokes):
                begin = time.perf_counter_ns()
                one.invoke()
                samples.append(time.perf_counter_ns() - begin)
            times[name].append(float(np.median(samples)) / 1e6)
    return times


def interpreter(path: Path) -> Any:
    """Ready, warm, and with random pixels as its input."""
    from ai_edge_litert.interpreter import Interpreter

    found = Interpreter(model_path=str(path), num_threads=1)
    found.allocate_tensors()
    detail = found.get_input_details()[0]
    pixels = np.random.default_rng(0).integers(0, 256, detail["shape"])
    found.set_tensor(detail["index"], pixels.astype(detail["dtype"]))
    for _ in range(10):
        found.invoke()
    return found


if __name__ == "__main__":
    main()
