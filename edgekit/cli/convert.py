import argparse
from pathlib import Path

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

EXAMPLES = """examples:
  edgekit convert runs/quickstart --target tflite --quantize all
  edgekit convert runs/photos --target coreml
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
        "--weights", type=Path, metavar="FILE", help="a .safetensors or .pt file of tensors, or imagenet"
    )
    parser.add_argument(
        "--size", type=pixels, default=224, metavar="PIXELS", help="input of a model by name; default 224"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where files go; default artifacts/MODEL")
    add_preprocess(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from edgekit import convert, units
    from edgekit.errors import UsageError
    from edgekit.recipe import Variant
    from edgekit.schema import encode

    target, terminal = convert.converter(args.target), Terminal()
    asked = args.quantize or ("fp16" if args.target == "coreml" else "fp32")
    precisions = list(target.precisions) if asked == "all" else asked.split(",")
    variants = [Variant(target=args.target, precision=name) for name in dict.fromkeys(precisions)]
    convert.check(variants)

    from edgekit import data, source
    from edgekit.pipeline import PARITY_IMAGES
    from edgekit.recipe import CalibrationSpec

    if args.calibrate:
        data.check(args.calibrate, split=False)
    found = source.find(
        args.model,
        preprocess=read_preprocess(args.preprocess, args.size, args.size) if args.preprocess else None,
        labels=read_labels(args.labels) if args.labels else None,
        weights=args.weights,
        calibrate=args.calibrate,
        confirm=terminal.confirm,
    )
    for note in found.notes:
        terminal.say(f"convert: {note}")
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
        rows = []
        for one in made:
            assert one.parity is not None
            agree = f"{100 * one.parity.top1_agreement:.1f} %"
            verdict = one.parity.broken(one.precision) or "sound"
            rows.append(
                (str(one.path), units.size(one.size_bytes), f"{one.parity.sqnr_db:.1f} dB", agree, verdict)
            )
        print(table(("file", "size", "SQNR", "same top-1", "parity"), rows))
    write_json(args.json, [{"path": str(one.path), **encode(one)} for one in made])
    return 0
