"""Every recipe in recipes/, and the yardstick in benchmarks/: sound, consistent, and it trains a real step."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgekit import models, plugins, recipe
from edgekit.cli import main
from edgekit.convert import converter
from edgekit.models import layers, pretrained
from edgekit.preprocess import PRESETS
from edgekit.recipe import Recipe
from edgekit.train import accelerator, schedule
from edgekit.train.augment import augmented, mixed
from edgekit.train.learner import Learner

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "recipes").glob("*.toml"))
YARDSTICK = ROOT / "benchmarks" / "resnet18_cifar10.toml"
FAMILIES = (
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_lite0",
)
KINDS = ("cifar10", "imagenet", "finetune")
STEPS = 100  # in an epoch of the schedules here

every_recipe = pytest.mark.parametrize("path", [*SHIPPED, YARDSTICK], ids=lambda path: path.stem)


def part_of(kind: str, family: str = "mobilenet_v2") -> Recipe:
    return recipe.load(f"{family}_{kind}")


def classes_of(found: Recipe) -> int:
    return pretrained.CLASSES if found.data.source == "imagenet" else 10


def moved(learner: Learner, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in learner.model.named_parameters() if not torch.equal(tensor, before[name])}


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the yardstick names its file from there


@every_recipe
def test_a_recipe_trains_a_step(path: Path) -> None:
    """With its own optimizer, schedule, augmentation, mixing, average, class weights, freezing and layer decay."""
    found = recipe.load(str(path))
    spec, contract, classes = found.train, found.data.preprocess, classes_of(found)
    count = 4 if contract.height <= 64 else 2
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (count, 3, contract.height, contract.width), dtype=torch.uint8, generator=generator
    )
    labels = torch.arange(count)
    rate = schedule.learning_rate(spec, STEPS)
    with torch.random.fork_rng(devices=[]), accelerator.using_threads(1):
        torch.manual_seed(0)
        learner = Learner(
            models.build(found.model, classes, contract.height),
            contract,
            spec,
            accelerator.choose("fp32"),
            class_weights=torch.linspace(0.5, 1.5, classes) if spec.class_weights == "balanced" else None,
        )
        names = [name for name, _ in learner.model.named_parameters()]
        freeze = spec.finetune.freeze_epochs if spec.finetune else 0
        for epoch in (1, freeze + 1) if freeze else (1,):
            frozen = epoch <= freeze
            before = {name: tensor.detach().clone() for name, tensor in learner.model.named_parameters()}
            learner.begin_epoch(frozen=frozen)
            x, targets = mixed(augmented(pixels, spec.augment, (0, epoch)), labels, classes, spec.augment, (0,))
            losses, _ = learner.step(x, targets, rate((epoch - 1) * STEPS))
            assert torch.isfinite(losses)
            assert learner.finite()
            if frozen:
                last = layers.last_layer(learner.model)
                assert moved(learner, before) == {f"{last}.weight", f"{last}.bias"}
            else:
                assert {names[0], names[-1]} <= moved(learner, before)
        assert (learner.average is not None) == (spec.ema > 0)
        scales = {group["scale"] for group in learner.optimizer.param_groups}
        assert (len(scales) > 10) == (spec.finetune is not None)  # a rate for each layer


@every_recipe
def test_what_a_recipe_says_agrees(path: Path) -> None:
    found = recipe.load(str(path))
    contract, network = found.data.preprocess, found.model
    assert found.description
    assert "\n" not in found.description
    assert contract.height == contract.width
    if network.name in models.names():
        assert (network.stem_stride == 1) == (contract.height <= 64)
    if found.train.finetune and found.train.finetune.weights == "imagenet":
        wanted = PRESETS[pretrained.published(network).preprocess]
        assert (contract.mean, contract.std) == (wanted.mean, wanted.std)
    for variant in found.variant:
        assert variant.precision in converter(variant.target).precisions


def test_each_family_has_its_three_recipes() -> None:
    assert {path.stem for path in SHIPPED} >= {f"{family}_{kind}" for family in FAMILIES for kind in KINDS}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recipes_of_a_family(family: str) -> None:
    small, large, tuned = (part_of(kind, family) for kind in KINDS)
    assert {found.model.name for found in (small, large, tuned)} == {family}
    assert (small.data.source, large.data.source) == ("cifar10", "imagenet")
    assert small.data.preprocess.height == 32
    assert large.data.preprocess.height == models.resolution(family) == 224
    assert tuned.data.preprocess.height in (160, 224)
    for found in (large, tuned):
        wanted = PRESETS[pretrained.published(found.model).preprocess]
        contract = found.data.preprocess
        assert (contract.mean, contract.std, contract.crop_fraction) == (wanted.mean, wanted.std, 0.875)
    assert small.train.finetune is None
    assert large.train.finetune is None
    assert tuned.train.finetune is not None


@pytest.mark.parametrize("family", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0"])
def test_a_pruned_recipe_is_the_dense_one_and_a_schedule(family: str) -> None:
    found, dense = part_of("pruned", family), part_of("cifar10", family)
    assert replace(found, prune=(), description="") == replace(dense, description="")
    [spec] = found.prune
    assert (spec.keep_macs, spec.steps) == (0.5, 4)
    total = dense.train.epochs + (spec.steps - 1) * spec.recovery_epochs + spec.epochs
    assert f"{total} epochs" in found.description


@pytest.mark.parametrize("kind", ["cifar10", "finetune"])
def test_recipes_of_one_kind_train_alike(kind: str) -> None:
    """Families can be compared, and the yardstick with them."""
    wanted = part_of(kind)
    others = [part_of(kind, family) for family in FAMILIES]
    for found in [*others, recipe.load(str(YARDSTICK))] if kind == "cifar10" else others:
        assert found.train == wanted.train
        assert found.variant == wanted.variant
        if kind == "cifar10":
            assert found.data == wanted.data


def test_the_yardstick_is_resnet_18() -> None:
    """11.17 M parameters with a 3x3 stem and 10 classes, and 4 x 4 pixels left before the pooling."""
    with torch.random.fork_rng(devices=[]):
        network = models.build(recipe.load(str(YARDSTICK)).model, 10).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_173_962
    seen: list[tuple[int, ...]] = []
    network.get_submodule("layer4").register_forward_hook(lambda *call: seen.append(tuple(call[2].shape)))
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert seen == [(1, 512, 4, 4)]


def test_list_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("list", "recipes", "--json", "-")) == 0
    listed = {row["recipe"]: row["what it does"] for row in json.loads(capsys.readouterr().out)}
    assert listed == {path.stem: recipe.load(path.stem).description for path in SHIPPED}
    assert sorted(listed) == plugins.names("recipes")
    assert main(("list", "recipes")) == 0
    table = capsys.readouterr().out
    for path in SHIPPED:
        assert path.stem in table
        assert recipe.load(path.stem).description in table
