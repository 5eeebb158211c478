"""Classic networks that edgekit does not bring become TFLite files that compute the same, and are measured.

Random weights, but random batch norm statistics as well: a layer that is lost or misread shows in the logits.
"""

import importlib.util
import math
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit import convert, models, result, source
from edgekit.artifact import Artifact
from edgekit.bench import bench
from edgekit.device import open_device
from edgekit.errors import ConversionError, MissingDependency
from edgekit.measure import latency
from edgekit.preprocess import preset
from edgekit.recipe import BenchSpec, ModelSpec, Variant

TINY = BenchSpec(samples=3, seconds=0.0, blocks=1, warmup=1, warmup_seconds=0.0)  # whether it runs, not how fast
LENET5 = str(Path(__file__).parent / "data" / "lenet5.py")
# The model, the side of its images, and its parameters with 1000 classes. torchvision's: `num_params` of its
# weights (GoogLeNet without side classifiers). timm's: 11.8 M in its results table. LeNet-5's: the paper's
# 60,000 with 10 classes, and more for the connections of C3 that it leaves out.
CLASSICS = {
    f"{LENET5}:lenet5": (32, 145_856),
    "torchvision:alexnet": (64, 61_100_840),
    "torchvision:vgg16": (32, 138_357_544),
    "torchvision:googlenet": (64, 6_624_904),
    "torchvision:resnet18": (64, 11_689_512),
    "torchvision:densenet121": (64, 7_978_856),
    "torchvision:vit_b_16": (64, None),  # its position embedding depends on the size
    "timm:seresnet18": (64, 11_779_624),
    "timm:vit_tiny_patch16_224": (64, None),
}


def skip_without_timm(name: str) -> None:
    if name.startswith("timm:") and importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed: pip install 'edgekit[timm]'")


def quiet(text: str, share: float) -> None:
    """Progress that nobody watches."""


def randomise_(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values, low in ((layer.running_mean, -0.2), (layer.running_var, 0.8), (layer.weight, 0.8)):
                assert values is not None
                with torch.no_grad():
                    values.copy_(low + 0.4 * torch.rand(values.shape, generator=generator))
        elif isinstance(layer, nn.Linear) and not layer.weight.any():  # torchvision's ViT begins with zeros
            nn.init.normal_(layer.weight, std=0.05, generator=generator)


def assert_measured(made: Artifact, out: Path) -> None:
    """The file runs on this machine, and the result on disk is its own."""
    device = open_device("local")
    try:
        [found] = bench([made], device, TINY, out, images=None, progress=quiet)
    finally:
        device.close()
    kept = result.read(out / f"{made.name}.json")
    assert kept.artifact == found.artifact == made
    assert kept.settings.runtime == "ai-edge-litert"
    assert kept.settings.threads == 1
    assert len(kept.measurement.samples_ns) >= TINY.samples
    assert 0 < latency(kept.measurement).p50_ms < math.inf


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSICS, ids=lambda name: Path(name).name.partition(":")[2])
def test_a_classic_becomes_tflite_and_is_measured(name: str, tmp_path: Path) -> None:
    skip_without_timm(name)
    side, parameters = CLASSICS[name]
    begin = time.monotonic()
    found = source.find(
        name,
        preprocess=preset("imagenet", side, side),
        labels=None,
        weights=None,
        calibrate=None,
        confirm=lambda question: False,
    )
    if parameters is not None:
        assert sum(tensor.numel() for tensor in found.source.torch_model("tflite").parameters()) == parameters
    randomise_(found.source.torch_model("tflite"))
    images = convert.noise((side, side, 3), 8)
    [made] = convert.convert(found.source, [Variant(target="tflite", precision="fp32")], images, tmp_path, quiet)
    assert made.parity is not None
    assert made.parity.broken("fp32") == ""
    assert made.parity.top1_agreement == 1
    assert made.parity.sqnr_db < 150, "the logits are all zero, and nothing was compared"
    assert_measured(made, tmp_path / "results")
    print(f"{name}: {time.monotonic() - begin:.1f} s, {made.parity.sqnr_db:.1f} dB")  # pytest -rP shows it


@pytest.mark.slow
def test_an_exported_program_becomes_tflite(tmp_path: Path) -> None:
    network = models.build(ModelSpec(name="mobilenet_v3_small", width=0.5), 10).eval()
    randomise_(network)
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 64, 64),)), tmp_path / "mine.pt2")
    found = source.find(
        str(tmp_path / "mine.pt2"),
        preprocess=preset("imagenet", 64, 64),
        labels=None,
        weights=None,
        calibrate=None,
        confirm=lambda question: False,
    )
    variants = [Variant(target="tflite", precision=precision) for precision in ("fp32", "fp16")]
    made = convert.convert(found.source, variants, convert.noise((64, 64, 3), 8), tmp_path, quiet)
    for one in made:
        assert one.parity is not None
        assert one.parity.broken(one.precision) == ""
        assert one.parity.sqnr_db < 150


def test_timm_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    cure = r"The model timm:seresnet18 needs the package timm: pip install 'edgekit\[timm\]'"
    with pytest.raises(MissingDependency, match=cure):
        models.check(ModelSpec(name="timm:seresnet18"))


def test_in_training_googlenet_gives_logits_only() -> None:
    model = models.build(ModelSpec(name="torchvision:googlenet"), 3).train()
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 3)  # torchvision's default: a tuple of three


def test_a_model_of_one_size_says_so() -> None:
    """Swin and ViT take what `side` asks for; a network that checks its input refuses another in one line."""
    assert models.build(ModelSpec(name="torchvision:vit_b_32"), 3, 64).eval()(torch.zeros(1, 3, 64, 64)).shape == (
        1,
        3,
    )
    with pytest.raises(ConversionError, match=r"torchvision:maxvit_t does not run on \(1, 3, 64, 64\): "):
        source.find(
            "torchvision:maxvit_t",
            preprocess=preset("imagenet", 64, 64),
            labels=None,
            weights=None,
            calibrate=None,
            confirm=lambda question: False,
        )
    with pytest.raises(ConversionError, match=r"lenet5 does not run on \(1, 3, 20, 20\): "):
        source.find(
            f"{LENET5}:lenet5",
            preprocess=preset("imagenet", 20, 20),
            labels=None,
            weights=None,
            calibrate=None,
            confirm=lambda question: False,
        )
