"""The whole flow: train, prune, convert, bench, compare. What is done already is skipped."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import __version__, checkpoint, files, parity, recipe, report, runs
from edgekit import artifact as artifacts
from edgekit.artifact import Artifact
from edgekit.bench import PLAIN, Method, held_out
from edgekit.benchstage import BenchStage, Listener, check_devices
from edgekit.checkpoint import Checkpoint
from edgekit.data import Dataset
from edgekit.data import names as data_names
from edgekit.device import Progress
from edgekit.errors import ArtifactError, CheckpointError, UsageError, unknown
from edgekit.group import ALONE, Group
from edgekit.prunestage import PruneStage
from edgekit.recipe import Recipe, Variant
from edgekit.report import Comparison
from edgekit.runs import Run
from edgekit.schema import encode

if TYPE_CHECKING:
    from edgekit.export import ExportSource
    from edgekit.preprocess import Pixels

STAGES = ("train", "prune", "convert", "bench", "compare")


@dataclass(frozen=True)
class Pipeline:
    """One run of a recipe. *source* is a data name or an absolute folder; *group*: who trains together."""

    run: Run
    recipe: Recipe
    source: str
    listener: Listener
    group: Group = ALONE

    @cached_property
    def dataset(self) -> Dataset:
        from edgekit import data

        dataset = data.load(self.recipe.data, source=self.source, confirm=self.listener.confirm)
        for text in dataset.unreadable:
            self.listener.say(f"left out, unreadable: {text}")
        return dataset

    @cached_property
    def train_key(self) -> str:
        spec = replace(self.recipe.data, source=self.source)
        listing = runs.listing_sha256(self.source)
        settings = [encode(part, defaults=False) for part in (self.recipe.model, spec, self.recipe.train)]
        return files.sha256_of([*settings, listing])

    def check(self, stages: Sequence[str], devices: Sequence[str], force: Sequence[str]) -> None:
        """Find what would fail hours later: names, folders, packages, addresses."""
        if "train" in stages and ("train" in force or not self.trained()):
            from edgekit import data, models

            models.check(self.recipe.model)
            data.check(self.source)
            from edgekit.train import setup  # takes seconds: it loads torch

            resume = "train" not in force and (self.run.folder / "train").exists()
            setup.check(self.recipe.model, self.recipe.train, resume=resume, confirm=self.listener.confirm)
        if "prune" in stages:
            self.pruning.check()
        if "convert" in stages and ("train" in force or not self.converted()):
            from edgekit import convert

            if not self.recipe.variant:
                raise UsageError("the recipe has no [[variant]]: nothing to convert")
            convert.check(self.recipe.variant)
        if "bench" in stages:
            check_devices(devices, self.recipe.bench.threads)

    def trained(self) -> bool:
        if not self.run.is_done("train", self.train_key):
            return False
        found = checkpoint.read(self.run.dense)
        weights = self.run.dense / checkpoint.WEIGHTS
        if not weights.is_file() or files.sha256(weights) != found.weights_sha256:
            raise CheckpointError(
                f"{weights} is missing or damaged: restore it, or train again with --force train"
            )
        return True

    def guard(self, force: Sequence[str], *, may_resume: bool) -> None:
        """Raises UsageError where going on would replace a training that the user did not ask to replace."""
        self.run.check(self.source)
        if "train" not in force and not self.trained():
            self.run.guard(may_resume=may_resume)

    def train(self) -> None:
        if self.group.share(self.group.main and self.trained()):
            if self.group.main:  # on another machine there may be no such folder
                self.listener.say(f"train: done already, {_accuracy(checkpoint.read(self.run.dense))}")
            return
        from edgekit.train import train

        if self.group.main:
            _ = self.dataset  # it may have to be downloaded: the other processes wait
        resume = self.group.share((self.run.folder / "train").exists())
        self.listener.say(
            f"train: {self.recipe.model.name} on {self.dataset.name}, {len(self.dataset.train)} images to learn "
            f"from, {len(self.dataset.val)} held out, {_epochs(self.recipe.train.epochs)}"
        )
        made = train(
            self.dataset,
            self.recipe.model,
            self.recipe.train,
            self.run.folder / "train",
            resume=resume,
            group=self.group,
            say=lambda note: self.listener.say(f"train: {note}"),
            confirm=self.listener.confirm,
        )
        if self.group.main:
            self.run.mark("train", self.train_key)
            self.listener.say(
                f"train: {_accuracy(made)}; curves and confusion matrix in {self.run.folder / 'train'}"
            )

    @cached_property
    def pruning(self) -> PruneStage:
        return PruneStage(self.run, self.recipe, self.listener, self.train_key, lambda: self.dataset)

    def _convert_key(self, variant: Variant) -> str:
        trained = checkpoint.read(self.pruning.checkpoint)
        return files.sha256_of([trained.weights_sha256, encode(variant, defaults=False), __version__])

    def _path(self, variant: Variant) -> Path:
        from edgekit.convert import converter
        from edgekit.repair import path_of

        return path_of(variant, converter(variant.target).suffix, self.run.artifacts)

    def _converted(self, variant: Variant) -> bool:
        if not self.trained() or not self.pruning.done():
            return False
        if not self.run.is_done(f"convert/{variant.name}", self._convert_key(variant)):
            return False
        try:
            artifacts.read(self._path(variant))
        except ArtifactError as error:
            self.listener.say(f"convert: {error}")
            return False
        return True

    def converted(self) -> bool:
        """Whether every variant is, of what is trained and pruned now."""
        return all(map(self._converted, self.recipe.variant))

    def made(self) -> list[Artifact]:
        """The files of a run that is converted."""
        return [artifacts.read(path) for path in dict.fromkeys(map(self._path, self.recipe.variant))]

    @cached_property
    def _export_source(self) -> "tuple[ExportSource, Pixels]":
        """What is converted, and the images for parity."""
        from edgekit.export import from_checkpoint

        trained, augment = checkpoint.read(self.pruning.checkpoint), self.recipe.train.augment
        source = from_checkpoint(trained, self.dataset.train, self.dataset.val, augment)
        return source, self.dataset.val.sample(parity.images(*source.shape_NHWC[1:3]))

    def convert(self) -> list[Artifact]:
        from edgekit.convert import convert

        # A search may end in the file of another variant: it comes last, so that its result stays.
        ordered = sorted(self.recipe.variant, key=lambda variant: variant.budget is not None)
        already = 0
        with self.listener.bar("convert") as progress:
            for done, variant in enumerate(ordered):
                if self._converted(variant):
                    already += 1
                    continue
                source, images = self._export_source
                tell = partial(_tell, progress, done / len(ordered))
                (made_one,) = convert(source, [variant], images, self.run.artifacts, tell)
                for note in made_one.notes:
                    self.listener.say(f"convert: {variant.name}: {note}")
                self.run.mark(f"convert/{variant.name}", self._convert_key(variant))
            progress("converted", 1.0)
        made = self.made()
        note = f" ({already} done already)" if 0 < already < len(ordered) else ": done already" if already else ""
        self.listener.say(f"convert: {len(made)} files{note}")
        for artifact in made:
            if artifact.parity and (fault := artifact.parity.broken(artifact.precision)):
                self.listener.say(f"convert: {artifact.name} is BROKEN: {fault}")
        return made

    def bench(self, made: Sequence[Artifact], addresses: Sequence[str], method: Method) -> None:
        stage = BenchStage(
            run=self.run,
            spec=self.recipe.bench,
            listener=self.listener,
            train_key=self.train_key,
            images=lambda: held_out(self.dataset),
            method=method,
        )
        stage.measure(made, addresses)

    def compare(self, *, allow_invalid: bool = False, command: str = "") -> Comparison:
        found, made = runs.collect([self.run.folder])
        spec = self.recipe.report
        budget = report.Budget(
            max_drop=spec.max_drop, max_latency_ms=spec.max_latency_ms, max_size_bytes=spec.max_size_bytes
        )
        comparison = report.compare(
            found, made, reference=spec.reference, allow_invalid=allow_invalid, budget=budget
        )
        title = spec.title or self.recipe.description or self.run.folder.name
        trained = checkpoint.read(self.pruning.checkpoint)
        provenance = {
            "Run": str(self.run.folder),
            "Command": command,
            "Recipe": runs.recipe_text(self.run.folder),
            "Model": f"{trained.model.name}, width {trained.model.width:g}",
            "Data": trained.provenance.get("dataset", self.source),
            "Float model in training": _accuracy(trained),
            "Weights (SHA-256)": trained.weights_sha256,
            "edgekit": __version__,
        }
        extras = report.Extras(contents=report.read_contents(made))
        report.write_page(comparison, self.run.report, title=title, provenance=provenance, extras=extras)
        return comparison


def run(
    name: str,
    *,
    listener: Listener,
    text: str = "",
    data: str | None = None,
    devices: Sequence[str] = (),
    out: Path | None = None,
    until: str = "compare",
    force: Sequence[str] = (),
    allow_invalid: bool = False,
    may_resume: bool = True,
    group: Group = ALONE,
    method: Method = PLAIN,
    command: str = "",
) -> tuple[Run, Comparison | None]:
    """Run a recipe up to the stage *until*; the comparison when it got there.

    *name* is a shipped recipe or a path; with *text* (TOML) it only names the run. *force* redoes stages. Of a
    *group* of processes all train, and the main one does the rest. *command*: what the user typed, for the page.
    Interrupted, the same call goes on where it stopped. Raises RecipeError, UsageError and what stages raise.
    """
    for stage in (until, *force):
        if stage not in STAGES:
            raise unknown("stage", stage, STAGES)
    text = text or recipe.text_of(name)
    followed = recipe.from_anywhere(recipe.parse(text, name))
    source = resolve(data or followed.data.source)
    folder = Run(folder=out or Path("runs") / folder_name(name, source if data else ""))
    stages = STAGES[: STAGES.index(until) + 1]
    addresses = tuple(devices) or followed.bench.devices
    pipeline = Pipeline(folder, followed, source, listener, group)
    if not group.main:
        pipeline.train()
        return folder, None
    pipeline.check(stages, addresses, force)
    with folder.locked():
        pipeline.guard(force, may_resume=may_resume)
        folder.begin(name, source, text)
        for stage in force:
            folder.forget(stage)
            if stage in ("train", "prune"):
                files.remove(folder.folder / stage)
        pipeline.train()
        if until == "train":
            return folder, None
        pipeline.pruning.prune()
        if until == "prune":
            return folder, None
        made = pipeline.convert()
        if until == "convert":
            return folder, None
        pipeline.bench(made, addresses, method)
        if until == "bench":
            return folder, None
        return folder, pipeline.compare(allow_invalid=allow_invalid, command=command)


def over_budget(run: Run) -> list[Artifact]:
    """The run's files that lose more top-1 than their max_drop. Raises ArtifactError for a damaged one."""
    return [one for one in runs.read_artifacts(run.artifacts) if one.repair and not one.repair.met]


def resolve(source: str) -> str:
    """A folder's absolute path, so that a run can be continued from anywhere; a built-in name as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if source not in data_names() and path.exists() else source


def _tell(progress: Progress, share: float, text: str, _: float) -> None:
    progress(text, share)


def folder_name(name: str, source: str) -> str:
    """What a run of the recipe is called, with the data that the user gave."""
    stem = Path(name).stem
    return f"{stem}-{Path(source).name}" if source else stem


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def _accuracy(found: Checkpoint) -> str:
    top1 = found.metrics.get("val_top1")
    return "top-1 unknown" if top1 is None else f"top-1 {100 * top1:.2f} % on the held-out images"
