import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.terminal import (
    STDOUT,
    Terminal,
    add_json,
    add_preprocess,
    count,
    pixels,
    read_labels,
    read_preprocess,
    table,
    write_json,
)

if TYPE_CHECKING:
    from edgekit.artifact import Artifact
    from edgekit.convert import Converter
    from edgekit.recipe import Variant

EXAMPLES = """examples:
  edgekit convert runs/quickstart --target tflite --quantize all
  edgekit convert runs/photos --target coreml --quantize fp16,pal4 --max-drop 1
  edgekit convert runs/photos --target tflite --quantize int8 --max-drop 0.5
  edgekit convert model.py:build --target tflite --quantize fp32,int8 --calibrate photos \\
      --preprocess imagenet --size 224 --labels labels.txt --weights model.pt
  edgekit convert torchvision:mobilenet_v3_small --target onnx --preprocess imagenet
  edgekit convert model.keras --target tflite --quantize int8 --calibrate photos --preprocess minus1to1
  edgekit convert runs/photos --target tflite --quantize int8 --io int8
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        help="a run, a checkpoint, a model's name, torchvision:NAME, timm:NAME, FILE.py:FACTORY, FILE.pt2; of "
        "Keras a .keras or .h5 file or a SavedModel folder",
    )
    parser.add_argument("--target", required=True, metavar="T", help="tflite, coreml or onnx")
    parser.add_argument("--quantize", metavar="P[,P...]", help="precisions, or all (edgekit list precisions)")
    parser.add_argument("--calibrate", metavar="DIR|NAME", help="images that set the ranges of int8")
    parser.add_argument(
        "--max-drop",
        type=points,
        metavar="POINTS",
        help="of top-1 that int8 may lose: else its weights are repaired, layers stay in float, and at last it is "
        "trained (int8-qat); of coreml each compressed precision: palettes get more tables, layers stay in fp16",
    )
    parser.add_argument("--data", metavar="DIR|NAME", help="labelled images on which --max-drop is measured")
    parser.add_argument(
        "--io",
        choices=("uint8", "int8"),
        default="uint8",
        help="uint8 (default): raw pixels in, float logits out; int8, for microcontrollers: pixels less 128 in, "
        "int8 logits out, no float between them",
    )
    parser.add_argument(
        "--deploy",
        choices=("iOS15", "iOS16", "iOS17", "iOS18"),
        help="coreml: the oldest system that is to run the file; default the oldest that can",
    )
    parser.add_argument("--author", metavar="TEXT", help="coreml: who made it, as the file tells")
    parser.add_argument("--license", metavar="TEXT", help="coreml: its licence, as the file tells")
    parser.add_argument(
        "--qat-epochs", type=count, metavar="N", help="of training for int8-qat and --max-drop; default 2"
    )
    parser.add_argument(
        "--qat-images", type=count, metavar="N", help="drawn anew for each of those epochs; default all"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="a .safetensors or .pt file of tensors, or imagenet"
    )
    parser.add_argument(
        "--size",
        type=sides,
        default=(224, 224),
        metavar="PIXELS|WxH",
        help="input of a model by name or of Keras; default 224",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where files go; default artifacts/MODEL")
    add_preprocess(parser)
    add_json(parser)


def sides(text: str) -> tuple[int, int]:
    """Height and width, of ``224`` or ``128x96`` (width first), for argparse."""
    if text.count("x") != 1:
        return (pixels(text), pixels(text))
    width, _, height = text.partition("x")
    return (_side(height, text), _side(width, text))


def _side(part: str, text: str) -> int:
    try:
        return pixels(part)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"expected width and height, such as 128x96, got {text!r}") from error


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
    from dataclasses import replace

    from edgekit import convert
    from edgekit.errors import UsageError
    from edgekit.recipe import QAT
    from edgekit.schema import encode
    from edgekit.trainspec import QatSpec

    target, terminal = convert.converter(args.target), Terminal()
    asked = args.quantize or ("fp16" if args.target == "coreml" else "fp32")
    precisions = _all(target, terminal) if asked == "all" else asked.split(",")
    variants = _variants(args.target, precisions, args.max_drop, args.io)
    given = {name: value for name in ("deploy", "author", "license") if (value := getattr(args, name))}
    if given and args.target != "coreml":
        raise UsageError(f"--{next(iter(given))} is for coreml files, not {args.target}")
    variants = [replace(one, **given) for one in variants]
    if args.qat_epochs or args.qat_images:
        if not any(
            one.precision == QAT or (one.precision == "int8" and one.max_drop is not None) for one in variants
        ):
            flag = "--qat-epochs" if args.qat_epochs else "--qat-images"
            raise UsageError(f"{flag} is for training: give --quantize {QAT}, or int8 with --max-drop")
        qat = QatSpec(epochs=args.qat_epochs or QatSpec().epochs, images=args.qat_images or 0)
        variants = [replace(one, qat=qat) for one in variants]
    convert.check(variants)

    from edgekit import data, parity, source
    from edgekit.recipe import CalibrationSpec
    from edgekit.repair import NO_LABELS

    for images_of in (args.calibrate, args.data):
        if images_of:
            data.check(images_of, split=False)
    found = source.find(
        args.model,
        preprocess=read_preprocess(args.preprocess, *args.size) if args.preprocess else None,
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
        count = parity.images(*found.source.shape_NHWC[1:3])
        images = found.source.calibrate(CalibrationSpec(images=count, seed=1)).pixels_NHWC
    else:
        images = convert.noise(found.source.shape_NHWC[1:], parity.LEAST_IMAGES)
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


def _all(target: "Converter", terminal: Terminal) -> list[str]:
    """Every precision but the one that may take hours, and the one for networks with zeros."""
    from edgekit.recipe import BY_NAME, QAT

    if QAT in target.precisions:
        terminal.say(f"convert: {QAT} is left out of all, because it trains: ask for it by name")
    return [name for name in target.precisions if name not in BY_NAME]


def _variants(target: str, precisions: list[str], max_drop: float | None, io: str) -> "list[Variant]":
    """What to make; --max-drop belongs to int8, and makes int8-mixed of it where that is needed."""
    from edgekit.errors import UsageError
    from edgekit.recipe import Variant, takes_budget

    names = list(dict.fromkeys(precisions))
    if io == "int8":
        if names != ["int8"]:
            raise UsageError(f"--io int8 is for int8 alone: give --quantize int8, not {','.join(names)}")
        if max_drop is not None:
            raise UsageError("--io int8 leaves no layer in float, as --max-drop may: leave out one of them")
        return [Variant(target=target, precision="int8", io="int8")]
    if max_drop is not None:
        if not any(takes_budget(target, name) for name in names):
            if target == "coreml":
                raise UsageError(f"--max-drop is for w8, pal4 or another compressed precision, not {names[0]}")
            raise UsageError(f"--max-drop is for int8: give --quantize int8, not {','.join(names)}")
        names = [name for name in names if name != "int8-mixed" or "int8" not in names]
    return [
        Variant(target=target, precision=name, max_drop=max_drop if takes_budget(target, name) else None)
        for name in names
    ]


def _print(made: "list[Artifact]") -> None:
    from edgekit import units
    from edgekit.report import repairs

    rows = []
    for one in made:
        assert one.parity is not None
        agree = f"{100 * one.parity.top1_agreement:.1f} %"
        verdict = one.parity.broken(one.precision) or "sound"
        rows.append((str(one.path), units.size(one.size_bytes), f"{one.parity.sqnr_db:.1f} dB", agree, verdict))
    print(table(("file", "size", "SQNR", "same top-1", "parity"), rows))
    for one in made:
        if one.repair:
            print(f"\n{one.name}: {repairs.conclusion(one.repair)}")
            print(table(repairs.HEADS, repairs.rows(one.repair)))
