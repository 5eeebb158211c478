import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.terminal import (
    STDOUT,
    Terminal,
    add_json,
    add_preprocess,
    pixels,
    read_labels,
    read_preprocess,
    table,
    write_json,
)

if TYPE_CHECKING:
    from edgekit.artifact import Artifact, Repair
    from edgekit.recipe import Variant

EXAMPLES = """examples:
  edgekit convert runs/quickstart --target tflite --quantize all
  edgekit convert runs/photos --target coreml
  edgekit convert runs/photos --target tflite --quantize int8 --max-drop 0.5
  edgekit convert model.py:build --target tflite --quantize fp32,int8 --calibrate photos \\
      --preprocess imagenet --size 224 --labels labels.txt --weights model.pt
  edgekit convert torchvision:mobilenet_v3_small --target onnx --preprocess imagenet
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", help="a run, a checkpoint, a model's name, torchvision:NAME, timm:NAME or FILE.py:FACTORY"
    )
    parser.add_argument("--target", required=True, metavar="T", help="tflite, coreml or onnx")
    parser.add_argument("--quantize", metavar="P[,P...]", help="precisions, or all (edgekit list precisions)")
    parser.add_argument("--calibrate", metavar="DIR|NAME", help="images that set the ranges of int8")
    parser.add_argument(
        "--max-drop",
        type=points,
        metavar="POINTS",
        help="of top-1 that int8 may lose: else the layers that cost most accuracy stay in float",
    )
    parser.add_argument("--data", metavar="DIR|NAME", help="labelled images on which --max-drop is measured")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="a .safetensors or .pt file of tensors, or imagenet"
    )
    parser.add_argument(
        "--size", type=pixels, default=224, metavar="PIXELS", help="input of a model by name; default 224"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where files go; default artifacts/MODEL")
    add_preprocess(parser)
    add_json(parser)


def points(text: str) -> float:
    """A budget in percentage points, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(
            f"expected percentage points between 0 and 100, such as 0.5, got {text!r}"
        )
    return value


def run(args: argparse.Namespace) -> int:
    from edgekit import convert
    from edgekit.errors import UsageError
    from edgekit.schema import encode

    target, terminal = convert.converter(args.target), Terminal()
    asked = args.quantize or ("fp16" if args.target == "coreml" else "fp32")
    precisions = list(target.precisions) if asked == "all" else asked.split(",")
    variants = _variants(args.target, precisions, args.max_drop)
    convert.check(variants)

    from edgekit import data, source
    from edgekit.pipeline import PARITY_IMAGES
    from edgekit.recipe import CalibrationSpec
    from edgekit.repair import NO_LABELS

    for images_of in (args.calibrate, args.data):
        if images_of:
            data.check(images_of, split=False)
    found = source.find(
        args.model,
        preprocess=read_preprocess(args.preprocess, args.size, args.size) if args.preprocess else None,
        labels=read_labels(args.labels) if args.labels else None,
        weights=args.weights,
        calibrate=args.calibrate,
        confirm=terminal.confirm,
        measure=args.data,
    )
    for note in found.notes:
        terminal.say(f"convert: {note}")
    if found.source.held_out is None and any(variant.budget is not None for variant in variants):
        if asked != "all" or args.max_drop is not None:
            raise UsageError(NO_LABELS)
        terminal.say("convert: int8-mixed is left out: it needs labelled images (--data DIR)")
        variants = [variant for variant in variants if variant.budget is None]
    for variant in variants:
        if variant.budget is not None and args.max_drop is None:
            terminal.say(f"convert: {variant.name} may lose {variant.budget:g} points of top-1 (--max-drop)")
    if found.source.calibrate is None and "int8" in precisions:
        raise UsageError("int8 needs calibration images: give --calibrate DIR, or leave it out of --quantize")
    if found.source.calibrate:
        images = found.source.calibrate(CalibrationSpec(images=PARITY_IMAGES, seed=1)).pixels_NHWC
    else:
        images = convert.noise(found.source.shape_NHWC[1:], 64)
        terminal.say("convert: no images (--calibrate DIR): parity is measured on noise")
    out = args.out or Path("artifacts", found.name)
    with terminal.bar("convert") as progress:
        made = convert.convert(found.source, variants, images, out, progress)
    for one in made:
        for note in one.notes:
            terminal.say(f"convert: {one.name}: {note}")
    if args.json != STDOUT:
        _print(made)
    write_json(args.json, [{"path": str(one.path), **encode(one)} for one in made])
    return 1 if any(one.repair and not one.repair.met for one in made) else 0


def _variants(target: str, precisions: list[str], max_drop: float | None) -> "list[Variant]":
    """What to make; --max-drop belongs to int8, and makes int8-mixed of it where that is needed."""
    from edgekit.errors import UsageError
    from edgekit.recipe import REPAIRED, Variant

    names = list(dict.fromkeys(precisions))
    if max_drop is not None:
        if not set(names) & set(REPAIRED):
            raise UsageError(f"--max-drop is for int8: give --quantize int8, not {','.join(names)}")
        names = [name for name in names if name != "int8-mixed" or "int8" not in names]
    return [
        Variant(target=target, precision=name, max_drop=max_drop if name in REPAIRED else None) for name in names
    ]


def _print(made: "list[Artifact]") -> None:
    from edgekit import units

    rows = []
    for one in made:
        assert one.parity is not None
        agree = f"{100 * one.parity.top1_agreement:.1f} %"
        verdict = one.parity.broken(one.precision) or "sound"
        rows.append((str(one.path), units.size(one.size_bytes), f"{one.parity.sqnr_db:.1f} dB", agree, verdict))
    print(table(("file", "size", "SQNR", "same top-1", "parity"), rows))
    for one in made:
        if one.repair:
            print(f"\n{one.name}: {_conclusion(one.repair)}")
            print(_steps(one.repair))


def _conclusion(found: "Repair") -> str:
    verdict = "within" if found.met else "NOT within"
    count = len(found.float_layers)
    kept = f" with {count} {'layer' if count == 1 else 'layers'} in float" if count else ""
    return (
        f"{100 * (found.float_top1 - found.drop / 100):.2f} % top-1{kept}, {found.drop:.2f} points below float: "
        f"{verdict} the budget of {found.max_drop:g} ({found.images} held-out images)"
    )


def _steps(found: "Repair") -> str:
    from edgekit import units

    rows = [("float", "", f"{100 * found.float_top1:.2f} %", "", "")]
    for step in found.steps:
        count = str(len(step.float_layers))
        rows.append(
            (step.tried, count, f"{100 * step.top1:.2f} %", f"{step.drop:.2f}", units.size(step.size_bytes))
        )
    return table(("tried", "float layers", "top-1", "drop", "size"), rows)
