"""Architectures equal their papers and torchvision's modules; names resolve or say why not."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit import checkpoint, models
from edgekit.checkpoint import Checkpoint
from edgekit.errors import CheckpointError, UsageError
from edgekit.models.blocks import make_divisible
from edgekit.models.cost import cost
from edgekit.models.mobilenet_v2 import MobileNetV2
from edgekit.models.normalize import Normalize
from edgekit.preprocess import Preprocess, normalized
from edgekit.recipe import ModelSpec

TINY = ModelSpec(name="mobilenet_v2", width=0.1, stem_stride=1)


def test_mobilenet_v2_has_the_papers_parameters_and_macs() -> None:
    found = cost(MobileNetV2(1000), 224, 224)
    assert found.parameters == 3_504_872  # torchvision's count; the paper says 3.4 M
    assert found.macs == 300_774_272  # the paper says 300 M


@pytest.mark.parametrize("width", [1.0, 0.35, 1.4])
def test_mobilenet_v2_equals_torchvisions(width: float) -> None:
    import torchvision

    theirs = torchvision.models.mobilenet_v2(weights=None, width_mult=width, num_classes=1000).eval()
    ours = MobileNetV2(1000, width=width).eval()
    pairs = zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict({name: tensor for (name, _), tensor in pairs})
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        # At random weights the logits are tiny: compare what goes into the last layer as well.
        assert torch.allclose(ours.features(images), theirs.features(images), atol=1e-5)
        assert torch.allclose(ours(images), theirs(images), atol=1e-5)


def test_stem_stride_1_keeps_small_images_larger() -> None:
    images = torch.zeros(2, 3, 32, 32)
    assert MobileNetV2(10, width=0.1, stem_stride=1).eval().features(images).shape[2:] == (2, 2)
    assert MobileNetV2(10, width=0.1, stem_stride=2).eval().features(images).shape[2:] == (1, 1)


def test_make_divisible_never_takes_more_than_a_tenth() -> None:
    assert [make_divisible(c) for c in (1, 8, 11.2, 12, 24 * 0.35, 32 * 0.75, 1280)] == [8, 8, 16, 16, 8, 24, 1280]


def test_cost_leaves_the_model_as_it_was() -> None:
    model = MobileNetV2(10, width=0.1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost(model, 64, 64)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_normalize_is_the_contracts(order: str) -> None:
    contract = Preprocess(height=4, width=5, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), channel_order=order)  # type: ignore[arg-type]
    pixels = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    layer = Normalize(contract)
    expected = torch.from_numpy(normalized(pixels.numpy(), contract)).permute(0, 3, 1, 2)
    for given in (pixels, pixels.float()):
        found = layer(given.permute(0, 3, 1, 2))
        assert found.dtype == torch.float32
        assert torch.allclose(found, expected, atol=1e-6)
    assert not layer.state_dict()  # the contract travels beside the weights


def test_every_name_builds() -> None:
    assert len(models.names()) == 19
    for name in models.names():
        narrow = ModelSpec(name=name, width=0.1)
        assert models.build(narrow, 7).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_names_are_listed_and_checked_without_torch() -> None:
    code = (
        "import sys; from edgekit import models; from edgekit.recipe import ModelSpec; models.names(); "
        "models.check(ModelSpec(name='mobilenet_v2')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(
        UsageError, match=r"unknown model 'mobilenetv2'; choose from .*did you mean 'mobilenet_v2'"
    ):
        models.build(ModelSpec(name="mobilenetv2"), 10)


def test_a_model_of_torchvisions() -> None:
    model = models.build(ModelSpec(name="torchvision:squeezenet1_1"), 5).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    with pytest.raises(UsageError, match=r"unknown torchvision model 'resnet19'.*did you mean 'resnet1"):
        models.check(ModelSpec(name="torchvision:resnet19"))


def test_options_of_built_in_models_are_not_dropped() -> None:
    with pytest.raises(UsageError, match=r"model.width = 0.5 applies to built-in models only \(mobilenet_v1, mob"):
        models.check(ModelSpec(name="torchvision:resnet18", width=0.5))


OWN = """
from torch import nn

def net(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))

def nothing(classes):
    return "a model"
"""


def test_a_function_in_an_own_file(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    assert models.build(ModelSpec(name=f"{path}:net"), 6)(torch.zeros(1, 3, 8, 8)).shape == (1, 6)
    assert models.build(ModelSpec(name=f"{path}:fixed"), 6)(torch.zeros(1, 3, 8, 8)).shape == (1, 4)
    with pytest.raises(UsageError, match=r"returned str; the factory must return a torch.nn.Module"):
        models.build(ModelSpec(name=f"{path}:nothing"), 6)
    with pytest.raises(UsageError, match=r"unknown function in .*own.py 'nett'.*did you mean 'net'"):
        models.build(ModelSpec(name=f"{path}:nett"), 6)
    with pytest.raises(UsageError, match=r"no such file: .*other.py"):
        models.check(ModelSpec(name=f"{tmp_path / 'other.py'}:net"))
    with pytest.raises(UsageError, match=r"names no function: write FILE\.py:FACTORY"):
        models.check(ModelSpec(name=str(path)))
    path.write_text("import nothing_of_that_name")
    with pytest.raises(UsageError, match=r"own.py cannot be imported: ModuleNotFoundError"):
        models.build(ModelSpec(name=f"{path}:net"), 6)


def saved(folder: Path) -> tuple[Checkpoint, nn.Module]:
    model = models.build(TINY, 3).eval()
    blank = Checkpoint(model=TINY, classes=("a", "b", "c"), preprocess=Preprocess(height=32, width=32))
    return checkpoint.write(folder, blank, dict(model.state_dict())), model


def test_restore_gives_the_same_logits(tmp_path: Path) -> None:
    written, model = saved(tmp_path / "best")
    state = torch.random.get_rng_state()
    restored = models.restore(checkpoint.read(written.path))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not restored.training
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(restored(images), model(images))


def test_restore_names_the_tensors_that_do_not_fit(tmp_path: Path) -> None:
    written, _ = saved(tmp_path / "best")
    with pytest.raises(CheckpointError, match=r"classifier.weight is \(3, 1280\) and not \(4, 1280\)"):
        models.restore(replace(written, classes=("a", "b", "c", "d")))
    other = replace(written, model=ModelSpec(name="torchvision:squeezenet1_1"))
    with pytest.raises(
        CheckpointError, match=r"not those of torchvision:squeezenet1_1 .* is missing; .* and \d+ more"
    ):
        models.restore(other)
