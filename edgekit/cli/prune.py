import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekit.cli.convert import sides
from edgekit.cli.terminal import (
    STDOUT,
    Terminal,
    add_json,
    add_preprocess,
    count,
    read_labels,
    read_preprocess,
    table,
    write_json,
)

if TYPE_CHECKING:
    from edgekit.checkpoint import Checkpoint
    from edgekit.prune import State
    from edgekit.prunespec import PruneSpec

LEAST = 2 / 3  # zeros, for XNNPACK's sparse kernels
EXAMPLES = """examples:
  edgekit prune runs/quickstart --keep-macs 0.5
  edgekit prune runs/photos --keep-macs 0.35 --steps 3 --epochs 30
  edgekit prune runs/photos --keep-latency 0.6 --precision int8 --device ssh://pi@raspberrypi.local
  edgekit prune runs/photos --sparsity 0.75 --epochs 30
  edgekit prune runs/photos --keep-macs 0.5 --spare features.1 --importance lamp
  edgekit prune torchvision:resnet18 --weights resnet18.pt --preprocess imagenet --size 160 \\
      --keep-macs 0.5 --data photos --labels labels.txt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from edgekit.prunespec import PruneSpec

    plain = PruneSpec(keep_macs=0.5)
    parser.add_argument(
        "model", help="a run, a checkpoint, a model's name, torchvision:NAME, timm:NAME, FILE.py:F"
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--keep-macs", type=share, metavar="SHARE", help="of the multiply-accumulates, such as 0.5"
    )
    budget.add_argument(
        "--keep-latency", type=share, metavar="SHARE", help="of the time of one inference, measured on --device"
    )
    parser.add_argument(
        "--sparsity",
        type=sparsity,
        metavar="SHARE|2:4",
        help="in the last training this share of the weights of 1x1 convolutions becomes zero, or two of four "
        "neighbours; besides a budget or in its place",
    )
    parser.add_argument("--device", metavar="ADDR", help="where --keep-latency is measured; default local")
    parser.add_argument(
        "--precision", choices=("fp32", "int8"), help="of the files that --keep-latency measures; default fp32"
    )
    parser.add_argument(
        "--importance",
        choices=("taylor", "magnitude", "bn", "lamp"),
        default=plain.importance,
        help="which channels go first: those that the loss misses least (taylor, the default), small weights, "
        "small batch norm scales, or lamp's scores",
    )
    parser.add_argument(
        "--scope",
        choices=("global", "layer"),
        default=plain.scope,
        help="channels compete over the network (default), or each layer loses the same share",
    )
    parser.add_argument(
        "--steps", type=count, default=plain.steps, metavar="N", help="in how many steps; default 1"
    )
    parser.add_argument(
        "--recovery-epochs",
        type=whole,
        default=plain.recovery_epochs,
        metavar="N",
        help=f"of training between steps; default {plain.recovery_epochs}",
    )
    parser.add_argument(
        "--epochs",
        type=whole,
        default=plain.epochs,
        metavar="N",
        help=f"of training at the end, with the dense network as teacher; default {plain.epochs}, 0 for none",
    )
    parser.add_argument(
        "--learning-rate",
        type=positive,
        metavar="R",
        help="of that training; default the network's own",
    )
    parser.add_argument(
        "--round-to", type=count, default=plain.round_to, metavar="N", help="widths are multiples; default 8"
    )
    parser.add_argument(
        "--spare",
        action="append",
        default=[],
        metavar="LAYER",
        help="a layer that keeps its channels (repeatable)",
    )
    parser.add_argument("--data", metavar="DIR|NAME", help="images to train on; of a run, its own by default")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/MODEL-keepSHARE")
    parser.add_argument("--force", action="store_true", help="prune anew, replacing what is there")
    parser.add_argument("--weights", metavar="FILE|imagenet", help="of a model by name")
    parser.add_argument(
        "--size", type=sides, default=(224, 224), metavar="PIXELS", help="input of a model by name; default 224"
    )
    add_preprocess(parser)
    add_json(parser)


def share(text: str) -> float:
    """More than 0 and less than 1, for argparse."""
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, such as 0.5, got {text!r}")
    return value


def sparsity(text: str) -> tuple[float, Literal["free", "2:4"]]:
    """The share of zeros and their pattern, for argparse."""
    if text == "2:4":
        return 0.5, "2:4"
    if not 0.2 <= (value := _number(text)) <= 0.99:
        raise argparse.ArgumentTypeError(
            f"expected a share between 0.2 and 0.99, such as 0.7, or 2:4, got {text!r}"
        )
    return value, "free"


def positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1000:
        raise argparse.ArgumentTypeError(f"expected a number above 0, such as 0.001, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


def whole(text: str) -> int:
    """A whole number from 0 on, for argparse."""
    return 0 if text == "0" else count(text)


def run(args: argparse.Namespace) -> int:
    from edgekit import prune, subject
    from edgekit.errors import UsageError
    from edgekit.runs import Run

    if args.keep_macs is None and args.keep_latency is None and args.sparsity is None:
        raise UsageError("what shall go? give --keep-macs 0.5, --keep-latency 0.6 or --sparsity 0.7")
    try:
        spec, terminal = _spec(args), Terminal()
    except ValueError as error:
        raise UsageError(str(error)) from error
    if args.device and spec.keep_latency is None:
        raise UsageError("--device is where --keep-latency is measured: leave it out")
    if args.precision and spec.keep_latency is None:
        raise UsageError("--precision is of the files that --keep-latency measures: leave it out")
    found = subject.find(
        args.model,
        data_source=args.data,
        preprocess=read_preprocess(args.preprocess, *args.size) if args.preprocess else None,
        labels=read_labels(args.labels) if args.labels else None,
        weights=args.weights,
        confirm=terminal.confirm,
    )
    out = args.out or Path("runs", f"{found.name}-{_called(spec)}")
    folder = Run(folder=out)
    if folder.state() is not None:
        raise UsageError(f"{out} is a run: give another --out")
    subject.refuse_inside(found, out)
    with folder.locked():
        if args.force:
            prune.clear(out)
        dense = subject.stored(found, out)
        made, state = prune.prune(
            dense,
            spec,
            out,
            dataset=found.dataset,
            train_spec=found.training,
            say=lambda text: terminal.say(f"prune: {text}"),
        )
    write_json(args.json, {"checkpoint": str(made.path), **_figures(state, spec)})
    if args.json != STDOUT:
        _print(made, state, spec, out)
    return 0


def _spec(args: argparse.Namespace) -> "PruneSpec":
    from edgekit.prunespec import PruneSpec

    spec = PruneSpec(
        keep_macs=args.keep_macs,
        keep_latency=args.keep_latency,
        importance=args.importance,
        scope=args.scope,
        steps=args.steps,
        epochs=args.epochs,
        recovery_epochs=args.recovery_epochs,
        learning_rate=args.learning_rate,
        round_to=args.round_to,
        spare=tuple(args.spare),
        sparsity=args.sparsity[0] if args.sparsity else None,
        pattern=args.sparsity[1] if args.sparsity else "free",
    )
    told = {name: value for name in ("device", "precision") if (value := getattr(args, name))}
    return replace(spec, **told) if spec.keep_latency is not None else spec


def _called(spec: "PruneSpec") -> str:
    kept = spec.keep_macs or spec.keep_latency
    zeros = "sparse2of4" if spec.pattern == "2:4" else f"sparse{spec.sparsity:g}" if spec.sparsity else ""
    return "-".join(filter(None, (f"keep{kept:g}" if kept else "", zeros)))


def _figures(state: "State", spec: "PruneSpec") -> dict[str, object]:
    from edgekit.schema import encode

    last = state.steps[-1]
    return {
        "kept_macs": last.macs / state.macs,
        "kept_parameters": last.parameters / state.parameters,
        "kept_latency": last.latency,
        **({"device": spec.device, "precision": spec.precision} if last.latency is not None else {}),
        "sparsity": last.sparsity,
        "dense": {"macs": state.macs, "parameters": state.parameters, "val_top1": state.top1},
        "steps": encode(state.steps),
    }


def _print(made: "Checkpoint", state: "State", spec: "PruneSpec", out: Path) -> None:
    def top1(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.2f} %"

    rows = [
        ("dense", f"{state.macs / 1e6:.2f} M", "", f"{state.parameters / 1e6:.3f} M", "", "", "", top1(state.top1))
    ]
    for number, step in enumerate(state.steps, 1):
        rows.append(
            (
                f"step {number}" if len(state.steps) > 1 else "pruned",
                f"{step.macs / 1e6:.2f} M",
                f"{100 * step.macs / state.macs:.2f} %",
                f"{step.parameters / 1e6:.3f} M",
                "" if step.latency is None else f"{100 * step.latency:.1f} %",
                f"{100 * step.sparsity:.1f} %" if step.sparsity > 0.01 else "",
                top1(step.pruned_top1),
                top1(step.top1),
            )
        )
    head = (
        "network",
        "MACs",
        "kept",
        "parameters",
        f"time, {spec.precision}",
        "zeros",
        "before training",
        "top-1",
    )
    shown = [i for i in range(len(head)) if i < 4 or any(row[i] for row in rows)]
    print(table([head[i] for i in shown], [[row[i] for i in shown] for row in rows]))
    last = state.steps[-1]
    if last.finer:
        print(f"not in those multiples, to meet the budget: {', '.join(last.finer)}")
    print(f"checkpoint: {made.path}")
    precisions = "fp32,sparse" if last.sparsity > LEAST else "fp32,int8"
    print(f"next: edgekit convert {out} --target tflite --quantize {precisions} --calibrate DIR")
