"""Parameters and multiply-accumulates as published; torchvision's and timm's outputs; every family as files."""

import importlib
import importlib.util
import math
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekit import convert, files, models, source
from edgekit.errors import CheckpointError, ConversionError, UsageError
from edgekit.export import ExportSource, PixelClassifier
from edgekit.models import blocks, pretrained
from edgekit.models.cost import Cost, cost
from edgekit.preprocess import preset
from edgekit.recipe import ModelSpec, Variant


def built(name: str, resolution: int | None = None, **options: Any) -> tuple[nn.Module, int]:
    """The model with 1000 classes on the meta device, which computes shapes only; and the side of its images."""
    with torch.device("meta"):
        model = models.build(ModelSpec(name=name, **options), 1000)
    return model, resolution or models.resolution(name) or 0


def costs(name: str, resolution: int | None = None, **options: Any) -> Cost:
    model, side = built(name, resolution, **options)
    return cost(model, side, side)


# --- what is published ----------------------------------------------------------------------------
# Millions. https://arxiv.org/abs/1704.04861, tables 6 and 7, of which the parameters' second digit is in
# https://github.com/tensorflow/models/blob/master/research/slim/nets/mobilenet_v1.md (it counts more by 0.01)
V1 = {
    (1.0, 224): (4.24, 569),
    (0.75, 224): (2.59, 325),
    (0.5, 224): (1.34, 149),
    (0.25, 224): (0.47, 41),
    (1.0, 192): (4.24, 418),
    (1.0, 160): (4.24, 290),
    (1.0, 128): (4.24, 186),
}


@pytest.mark.parametrize(("width", "side"), V1)
def test_mobilenet_v1(width: float, side: int) -> None:
    found, (parameters, macs) = costs("mobilenet_v1", side, width=width), V1[width, side]
    assert found.parameters / 1e6 == pytest.approx(parameters, abs=0.0101)
    assert found.macs / 1e6 == pytest.approx(macs, abs=1)


def test_mobilenet_v1_to_the_digit() -> None:
    """The trainable parameters that Keras prints for its MobileNet: 4,231,976."""
    assert costs("mobilenet_v1") == Cost(parameters=4_231_976, macs=568_740_352)


# https://github.com/tensorflow/models/blob/master/research/slim/nets/mobilenet/README.md: the widths' MACs at
# 224, 192, 160, 128 and 96 pixels, cut off after the point and not rounded. The parameters there leave out the
# scale of the batch norms: up to 1.1 % less.
V2 = {
    1.4: (6.06, (582,)),
    1.3: (5.34, (509,)),
    1.0: (3.47, (300, 221, 154, 99, 56)),
    0.75: (2.61, (209, 153, 107, 69, 39)),
    0.5: (1.95, (97, 71, 50, 32, 18)),
    0.35: (1.66, (59, 43, 30, 20, 11)),
}


@pytest.mark.parametrize("width", V2)
def test_mobilenet_v2(width: float) -> None:
    parameters, macs = V2[width]
    found = [costs("mobilenet_v2", side, width=width) for side in (224, 192, 160, 128, 96)[: len(macs)]]
    assert tuple(math.floor(one.macs / 1e6) for one in found) == macs
    assert found[0].parameters / 1e6 == pytest.approx(parameters, rel=0.011)


# Parameters to the digit and MACs: torchvision's weights' own description, `num_params` and `_ops` (10^9).
TORCHVISION = {
    "mobilenet_v2": "MobileNet_V2_Weights",
    "mobilenet_v3_large": "MobileNet_V3_Large_Weights",
    "mobilenet_v3_small": "MobileNet_V3_Small_Weights",
    **{f"efficientnet_b{i}": f"EfficientNet_B{i}_Weights" for i in range(8)},
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_counts(name: str) -> None:
    described = getattr(importlib.import_module("torchvision.models"), TORCHVISION[name]).IMAGENET1K_V1
    found = costs(name, described.transforms.keywords["crop_size"])  # of B2 288; the paper has 260
    assert found.parameters == described.meta["num_params"]
    assert found.macs / 1e9 == pytest.approx(described.meta["_ops"], abs=0.00051)


# Millions of MACs and of parameters. 1: https://arxiv.org/abs/1905.02244, table 3; 2: the README named above V2.
V3 = {
    ("mobilenet_v3_large", 1.0): (217, 5.4),  # 2; the paper has 219
    ("mobilenet_v3_large", 0.75): (155, 4.0),  # 1 and 2
    ("mobilenet_v3_small", 1.0): (56, 2.5),  # 1; the README has 66 and 2.9, of an earlier network
    ("mobilenet_v3_small", 0.75): (44, 2.0),  # 1; the README has 44 and 2.4
    ("mobilenet_v3_large_minimalistic", 1.0): (209, 3.9),  # 2
    ("mobilenet_v3_small_minimalistic", 1.0): (52.3, 2.0),  # 2 has 65 MACs, not reached: ours, as a regression
}


@pytest.mark.parametrize(("name", "width"), V3)
def test_mobilenet_v3(name: str, width: float) -> None:
    found, (macs, parameters) = costs(name, width=width), V3[name, width]
    assert found.macs / 1e6 == pytest.approx(macs, abs=0.7)
    assert found.parameters / 1e6 == pytest.approx(parameters, abs=0.09)


# https://arxiv.org/abs/1905.11946, table 2: millions of parameters, 10^9 MACs, as rounded there.
PAPER_B = [(5.3, 0.39), (7.8, 0.70), (9.2, 1.0), (12, 1.8), (19, 4.2), (30, 9.9), (43, 19), (66, 37)]


@pytest.mark.parametrize("index", range(8))
def test_efficientnet(index: int) -> None:
    found, (parameters, macs) = costs(f"efficientnet_b{index}"), PAPER_B[index]
    assert found.parameters / 1e6 == pytest.approx(parameters, rel=0.02)
    assert found.macs / 1e9 == pytest.approx(macs, rel=0.05)


# https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/lite/README.md, millions. Our
# reading of its MAdds: 3 operations an output of a convolution, for batch norm and activation, are in them.
LITE = [(4.7, 407), (5.4, 631), (6.1, 899), (8.2, 1440), (13.0, 2640)]


@pytest.mark.parametrize("index", range(5))
def test_efficientnet_lite(index: int) -> None:
    model, side = built(f"efficientnet_lite{index}")
    outputs = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal outputs
        outputs += output.numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    found, (parameters, operations) = cost(model, side, side), LITE[index]
    assert found.parameters / 1e6 == pytest.approx(parameters, abs=0.05)
    assert (found.macs + 3 * outputs) / 1e6 == pytest.approx(operations, rel=0.005)
    assert found.macs / 1e6 == pytest.approx(operations, rel=0.06)  # without them


# Blocks in table order, without stem and head: V1 table 1; V2 table 2; V3 tables 1 and 2; B0 table 1, scaled.
BLOCKS = {
    "mobilenet_v1": 13,
    "mobilenet_v2": 17,
    "mobilenet_v3_large": 15,
    "mobilenet_v3_small": 11,
    "efficientnet_b0": 16,
    "efficientnet_b7": 55,
    "efficientnet_lite0": 16,
    "efficientnet_lite4": 30,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_and_strides(name: str) -> None:
    model, _ = built(name)
    assert isinstance(model.features, nn.Sequential)
    assert len(model.features) == 1 + BLOCKS[name] + (name != "mobilenet_v1")
    image = torch.zeros(1, 3, 256, 256, device="meta")
    assert model.features.eval()(image).shape[2:] == (8, 8)  # 32 pixels become one
    small, _ = built(name, stem_stride=1)
    assert isinstance(small.features, nn.Sequential)
    assert small.features.eval()(image).shape[2:] == (16, 16)


def test_minimalistic_has_nothing_of_what_costs() -> None:
    for name in ("mobilenet_v3_large_minimalistic", "mobilenet_v3_small_minimalistic"):
        model, _ = built(name)
        kinds = {type(module) for module in model.modules()}
        assert not kinds & {blocks.SqueezeExcite, nn.Hardswish, nn.Hardsigmoid}
        kernels = {module.kernel_size for module in model.modules() if isinstance(module, nn.Conv2d)}
        assert kernels == {(1, 1), (3, 3)}


# --- the blocks -----------------------------------------------------------------------------------


def test_same_padding_is_tensorflows() -> None:
    """TensorFlow pads (after - before) the odd pixel at the end: outputs computed by hand from a ramp."""
    conv = blocks.SameConv2d(1, 1, 3, 2, bias=False)
    nn.init.ones_(conv.weight)
    with torch.no_grad():
        even = conv(torch.arange(16.0).reshape(1, 1, 4, 4))  # 4 pixels: none before, one after
        odd = conv(torch.arange(25.0).reshape(1, 1, 5, 5))  # 5 pixels: one before, one after
    assert even.flatten().tolist() == [45, 39, 66, 50]
    assert odd.flatten().tolist() == [12, 27, 24, 63, 108, 81, 72, 117, 84]


def test_activations_are_their_formulas() -> None:
    x = torch.linspace(-8, 8, 65)
    formulas: dict[Any, Tensor] = {
        "relu": x.clamp(min=0),
        "relu6": x.clamp(0, 6),
        "hswish": x * (x + 3).clamp(0, 6) / 6,
        "silu": x / (1 + (-x).exp()),
    }
    for name, expected in formulas.items():
        assert torch.allclose(blocks.activation(name)(x.clone()), expected, atol=1e-6), name


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean() -> None:
    layer = blocks.StochasticDepth(0.25)
    ones = torch.ones(4000, 2, 1, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = layer(ones).flatten(1)
    assert torch.equal(rows[:, 0], rows[:, 1])
    assert sorted(rows.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert rows.mean() == pytest.approx(1, abs=0.03)
    assert layer.eval()(ones) is ones
    found = [m.drop for m in built("efficientnet_b0", drop_path=0.5)[0].modules() if type(m) is type(layer)]
    assert max(found) == pytest.approx(0.5 * 14 / 16)  # the last block with a skip is the 15th of 16


def test_options_reach_the_network() -> None:
    spec = ModelSpec(
        name="efficientnet_b0", width=0.25, activation="relu6", squeeze_excite=False, padding="same", dropout=0.4
    )
    model = models.build(spec, 5)
    kinds = [type(module) for module in model.modules()]
    assert nn.SiLU not in kinds
    assert blocks.SqueezeExcite not in kinds
    assert kinds.count(blocks.SameConv2d) == 5
    assert model.dropout.p == 0.4  # type: ignore[union-attr]
    assert models.build(ModelSpec(name="efficientnet_b7", width=0.1), 5).dropout.p == 0.5  # type: ignore[union-attr]
    with pytest.raises(
        UsageError, match=r"model.squeeze_excite = True: mobilenet_v2 has no such option; mobilenet"
    ):
        models.check(ModelSpec(name="mobilenet_v2", squeeze_excite=True))
    with pytest.raises(
        UsageError, match=r"model.drop_path = 0.1: mobilenet_v1 has no such option; efficientnet_b0"
    ):
        models.check(ModelSpec(name="mobilenet_v1", drop_path=0.1))


# --- their weights in our modules -----------------------------------------------------------------


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms with random statistics, or a mix-up of two of them would not show; logits of unit size."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                uniform(module.weight, 0.5, 1.5)
                uniform(module.bias, -0.3, 0.3)
                assert module.running_mean is not None
                assert module.running_var is not None
                uniform(module.running_mean, -0.3, 0.3)
                uniform(module.running_var, 0.5, 1.5)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                fan = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) / fan**0.5)
    return model.eval()


def assert_equal(ours: nn.Module, theirs: nn.Module, side: int = 96) -> None:
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, expected = ours(images), theirs(images)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


THEIRS: dict[str, tuple[ModelSpec, dict[str, Any]]] = {
    "mobilenet_v2": (ModelSpec(name="mobilenet_v2"), {}),
    "mobilenet_v2, 0.35": (ModelSpec(name="mobilenet_v2", width=0.35), {"width_mult": 0.35}),
    "mobilenet_v3_small": (ModelSpec(name="mobilenet_v3_small"), {}),
    "mobilenet_v3_large": (ModelSpec(name="mobilenet_v3_large"), {}),
    "efficientnet_b0": (ModelSpec(name="efficientnet_b0"), {}),
    "efficientnet_b1": (ModelSpec(name="efficientnet_b1"), {}),
    "efficientnet_b5": (ModelSpec(name="efficientnet_b5"), {}),  # the first with the other epsilon
}


@pytest.mark.parametrize("case", THEIRS)
def test_torchvisions_weights_give_torchvisions_logits(case: str) -> None:
    import torchvision

    spec, options = THEIRS[case]
    theirs = randomised(torchvision.models.get_model(spec.name, weights=None, **options))
    ours = models.build(spec, 1000).eval()
    assert pretrained.put_(ours, theirs.state_dict(), case) == ()
    assert_equal(ours, theirs)


TIMM = ("mobilenet_v1", "mobilenet_v1, 1.25", *(f"efficientnet_lite{i}" for i in range(5)))


@pytest.mark.parametrize("case", TIMM)
def test_timms_weights_give_timms_logits(case: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'edgekit[timm]'")
    name, _, width = case.partition(", ")
    spec = ModelSpec(name=name, width=float(width or 1))
    file = pretrained.TIMM[name, spec.width]
    short = re.sub(r"(-[0-9a-f]{8}\.pth|\..*)$", "", file)
    theirs = randomised(timm.create_model(short, pretrained=False))
    ours = models.build(spec, 1000).eval()
    assert pretrained.put_(ours, theirs.state_dict(), case) == ()
    assert_equal(ours, theirs, side=75)  # odd: the padding rules differ most
    described = timm.get_pretrained_cfg(pretrained.published(spec).file.rpartition(".safetensors")[0] or short)
    assert set(described.mean) == set(described.std) == {0.5}
    assert described.url in ("", None, pretrained.published(spec).url)


SMALL = ModelSpec(name="mobilenet_v3_small")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of torch.hub, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    def download(*args: Any, **options: Any) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return tmp_path / "hub" / "checkpoints"


def cached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A random torchvision module, its tensors in the cache as if downloaded: the name holds their hash."""
    import torchvision

    theirs = randomised(torchvision.models.mobilenet_v3_small(weights=None))
    folder.mkdir(parents=True)
    torch.save(theirs.state_dict(), folder / "new")
    file = f"small-{files.sha256(folder / 'new')[:8]}.pth"
    (folder / "new").rename(folder / file)
    known = pretrained.Published(f"https://example.org/{file}", file, "imagenet")
    monkeypatch.setattr(pretrained, "published", lambda spec: known)
    return theirs


def test_offline_the_file_and_its_place_are_named(cache: Path) -> None:
    for confirm in (None, lambda question: False):
        with pytest.raises(CheckpointError) as caught:
            pretrained.ensure(SMALL, confirm)
        assert f"put mobilenet_v3_small-047dcff4.pth into {cache}, from https://download.pytorch.org/" in str(
            caught.value
        )
    asked: list[str] = []
    with pytest.raises(
        CheckpointError, match=r"cannot be downloaded: no network in tests; put mobilenet_v3_small"
    ):
        pretrained.ensure(SMALL, lambda question: not asked.append(question))  # type: ignore[func-returns-value]
    assert asked == [
        "Download https://download.pytorch.org/models/mobilenet_v3_small-047dcff4.pth to "
        f"{cache / 'mobilenet_v3_small-047dcff4.pth'}?"
    ]
    assert not cache.exists() or not list(cache.iterdir())


def test_a_download_lands_under_its_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(cache, monkeypatch)
    [file] = cache.iterdir()
    content = file.read_bytes()
    file.unlink()

    def download(url: str, path: str, prefix: str, progress: bool) -> None:
        assert (url, prefix) == (f"https://example.org/{file.name}", file.stem[-8:])
        Path(path).write_bytes(content)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert pretrained.ensure(SMALL, lambda question: True) == file
    assert [path.name for path in cache.iterdir()] == [file.name]


def test_a_damaged_file_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(cache, monkeypatch)
    [file] = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=rf"{file.name} is damaged: its SHA-256 begins with \w+, its name"):
        pretrained.ensure(SMALL)


def test_other_classes_keep_a_random_last_layer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = cached(cache, monkeypatch)
    ours = models.build(SMALL, 7).eval()
    before = ours.classifier.weight.clone()  # type: ignore[union-attr,operator]
    [note] = pretrained.load_(ours, SMALL)
    assert note == "the last layer has 7 classes and not ImageNet's 1000: its weights are random"
    assert torch.equal(ours.classifier.weight, before)  # type: ignore[union-attr,arg-type]
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ours.features(images), theirs.features(images), atol=1e-4)  # type: ignore[operator]


def test_convert_takes_weights_imagenet(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = cached(cache, monkeypatch)
    found = source.find(
        "mobilenet_v3_small",
        preprocess=preset("minus1to1", 64, 64),
        labels=None,
        weights="imagenet",
        calibrate=None,
        confirm=lambda question: False,
    )
    assert found.notes[0] == "these weights were trained with --preprocess imagenet: another costs accuracy"
    assert found.notes[1] == "mobilenet_v3_small was published for 224 pixels and is made for 64 here"
    [file] = cache.iterdir()
    assert found.source.parent == files.sha256(file)
    assert_equal(found.source.torch_model("tflite").model, theirs, side=64)


def test_what_has_no_weights_says_so() -> None:
    for spec in (
        ModelSpec(name="mobilenet_v2", width=0.5),
        ModelSpec(name="mobilenet_v3_large_minimalistic"),
        ModelSpec(name="efficientnet_b0", activation="relu"),
        ModelSpec(name="timm:resnet18"),
    ):
        with pytest.raises(
            UsageError, match=f"no ImageNet weights of {spec.name}.*; there are of efficientnet_b0, "
        ):
            pretrained.published(spec)
    assert (
        pretrained.published(ModelSpec(name="mobilenet_v2", stem_stride=1, dropout=0.5)).preprocess == "imagenet"
    )


def test_older_files_do_not_count_batches() -> None:
    ours, theirs = models.build(SMALL, 1000), models.build(SMALL, 1000)
    import torchvision

    tensors = torchvision.models.mobilenet_v3_small(weights=None).state_dict()
    old = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    pretrained.put_(ours, old, "old.pth")
    pretrained.put_(theirs, tensors, "new.pth")
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_weights_of_another_model_name_the_tensors() -> None:
    import torchvision

    theirs = torchvision.models.mobilenet_v3_large(weights=None).state_dict()
    with pytest.raises(CheckpointError, match=r"large.pth does not hold this model's tensors: .*"):
        pretrained.put_(models.build(SMALL, 1000), theirs, "large.pth")


# --- .pt2 -----------------------------------------------------------------------------------------


class Tiny(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.norm(self.conv(x)).relu().mean((2, 3)))
        return found


def saved(path: Path, module: nn.Module | None = None, *images: Tensor, **options: Any) -> Path:
    example = images or (torch.zeros(1, 3, 16, 16),)
    torch.export.save(torch.export.export((module or Tiny()).eval(), example, **options), path)
    return path


def find(model: Path, side: int = 16, **options: Any) -> source.Found:
    given: dict[str, Any] = {"labels": None, "weights": None, "calibrate": None, **options}
    return source.find(
        str(model), preprocess=preset("imagenet", side, side), confirm=lambda question: False, **given
    )


def test_an_exported_program_goes_on(tmp_path: Path) -> None:
    network = randomised(Tiny())
    found = find(saved(tmp_path / "mine.pt2", network))
    assert (found.name, len(found.source.labels)) == ("mine", 5)
    assert found.notes == ("no --labels: the 5 classes are called 0 to 4",)
    assert found.source.parent == files.sha256(tmp_path / "mine.pt2")
    images = convert.noise((16, 16, 3), 8)
    expected = PixelClassifier(network, preset("imagenet", 16, 16)).eval()(
        torch.from_numpy(images).permute(0, 3, 1, 2)
    )
    assert torch.allclose(torch.from_numpy(found.source.logits(images)), expected, atol=1e-5)
    made = convert.convert(
        found.source,
        [Variant(target="onnx", precision="fp32")],
        images,
        tmp_path / "out",
        lambda text, share: None,
    )
    assert made[0].parity is not None
    assert made[0].parity.broken("fp32") == ""


def test_an_exported_program_of_a_dynamic_batch(tmp_path: Path) -> None:
    batch = ({0: torch.export.Dim("batch")},)
    path = saved(tmp_path / "batch.pt2", None, torch.zeros(2, 3, 16, 16), dynamic_shapes=batch)
    assert find(path).source.logits(convert.noise((16, 16, 3), 3)).shape == (3, 5)


def test_an_exported_program_is_not_trained(tmp_path: Path) -> None:
    module = models.build(ModelSpec(name=str(saved(tmp_path / "mine.pt2"))), 5)
    with pytest.raises(UsageError, match=r"mine.pt2 is an exported program: it can be converted, but not trained"):
        module.train()
    with pytest.raises(UsageError, match=r"mine.pt2 brings its own weights: leave out --weights"):
        find(tmp_path / "mine.pt2", weights=tmp_path / "w.pt")


class Pair(Tiny):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Two(Tiny):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is not None
        return super().forward(x + y)


IMAGE = torch.zeros(1, 3, 16, 16)
NO_CLASSIFIERS: dict[str, tuple[nn.Module, tuple[Tensor, ...], str]] = {
    "two inputs": (Two(), (IMAGE, IMAGE), r"takes 2 inputs; an image classifier takes one"),
    "grey": (Tiny(1), (IMAGE[:, :1],), r"takes \(1, 1, 16, 16\); an image classifier takes \(1, 3, H, W\)"),
    "batch": (Tiny(), (IMAGE.repeat(4, 1, 1, 1),), r"takes 4 images at once: export it for one"),
    "double": (Tiny().double(), (IMAGE.double(),), r"takes torch.float64; edgekit gives it normalised float32"),
    "pair": (Pair(), (IMAGE,), r"gives tuple; a classifier gives scores of shape \(1, classes\)"),
    "picture": (nn.Conv2d(3, 4, 3), (IMAGE,), r"gives \(1, 4, 14, 14\); a classifier gives scores"),
}


@pytest.mark.parametrize("case", NO_CLASSIFIERS)
def test_a_program_that_is_no_classifier(case: str, tmp_path: Path) -> None:
    module, images, message = NO_CLASSIFIERS[case]
    path = saved(tmp_path / "other.pt2", module, *images)
    with pytest.raises(UsageError, match=message):
        find(path)


def test_a_program_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"does not run on \(1, 3, 32, 32\): Guard failed: .*16"):
        find(saved(tmp_path / "mine.pt2"), side=32)


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None], **more: bytes) -> Path:
    """The archive with members changed, left out where *change* gives None, and more of them."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    root = next(iter(members)).partition("/")[0]
    other = path.with_name("other.pt2")
    with zipfile.ZipFile(other, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            if (new := change(name.partition("/")[2], content)) is not None:
                archive.writestr(name, new)
        for name, content in more.items():
            archive.writestr(f"{root}/{name.replace('__', '/')}", content)
    return other


def swap(member: str, old: bytes, new: bytes) -> Callable[[str, bytes], bytes | None]:
    return lambda name, content: content.replace(old, new, 1) if name == member else content


PICKLE = b'cbuiltins\neval\n(S\'__import__("pathlib").Path("pwned").touch()\'\ntR.'
HOSTILE: dict[str, tuple[Callable[[str, bytes], bytes | None], str]] = {
    "call": (
        swap("models/model.json", b"torch.ops.aten.relu.default", b"torch.hub.load"),
        "its graph calls torch.hub",
    ),
    "operator": (
        swap("models/model.json", b"torch.ops.aten.relu.default", b"_operator.methodcaller"),
        "its graph cal",
    ),
    "weights": (
        swap("data/weights/model_weights_config.json", b'"use_pickle": false', b'"use_pickle": true'),
        "its weights hold 'conv.weight' as a pickle",
    ),
    "constants": (
        swap(
            "data/constants/model_constants_config.json",
            b'{"config": {}}',
            b'{"config": {"c": {"path_name": "opaque_obj_0", "use_pickle": false}}}',
        ),
        "its constants hold 'c' as a pickle",
    ),
    "library": (lambda name, content: content, r"it holds data/aotinductor/model/x\.so"),
    "size": (
        swap("models/model.json", b'{"as_int": 16}', b'{"as_expr": {"expr_str": "exec(1)", "hint": null}}'),
        r"a size of its graph is computed: exec\(1\)",
    ),
    "old": (
        lambda name, content: None if name == "archive_format" else content,
        "it is no archive of torch.export, or one of torch 2.7",
    ),
    "damaged": (swap("models/model.json", b"{", b""), "it is damaged: JSONDecodeError"),
    "nothing": (
        lambda name, content: None if name == "models/model.json" else content,
        "it is damaged: RuntimeError",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_program_is_not_loaded(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, message = HOSTILE[case]
    more = {"data__aotinductor__model__x.so": b""} if case == "library" else {}
    path = rewritten(saved(tmp_path / "mine.pt2"), change, **more)
    monkeypatch.setattr(torch.export, "load", lambda path: pytest.fail("it was loaded"))
    with pytest.raises(UsageError, match=f"other.pt2 is not loaded: {message}"):
        find(path)


def test_sample_inputs_are_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = rewritten(
        saved(tmp_path / "mine.pt2"),
        lambda name, content: PICKLE if name == "data/sample_inputs/model.pt" else content,
    )
    with pytest.raises(UsageError, match="its sample inputs are a pickle that could run code"):
        find(path)
    assert not Path("pwned").exists()
    (tmp_path / "text.pt2").write_text("no archive")
    with pytest.raises(UsageError, match=r"text.pt2 is not loaded: it is no archive of torch.export"):
        find(tmp_path / "text.pt2")


# --- every family becomes files -------------------------------------------------------------------


@pytest.mark.parametrize("name", models.names())
def test_every_parameter_learns(name: str) -> None:
    """One step back from the loss: a layer that is made and not used would have no gradient."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build(ModelSpec(name=name, width=0.1, drop_path=0.0 if "efficient" in name else None), 4)
        logits = model.train()(torch.randn(4, 3, 64, 64))
        nn.functional.cross_entropy(logits, torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    for parameter, tensor in model.named_parameters():
        assert tensor.grad is not None, parameter
        assert tensor.grad.isfinite().all(), parameter


FAMILIES = (*models.names()[:6], "efficientnet_b0", "efficientnet_lite0")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflite", "onnx", pytest.param("coreml", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_converts(name: str, target: str, tmp_path: Path) -> None:
    contract = preset("imagenet", 64, 64)
    network = randomised(models.build(ModelSpec(name=name, width=0.25), 10))
    given = ExportSource(
        model=PixelClassifier(network, contract).eval(), preprocess=contract, labels=tuple("abcdefghij")
    )
    variants = [Variant(target=target, precision="fp32")]
    [made] = convert.convert(given, variants, convert.noise((64, 64, 3), 8), tmp_path, lambda text, share: None)
    assert made.parity is not None
    assert 90 < made.parity.sqnr_db < 150
    assert made.parity.broken("fp32") == ""
    print(f"{made.name} of {name}: {made.parity.sqnr_db:.1f} dB")  # pytest -rP shows it
