"""A network with fewer channels, chosen but not trained yet."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from edgekit import models
from edgekit.checkpoint import Checkpoint
from edgekit.data import Split
from edgekit.errors import UsageError
from edgekit.models.normalize import Normalize
from edgekit.prune import budget, importance, surgery
from edgekit.prune.budget import Plan
from edgekit.prune.groups import Graph, trace
from edgekit.prunespec import PruneSpec
from edgekit.train import accelerator, batches
from edgekit.train.batches import Feed

BATCH, SMALL_BATCH = 256, 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """*described*: the checkpoint that it will be, with its channels. *left*: layers that stay, with reasons."""

    model: nn.Module
    described: Checkpoint
    plan: Plan
    left: dict[str, str]


class Chooser:
    """Makes candidates of one network. *floors*: the fewest channels of each group, those of the dense network.

    Raises UsageError for a model that cannot be followed.
    """

    def __init__(self, start: Checkpoint, spec: PruneSpec, images: Split | None, lowest: dict[str, int] | None):
        self.start, self.spec = start, spec
        self.model = models.restore(start)
        contract = start.preprocess
        self.size = contract.height, contract.width
        self.graph: Graph = trace(self.model, *self.size, start.model.name, spare=spec.spare)
        if not self.graph.groups:
            raise UsageError(f"{start.model.name} has no channels that can go: {_reasons(self.graph.left)}")
        self.lowest = budget.floors(self.graph, spec.round_to) if lowest is None else lowest
        if spec.importance == "taylor" and images is None:
            raise UsageError(
                "taylor importance is measured on training images: give --data DIR, or --importance magnitude"
            )
        lessons = _lessons(start, images, spec.images) if images and spec.importance == "taylor" else ()
        self.scores, unseen = importance.scores(self.graph, self.model, spec.importance, lessons)
        self.left = {**self.graph.left, **unseen}
        if not self.scores:
            raise UsageError(f"{start.model.name}: {next(iter(unseen.values()))}; take another --importance")

    @property
    def least(self) -> int:
        """The fewest multiply-accumulates that it can be left with."""
        return budget.least(self.graph, self.scores, self.lowest)

    def candidate(self, macs: int) -> Candidate:
        """The network with at most so many multiply-accumulates. Raises UsageError where they are too few."""
        plan = budget.choose(
            self.graph,
            self.scores,
            macs,
            scope=self.spec.scope,
            step=self.spec.round_to,
            lowest=self.lowest,
            by_cost=self.spec.importance == "taylor",
        )
        surgery.check(self.model, self.graph.groups, plan.kept, *self.size, self.start.model.name)
        small = surgery.pruned(self.model, self.graph.groups, plan.kept)
        before = self.start.model
        whole = dense(replace(self.start, model=replace(before, channels={})))
        described = replace(self.start, model=replace(before, channels=surgery.table(small, whole)), metrics={})
        return Candidate(model=small, described=described, plan=plan, left=self.left)


def reachable(described: Checkpoint, spec: PruneSpec) -> float:
    """The least share of the multiply-accumulates that the architecture can be left with, whatever its weights."""
    contract, name = described.preprocess, described.model.name
    graph = trace(dense(described), contract.height, contract.width, name, spare=spec.spare)
    scores = {group.name: torch.zeros(group.width) for group in graph.groups}
    return budget.least(graph, scores, budget.floors(graph, spec.round_to)) / graph.macs


def _lessons(start: Checkpoint, images: Split, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of a seeded choice of the images, in random order."""
    where = accelerator.choose("fp32").device
    chosen = images.take([int(index) for index in np.random.default_rng(0).permutation(len(images))[:count]])
    return normalized(start, chosen, where, "importance", SMALL_BATCH)


def dense(described: Checkpoint) -> nn.Module:
    """The checkpoint's architecture, with random weights."""
    with torch.random.fork_rng(devices=[]):
        side = models.side_of(described.preprocess)
        return models.build(described.model, len(described.classes), side)


def normalized(
    described: Checkpoint, images: Split, where: torch.device, text: str, batch_size: int = BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images as the network takes them (N, 3, H, W), and their labels (N), with a bar."""
    normalize = Normalize(described.preprocess).to(where)
    feed = Feed(images, where)(batches.in_order(len(images), batch_size))
    with tqdm(total=len(images), desc=text, unit="img", disable=None, leave=False) as bar:
        for pixels, labels in feed:
            yield normalize(pixels).contiguous(memory_format=torch.channels_last), labels
            bar.update(len(labels))


@torch.no_grad()
def top1(model: nn.Module, described: Checkpoint, images: Split) -> float:
    """The share of images that the network gets right."""
    where = accelerator.choose("fp32").device
    model.eval().to(where)
    right = sum(
        int((model(x).argmax(1) == labels).sum()) for x, labels in normalized(described, images, where, "top-1")
    )
    model.to("cpu")
    return right / len(images)


def _reasons(left: dict[str, str]) -> str:
    shown = [f"{layer} is {reason}" for layer, reason in left.items()][:3]
    return "; ".join(shown) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
