"""The stage ``prune`` of a run: the recipe's [[prune]] sections one after the other."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from edgekit import checkpoint, files
from edgekit.checkpoint import Checkpoint
from edgekit.data import Dataset
from edgekit.device import open_device
from edgekit.errors import CheckpointError
from edgekit.recipe import Recipe
from edgekit.requires import require
from edgekit.runs import Run
from edgekit.schema import encode


class Teller(Protocol):
    def say(self, text: str) -> None: ...


@dataclass(frozen=True)
class PruneStage:
    """*train_key*: of what the dense network was made from."""

    run: Run
    recipe: Recipe
    listener: Teller
    train_key: str
    dataset: Callable[[], Dataset]

    @property
    def checkpoint(self) -> Path:
        """What is converted."""
        return self.run.pruned(len(self.recipe.prune))

    def check(self) -> None:
        """Find what would fail hours later. Raises MissingDependency, UsageError or DeviceError."""
        if self.recipe.prune:
            require("torch_pruning", feature="Pruning", extra="prune")
        for spec in self.recipe.prune:
            if spec.keep_latency is not None:
                open_device(spec.device).close()

    def done(self) -> bool:
        """Whether all sections are; raises CheckpointError where the result is missing or damaged."""
        if not all(self._done(number) for number in range(1, len(self.recipe.prune) + 1)):
            return False
        if self.recipe.prune:
            weights = self.checkpoint / checkpoint.WEIGHTS
            found = checkpoint.read(self.checkpoint)
            if not weights.is_file() or files.sha256(weights) != found.weights_sha256:
                raise CheckpointError(
                    f"{weights} is missing or damaged: restore it, or prune again with --force prune"
                )
        return True

    def prune(self) -> None:
        from edgekit import prune

        dense = start = checkpoint.read(self.run.dense)
        for number, spec in enumerate(self.recipe.prune, 1):
            if self._done(number):
                start = checkpoint.read(self.run.pruned(number))
                self.listener.say(f"prune: section {number} done already, {_accuracy(start)}")
                continue
            folder = self.run.pruned(number).parent.parent
            found = prune.read(folder)
            if found is not None and self._begun(number) is False:
                prune.clear(folder)  # of settings that the recipe had before
            self.run.mark(f"prune/{number}/begun", self._key(number))
            start, _ = prune.prune(
                dense,
                spec,
                folder,
                start=start,
                dataset=self.dataset(),
                train_spec=replace(self.recipe.train, finetune=None),
                say=lambda text: self.listener.say(f"prune: {text}"),
            )
            self.run.mark(f"prune/{number}", self._key(number))
            self.listener.say(f"prune: {_accuracy(start)}")

    def _key(self, number: int) -> str:
        """Of all that the section's result is made from."""
        sections = [encode(one, defaults=False) for one in self.recipe.prune[:number]]
        return files.sha256_of([self.train_key, checkpoint.read(self.run.dense).weights_sha256, sections])

    def _done(self, number: int) -> bool:
        return self.run.is_done(f"prune/{number}", self._key(number))

    def _begun(self, number: int) -> bool:
        return self.run.is_done(f"prune/{number}/begun", self._key(number))


def _accuracy(found: Checkpoint) -> str:
    top1 = found.metrics.get("val_top1")
    return "top-1 unknown" if top1 is None else f"top-1 {100 * top1:.2f} % on the held-out images"
