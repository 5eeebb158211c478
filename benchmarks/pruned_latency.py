"""What taking channels out gains in latency: the pruned files over the dense ones.

    python benchmarks/pruned_latency.py [FAMILY...] [--keep-macs 0.5] [--round-to 8] [--side 224] [--rounds 20]
    python benchmarks/pruned_latency.py RUN... [--keep-macs 0.5] [--round-to 8] [--rounds 20]

A family is of full width with random weights, and each layer loses the same share, its smallest channels first. A
trained run is pruned as `edgekit prune` does it, by what its loss misses least, over all layers. The files of a
network run in turn, as in artifact_latency.py: a ratio is that of two medians of the same round; printed are its
median and its quartiles over the rounds.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    from benchmarks.artifact_latency import FAMILIES, measured

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=FAMILIES, metavar="FAMILY|RUN")
    parser.add_argument("--keep-macs", type=float, default=0.5)
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--side", type=int, default=224, help="of a family's images")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--invokes", type=int, default=10, help="per file and round")
    options = parser.parse_args()
    for name in options.networks:
        pair = trained(Path(name), options) if Path(name).is_dir() else untrained(name, options)
        with tempfile.TemporaryDirectory() as folder:
            times = measured(files(pair, Path(folder)), options.rounds, options.invokes)
        for precision in ("fp32", "int8"):
            ratios = np.array(times[f"pruned {precision}"]) / np.array(times[f"dense {precision}"])
            low, middle, high = np.percentile(ratios, (25, 50, 75))
            dense = np.median(times[f"dense {precision}"])
            told = f"take {middle:.3f} ({low:.3f} to {high:.3f}) of {dense:.2f} ms"
            print(f"{name} {precision}: {100 * pair.share:.1f} % of the MACs {told}", flush=True)


class Pair(NamedTuple):
    """Networks, what their pixels go through, and the share of the multiply-accumulates that is left."""

    dense: Any
    pruned: Any
    contract: Any
    classes: int
    share: float


def untrained(family: str, options: argparse.Namespace) -> Pair:
    from torch import nn

    from benchmarks.artifact_latency import CLASSES, sample
    from edgekit.prune import budget, importance, surgery
    from edgekit.prune.groups import trace

    source, step = sample(family, options.side), options.round_to
    dense = source.torch_model("tflite").model
    graph = trace(dense, options.side, options.side, family)
    scores, _ = importance.scores(graph, nn.Identity(), "magnitude")
    plan = budget.choose(
        graph,
        scores,
        int(options.keep_macs * graph.macs),
        scope="layer",
        step=step,
        lowest=budget.floors(graph, step),
        by_cost=False,
    )
    small = surgery.pruned(dense, graph.groups, plan.kept)
    return Pair(dense, small, source.preprocess, CLASSES, plan.macs / graph.macs)


def trained(run: Path, options: argparse.Namespace) -> Pair:
    from edgekit import checkpoint, models, subject
    from edgekit.prune.candidate import Chooser
    from edgekit.prunespec import PruneSpec

    found = subject.find(
        str(run), data_source=None, preprocess=None, labels=None, weights=None, confirm=lambda _: False
    )
    assert found.dataset is not None
    dense = checkpoint.find(run)
    spec = PruneSpec(keep_macs=options.keep_macs, round_to=options.round_to)
    chooser = Chooser(dense, spec, found.dataset.train, None)
    made = chooser.candidate(int(options.keep_macs * chooser.graph.macs))
    share = made.plan.macs / chooser.graph.macs
    return Pair(models.restore(dense), made.model, dense.preprocess, len(dense.classes), share)


def files(pair: Pair, folder: Path) -> dict[str, Path]:
    from benchmarks.artifact_latency import ours, source_of

    found: dict[str, Path] = {}
    for name, network in {"dense": pair.dense, "pruned": pair.pruned}.items():
        paths = [folder / f"{name}-{precision}.tflite" for precision in ("fp32", "int8")]
        ours(source_of(network, pair.contract, pair.classes), *paths)
        found |= {f"{name} fp32": paths[0], f"{name} int8": paths[1]}
    return found


if __name__ == "__main__":
    main()
