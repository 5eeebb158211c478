"""A grid over one recipe: budgets of multiply-accumulates times precisions, measured side by side.

dense/         a run: the training that all share, and with a budget of 1 the files of the dense network
keep0.5/       a run a budget, whose train/ is the dense one's
artifacts/     the files of the grid, such as keep0.5-int8.tflite, with their sidecars
results/ADDR/  one result an artifact; report.html over all of them
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from edgekit import __version__, checkpoint, files, jobs, pipeline, recipe, report, runs
from edgekit import artifact as artifacts
from edgekit.artifact import Artifact
from edgekit.bench import PLAIN, Method
from edgekit.benchstage import Listener, check_devices
from edgekit.checkpoint import Checkpoint
from edgekit.errors import EdgekitError, UsageError, unknown
from edgekit.grid import DENSE, grid
from edgekit.jobs import Job
from edgekit.pipeline import STAGES, Pipeline
from edgekit.recipe import Recipe
from edgekit.report import Comparison
from edgekit.runs import Run, is_run
from edgekit.schema import encode


class Failed(EdgekitError):
    """Some jobs of a sweep failed; the others are done and are not repeated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """*count* local processes at once, or with *ray*, an address or an empty text, a cluster's."""

    count: int = 1
    ray: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """*kept*: its share of the dense network's multiply-accumulates and of its parameters. *top1*: held-out."""

    name: str
    run: Path
    kept_macs: float
    kept_parameters: float
    top1: float | None


def sweep(
    name: str,
    keep: Sequence[float],
    *,
    listener: Listener,
    precisions: Sequence[str] = (),
    target: str = "tflite",
    data: str | None = None,
    devices: Sequence[str] = (),
    out: Path | None = None,
    trained: Path | None = None,
    until: str = "compare",
    force: Sequence[str] = (),
    where: Where | None = None,
    allow_invalid: bool = False,
    method: Method = PLAIN,
) -> tuple[Run, list[Point], Comparison | None]:
    """Run a recipe for each budget and precision; the comparison of all files when it got to the stage *until*.

    *trained*: a run of the same recipe, whose training is taken. *force* redoes a stage of all runs. Interrupted,
    the same call goes on where it stopped. Raises UsageError, and Failed after all else is done.
    """
    for stage in (until, *force):
        if stage not in STAGES:
            raise unknown("stage", stage, STAGES)
    followed = recipe.from_anywhere(recipe.load(name))
    recipes = grid(followed, keep, precisions, target)
    source = pipeline.resolve(data or followed.data.source)
    folder = (out or Path("runs", f"{pipeline.folder_name(name, source if data else '')}-sweep")).resolve()
    if is_run(folder) and not (folder / DENSE).is_dir():
        raise UsageError(f"{folder} is a run and no sweep: give another --out")
    work = _Sweep(Run(folder=folder), followed, recipes, source, listener, where or Where())
    stages = STAGES[: STAGES.index(until) + 1]
    addresses = tuple(devices) or followed.bench.devices
    work.check(stages, force)
    if "bench" in stages:
        check_devices(addresses, followed.bench.threads)
    with work.run.locked():
        work.begin(name, force)
        if trained:
            work.take(trained)
        work.train(force)
        if until == "train":
            return work.run, [], None
        work.perform("prune" if until == "prune" else "convert")
        if until == "prune":
            return work.run, work.points(), None
        made = work.gather()
        if until == "convert":
            return work.run, work.points(), None
        work.whole.bench(made, addresses, method)
        if until == "bench":
            return work.run, work.points(), None
        return work.run, work.points(), work.compare(made, allow_invalid=allow_invalid)


@dataclass(frozen=True)
class _Sweep:
    """*recipes*: by the name of the run that follows them."""

    run: Run
    followed: Recipe
    recipes: dict[str, Recipe]
    source: str
    listener: Listener
    where: Where

    @cached_property
    def lines(self) -> dict[str, Pipeline]:
        """The runs of the grid."""
        return {name: self._line(name, one) for name, one in self.recipes.items()}

    @cached_property
    def dense(self) -> Pipeline:
        """The run that trains, whether its files are asked for or not."""
        return self.lines.get(DENSE) or self._line(DENSE, replace(next(iter(self.recipes.values())), prune=()))

    @cached_property
    def whole(self) -> Pipeline:
        """What measures the files of all runs together."""
        return Pipeline(self.run, self.followed, self.source, self.listener)

    def _line(self, name: str, followed: Recipe) -> Pipeline:
        return Pipeline(Run(folder=self.run.folder / name), followed, self.source, self.listener)

    def check(self, stages: Sequence[str], force: Sequence[str]) -> None:
        """Find what would fail hours later: names, folders, packages, a budget out of reach."""
        self.run.check(self.source)
        if self.where.ray is not None:
            jobs.check_ray(self.where.ray)
        self.dense.check([stage for stage in stages if stage in ("train", "convert")], (), force)
        self.dense.guard(force, may_resume=True)
        smallest = [*self.lines.values()][-1]
        if "prune" not in stages or not smallest.recipe.prune or smallest.trained():
            return
        smallest.pruning.check()
        from edgekit.prune.candidate import reachable

        spec = [one for one in smallest.recipe.prune if one.keep_macs is not None][-1]
        contract = self.followed.data.preprocess
        classes = self.whole.dataset.classes
        least = reachable(Checkpoint(model=self.followed.model, classes=classes, preprocess=contract), spec)
        assert spec.keep_macs is not None
        if spec.keep_macs < least:
            raise UsageError(
                f"--keep-macs {spec.keep_macs:g} cannot be met: the least reachable is "
                f"{math.ceil(least * 1e4) / 1e4:.4f}, with widths in multiples of {spec.round_to}"
            )

    def begin(self, name: str, force: Sequence[str]) -> None:
        """Make the folders, or go on with them; the caller holds the lock of the whole."""
        self.run.begin(name, self.source, recipe.text_of(name))
        for short, one in self.recipes.items():
            kept = [f"{section.keep_macs:g}" for section in one.prune if section.keep_macs is not None]
            if len(kept) > 1:
                self.listener.say(f"sweep: {short} is pruned to {', '.join(kept)} of the dense network in turn")
        for line in (self.dense, *self.lines.values()):
            with line.run.locked():
                line.run.check(self.source)
                line.run.begin(line.run.folder.name, self.source, recipe.text_for(line.recipe))
                for stage in force:
                    if line is self.dense or stage != "train":
                        line.run.forget(stage)
                        if stage in ("train", "prune"):
                            files.remove(line.run.folder / stage)
        for stage in force:
            self.run.forget(stage)

    def take(self, trained: Path) -> None:
        """Copy the training of another run."""
        if self.dense.trained():
            self.listener.say(f"sweep: trained already, {trained} is not looked at")
            return
        other = Pipeline(Run(folder=trained), self.dense.recipe, self.source, self.listener)
        if not is_run(trained) or not other.trained():
            raise UsageError(
                f"--trained {trained} holds no finished training of this recipe on these data: leave it out"
            )
        with other.run.locked(), files.replacing(self.dense.run.folder / "train") as temporary:
            shutil.copytree(trained / "train", temporary)
        self.dense.run.mark("train", self.dense.train_key)

    def train(self, force: Sequence[str]) -> None:
        """Train once; the other runs share it."""
        if self.where.ray is None or self.dense.trained():
            with self.dense.run.locked():
                self.dense.train()
        else:
            self._all_done({DENSE: self.dense}, "train")
        for line in self.lines.values():
            if line.run.folder == self.dense.run.folder:
                continue
            link = line.run.folder / "train"
            if link.exists() and not link.is_symlink():
                raise UsageError(
                    f"{link} is a training of its own: remove {line.run.folder}, or give another --out"
                )
            if not link.is_symlink():
                link.symlink_to(Path("..", DENSE, "train"))
            line.run.mark("train", line.train_key)

    def perform(self, until: str) -> None:
        """Prune and convert for each budget. Raises Failed once all others are done."""
        self._all_done(self.lines, until)

    def _all_done(self, lines: dict[str, Pipeline], until: str) -> None:
        waiting = [name for name, line in lines.items() if not _reached(line, until)]
        if len(waiting) < len(lines):
            self.listener.say(f"sweep: {len(lines) - len(waiting)} of {len(lines)} runs done already")
        if not waiting:
            return
        todo = [Job(name=n, out=lines[n].run.folder, source=self.source, until=until) for n in waiting]
        if self.where.ray is not None:
            failed = jobs.on_ray(todo, self.where.ray, self.listener.say)
        elif min(self.where.count, len(todo)) > 1:
            failed = jobs.at_once(todo, min(self.where.count, len(todo)), self.listener.say)
        else:
            failed = jobs.in_turn(todo, self.listener)
        # A file that loses more than its max_drop is told by an exit status, too: it is there all the same.
        failed = {name: told for name, told in failed.items() if not _reached(lines[name], until)}
        if failed:
            listed = "\n".join(f"  {name}: {told}" for name, told in failed.items())
            raise Failed(
                f"{len(failed)} of {len(lines)} runs of the sweep failed; the others are done, and the same "
                f"command goes on:\n{listed}"
            )

    def gather(self) -> list[Artifact]:
        """The files of all runs, under names that differ; what an earlier grid left there goes."""
        made = []
        for name, line in self.lines.items():
            for one in line.made():
                short = one.file.removeprefix("tflite-")  # the table is narrow
                made.append(_copied(one, self.run.artifacts / f"{name}-{short}"))
        kept = {path for one in made for path in (one.path, artifacts.sidecar(one.path))}
        for path in self.run.artifacts.iterdir():
            if path not in kept:
                files.remove(path)
        return made

    def points(self) -> list[Point]:
        """What stands in the comparison, each budget once."""
        return [_point(name, line) for name, line in self.lines.items()]

    def compare(self, made: Sequence[Artifact], *, allow_invalid: bool) -> Comparison:
        found, there = runs.collect([self.run.folder])
        order = {one.name: place for place, one in enumerate(made)}
        found = sorted(
            (one for one in found if one.artifact.name in order), key=lambda one: order[one.artifact.name]
        )
        spec = self.followed.report
        named = {f"{one.artifact.target}-{one.artifact.precision}" for one in found}
        reference = spec.reference if spec.reference in named else ""  # the grid may be without it
        comparison = report.compare(found, there, reference=reference, allow_invalid=allow_invalid)
        told = [f"{one.name}: {words(one)}" for one in self.points()]
        provenance = {
            "Recipe": str(self.run.folder / runs.RECIPE),
            "Networks": "\n".join(told),
            "Data": self.source,
            "edgekit": __version__,
        }
        title = spec.title or self.followed.description or self.run.folder.name
        report.write_page(comparison, self.run.report, title=title, provenance=provenance)
        return comparison


def words(point: Point) -> str:
    top1 = "unknown" if point.top1 is None else f"{100 * point.top1:.2f} % on the held-out images"
    return (
        f"{100 * point.kept_macs:.1f} % of the multiply-accumulates, {100 * point.kept_parameters:.1f} % of the "
        f"parameters, top-1 {top1}"
    )


def _reached(line: Pipeline, until: str) -> bool:
    if until == "train" or not line.trained():
        return line.trained()
    return line.pruning.done() if until == "prune" else line.converted()


def _point(name: str, line: Pipeline) -> Point:
    found, macs, parameters = checkpoint.read(line.pruning.checkpoint), 1.0, 1.0
    if line.recipe.prune:
        from edgekit import prune

        state = prune.read(line.pruning.checkpoint.parent.parent)
        assert state is not None
        macs, parameters = state.steps[-1].macs / state.macs, state.steps[-1].parameters / state.parameters
    return Point(
        name=name,
        run=line.run.folder,
        kept_macs=macs,
        kept_parameters=parameters,
        top1=found.metrics.get("val_top1"),
    )


def _copied(one: Artifact, path: Path) -> Artifact:
    """The artifact under another name."""
    if path.exists() and artifacts.sidecar(path).is_file() and files.sha256(path) == one.sha256:
        found = artifacts.read(path, verify=False)
        if found == replace(one, file=path.name):
            return found
    with artifacts.replacing(path) as (description, temporary):
        (shutil.copytree if one.path.is_dir() else shutil.copyfile)(one.path, temporary)
        files.write_json(description, encode(replace(one, file=path.name)))
    return artifacts.read(path)
