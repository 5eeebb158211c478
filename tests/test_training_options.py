"""Training's options: what each does, in numbers; and several processes that give what one gives."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from edgekit import checkpoint, data, models
from edgekit.data import Dataset, memory
from edgekit.errors import CheckpointError, DataError, TrainingError, UsageError
from edgekit.group import Group
from edgekit.models import layers, pretrained
from edgekit.preprocess import Preprocess, random_crop
from edgekit.recipe import DataSpec, ModelSpec
from edgekit.train import BEST, CONFUSION, CURVES, EVALUATION, LAST, METRICS, accelerator, train
from edgekit.train import start as starts
from edgekit.train.augment import augmented, mixed, resized
from edgekit.train.batches import shuffled
from edgekit.train.learner import Learner
from edgekit.train.optimizer import parameter_groups
from edgekit.train.schedule import side
from edgekit.train.setup import balanced, check_data
from edgekit.trainspec import AugmentSpec, DistillSpec, FinetuneSpec, ProgressiveSpec, TrainSpec
from tests.test_train import SPEC, TINY, noise, rows, same

LENET = str(Path(__file__).parent / "data" / "lenet5.py") + ":lenet5"
STILL = AugmentSpec(flip=False, shift=0.0)
PLAIN = Preprocess(height=16, width=16)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return noise()


def batch(count: int = 12, size: int = 16) -> Tensor:
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


# Augmentation


@pytest.mark.parametrize(
    "spec",
    [
        AugmentSpec(flip=True, shift=0.2, scale=0.2),
        AugmentSpec(flip=False, shift=0.0, crop=0.3),
        AugmentSpec(flip=False, shift=0.0, policy="rand"),
        AugmentSpec(flip=False, shift=0.0, policy="trivial", erase=0.5),
    ],
)
def test_what_happens_to_an_image_does_not_depend_on_who_has_it(spec: AugmentSpec) -> None:
    pixels = batch(37)
    before = torch.get_rng_state()
    whole = augmented(pixels, spec, (3, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(whole, pixels.float())
    assert not torch.equal(whole, augmented(pixels, spec, (3, 2)))
    for group in (Group(rank=0, size=3), Group(rank=1, size=3), Group(rank=2, size=3)):
        part = group.part(37)
        mine = augmented(pixels[part], spec, (3, 1), first=part.start, total=37)
        torch.testing.assert_close(mine, whole[part], rtol=0, atol=1e-3)


def test_parts_of_a_group_cover_everything_once() -> None:
    for size in (1, 2, 3, 7):
        found = [i for rank in range(size) for i in range(20)[Group(rank=rank, size=size).part(20)]]
        assert found == list(range(20))


def test_a_random_crop_is_a_part_of_the_image() -> None:
    """On a ramp from left to right a crop of at least half the area spans at least about half of the values."""
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8).expand(200, 3, 64, 64)
    cut = augmented(ramp, AugmentSpec(flip=False, shift=0.0, crop=0.5), (0,))
    spans = cut[:, 0, 32, -1] - cut[:, 0, 32, 0]
    # Width share: sqrt(area * ratio), from sqrt(0.5 * 3/4) = 0.61 to 1.
    assert 0.58 < float(spans.min()) / 255 < 0.7
    assert float(spans.max()) == 255
    assert (float(cut.min()), float(cut.max())) == (0, 255)  # no border from outside of the image


def test_erasing_leaves_the_colour_that_was_asked_for() -> None:
    spec = AugmentSpec(flip=False, shift=0.0, erase=1.0)
    erased = augmented(torch.full((40, 3, 16, 16), 255, dtype=torch.uint8), spec, (0,), colour=(10.0, 20.0, 30.0))
    for image in erased:
        holes = image[0] == 10
        assert 0.02 * 256 * 0.5 < int(holes.sum()) < 0.34 * 256 * 1.5  # 2 to 33 % of the area, rounded to pixels
        assert torch.equal(image[1] == 20, holes)
        assert torch.equal(image[2] == 30, holes)


@pytest.mark.parametrize(
    "spec", [AugmentSpec(mixup=1.0), AugmentSpec(cutmix=1.0), AugmentSpec(mixup=0.2, cutmix=1.0)]
)
def test_mixed_images_have_mixed_labels(spec: AugmentSpec) -> None:
    labels = torch.arange(12) % 3
    x = (labels * 100.0)[:, None, None, None].expand(12, 3, 16, 16).clone()
    for seed in range(8):
        mixture, shares = mixed(x, labels, 3, spec, (seed,))
        assert shares.shape == (12, 3)
        assert shares.sum(1).tolist() == pytest.approx([1.0] * 12)
        # The mean brightness of each image follows its shares.
        wanted = shares @ torch.tensor([0.0, 100.0, 200.0])
        assert mixture.mean((1, 2, 3)).tolist() == pytest.approx(wanted.tolist(), abs=1e-3)
    assert mixed(x, labels, 3, STILL, (0,))[1] is labels


def test_crops_from_files_come_from_the_whole_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 400, dtype=np.uint8)[None, :, None], (100, 400, 3))
    picture, contract = Image.fromarray(np.ascontiguousarray(ramp)), Preprocess(height=16, width=16)
    everything = random_crop(picture, contract, np.array([1.0, 0.5, 0.0, 0.0], np.float32), 0.2)
    assert everything.shape == (16, 16, 3)
    # All of the area at ratio 1 would be 200 pixels square: it is cut off at the height of 100, left half kept.
    assert int(everything[8, -1, 0]) == pytest.approx(255 * 200 / 400, abs=6)
    right = random_crop(picture, contract, np.array([1.0, 0.5, 1.0, 0.0], np.float32), 0.2)
    assert int(right[8, -1, 0]) == pytest.approx(255, abs=6)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(12):
            picture.save(tmp_path / name / f"{number}.png")
    monkeypatch.setattr(memory, "MEMORY_BYTES", 1)
    loaded = data.load(DataSpec(source=str(tmp_path), preprocess=contract))
    assert loaded.train.has_files
    first = train(loaded, TINY, replace(SPEC, epochs=1, augment=AugmentSpec(crop=0.3)), tmp_path / "one")
    again = train(loaded, TINY, replace(SPEC, epochs=1, augment=AugmentSpec(crop=0.3)), tmp_path / "two")
    assert same(first, again)


# Size, steps, stopping


def test_images_grow_with_the_epochs() -> None:
    spec = ProgressiveSpec(start=0.5, until=0.8)
    assert [side(224, spec, epoch, 10) for epoch in range(1, 11)] == (
        [112, 128, 144, 160, 176, 192, 208, 224, 224, 224]
    )
    assert [side(32, spec, epoch, 5) for epoch in range(1, 6)] == [16, 20, 28, 32, 32]
    assert side(32, None, 1, 5) == 32
    assert resized(batch().float(), 8, 8).shape == (12, 3, 8, 8)


def test_a_training_with_growing_images(dataset: Dataset, tmp_path: Path) -> None:
    spec = replace(SPEC, progressive=ProgressiveSpec(start=0.5, until=1.0))
    train(dataset, TINY, spec, tmp_path)
    assert [row["side"] for row in rows(tmp_path)] == [8, 12, 12, 16]


def test_patience_stops_a_training(dataset: Dataset, tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "net.py").write_text(NET.format(limit=100))
    model, spec = ModelSpec(name=f"{tmp_path / 'net.py'}:Net"), replace(SPEC, epochs=30, patience=2)
    still = replace(spec, learning_rate=1e-12, ema=0.0)
    train(dataset, model, still, tmp_path / "out", say=said.append)
    lines = rows(tmp_path / "out")
    assert len({line["val_top1"] for line in lines}) == 1  # equal is no progress
    assert len(lines) == 3
    assert said == ["stopped after 3 of 30 epochs: top-1 was best in epoch 3 (train.patience = 2)"]
    train(dataset, model, still, tmp_path / "out", resume=True)  # it is over already
    assert rows(tmp_path / "out") == lines


def test_a_long_gradient_is_cut(dataset: Dataset) -> None:
    """Plain SGD moves the weights by the learning rate times the gradient: its length is at most the limit."""
    for limit, longest in ((0.0, math.inf), (1e-3, 1e-3)):
        spec = TrainSpec(epochs=1, optimizer="sgd", momentum=0.0, weight_decay=0.0, clip_norm=limit)
        learner = Learner(models.build(TINY, 3), PLAIN, spec, accelerator.choose("fp32"))
        learner.begin_epoch(frozen=False)
        before = torch.cat([p.detach().flatten().clone() for p in learner.model.parameters()])
        learner.step(batch().float(), torch.arange(12) % 3, 1.0)
        after = torch.cat([p.detach().flatten().clone() for p in learner.model.parameters()])
        moved = float((after - before).norm())
        assert moved <= longest * 1.001
        assert moved > (0.5 * limit if limit else 0.05)


def test_every_class_counts_the_same() -> None:
    skewed = replace(noise(), train=noise().train.take([i for i, y in enumerate(noise().train.labels) if y < 2]))
    with pytest.raises(DataError, match="class_weights = 'balanced': no training image of c"):
        balanced(skewed)
    weights = balanced(noise())
    labels = torch.tensor(noise().train.labels)
    assert float(weights[labels].mean()) == pytest.approx(1.0)
    sums = torch.bincount(labels) * weights
    assert sums.tolist() == pytest.approx([50 / 3] * 3)


def test_patience_waits_for_the_body(dataset: Dataset, tmp_path: Path) -> None:
    first = train(dataset, TINY, replace(SPEC, epochs=1), tmp_path / "first")
    finetune = FinetuneSpec(weights=str(first.path), freeze_epochs=3)
    spec = replace(SPEC, epochs=9, patience=1, learning_rate=1e-12, ema=0.0, finetune=finetune)
    train(dataset, TINY, spec, tmp_path / "second", say=lambda _: None)
    assert len(rows(tmp_path / "second")) > 3


def test_statistics_look_back_over_a_hundredth_of_the_training() -> None:
    """MobileNetV3's batch norm has momentum 0.01 and V2's 0.1: a smaller one than 100 / steps grows."""
    for name, steps, momentum in (
        ("mobilenet_v3_small", 500, 0.1),
        ("mobilenet_v3_small", 4000, 0.025),
        ("mobilenet_v3_small", 100_000, 0.01),
        ("mobilenet_v2", 100_000, 0.1),
    ):
        model = models.build(ModelSpec(name=name, width=0.35), 3)
        Learner(model, PLAIN, SPEC, accelerator.choose("fp32"), steps=steps)
        found = {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
        assert found == {momentum}


# Memory


NET = """
import torch
from torch import nn

class Net(nn.Module):
    LIMIT = {limit}

    def __init__(self, classes):
        super().__init__()
        self.layers = nn.Sequential(
            nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, classes)
        )

    def forward(self, x):
        if self.training and len(x) > self.LIMIT:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.layers(x)
"""


def test_a_batch_that_does_not_fit_is_halved_once(dataset: Dataset, tmp_path: Path) -> None:
    said: list[str] = []
    for name, limit in (("whole", 100), ("halved", 6)):
        (tmp_path / f"{name}.py").write_text(NET.format(limit=limit))
        spec = ModelSpec(name=f"{tmp_path / name}.py:Net")
        train(dataset, spec, SPEC, tmp_path / name, say=said.append)
    assert said == [
        "a batch of 12 images does not fit into the memory of cpu float32: from here on it is trained in 2 parts "
        "of 6 whose gradients are added; the effective batch stays 12"
    ]
    one, two = (checkpoint.read_weights(checkpoint.read(tmp_path / name / LAST)) for name in ("whole", "halved"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)
    (tmp_path / "none.py").write_text(NET.format(limit=5))
    with pytest.raises(
        TrainingError, match=r"too little memory for 6 images at a time: set train.batch_size to 3 or"
    ):
        train(dataset, ModelSpec(name=f"{tmp_path / 'none.py'}:Net"), SPEC, tmp_path / "none", say=said.append)


def test_a_small_last_batch_is_not_cut(dataset: Dataset, tmp_path: Path) -> None:
    """27 images in batches of 12 leave 3: in two parts one would have a single image, which batch norm refuses."""
    (tmp_path / "net.py").write_text(NET.format(limit=6).replace("nn.Tanh()", "nn.BatchNorm1d(16)"))
    few = replace(dataset, train=dataset.train.take(range(27)))
    said: list[str] = []
    train(few, ModelSpec(name=f"{tmp_path / 'net.py'}:Net"), replace(SPEC, epochs=2), tmp_path, say=said.append)
    assert len(said) == 1


def test_validation_takes_as_many_images_at_a_time_as_fit(dataset: Dataset, tmp_path: Path) -> None:
    code = NET.format(limit=7).replace("self.training and ", "not self.training and len(x) != 2 and ")
    (tmp_path / "net.py").write_text(code)
    found = train(dataset, ModelSpec(name=f"{tmp_path / 'net.py'}:Net"), replace(SPEC, epochs=1), tmp_path)
    (tmp_path / "free.py").write_text(NET.format(limit=100))
    free = train(dataset, ModelSpec(name=f"{tmp_path / 'free.py'}:Net"), replace(SPEC, epochs=1), tmp_path / "f")
    assert found.metrics == free.metrics
    (tmp_path / "none.py").write_text(NET.format(limit=0).replace("self.training", "len(x) != 2"))
    with pytest.raises(TrainingError, match=r"too little memory for 6 images at a time: set train.batch_size"):
        train(dataset, ModelSpec(name=f"{tmp_path / 'none.py'}:Net"), replace(SPEC, epochs=1), tmp_path / "n")


def test_batches_are_large_enough_for_all_processes(dataset: Dataset) -> None:
    assert [len(indices) for indices in shuffled(40, 19, (0,))] == [19, 19, 2]
    assert [len(indices) for indices in shuffled(40, 19, (0,), 3)] == [19, 19]
    with pytest.raises(UsageError, match="batches of 4 images for 3 processes: each needs two or more of every"):
        check_data(dataset, replace(SPEC, batch_size=4), Group(size=3))


# Fine-tuning


@pytest.mark.parametrize("kind", ["sgd", "adamw", "rmsprop"])
def test_a_body_is_unfrozen_with_every_optimizer(kind: Any, dataset: Dataset, tmp_path: Path) -> None:
    first = train(dataset, TINY, replace(SPEC, epochs=1), tmp_path / "first")
    finetune = FinetuneSpec(weights=str(first.path), freeze_epochs=1)
    spec = replace(SPEC, epochs=3, optimizer=kind, finetune=finetune)
    whole = train(dataset, TINY, spec, tmp_path / "second")
    assert len(rows(tmp_path / "second")) == 3
    shutil.rmtree(first.path)  # the state holds all that is needed to go on
    assert same(train(dataset, TINY, spec, tmp_path / "second", resume=True), whole)


def test_an_overflow_in_the_first_step_leaves_the_momentum_at_nought() -> None:
    """fp16's first steps overflow as a rule: the scaler skips them, and nothing of them may stay."""
    spec = TrainSpec(epochs=1, optimizer="sgd", weight_decay=0.0)
    learner = Learner(models.build(TINY, 3), PLAIN, spec, accelerator.choose("fp32"))
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    learner.begin_epoch(frozen=False)
    before = [p.detach().clone() for p in learner.model.parameters()]
    learner.step(batch().float(), torch.arange(12) % 3, 1.0)
    for old, new in zip(before, learner.model.parameters(), strict=True):
        assert torch.equal(old, new)
        assert not learner.optimizer.state[new]["momentum_buffer"].any()


def test_a_classifier_that_is_not_registered_last_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.head, self.body = nn.Linear(8, classes), nn.Conv2d(3, 8, 1)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.body(x).mean((2, 3)))\n"
    )
    model = ModelSpec(name=f"{tmp_path / 'own.py'}:Net")
    train(dataset, model, replace(SPEC, epochs=1), tmp_path / "first")
    spec = replace(SPEC, finetune=FinetuneSpec(weights=str(tmp_path / "first" / BEST)))
    with pytest.raises(
        UsageError, match=r"last layer seems to be body, whose weights have the shape \(8, 3, 1, 1\)"
    ):
        train(dataset, model, spec, tmp_path / "out")


def test_the_depth_of_each_layer() -> None:
    model = models.build(ModelSpec(name="mobilenet_v2", width=0.35), 10)
    depths = layers.depths(model)
    assert layers.last_layer(model) == "classifier"
    assert depths["features.0.0.weight"] == 0
    assert depths["features.18.0.weight"] == 18
    assert depths["classifier.bias"] == max(depths.values()) == 19
    vit = models.build(ModelSpec(name="torchvision:vit_b_16"), 10, 32)
    depths = layers.depths(vit)
    assert depths["class_token"] == depths["conv_proj.weight"] == 0
    blocks = [depths[f"encoder.layers.encoder_layer_{i}.mlp.0.weight"] for i in range(12)]
    assert blocks == list(range(blocks[0], blocks[0] + 12))
    assert layers.last_layer(vit) == "heads.head"
    with pytest.raises(ValueError, match="no parameters"):
        layers.last_layer(nn.ReLU())


def test_deep_layers_learn_faster() -> None:
    model = models.build(ModelSpec(name="mobilenet_v2", width=0.05), 3)
    groups = parameter_groups(model, 0.05, layer_decay=0.5)
    scale = {id(p): (g["scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    named = dict(model.named_parameters())
    assert scale[id(named["classifier.weight"])] == (1.0, 0.05)
    assert scale[id(named["classifier.bias"])] == (1.0, 0.0)
    assert scale[id(named["features.18.0.weight"])] == (0.5, 0.05)
    assert scale[id(named["features.0.0.weight"])] == (0.5**19, 0.05)
    learner = Learner(
        model, PLAIN, replace(SPEC, ema=0.0, finetune=FinetuneSpec(layer_decay=0.5)), accelerator.choose("fp32")
    )
    learner.begin_epoch(frozen=False)
    learner.step(batch().float(), torch.arange(12) % 3, 0.25)
    assert sorted({group["lr"] for group in learner.optimizer.param_groups})[-2:] == [0.125, 0.25]


def test_a_frozen_body_stays_as_it_was(dataset: Dataset, tmp_path: Path) -> None:
    first = train(dataset, TINY, replace(SPEC, epochs=1), tmp_path / "first")
    finetune = FinetuneSpec(weights=str(tmp_path / "first" / BEST), freeze_epochs=1)
    spec = replace(SPEC, epochs=2, ema=0.0, finetune=finetune)
    said: list[str] = []
    train(dataset, TINY, spec, tmp_path / "second", say=said.append)
    assert said == []  # the same classes: the last layer goes on, nothing to say
    before = checkpoint.read_weights(first)
    learner = Learner(models.restore(first), dataset.preprocess, spec, accelerator.choose("fp32"))
    for epoch_frozen in (True, False):
        learner.begin_epoch(frozen=epoch_frozen)
        learner.step(batch().float(), torch.arange(12) % 3, 0.1)
        after = learner.weights()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        if epoch_frozen:
            assert moved == {"classifier.weight", "classifier.bias"}
        else:
            assert {"features.0.0.weight", "features.0.1.running_mean"} <= moved


def test_what_a_training_starts_from_must_fit(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(dataset, TINY, replace(SPEC, epochs=1), tmp_path / "run" / "train")
    start = replace(SPEC, epochs=2, finetune=FinetuneSpec(weights=str(tmp_path / "run")))
    with pytest.raises(CheckpointError, match=r"holds another architecture: width was 0.05 and is 0.1"):
        train(dataset, replace(TINY, width=0.1), start, tmp_path / "out")
    said: list[str] = []
    train(replace(dataset, classes=("x", "y", "z")), TINY, start, tmp_path / "out", say=said.append)
    assert said == [f"the last layer has other classes than the 3 of {tmp_path / 'run'}: its weights are random"]
    spec = replace(SPEC, finetune=FinetuneSpec(weights=str(tmp_path)))
    with pytest.raises(CheckpointError, match="neither a run nor a checkpoint"):
        train(dataset, TINY, spec, tmp_path / "none")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    spec = replace(SPEC, finetune=FinetuneSpec(weights="imagenet"))
    with pytest.raises(CheckpointError, match=r"put resnet18-\w+\.pth into .*cache/hub/checkpoints"):
        train(dataset, ModelSpec(name="torchvision:resnet18"), spec, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_torchvisions_own_weights_start_a_training(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file as torchvision publishes it, with random numbers; GoogLeNet's side classifiers are left out."""
    import torchvision

    monkeypatch.setattr(pretrained, "ensure", lambda *_: tmp_path / "googlenet.pth")
    torch.manual_seed(0)
    theirs = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    spec = ModelSpec(name="torchvision:googlenet")
    ours = models.build(spec, 3)
    assert starts.start_(ours, spec, ("a", "b", "c"), "imagenet") == (
        "the last layer has 3 classes and not ImageNet's 1000: its weights are random",
    )
    assert torch.equal(ours.state_dict()["conv1.conv.weight"], theirs.state_dict()["conv1.conv.weight"])


# Distillation


def test_a_teacher_that_agrees_adds_nothing(dataset: Dataset, tmp_path: Path) -> None:
    """Where teacher and student are one network the soft loss is 0, and the hard one's share is left."""
    found = train(dataset, TINY, replace(SPEC, epochs=1), tmp_path)
    student = models.restore(found)
    teacher = starts.teacher(str(tmp_path / BEST), dataset.classes, torch.device("cpu"))
    x, y = batch().float(), torch.arange(12) % 3
    losses = []
    for distill, mentor in ((None, None), (DistillSpec(teacher="x", weight=0.75), teacher)):
        spec = replace(SPEC, ema=0.0, distill=distill)
        learner = Learner(student, dataset.preprocess, spec, accelerator.choose("fp32"), teacher=mentor)
        learner.model.eval()
        losses.append(learner._losses(learner._logits(learner.model, x), y, x).detach())
    assert (losses[1] / losses[0]).tolist() == pytest.approx([0.25] * 12, rel=1e-4)


def test_a_teachers_classes_are_put_in_order(dataset: Dataset, tmp_path: Path) -> None:
    found = train(dataset, TINY, replace(SPEC, epochs=1), tmp_path)
    x = batch().float()
    plain = starts.teacher(str(tmp_path / BEST), ("a", "b", "c"), torch.device("cpu"))(x)
    turned = starts.teacher(str(tmp_path / BEST), ("c", "a", "b"), torch.device("cpu"))(x)
    assert torch.equal(turned, plain[:, [2, 0, 1]])
    assert found.classes == ("a", "b", "c")


def test_teachers_with_other_classes_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, TINY, replace(SPEC, epochs=1), tmp_path / "teacher")
    named = replace(SPEC, distill=DistillSpec(teacher=str(tmp_path / "teacher" / BEST)))
    other = replace(dataset, classes=("a", "b", "d"))
    with pytest.raises(UsageError, match=r"other classes \(3\) than the data \(3\): it lacks d; it also has c"):
        train(other, TINY, named, tmp_path / "out")
    with pytest.raises(
        UsageError, match=r"resnet18 knows ImageNet's 1000 classes and the data have 3: train it on"
    ):
        starts.teacher("torchvision:resnet18", dataset.classes, torch.device("cpu"))
    train(dataset, TINY, replace(named, epochs=1), tmp_path / "out")


# All of it at once, and what is left behind


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "rmsprop", "schedule": "step", "step_epochs": 0.5, "clip_norm": 1.0},
        {"augment": AugmentSpec(crop=0.4, policy="rand", erase=0.3, mixup=0.2, cutmix=1.0)},
        {"augment": AugmentSpec(policy="trivial"), "class_weights": "balanced"},
    ],
)
def test_options_train_and_resume_bit_for_bit(change: dict[str, Any], dataset: Dataset, tmp_path: Path) -> None:
    spec = replace(SPEC, epochs=2, **change)
    whole = train(dataset, TINY, spec, tmp_path / "whole")
    generator = train.__globals__["_epochs"]

    def first_only(*args: Any) -> Any:
        yield next(generator(*args))

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(train.__globals__, "_epochs", first_only)
        train(dataset, TINY, spec, tmp_path / "parts", say=lambda _: None)
    assert len(rows(tmp_path / "parts")) == 1
    assert same(train(dataset, TINY, spec, tmp_path / "parts", resume=True), whole)


def test_the_pictures_and_the_confusion_matrix(dataset: Dataset, tmp_path: Path) -> None:
    found = train(dataset, TINY, SPEC, tmp_path)
    figures = json.loads((tmp_path / EVALUATION).read_text())
    matrix = np.array(figures["confusion"])
    assert figures["classes"] == ["a", "b", "c"]
    assert matrix.sum(1).tolist() == np.bincount(dataset.val.labels).tolist()
    assert np.trace(matrix) / 20 == pytest.approx(found.metrics["val_top1"])  # of the best model, not the last
    for name in (CURVES, CONFUSION):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 400


@pytest.mark.slow
def test_a_compiled_training_gives_what_a_plain_one_gives(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET.format(limit=100))
    model, spec = ModelSpec(name=f"{tmp_path / 'net.py'}:Net"), replace(SPEC, epochs=2)
    plain = train(dataset, model, spec, tmp_path / "plain")
    compiled = train(dataset, model, replace(spec, compile=True), tmp_path / "compiled")
    one, two = checkpoint.read_weights(plain), checkpoint.read_weights(compiled)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)


RECIPE = f"""
[model]
name = {json.dumps(LENET)}

[data]
source = "digits"

[data.preprocess]
height = 32
width = 32

[train]
epochs = 2
batch_size = 64
augment = {{ flip = false, shift = 0.1, scale = 0.1, erase = 0.2 }}
"""


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(tmp_path: Path) -> None:
    (tmp_path / "lenet.toml").write_text(RECIPE)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = ["-m", "edgekit", "train", "lenet.toml", "--out"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for prefix, out in (([], "one"), (torchrun, "two")):
        done = subprocess.run(
            [sys.executable, *prefix, *command, out], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"checkpoint: {out}/train/best\n"  # one of them speaks
    one, two = rows(tmp_path / "one" / "train"), rows(tmp_path / "two" / "train")
    assert len(one) == len(two) == 2
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
        assert theirs["train_top1"] == pytest.approx(mine["train_top1"], abs=2 / 1438)
        assert theirs["val_top1"] == pytest.approx(mine["val_top1"], abs=2 / 359)
    found = checkpoint.read(tmp_path / "two" / "train" / BEST)
    assert found.provenance["device"] == "2 x cpu float32"
    weights = [
        checkpoint.read_weights(checkpoint.read(tmp_path / name / "train" / LAST)) for name in ("one", "two")
    ]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-2, atol=1e-3)
    assert (tmp_path / "two" / "train" / METRICS).read_text().count("\n") == 2
    again = subprocess.run(
        [sys.executable, *torchrun, *command, "two"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0
    assert "done already" in again.stderr
