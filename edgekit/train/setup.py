"""What a training is made of: its settings checked, its network built, its learner put together."""

from collections.abc import Callable

import torch
from torch import Tensor

from edgekit import models
from edgekit.data import Dataset
from edgekit.errors import DataError, UsageError
from edgekit.group import Group
from edgekit.models import foreign
from edgekit.recipe import ModelSpec
from edgekit.requires import require
from edgekit.train import batches, schedule, seeds, start
from edgekit.train.accelerator import Accelerator
from edgekit.train.learner import Learner, probe
from edgekit.trainspec import TrainSpec


def check(
    model: ModelSpec, spec: TrainSpec, *, resume: bool = False, confirm: start.Confirm | None = None
) -> None:
    """Find all that can be found without the data; weights are downloaded after *confirm* said yes.

    Raises UsageError, CheckpointError or MissingDependency.
    """
    models.check(model)
    if foreign.kind(model.name) == "exported":
        raise UsageError(
            f"{model.name} is an exported program, which cannot be trained: name the model's own file"
        )
    if spec.batch_size < 2:
        raise UsageError("train.batch_size = 1: batch norm needs two images or more in a batch")
    require("matplotlib", feature="Drawing the curves of a training", extra="train")
    start.check(model, spec, resume=resume, confirm=confirm)


def check_data(dataset: Dataset, spec: TrainSpec, group: Group) -> None:
    """Raises DataError for too few images, UsageError for batches that are too small for the processes."""
    if len(dataset.train) < 2 or not len(dataset.val):
        raise DataError(
            f"{dataset.name} has {len(dataset.train)} training and {len(dataset.val)} held-out images; a training "
            "needs at least 2 and 1"
        )
    if min(spec.batch_size, len(dataset.train)) < 2 * group.size:
        raise UsageError(
            f"batches of {min(spec.batch_size, len(dataset.train))} images for {group.size} processes: each needs "
            "two or more of every batch; raise train.batch_size or start fewer processes"
        )


def learner(
    dataset: Dataset,
    model: ModelSpec,
    spec: TrainSpec,
    where: Accelerator,
    group: Group,
    say: Callable[[str], None],
    *,
    resume: bool,
) -> Learner:
    """The learner at the start of a training; where it is resumed, its weights come from the state."""
    torch.manual_seed(seeds.number(spec.seed, "weights"))
    classes, contract = dataset.classes, dataset.preprocess
    network = models.build(model, len(classes), models.side_of(contract))
    full = (contract.height, contract.width)
    first = tuple(schedule.side(side, spec.progressive, 1, spec.epochs) for side in full)
    for height, width in dict.fromkeys([full, first]):
        probe(network, height, width, len(classes), model.name)
    if spec.finetune and not resume:
        for note in start.start_(network, model, classes, spec.finetune.weights):
            say(note)
    return Learner(
        network,
        contract,
        spec,
        where,
        group=group,
        teacher=start.teacher(spec.distill.teacher, classes, where.device) if spec.distill else None,
        class_weights=balanced(dataset) if spec.class_weights == "balanced" else None,
        steps=spec.epochs * batches.steps(len(dataset.train), spec.batch_size, group.size),
        say=say,
    )


def balanced(dataset: Dataset) -> Tensor:
    """A weight (K) for each class, so that all of them count the same and the mean over the images is 1."""
    counts = torch.bincount(torch.tensor(dataset.train.labels), minlength=len(dataset.classes))
    if int(counts.min()) == 0:
        empty = [name for name, count in zip(dataset.classes, counts, strict=True) if not count]
        raise DataError(f"train.class_weights = 'balanced': no training image of {', '.join(empty)}")
    return len(dataset.train) / (len(counts) * counts.float())
