import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.terminal import add_json, table, write_json

if TYPE_CHECKING:
    from edgekit.convert import Inspection, Part

EXAMPLES = """examples:
  edgekit inspect runs/quickstart/artifacts/tflite-int8.tflite
  edgekit inspect model.tflite --layers            an operator a line, with its name
  edgekit inspect model.tflite --json -
  edgekit inspect coreml-fp16.mlpackage --swift    the lines that load it and classify an image; of a .tflite
                                                   --kotlin and --python
"""


LINES = "print the lines that load the file and classify an image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="a model file: .tflite, .onnx or .mlpackage")
    lines = parser.add_mutually_exclusive_group()
    lines.add_argument(
        "--layers", action="store_true", help="list the layers with their names, not the kinds of operators"
    )
    lines.add_argument("--swift", action="store_const", dest="language", const="swift", help=f"{LINES}, for iOS")
    lines.add_argument(
        "--kotlin", action="store_const", dest="language", const="kotlin", help=f"{LINES}, for Android"
    )
    lines.add_argument("--python", action="store_const", dest="language", const="python", help=LINES)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from edgekit import artifact as artifacts
    from edgekit import files, units
    from edgekit.convert import for_file
    from edgekit.errors import ArtifactError, UsageError
    from edgekit.schema import encode
    from edgekit.snippet import snippet

    path: Path = args.artifact
    if not path.exists():
        raise ArtifactError(f"no such file: {path}")
    found = for_file(path).inspect(path)
    if args.language:
        if args.json:
            raise UsageError(f"--{args.language} prints source text: leave out --json")
        if artifacts.sidecar(path).is_file():
            beside = artifacts.read(path)
            told = replace(found, labels=found.labels or beside.labels)
            print(snippet(args.language, path, told, beside.preprocess), end="")
        else:
            print(snippet(args.language, path, found, None), end="")
        return 0
    taken, fault = _taken(path) if found.details else ((), "")
    described = artifacts.read(path) if artifacts.sidecar(path).is_file() else None
    write_json(
        args.json,
        {
            "file": str(path),
            "size_bytes": files.size_bytes(path),
            "sha256": files.sha256(path),
            **encode(found),
            "xnnpack": taken or None,
            "sidecar": encode(described) if described else None,
        },
    )
    if args.json == "-":
        return 0
    rows = [
        ("file", str(path)),
        ("size", units.size(files.size_bytes(path))),
        ("sha256", files.sha256(path)),
        ("input", _tensor(found.input)),
        ("output", _tensor(found.output)),
        ("labels", _labels(found.labels)),
        *([("sparse", found.sparsity)] if found.sparsity else []),
        *([("runs from", f"{found.needs} on")] if found.needs else []),
        *((name, found.metadata[name]) for name in ("author", "license") if name in found.metadata),
    ]
    if described:
        rows += [("precision", described.precision), ("preprocess", _preprocess(described.preprocess))]
        if parity := described.parity:
            agree = f"{100 * parity.top1_agreement:.1f} % of {parity.images} images"
            rows.append(("parity", f"SQNR {parity.sqnr_db:.1f} dB, the same top-1 on {agree}"))
            if broken := parity.broken(described.precision):
                rows.append(("broken", broken))
        if described.calibration:
            c = described.calibration
            rows.append(
                ("calibration", f"{c.count} images, {c.method}, seed {c.seed}, list {c.images_sha256[:12]}")
            )
        rows.append(("made with", ", ".join(f"{name} {number}" for name, number in described.tools.items())))
    else:
        rows.append(("sidecar", "none: not made by edgekit, or parted from it"))
    print("\n".join(f"{name:12} {value}" for name, value in rows), end="\n\n")
    print((_layers if args.layers else _operators)(found, taken), end="\n\n")
    if fault:
        print(f"XNNPACK      {fault}", end="\n\n")
    print(table(("stored as", "size"), [(name, units.size(count)) for name, count in found.weights]))
    return 0


def _taken(path: Path) -> tuple[tuple[bool, ...], str]:
    """Which operators XNNPACK takes here, or why that is not known."""
    from edgekit import xnnpack
    from edgekit.errors import ArtifactError

    try:
        return xnnpack.taken(path), ""
    except ArtifactError as error:
        return (), str(error)


def _operators(found: "Inspection", taken: tuple[bool, ...]) -> str:
    """The table of operators: one row for each kind and its types, those that compute most first."""
    from edgekit import units

    if not found.details:
        return table(("operator", "count"), [(name, str(count)) for name, count in found.operators])
    groups: dict[tuple[str, str, str], list[int]] = {}
    for index, one in enumerate(found.details):
        groups.setdefault((one.kind, one.dtype, one.weights), []).append(index)
    sums = {
        key: (sum(found.details[i].macs for i in group), sum(found.details[i].size_bytes for i in group))
        for key, group in groups.items()
    }
    rows = []
    for key, group in sorted(groups.items(), key=lambda item: (-sums[item[0]][0], -len(item[1]), item[0])):
        macs, size_bytes = sums[key]
        inside = sum(taken[index] for index in group) if taken else 0
        share = "all" if inside == len(group) else f"{inside} of {len(group)}" if inside else "none"
        computed = f"{macs / 1e6:.1f} M" if macs else ""
        stored = units.size(size_bytes) if size_bytes else ""
        rows.append((key[0], str(len(group)), *key[1:], computed, stored, share if taken else "?"))
    head = ("operator", "count", "gives", "weights", "MACs", "stored", "taken by XNNPACK")
    return table(head, rows)


def _layers(found: "Inspection", taken: tuple[bool, ...]) -> str:
    """The table of layers in the order in which they run; where that is not known, of those that hold weights."""
    from edgekit import units

    if not found.details:
        parts: dict[tuple[str, str], list[Part]] = {}
        for one in found.parts:
            parts.setdefault((one.layer, one.kind), []).append(one)
        return table(
            ("layer", "operator", "weights", "stored"),
            [
                (
                    *key,
                    max(held, key=lambda one: one.size_bytes).dtype,
                    units.size(sum(one.size_bytes for one in held)),
                )
                for key, held in parts.items()
            ],
        )
    by = ["yes" if one else "no" for one in taken] or ["?"] * len(found.details)
    rows = []
    for operator, mark in zip(found.details, by, strict=True):
        computed = f"{operator.macs:,}" if operator.macs else ""
        stored = units.size(operator.size_bytes) if operator.size_bytes else ""
        rows.append((operator.name, operator.kind, operator.dtype, operator.weights, computed, stored, mark))
    return table(("layer", "operator", "gives", "weights", "MACs", "stored", "taken by XNNPACK"), rows)


def _tensor(spec: "object") -> str:
    from edgekit.artifact import TensorSpec

    assert isinstance(spec, TensorSpec)
    quantized = f", scale {spec.scale:g}, zero point {spec.zero_point}" if spec.scale is not None else ""
    return f"{spec.name} {spec.dtype} {'x'.join(map(str, spec.shape))}{quantized}"


def _preprocess(p: "object") -> str:
    from edgekit.preprocess import Preprocess

    assert isinstance(p, Preprocess)
    crop = f" {p.crop_fraction:g}" if p.resize == "crop" else ""
    return (
        f"{p.width}x{p.height}, {p.resize}{crop}, {p.interpolation}, {p.channel_order}, "
        f"mean {p.mean}, std {p.std} (inside the graph)"
    )


def _labels(labels: tuple[str, ...]) -> str:
    if not labels:
        return "none in the file"
    shown = ", ".join(labels[:10])
    return f"{len(labels)}: {shown}" + (", ..." if len(labels) > 10 else "")
