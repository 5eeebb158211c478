"""What pruning costs in accuracy and gains in speed, against a narrower network: the tables of docs/pruning.md.

    python benchmarks/pruning.py benchmarks/pruning/mobilenet_v1.toml [RECIPE...] --data cifar [--epochs 5]
        [--keep 0.7,0.5,0.35] [--out pruning] [--only dense,dense-on,keep0.5,narrow0.5] [--tables]

In OUT/RECIPE, each made by the command line of edgekit, which goes on where it was cut off:

    dense       the recipe's training
    dense-on    the dense network, trained for --epochs more just as the pruned ones are: from its own answers
    keep0.5     the dense network pruned to half of its multiply-accumulates, and trained for --epochs more
    narrow0.5   the recipe at the least width multiplier, in hundredths, that has as many multiply-accumulates as
                that budget, trained for the recipe's epochs and --epochs

--only makes no tables: several processes can train different networks at once. --tables trains nothing. The tables
are of what is trained. Every row is a network's fp32 and int8 file, measured on all held-out images with the
interpreter that ships; paired tests are on the same images (exact McNemar). Latencies are of one thread, all files
of a recipe in turn, as in artifact_latency.py: medians of ratios to the dense network's file of that precision.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
DENSE, ON, KEEP, NARROW = "dense", "dense-on", "keep", "narrow"
PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A file. *ratio*: of its latency to the dense network's file of the same precision, with its *quartiles*.

    *against*: by the other network, its top-1 less the other's in points, and the p-value.
    """

    network: str
    precision: str
    epochs: str
    width: float
    macs: int
    parameters: int
    file: str
    size_bytes: int
    top1: float
    before_training: float | None
    against: dict[str, tuple[float, float]]
    latency_ms: float = 0.0
    ratio: float = 1.0
    quartiles: tuple[float, float] = (1.0, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--data", required=True, metavar="DIR|NAME")
    parser.add_argument("--keep", default="0.7,0.5,0.35")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("pruning"))
    parser.add_argument("--only", default="", metavar="NETWORK[,NETWORK...]")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--invokes", type=int, default=30)
    options = parser.parse_args()
    if options.only and options.tables:
        parser.error("--only trains, and --tables does not: leave out one of them")
    keep = [float(share) for share in options.keep.split(",")]
    networks = [DENSE, ON, *(f"{kind}{share:g}" for share in keep for kind in (KEEP, NARROW))]
    only = list(filter(None, options.only.split(",")))
    if strange := sorted(set(only) - set(networks)):
        parser.error(f"--only {','.join(strange)}: choose from {', '.join(networks)}")
    for recipe in options.recipes:
        line = Line(recipe, options.out.resolve() / recipe.stem, options.data, options.epochs)
        for network in () if options.tables else only or networks:
            line.train(network)
        if not only:
            table(line, networks, options)


@dataclass(frozen=True)
class Line:
    """The networks of one recipe. *epochs*: after pruning."""

    path: Path
    out: Path
    data: str
    epochs: int

    @cached_property
    def recipe(self) -> Any:
        from edgekit import recipe

        return recipe.from_anywhere(recipe.load(str(self.path)))

    @cached_property
    def dataset(self) -> Any:
        from edgekit import data, pipeline

        return data.load(self.recipe.data, source=pipeline.resolve(self.data))

    def train(self, network: str) -> None:
        """Train by the command line; what is trained already stays as it is."""
        out = str(self.out / network)
        if network.startswith(KEEP):
            self.need_dense(network)
            budget = ["--keep-macs", network.removeprefix(KEEP), "--epochs", str(self.epochs)]
            edgekit("prune", str(self.out / DENSE), *budget, "--data", self.data, "--out", out)
            return
        followed = self.path if network == DENSE else self.written(network)
        edgekit("run", str(followed), "--until", "train", "--data", self.data, "--out", out)

    def need_dense(self, network: str) -> None:
        if not self.trained(DENSE):
            raise SystemExit(f"{network} begins with the dense network, which is not trained yet: --only {DENSE}")

    def written(self, network: str) -> Path:
        """The recipe of a network that is neither dense nor pruned, written where the user can read it."""
        from edgekit import recipe

        path = self.out / "recipes" / f"{network}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(recipe.text_for(self.followed(network)))
        return path

    def followed(self, network: str) -> Any:
        """The recipe of a network that is not pruned."""
        if network == DENSE:
            return self.recipe
        if network == ON:
            self.need_dense(network)
            return self.taught()
        train = replace(self.recipe.train, epochs=self.recipe.train.epochs + self.epochs)
        return replace(self.recipe, model=self.narrow(float(network.removeprefix(NARROW))), train=train)

    def taught(self) -> Any:
        """The dense network's recipe for the training that pruned ones get."""
        from edgekit import checkpoint
        from edgekit.prune.schedule import relearning
        from edgekit.prunespec import PruneSpec

        dense = checkpoint.read(self.out / DENSE / "train" / "best")
        spec = PruneSpec(keep_macs=1.0, epochs=self.epochs)
        return replace(self.recipe, train=relearning(self.recipe.train, spec, self.epochs, dense, dense))

    def narrow(self, share: float) -> Any:
        """The model of the least width, in hundredths, with at least that share of the multiply-accumulates."""
        from edgekit import models
        from edgekit.models.cost import cost

        def macs(width: float) -> int:
            side = models.side_of(contract)
            network = models.build(replace(full, width=width), len(self.dataset.classes), side)
            return cost(network, contract.height, contract.width).macs

        full, contract = self.recipe.model, self.recipe.data.preprocess
        wanted = share * macs(full.width)
        widths = (hundredths / 100 for hundredths in range(5, round(100 * full.width)))
        return replace(full, width=next((width for width in widths if macs(width) >= wanted), full.width))

    def trained(self, network: str) -> bool:
        """Whether it is, as asked for now."""
        from edgekit import checkpoint, pipeline, prune
        from edgekit.cli.terminal import Terminal
        from edgekit.runs import Run

        folder = self.out / network
        if not network.startswith(KEEP):
            if not folder.exists():
                return False
            source = pipeline.resolve(self.data)
            return pipeline.Pipeline(Run(folder=folder), self.followed(network), source, Terminal()).trained()
        state = prune.read(folder) if folder.exists() else None
        if state is None or not state.steps or not state.steps[-1].trained:
            return False
        dense = checkpoint.read(self.out / DENSE / "train" / "best")
        made = checkpoint.read(folder / "train" / "best")
        rows = (folder / "train" / "metrics.jsonl").read_text().splitlines()
        return made.provenance["pruned_from"] == dense.weights_sha256 and len(rows) == self.epochs

    def told(self, network: str) -> str:
        """Its epochs."""
        of_it = self.recipe.train.epochs
        if network == DENSE:
            return str(of_it)
        return str(of_it + self.epochs) if network.startswith(NARROW) else f"{of_it} + {self.epochs}"


def edgekit(*arguments: str) -> None:
    """Run this checkout's command line, whatever is installed."""
    print(f"edgekit {' '.join(arguments)}", flush=True)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    status = subprocess.call([sys.executable, "-m", "edgekit", *arguments], env={**os.environ, "PYTHONPATH": path})
    if status:
        raise SystemExit(status)


def table(line: Line, networks: list[str], options: argparse.Namespace) -> None:
    """Make the files of what is trained, measure them, print and write the tables."""
    there = [network for network in networks if line.trained(network)]
    for network in networks:
        if network not in there:
            print(f"{line.path.stem}: {network} is not trained", flush=True)
    if DENSE not in there:
        raise SystemExit(f"{line.path.stem}: no table without the dense network")
    files = {(network, precision): path for network in there for precision, path in made(line, network).items()}
    images, truth = line.dataset.val.read(), np.array(line.dataset.val.labels)
    answers = {key: predicted(path, images) for key, path in files.items()}
    rows = [row(line, key, files[key], answers, truth) for key in files]
    rows = timed(rows, options)
    (line.out / "table.json").write_text(json.dumps([asdict(one) for one in rows], indent=1))
    text = shown(line.path.stem, rows, len(truth))
    (line.out / "table.md").write_text(text)
    print(text, flush=True)


def made(line: Line, network: str) -> dict[str, Path]:
    """The network's files by precision, made where they are not there yet."""
    from edgekit import artifact, checkpoint, convert, parity
    from edgekit.errors import ArtifactError
    from edgekit.export import from_checkpoint
    from edgekit.recipe import Variant

    trained = checkpoint.read(line.out / network / "train" / "best")
    found = {}
    for precision in PRECISIONS:
        path = line.out / "files" / network / f"tflite-{precision}.tflite"
        try:
            one = artifact.read(path)
        except ArtifactError:
            one = None
        if one is None or one.parent != trained.weights_sha256:
            source = from_checkpoint(trained, line.dataset.train, line.dataset.val, line.recipe.train.augment)
            variant = Variant(target="tflite", precision=precision)
            images = line.dataset.val.sample(parity.images(*source.shape_NHWC[1:3]))
            [one] = convert.convert(source, [variant], images, path.parent, lambda *_: None)
        found[precision] = one.path
    return found


def predicted(path: Path, pixels_NHWC: Any) -> Any:
    from benchmarks.quantization import predicted as classes

    found = classes(path, pixels_NHWC)
    print(f"{path.parent.name} {path.stem}: {len(found)} images", flush=True)
    return found


def row(line: Line, key: tuple[str, str], path: Path, answers: dict[Any, Any], truth: Any) -> Row:
    from edgekit import checkpoint, models, prune
    from edgekit.models.cost import cost
    from edgekit.stats import paired

    network, precision = key
    trained, contract = checkpoint.read(line.out / network / "train" / "best"), line.recipe.data.preprocess
    found = cost(models.restore(trained), contract.height, contract.width)
    against, before = {}, None
    if network.startswith(KEEP):
        state = prune.read(line.out / network)
        before = state.steps[-1].pruned_top1 if state else None
        for other in (ON, DENSE, network.replace(KEEP, NARROW)):
            if (other, precision) in answers:
                pair = paired(truth, answers[other, precision], answers[key])
                against[other] = (100 * pair.difference, pair.p_value)
    return Row(
        network=network,
        precision=precision,
        epochs=line.told(network),
        width=trained.model.width,
        macs=found.macs,
        parameters=found.parameters,
        file=str(path),
        size_bytes=path.stat().st_size,
        top1=float((answers[key] == truth).mean()),
        before_training=before,
        against=against,
    )


def timed(rows: list[Row], options: argparse.Namespace) -> list[Row]:
    """The rows with their latencies, and those over the dense network's."""
    from benchmarks.artifact_latency import measured

    files = {f"{one.network} {one.precision}": Path(one.file) for one in rows}
    times = {name: np.array(found) for name, found in measured(files, options.rounds, options.invokes).items()}
    found = []
    for one in rows:
        own = times[f"{one.network} {one.precision}"]
        low, middle, high = np.percentile(own / times[f"{DENSE} {one.precision}"], (25, 50, 75))
        one = replace(one, latency_ms=float(np.median(own)), ratio=float(middle))
        found.append(replace(one, quartiles=(float(low), float(high))))
    return found


def shown(title: str, rows: list[Row], count: int) -> str:
    """The tables in Markdown: of the networks, and of the pruned ones against the others."""
    from edgekit import units

    def latency(one: Row) -> str:
        return f"{one.ratio:.2f} ({one.quartiles[0]:.2f}-{one.quartiles[1]:.2f})"

    def cells(one: Row) -> list[str]:
        return [units.size(one.size_bytes), latency(one), f"{100 * one.top1:.2f} %"]

    by = {(one.network, one.precision): one for one in rows}
    dense, networks = rows[0], list(dict.fromkeys(one.network for one in rows))
    columns = [f"{precision} {what}" for precision in PRECISIONS for what in ("size", "latency", "top-1")]
    head = ["network", "epochs", "MACs", *columns]
    lines = []
    for network in networks:
        one = by[network, PRECISIONS[0]]
        named = f"{network} (width {one.width:g})" if network.startswith(NARROW) else network
        share = f"{one.macs / 1e6:.2f} M, {100 * one.macs / dense.macs:.1f} %"
        lines.append([named, one.epochs, share, *(cell for p in PRECISIONS for cell in cells(by[network, p]))])
    text = [f"{title} ({count} held-out images)", "", *markdown(head, lines), ""]
    pruned = [one for one in rows if one.network.startswith(KEEP)]
    lines = []
    for one in sorted(pruned, key=lambda one: PRECISIONS.index(one.precision)):
        others = (ON, DENSE, one.network.replace(KEEP, NARROW))
        lines.append([one.network, one.precision, *(difference(one.against.get(other)) for other in others)])
    if lines:
        text += [*markdown(["network", "file", "to dense-on", "to dense", "to narrow"], lines), ""]
    return "\n".join(text)


def difference(found: tuple[float, float] | None) -> str:
    return f"{found[0]:+.2f} (p = {found[1]:.2g})" if found else ""


def markdown(head: list[str], lines: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines)]


if __name__ == "__main__":
    main()
