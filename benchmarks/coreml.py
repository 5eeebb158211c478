"""What each Core ML precision costs in accuracy: the tables of docs/coreml.md.

    edgekit run recipes/mobilenet_v3_small_cifar10.toml --until train --out runs/mobilenet_v3_small
    python benchmarks/coreml.py runs/mobilenet_v3_small [RUN...] [--out coreml]

Every row is a package in OUT. Its top-1 on all held-out images of the run comes from edgekit's reference
execution of the saved package (no Mac is needed, and no latency is measured), and is tested against the fp32
package on the same images (exact McNemar). "repaired" may lose --max-drop points, int8 --int8-drop: that search
looks at the images that it is measured on. Packages that are in OUT are not made again. Seconds are those of
making the package, parity included; the first row's include the export, which all share.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
REPAIRED = ("pal4", "w4", "int8")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    name: str
    size_bytes: int
    sqnr_db: float
    top1: float
    difference: float  # of top-1 to fp32, in points
    p_value: float
    seconds: float | None  # to make it; None where it was there
    needs: str  # the oldest system that runs it
    told: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--max-drop", type=float, default=1.0)
    parser.add_argument("--int8-drop", type=float, default=0.3)
    parser.add_argument("--only", help="precisions, as fp32,w8; fp32 is always among them")
    parser.add_argument("--out", type=Path, default=Path("coreml"))
    options = parser.parse_args()
    for run in options.runs:
        table(run, options)


def table(run: Path, options: argparse.Namespace) -> None:
    from edgekit import parity, source
    from edgekit.convert import converter
    from edgekit.recipe import CalibrationSpec

    found = source.find(
        str(run), preprocess=None, labels=None, weights=None, calibrate=None, confirm=lambda _: False
    ).source
    assert found.held_out is not None
    assert found.calibrate is not None
    held_out, out = found.once("held-out images", found.held_out), options.out / run.name
    count = parity.images(*found.shape_NHWC[1:3])
    images = found.calibrate(CalibrationSpec(images=count, seed=1)).pixels_NHWC
    target, rows = converter("coreml"), list[Row]()
    reference: Any = None
    for name, variant in variants(target, options).items():
        artifact, seconds = made(found, variant, images, out / name.replace(" ", "-"))
        answers = target.predict(artifact, held_out.pixels_NHWC).argmax(1)
        reference = answers if reference is None else reference
        rows.append(row(name, artifact, seconds, held_out.truth, answers, reference))
        print(f"{run.name}: {rows[-1]}", flush=True)
    (out / "table.json").write_text(json.dumps([asdict(one) for one in rows], indent=1))
    print(shown(run.name, rows, len(held_out.truth)), flush=True)


def variants(target: Any, options: argparse.Namespace) -> dict[str, Any]:
    """All precisions, and those that are repaired; fp32 first."""
    from edgekit.recipe import Variant

    chosen = [*(options.only.split(",") if options.only else target.precisions)]
    found = {
        name: Variant(target="coreml", precision=name)
        for name in target.precisions
        if name in chosen or name == "fp32"
    }
    drops = {"int8": options.int8_drop}
    return found | {
        f"{name} repaired": Variant(target="coreml", precision=name, max_drop=drops.get(name, options.max_drop))
        for name in REPAIRED
        if name in chosen
    }


def made(found: Any, variant: Any, images: Any, folder: Path) -> tuple[Any, float | None]:
    """The row's package, made where it is not there yet, and how long that took."""
    from edgekit import artifact, convert

    if known := list(folder.glob("*.mlpackage")):
        return artifact.read(known[0]), None
    began = time.perf_counter()
    [one] = convert.convert(found, [variant], images, folder, lambda *_: None)
    return one, time.perf_counter() - began


def row(name: str, artifact: Any, seconds: float | None, truth: Any, answers: Any, reference: Any) -> Row:
    from edgekit.stats import paired

    pair = paired(truth, reference, answers)
    needs = next(note for note in artifact.notes if note.startswith("runs from "))
    return Row(
        name=name,
        size_bytes=artifact.size_bytes,
        sqnr_db=artifact.parity.sqnr_db,
        top1=float((answers == truth).mean()),
        difference=100 * pair.difference,
        p_value=pair.p_value,
        seconds=seconds,
        needs=needs.removeprefix("runs from ").removesuffix(" on").partition(",")[0],
        told=told(artifact),
    )


def told(one: Any) -> str:
    """What a repair did, or which layers are left in fp16."""
    if one.repair is None:
        return next((note for note in one.notes if note.startswith("left in fp16")), "")
    verdict = "" if one.repair.met else "; budget NOT met"
    steps = ", ".join(f"{step.tried} {step.drop:+.2f}" for step in one.repair.steps)
    return f"{len(one.repair.float_layers)} layers in fp16{verdict} ({steps})"


def shown(title: str, rows: list[Row], count: int) -> str:
    """The table in Markdown."""
    from edgekit import units

    lines = [
        f"{title} ({count} images)",
        "",
        "| package | size | runs from | SQNR | top-1 | to fp32 | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        p_value = f"{one.p_value:.2g}" if one.p_value >= 1e-9 else "< 1e-9"
        against = ("", "") if one.name == "fp32" else (f"{one.difference:+.2f}", p_value)
        cells = (
            f"`{one.name}`",
            units.size(one.size_bytes),
            one.needs,
            f"{one.sqnr_db:.0f} dB",
            f"{100 * one.top1:.2f} %",
            *against,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {one.name}: {one.told}" for one in rows if one.told), ""])


if __name__ == "__main__":
    main()
