"""What each precision costs in accuracy and gains in speed: the tables of docs/quantization.md.

    edgekit run benchmarks/quantization/mobilenet_v1.toml --until train --data cifar --out runs/mobilenet_v1
    python benchmarks/quantization.py runs/mobilenet_v1 [RUN...] [--qat-epochs 2] [--out quantization]

Every row is a file in OUT, measured on all held-out images of the run with the interpreter that ships, and tested
against the fp32 file on the same images (exact McNemar). "int8 stock" is litert-torch's float file through
ai-edge-quantizer's default recipe, calibrated on the same images as ours. "int8 repaired" may lose --max-drop
points, "int8-mixed" --mixed-drop: both look at the images that they are measured on. Latencies are of one thread,
in turn, as in artifact_latency.py: medians of ratios to fp32. Rows that are in OUT are not made again.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
STOCK = "int8 stock"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    name: str
    file: str
    size_bytes: int
    top1: float
    difference: float  # of top-1 to fp32, in points
    p_value: float
    seconds: float  # to make it
    told: str = ""
    ratio: float = 1.0  # of its latency to fp32's
    quartiles: tuple[float, float] = (1.0, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--max-drop", type=float, default=0.3)
    parser.add_argument("--mixed-drop", type=float, default=0.05)
    parser.add_argument("--qat-epochs", type=int, default=2)
    parser.add_argument("--qat-images", type=int, default=0, help="of an epoch; default all")
    parser.add_argument("--qat-labels", type=float, default=0.0, help="their share in the loss")
    parser.add_argument("--qat-rate", type=float, default=2e-4)
    parser.add_argument("--qat-temperature", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--invokes", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("quantization"))
    options = parser.parse_args()
    for run in options.runs:
        table(run, options)


def table(run: Path, options: argparse.Namespace) -> None:
    from edgekit import source
    from edgekit.recipe import CalibrationSpec

    found = source.find(
        str(run), preprocess=None, labels=None, weights=None, calibrate=None, confirm=lambda _: False
    ).source
    assert found.held_out is not None
    assert found.calibrate is not None
    held_out, out = found.once("held-out images", found.held_out), options.out / run.name
    out.mkdir(parents=True, exist_ok=True)
    images = found.calibrate(CalibrationSpec(seed=1)).pixels_NHWC
    answers: dict[str, Any] = {}
    rows: list[Row] = []
    for name, variant in variants(options).items():
        began = time.perf_counter()
        path, told = made(found, name, variant, images, out)
        seconds = time.perf_counter() - began
        answers[name] = predicted(path, held_out.pixels_NHWC)
        rows.append(row(name, path, told, seconds, held_out.truth, answers[name], answers["fp32"]))
        print(f"{run.name}: {rows[-1]}", flush=True)
    rows = timed(rows, out, options)
    (out / "table.json").write_text(json.dumps([asdict(one) for one in rows], indent=1))
    print(shown(run.name, rows, len(held_out.truth)), flush=True)


def variants(options: argparse.Namespace) -> dict[str, Any]:
    from edgekit.recipe import Variant
    from edgekit.trainspec import QatSpec

    def one(precision: str, **more: Any) -> Variant:
        return Variant(target="tflite", precision=precision, **more)

    qat = QatSpec(
        epochs=options.qat_epochs,
        images=options.qat_images,
        learning_rate=options.qat_rate,
        distill=1 - options.qat_labels,
        temperature=options.qat_temperature,
    )
    return {
        **{name: one(name) for name in ("fp32", "fp16", "w8", "dyn8")},
        STOCK: None,
        "int8": one("int8"),
        "int8 repaired": one("int8", max_drop=options.max_drop, qat=qat),
        "int8-mixed": one("int8-mixed", max_drop=options.mixed_drop),
        "int8-qat": one("int8-qat", qat=qat),
    }


def made(found: Any, name: str, variant: Any, images: Any, out: Path) -> tuple[Path, str]:
    """The row's file, made where it is not there yet, and what is to be told of it."""
    from edgekit import artifact, convert
    from edgekit.errors import ArtifactError

    folder = out / name.replace(" ", "-")
    if variant is None:
        folder.mkdir(exist_ok=True)
        if not (path := folder / "int8.tflite").is_file():
            stock(found, path)
        return path, ""
    try:
        [path] = folder.glob("*.tflite")
        one = artifact.read(path)
    except (ValueError, ArtifactError):
        [one] = convert.convert(found, [variant], images, folder, lambda *_: None)
    return one.path, told(one)


def told(one: Any) -> str:
    if one.repair is None:
        return ""
    verdict = "" if one.repair.met else "; budget NOT met"
    steps = ", ".join(f"{step.tried} {step.drop:+.2f}" for step in one.repair.steps)
    return f"{one.precision}, {len(one.repair.float_layers)} layers in float{verdict} ({steps})"


def stock(found: Any, path: Path) -> None:
    from benchmarks.artifact_latency import stock as stock_files
    from edgekit.recipe import CalibrationSpec

    pixels = found.calibrate(CalibrationSpec()).pixels_NHWC[:, None].astype(np.float32)
    pixels = np.random.default_rng(0).permutation(pixels)  # they come by class, and its average forgets
    with tempfile.TemporaryDirectory() as folder:
        stock_files(found, Path(folder, "fp32.tflite"), path, pixels)


def predicted(path: Path, pixels_NHWC: Any) -> Any:
    """The classes (N,) that a file gives, whatever type it takes pixels in. Integers have their scores' order."""
    from ai_edge_litert.interpreter import Interpreter

    from edgekit.quiet import quiet

    with quiet():
        interpreter = Interpreter(model_path=str(path), num_threads=1)
        interpreter.allocate_tensors()
    [before], [after] = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for image in pixels_NHWC:
        interpreter.set_tensor(before["index"], stored(image[None], before))
        interpreter.invoke()
        found.append(int(interpreter.get_tensor(after["index"]).argmax()))
    return np.array(found)


def stored(pixels: Any, tensor: dict[str, Any]) -> Any:
    """Pixels as the tensor has them: integers with its scale and zero point."""
    scale, zero_point = tensor["quantization"]
    if not scale or tensor["dtype"] is np.float32:
        return pixels.astype(tensor["dtype"])
    limits = np.iinfo(tensor["dtype"])
    return np.clip(np.rint(pixels / scale) + zero_point, limits.min, limits.max).astype(tensor["dtype"])


def row(name: str, path: Path, told: str, seconds: float, truth: Any, answers: Any, reference: Any) -> Row:
    from edgekit.stats import paired

    pair = paired(truth, reference, answers)
    return Row(
        name=name,
        file=str(path),
        size_bytes=path.stat().st_size,
        top1=float((answers == truth).mean()),
        difference=100 * pair.difference,
        p_value=pair.p_value,
        seconds=seconds,
        told=told,
    )


def timed(rows: list[Row], out: Path, options: argparse.Namespace) -> list[Row]:
    """The rows with their latencies over that of fp32."""
    from dataclasses import replace

    from benchmarks.artifact_latency import measured

    times = measured({one.name: Path(one.file) for one in rows}, options.rounds, options.invokes)
    found = []
    for one in rows:
        low, middle, high = np.percentile(np.array(times[one.name]) / np.array(times["fp32"]), (25, 50, 75))
        found.append(replace(one, ratio=float(middle), quartiles=(float(low), float(high))))
    return found


def shown(title: str, rows: list[Row], count: int) -> str:
    """The table in Markdown."""
    from edgekit import units

    lines = [
        f"{title} ({count} images)",
        "",
        "| file | size | latency | top-1 | to fp32 | p |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        speed = f"{one.ratio:.2f} ({one.quartiles[0]:.2f}-{one.quartiles[1]:.2f})"
        against = ("", "") if one.name == "fp32" else (f"{one.difference:+.2f}", f"{one.p_value:.2g}")
        cells = (one.name, units.size(one.size_bytes), speed, f"{100 * one.top1:.2f} %", *against)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {one.name}: {one.told}" for one in rows if one.told), ""])


if __name__ == "__main__":
    main()
