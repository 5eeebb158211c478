"""What taking channels out gains in latency at the size of real images: the pruned files over the dense ones.

    python benchmarks/pruned_latency.py [FAMILY...] [--keep-macs 0.5] [--scope layer] [--side 224] [--rounds 20]

The networks are of full width with random weights, whose smallest go first: latency depends on the widths. The
files of a family run in turn, as in artifact_latency.py: a ratio is that of two medians of the same round; printed
are its median and its quartiles over the rounds.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    from benchmarks.artifact_latency import FAMILIES, measured

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=FAMILIES)
    parser.add_argument("--keep-macs", type=float, default=0.5)
    parser.add_argument("--scope", choices=("global", "layer"), default="layer")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--invokes", type=int, default=10, help="per file and round")
    options = parser.parse_args()
    for family in options.families:
        with tempfile.TemporaryDirectory() as folder:
            files, share = made(family, options, Path(folder))
            times = measured(files, options.rounds, options.invokes)
        for precision in ("fp32", "int8"):
            ratios = np.array(times[f"pruned {precision}"]) / np.array(times[f"dense {precision}"])
            low, middle, high = np.percentile(ratios, (25, 50, 75))
            dense = np.median(times[f"dense {precision}"])
            told = f"{100 * share:.1f} % of the MACs take {middle:.3f} ({low:.3f} to {high:.3f}) of {dense:.2f} ms"
            print(f"{family} {precision}: {told}", flush=True)


def made(family: str, options: argparse.Namespace, folder: Path) -> tuple[dict[str, Path], float]:
    """The files, dense and pruned, and the share of the multiply-accumulates that is left."""
    from torch import nn

    from benchmarks.artifact_latency import ours, sample
    from edgekit.export import PixelClassifier
    from edgekit.prune import budget, importance, surgery
    from edgekit.prune.groups import trace

    source = sample(family, options.side)
    assert isinstance(source.model, PixelClassifier)
    dense, step = source.model.model, 8
    graph = trace(dense, options.side, options.side, family)
    scores, _ = importance.scores(graph, nn.Identity(), "magnitude")
    plan = budget.choose(
        graph,
        scores,
        int(options.keep_macs * graph.macs),
        scope=options.scope,
        step=step,
        lowest=budget.floors(graph, step),
        by_cost=False,
    )
    small = surgery.pruned(dense, graph.groups, plan.kept)
    pruned = replace(sample(family, options.side), model=PixelClassifier(small, source.preprocess).eval())
    files: dict[str, Path] = {}
    for name, one in {"dense": source, "pruned": pruned}.items():
        paths = [folder / f"{name}-{precision}.tflite" for precision in ("fp32", "int8")]
        ours(one, *paths)
        files |= {f"{name} fp32": paths[0], f"{name} int8": paths[1]}
    return files, plan.macs / graph.macs


if __name__ == "__main__":
    main()
