"""Torch becomes TFLite: each operator alone, every family against litert-torch, lean graphs, what is unknown."""

import importlib.util
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit import convert, export, flatbuffer, models, plugins, xnnpack
from edgekit.artifact import Calibration
from edgekit.errors import ConversionError, MissingDependency
from edgekit.export import CalibrationImages, ExportSource, PixelClassifier
from edgekit.lower import UnknownOperator, lower
from edgekit.preprocess import Preprocess, preset
from edgekit.recipe import CalibrationSpec, ModelSpec, Variant

Array = npt.NDArray[np.float32]
SIDE = 64


def run(content: bytes, values: Array) -> Array:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)
    interpreter.invoke()
    found: Array = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return found


def kinds(content: bytes) -> dict[str, int]:
    return dict(flatbuffer.operators(flatbuffer.unpack(content)))


def names(content: bytes) -> list[str]:
    return [flatbuffer.text(tensor.name) for tensor in flatbuffer.unpack(content).subgraphs[0].tensors]


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """The module with the same random weights and batch norm statistics each time, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make().eval()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for values, low in ((layer.running_mean, -0.2), (layer.running_var, 0.8), (layer.weight, 0.8)):
                    assert values is not None
                    with torch.no_grad():
                        values.copy_(low + 0.4 * torch.rand(values.shape))
    return module


def difference(content: bytes, module: nn.Module, shape_NHWC: tuple[int, int, int, int], seed: int = 0) -> float:
    """The largest difference to torch, the largest value of torch's being 1."""
    values = (np.random.default_rng(seed).standard_normal(shape_NHWC) * 3).astype(np.float32)
    with torch.no_grad():
        wanted = module(torch.from_numpy(values.transpose(0, 3, 1, 2).copy())).numpy()
    found = run(content, values)
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


# --- each operator alone --------------------------------------------------------------------------


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def buffered(shape: tuple[int, ...], function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """A function of the input and of a constant."""

    class Buffered(nn.Module):
        constant: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("constant", torch.rand(shape) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return function(x, self.constant)

    return Buffered


def of(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Of(function)


def conv(*arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*arguments, **options)


# What is made, and the operators that it becomes. The input is (1, 9, 7, 4), stored NHWC: odd sides, so that SAME
# pads alike on both. The last TRANSPOSE brings an image into torch's order.
OUT = {"TRANSPOSE": 1}
SINGLE: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "convolution": (conv(4, 6, 3), {"CONV_2D": 1, **OUT}),
    "without bias": (conv(4, 6, 3, bias=False), {"CONV_2D": 1, **OUT}),
    "padding that SAME fits": (conv(4, 6, 3, padding=1), {"CONV_2D": 1, **OUT}),
    "stride, where SAME fits": (conv(4, 6, 3, 2, padding=1), {"CONV_2D": 1, **OUT}),
    "stride, where SAME does not": (conv(4, 6, 3, 3, padding=1), {"PAD": 1, "CONV_2D": 1, **OUT}),
    "asymmetric padding": (conv(4, 6, 3, padding=(2, 0)), {"PAD": 1, "CONV_2D": 1, **OUT}),
    "asymmetric kernel": (conv(4, 6, (1, 5), padding=(0, 2)), {"CONV_2D": 1, **OUT}),
    "even kernel": (conv(4, 6, 2, padding=1), {"PAD": 1, "CONV_2D": 1, **OUT}),
    "strides of two kinds": (conv(4, 6, 3, (1, 2), padding=1), {"CONV_2D": 1, **OUT}),
    "dilation": (conv(4, 6, 3, dilation=2), {"CONV_2D": 1, **OUT}),
    "dilation that SAME fits": (conv(4, 6, 3, padding=2, dilation=2), {"CONV_2D": 1, **OUT}),
    "padding by name": (conv(4, 6, 3, padding="same"), {"CONV_2D": 1, **OUT}),
    "padding by name, even": (conv(4, 6, 4, padding="same"), {"CONV_2D": 1, **OUT}),
    "groups": (conv(4, 6, 3, groups=2), {"CONV_2D": 1, **OUT}),
    "depthwise": (conv(4, 4, 3, padding=1, groups=4), {"DEPTHWISE_CONV_2D": 1, **OUT}),
    "depthwise, dilation": (conv(4, 4, 3, dilation=2, groups=4), {"DEPTHWISE_CONV_2D": 1, **OUT}),
    "depthwise, three each": (conv(4, 12, 3, groups=4), {"DEPTHWISE_CONV_2D": 1, **OUT}),
    "one channel": (lambda: nn.Sequential(conv(4, 1, 1)(), conv(1, 3, 3)()), {"CONV_2D": 2, **OUT}),
    "batch norm folded": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU6()),
        {"CONV_2D": 1, **OUT},
    ),
    "batch norm folded, depthwise": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), nn.ReLU()),
        {"DEPTHWISE_CONV_2D": 1, **OUT},
    ),
    "batch norm alone": (lambda: nn.BatchNorm2d(4), {"MUL": 1, "ADD": 1, **OUT}),
    "batch norm before a convolution": (
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)),
        {"CONV_2D": 1, **OUT},
    ),
    "batch norm before padding": (
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)),
        {"MUL": 1, "ADD": 1, "CONV_2D": 1, **OUT},
    ),
    "batch norm before groups": (
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2)),
        {"MUL": 1, "ADD": 1, "CONV_2D": 1, **OUT},
    ),
    "batch norm before depthwise": (
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, groups=4)),
        {"DEPTHWISE_CONV_2D": 1, **OUT},
    ),
    "dense, columns reordered": (
        lambda: nn.Sequential(nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(5 * 7 * 5, 3)),
        {"CONV_2D": 1, "RESHAPE": 1, "FULLY_CONNECTED": 1},
    ),
    "dense over channels last": (
        lambda: nn.Sequential(Of(lambda x: x.permute(0, 2, 3, 1)), nn.Linear(4, 3)),
        {"FULLY_CONNECTED": 1},
    ),
    "pool and dense": (
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        {"MEAN": 1, "FULLY_CONNECTED": 1},
    ),
    "addition with itself": (of(lambda x: x + x), {"ADD": 1, **OUT}),
    "addition in place": (of(lambda x: x.sigmoid().add_(x).relu_()), {"LOGISTIC": 1, "ADD": 1, **OUT}),
    "a number added": (of(lambda x: 3 + x), {"ADD": 1, **OUT}),
    "a number subtracted": (of(lambda x: x - 3), {"ADD": 1, **OUT}),
    "subtracted from a number": (of(lambda x: 1 - x), {"SUB": 1, **OUT}),
    "product": (of(lambda x: x * x.sigmoid()), {"LOGISTIC": 1, "MUL": 1, **OUT}),
    "divided by a number": (of(lambda x: x / 7), {"MUL": 1, **OUT}),
    "a number divided": (of(lambda x: 2 / (x * x + 1)), {"MUL": 2, "ADD": 1, "DIV": 1, **OUT}),
    "quotient": (of(lambda x: x / (x * x + 1)), {"MUL": 1, "ADD": 1, "DIV": 1, **OUT}),
    "a constant for each channel": (buffered((1, 4, 1, 1), lambda x, c: x * c), {"MUL": 1, **OUT}),
    "a constant for each channel, three axes": (buffered((4, 1, 1), lambda x, c: c - x), {"SUB": 1, **OUT}),
    "a constant for each column": (buffered((7,), lambda x, c: x + c), {"ADD": 1, **OUT}),
    "a constant for each row": (buffered((9, 1), lambda x, c: x / c), {"MUL": 1, **OUT}),
    "a constant for each value": (buffered((4, 9, 7), lambda x, c: x + c), {"ADD": 1, **OUT}),
    "what does not depend on pixels": (
        buffered((4,), lambda x, c: x * (c.exp() + 1).view(1, -1, 1, 1)),
        {"MUL": 1, **OUT},
    ),
    "a factor of each image": (of(lambda x: x * x.mean((2, 3), keepdim=True)), {"MEAN": 1, "MUL": 1, **OUT}),
    "axes broadcast": (of(lambda x: x * x.mean((0, 1, 2))), {"MEAN": 1, "MUL": 1, "TRANSPOSE": 1}),
    "mean of the image": (lambda: nn.AdaptiveAvgPool2d(1), {"MEAN": 1, "RESHAPE": 1}),
    "mean without axes": (of(lambda x: x.mean((2, 3))), {"MEAN": 1}),
    "mean of columns": (of(lambda x: x.mean(-1)), {"MEAN": 1, "TRANSPOSE": 1}),
    "mean of channels": (of(lambda x: x.mean(1, keepdim=True)), {"MEAN": 1, "RESHAPE": 1}),
    "adaptive pool that divides": (lambda: nn.AdaptiveAvgPool2d((3, 7)), {"AVERAGE_POOL_2D": 1, **OUT}),
    "adaptive pool of nothing": (lambda: nn.AdaptiveAvgPool2d((9, 7)), OUT),
    "max pool": (lambda: nn.MaxPool2d(2), {"MAX_POOL_2D": 1, **OUT}),
    "max pool, ceil": (lambda: nn.MaxPool2d(2, ceil_mode=True), {"MAX_POOL_2D": 1, **OUT}),
    "max pool, SAME": (lambda: nn.MaxPool2d(3, 2, padding=1), {"MAX_POOL_2D": 1, **OUT}),
    "max pool, ceil and padding": (
        lambda: nn.MaxPool2d(2, 2, padding=1, ceil_mode=True),
        {"MIRROR_PAD": 1, "MAX_POOL_2D": 1, **OUT},
    ),
    "max pool, padding": (lambda: nn.MaxPool2d(3, 3, padding=1), {"MIRROR_PAD": 1, "MAX_POOL_2D": 1, **OUT}),
    "max pool, wide padding": (lambda: nn.MaxPool2d(5, 3, padding=2), {"MIRROR_PAD": 1, "MAX_POOL_2D": 1, **OUT}),
    "max pool, more padding than image": (
        lambda: nn.MaxPool2d(5, 4, padding=1, ceil_mode=True),
        {"PADV2": 1, "MAX_POOL_2D": 1, **OUT},
    ),
    "max pool after ReLU": (
        lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 3, padding=1)),
        {"RELU": 1, "PAD": 1, "MAX_POOL_2D": 1, **OUT},
    ),
    "average pool": (lambda: nn.AvgPool2d(2), {"AVERAGE_POOL_2D": 1, **OUT}),
    "average pool that counts padding": (
        lambda: nn.AvgPool2d(3, 2, padding=1),
        {"PAD": 1, "AVERAGE_POOL_2D": 1, **OUT},
    ),
    "average pool that does not": (
        lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
        {"AVERAGE_POOL_2D": 1, **OUT},
    ),
    "average pool that does not, and SAME does not fit": (
        lambda: nn.AvgPool2d(3, 3, padding=1, count_include_pad=False),
        {"PAD": 1, "AVERAGE_POOL_2D": 1, "MUL": 1, **OUT},
    ),
    "average pool, ceil": (lambda: nn.AvgPool2d(2, ceil_mode=True), {"AVERAGE_POOL_2D": 1, **OUT}),
    "average pool, ceil and padding": (
        lambda: nn.AvgPool2d(4, 3, padding=1, ceil_mode=True),
        {"PAD": 1, "AVERAGE_POOL_2D": 1, "MUL": 1, **OUT},
    ),
    "average pool with a divisor": (
        lambda: nn.AvgPool2d(2, divisor_override=3),
        {"AVERAGE_POOL_2D": 1, "MUL": 1, **OUT},
    ),
    "pad": (of(lambda x: F.pad(x, (0, 1, 2, 3))), {"PAD": 1, **OUT}),
    "pad of channels": (of(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2))), {"PAD": 1, **OUT}),
    "pad by a number": (of(lambda x: F.pad(x, (1, 1), value=-2.5)), {"PADV2": 1, **OUT}),
    "pad and convolution": (
        lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 6, 3, 2, padding=(1, 0))),
        {"PAD": 1, "CONV_2D": 1, **OUT},
    ),
    "pad as TensorFlow's SAME": (
        lambda: nn.Sequential(nn.ZeroPad2d((2, 2, 1, 2)), nn.Conv2d(4, 6, (4, 5))),
        {"CONV_2D": 1, **OUT},
    ),
    "concatenation": (of(lambda x: torch.cat([x, x.relu()], 1)), {"RELU": 1, "CONCATENATION": 1, **OUT}),
    "concatenation of rows": (of(lambda x: torch.cat([x, x.relu()], -2)), {"RELU": 1, "CONCATENATION": 1, **OUT}),
    "concatenation of one": (of(lambda x: torch.cat([x.relu()], 1)), {"RELU": 1, **OUT}),
    "slices": (of(lambda x: x[:, 1:3, -4:] + x[:, 2:, :4]), {"SLICE": 4, "ADD": 1, **OUT}),
    "halves": (of(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), {"SLICE": 2, "CONCATENATION": 1, **OUT}),
    "channels reversed before a convolution": (
        lambda: nn.Sequential(Of(lambda x: torch.cat([x[:, 2:], x[:, 1:2], x[:, :1]], 1)), nn.Conv2d(4, 6, 3)),
        {"CONV_2D": 1, **OUT},
    ),
    "flatten": (lambda: nn.Flatten(), {"TRANSPOSE": 1, "RESHAPE": 1}),
    "reshape of one axis": (of(lambda x: x.view(1, 2, 2, 9, 7).flatten(1, 2)), OUT),
    "channel shuffle": (lambda: nn.ChannelShuffle(2), {"RESHAPE": 2, "TRANSPOSE": 2}),
    "channel shuffle by hand": (
        of(lambda x: x.view(1, 2, 2, 9, 7).transpose(1, 2).reshape(1, 4, 9, 7).relu()),
        {"RESHAPE": 2, "TRANSPOSE": 2, "RELU": 1},
    ),
    "permutations that undo each other": (
        of(lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2)),
        {"RELU": 1, **OUT},
    ),
    "to channels last": (of(lambda x: x.permute(0, 2, 3, 1).relu()), {"RELU": 1}),
    "relu": (lambda: nn.ReLU(), {"RELU": 1, **OUT}),
    "relu6": (lambda: nn.ReLU6(), {"RELU6": 1, **OUT}),
    "hardtanh": (lambda: nn.Hardtanh(), {"RELU_N1_TO_1": 1, **OUT}),
    "hardtanh of other bounds": (lambda: nn.Hardtanh(-2, 0.5), {"MAXIMUM": 1, "MINIMUM": 1, **OUT}),
    "clamp": (of(lambda x: x.clamp(max=1.5)), {"MINIMUM": 1, **OUT}),
    "hard swish": (lambda: nn.Hardswish(), {"HARD_SWISH": 1, **OUT}),
    "silu": (lambda: nn.SiLU(), {"LOGISTIC": 1, "MUL": 1, **OUT}),
    "sigmoid": (lambda: nn.Sigmoid(), {"LOGISTIC": 1, **OUT}),
    "hard sigmoid": (lambda: nn.Hardsigmoid(), {"ADD": 1, "MUL": 1, **OUT}),
    "hard sigmoid after a convolution": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 1), nn.Hardsigmoid()),
        {"CONV_2D": 1, "MUL": 1, **OUT},
    ),
    "hard sigmoid as a gate": (
        lambda: nn.Sequential(
            Of(lambda x: x * F.hardsigmoid(x.mean((2, 3), keepdim=True))), nn.Conv2d(4, 6, 3, padding=1)
        ),
        {"MEAN": 1, "ADD": 1, "MUL": 1, "CONV_2D": 1, **OUT},
    ),
    "hard sigmoid times itself": (
        lambda: nn.Sequential(Of(lambda x: (gate := F.hardsigmoid(x)) * gate), nn.Conv2d(4, 6, 3)),
        {"ADD": 1, "MUL": 2, "CONV_2D": 1, **OUT},
    ),
    "tanh": (lambda: nn.Tanh(), {"TANH": 1, **OUT}),
    "elu": (lambda: nn.ELU(), {"ELU": 1, **OUT}),
    "leaky relu": (lambda: nn.LeakyReLU(0.2), {"LEAKY_RELU": 1, **OUT}),
    "gelu": (lambda: nn.GELU(), {"GELU": 1, **OUT}),
    "gelu by tanh": (lambda: nn.GELU("tanh"), {"GELU": 1, **OUT}),
    "softmax over channels": (lambda: nn.Softmax(1), {"SOFTMAX": 1, **OUT}),
    "softmax over columns": (lambda: nn.Softmax(-1), {"TRANSPOSE": 2, "SOFTMAX": 1}),
    "logarithm of softmax": (lambda: nn.LogSoftmax(1), {"LOG_SOFTMAX": 1, **OUT}),
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.5), nn.ReLU(), nn.Dropout2d()), {"RELU": 1, **OUT}),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # it copies; it is not wrong
@pytest.mark.parametrize("name", SINGLE)
def test_an_operator_alone(name: str) -> None:
    make, wanted = SINGLE[name]
    module, shape = seeded(make), (1, 9, 7, 4)
    content = lower(module, shape)
    assert difference(content, module, shape) < 2e-6
    assert kinds(content) == wanted


# --- changes in place -----------------------------------------------------------------------------


class InPlace(nn.Module):
    """The old name of a tensor shows what was changed in place."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        F.relu_(y)
        z = y + 1  # of the changed y
        y.mul_(z)
        return torch.cat([y, z], 1)


def test_changes_in_place_show_under_the_old_name() -> None:
    module, shape = InPlace(), (1, 4, 4, 2)
    assert difference(lower(module, shape), module, shape) < 1e-6


@pytest.mark.parametrize(
    "function",
    [lambda x: (y := x * 2, y.flatten(1).relu_(), y)[2], lambda x: (y := x * 2, v := y[:, :1], y.relu_(), v)[3]],
    ids=["view changed", "base changed"],
)
def test_a_change_through_a_view_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UnknownOperator, match=r"aten\.relu_: it changes in place what is read through a view"):
        lower(Of(function), (1, 4, 4, 2))


# --- families -------------------------------------------------------------------------------------

# Operators of the float file, before the DEQUANTIZE of its uint8 input. Stride 2 on an even side: PAD and VALID,
# as SAME would pad on the other side; XNNPACK takes both for one. The one ADD more than skips is the pixels' mean.
HISTOGRAMS = {
    "mobilenet_v1": {"CONV_2D": 14, "DEPTHWISE_CONV_2D": 13, "PAD": 5, "ADD": 1, "MEAN": 1, "FULLY_CONNECTED": 1},
    "mobilenet_v2": {"CONV_2D": 35, "DEPTHWISE_CONV_2D": 17, "ADD": 11, "PAD": 5, "MEAN": 1, "FULLY_CONNECTED": 1},
    "mobilenet_v3_small": {
        "CONV_2D": 41,
        "HARD_SWISH": 19,
        "DEPTHWISE_CONV_2D": 11,
        "MEAN": 10,
        "MUL": 9,
        "ADD": 7,
        "PAD": 5,
        "FULLY_CONNECTED": 2,
    },
    "mobilenet_v3_large": {
        "CONV_2D": 47,
        "HARD_SWISH": 21,
        "DEPTHWISE_CONV_2D": 15,
        "MEAN": 9,
        "MUL": 8,
        "ADD": 11,
        "PAD": 5,
        "FULLY_CONNECTED": 2,
    },
    "efficientnet_b0": {
        "CONV_2D": 65,
        "LOGISTIC": 65,
        "MUL": 65,
        "DEPTHWISE_CONV_2D": 16,
        "MEAN": 17,
        "ADD": 10,
        "PAD": 5,
        "FULLY_CONNECTED": 1,
    },
    "efficientnet_lite0": {"CONV_2D": 33, "DEPTHWISE_CONV_2D": 16, "ADD": 10, "MEAN": 1, "FULLY_CONNECTED": 1},
}


def source(name: str, **options: Any) -> ExportSource:
    """The family with random weights for 10 classes, calibrated on 16 pictures of blobs."""
    contract = preset("imagenet", SIDE, SIDE)
    network = seeded(lambda: models.build(ModelSpec(name=name, **options), 10))

    def calibrate(spec: CalibrationSpec) -> CalibrationImages:
        record = Calibration(count=16, seed=0, method=spec.method, images_sha256="")
        return CalibrationImages(pixels_NHWC=convert.noise((SIDE, SIDE, 3), 16, seed=1), record=record)

    return ExportSource(
        model=PixelClassifier(network, contract).eval(),
        preprocess=contract,
        labels=tuple("0123456789"),
        calibrate=calibrate,
    )


@pytest.fixture(scope="module")
def lowered() -> Callable[[str], tuple[ExportSource, bytes]]:
    """Each family lowered once for all tests."""
    kept: dict[str, tuple[ExportSource, bytes]] = {}

    def get(name: str) -> tuple[ExportSource, bytes]:
        if name not in kept:
            made = source(name)
            kept[name] = (made, lower(made.model, made.shape_NHWC))
        return kept[name]

    return get


def logits(content: bytes, pixels: npt.NDArray[np.uint8]) -> Array:
    return np.concatenate([run(content, picture[None].astype(np.float32)) for picture in pixels])


Lowered = Callable[[str], tuple[ExportSource, bytes]]


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_a_family_is_lean_and_exact(name: str, lowered: Lowered) -> None:
    made, content = lowered(name)
    assert kinds(content) == HISTOGRAMS[name]
    pictures = convert.noise((SIDE, SIDE, 3), 4)
    wanted = made.logits(pictures)
    assert np.abs(logits(content, pictures) - wanted).max() < 1e-5 * np.abs(wanted).max()
    parameters = sum(p.numel() for p in made.model.parameters())
    assert len(content) < 4 * parameters * 1.02 + 60_000


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_names_are_module_paths_and_unique(name: str, lowered: Lowered) -> None:
    made, content = lowered(name)
    found = names(content)
    assert len(set(found)) == len(found)
    assert max(map(len, found)) < 60
    details = flatbuffer.details(flatbuffer.unpack(content))
    convolutions = {one.name for one in details if one.kind in ("CONV_2D", "DEPTHWISE_CONV_2D")}
    assert convolutions == {path for path, module in made.model.named_modules() if isinstance(module, nn.Conv2d)}
    assert {f"{path}.{kind}" for path in convolutions for kind in ("weight", "bias")} < set(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", HISTOGRAMS)
def test_a_family_as_litert_torch_writes_it(name: str, lowered: Lowered) -> None:
    """What differs: the mean is an ADD and not a SUB; the pixels' standard deviation is in the weights; so is the
    sixth of a hard sigmoid; theirs pads TensorFlow's SAME by hand, in torch's order."""
    if importlib.util.find_spec("litert_torch") is None:
        pytest.skip("litert-torch is not installed: pip install 'edgekit[tflite-full]'")
    made, content = lowered(name)
    tflite = plugins.load("converters", "tflite")
    from edgekit.quiet import quiet

    with quiet():
        theirs = tflite._lower_with_litert_torch(made, None).content
    assert len(content) <= len(theirs)
    more = Counter(kinds(content)) - Counter({**kinds(theirs), "ADD": kinds(theirs).get("ADD", 0) + 1})
    assert not more
    assert set(kinds(theirs)) - set(kinds(content)) <= {"SUB", "MUL", "PAD", "TRANSPOSE"}
    pictures = convert.noise((SIDE, SIDE, 3), 4)
    wanted = logits(theirs, pictures)
    assert np.abs(logits(content, pictures) - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_int8_files_are_xnnpacks_alone(name: str, lowered: Lowered, tmp_path: Path) -> None:
    made, content = lowered(name)
    made.once("tflite float", lambda: export.Lowered(content=content))
    variants = [Variant(target="tflite", precision=precision) for precision in ("fp32", "int8")]
    pictures = convert.noise((SIDE, SIDE, 3), 4)
    for file in convert.convert(made, variants, pictures, tmp_path, lambda text, share: None):
        details = convert.for_file(file.path).inspect(file.path).details
        taken = xnnpack.taken(file.path)
        assert [one.name for one, inside in zip(details, taken, strict=True) if not inside] == []
        assert file.parity is not None
        assert file.parity.sqnr_db > (100 if file.precision == "fp32" else 20)
    assert sum(one.macs for one in details if one.dtype == "int8") > 0.8 * sum(one.macs for one in details)


# --- normalisation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contract", "padding", "wanted"),
    [
        (Preprocess(height=9, width=9, mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4)), 1, {"ADD": 1, "CONV_2D": 1}),
        (Preprocess(height=9, width=9, mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4)), 0, {"CONV_2D": 1}),
        (preset("0to1", 9, 9), 1, {"CONV_2D": 1}),
        (preset("minus1to1", 9, 9), 1, {"ADD": 1, "CONV_2D": 1}),
        (Preprocess(height=9, width=9, channel_order="BGR", mean=(0.1, 0.2, 0.3)), 1, {"ADD": 1, "CONV_2D": 1}),
    ],
    ids=["mean and std", "no padding", "0to1", "minus1to1", "BGR"],
)
def test_normalisation_is_folded_where_that_is_exact(
    contract: Preprocess, padding: int, wanted: dict[str, int]
) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 5, 3, padding=padding), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = PixelClassifier(seeded(lambda: layers), contract).eval()
    content = lower(model, (1, 9, 9, 3))
    assert kinds(content) == {**wanted, "MEAN": 1}
    pictures = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3)).astype(np.uint8)
    with torch.no_grad():
        expected = model(torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()).float()).numpy()
    assert np.abs(logits(content, pictures) - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_mean_is_stored_for_a_row() -> None:
    """Three numbers in a vector cost a tenth of MobileNetV3-Small's time."""
    content = lower(source("mobilenet_v3_small").model, (1, SIDE, SIDE, 3))
    graph = flatbuffer.unpack(content).subgraphs[0]
    first = graph.operators[0]
    assert list(graph.tensors[first.inputs[1]].shape) == [SIDE, 3]


# --- what is unknown ------------------------------------------------------------------------------


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE * 3, 10))
        self.odd = Of(torch.special.bessel_j0)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.odd(self.head(x))
        return found


class Choosing(nn.Module):
    """Takes one way or another by what the image holds."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Soft(nn.Module):
    """With an operator that litert-torch knows, and we do not."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softplus())

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x)
        return found


def with_network(network: nn.Module) -> ExportSource:
    contract = preset("imagenet", SIDE, SIDE)
    return ExportSource(
        model=PixelClassifier(seeded(lambda: network), contract).eval(),
        preprocess=contract,
        labels=tuple("0123456789"),
    )


def test_an_unknown_operator_is_named_with_its_place() -> None:
    with pytest.raises(UnknownOperator) as caught:
        lower(with_network(Odd()).model, (1, SIDE, SIDE, 3))
    error = caught.value
    assert (error.operator, error.module) == ("aten.special_bessel_j0", "model.odd")
    assert re.search(r"test_lower\.py, line \d+: return self\.function\(x\)", error.source)
    assert "\n" not in str(error)


def test_an_operator_inside_of_torchs_own_module_is_named_by_its_class() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten())
    with pytest.raises(UnknownOperator) as caught:
        lower(with_network(network).model, (1, SIDE, SIDE, 3))
    assert caught.value.module == "model.1"
    assert caught.value.source == " (torch.nn.modules.normalization.GroupNorm)"  # no line of edgekit's own


def test_what_torch_export_cannot_trace_is_named_with_its_place() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), Choosing(), nn.Flatten())
    place = r"data-dependent.* in module model\.1 \(.*test_lower\.py, line \d+: if x\.sum\(\) > 0:\); write it so"
    with pytest.raises(ConversionError, match=place) as caught:
        lower(with_network(network).model, (1, SIDE, SIDE, 3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda: nn.MaxPool2d(2, dilation=2), "its dilation is "),
        (lambda: nn.AdaptiveAvgPool2d(4), "9 x 7 pixels do not divide into 4 x 4"),
        (lambda: nn.ReflectionPad2d(1), "its mode is reflect|aten.reflection_pad2d"),
        (lambda: nn.ConvTranspose2d(4, 3, 2), "aten.conv_transpose2d"),
        (of(lambda x: F.dropout(x)), "it drops values in evaluation, too"),
        (of(lambda x: x[:, :, ::2]), "its step is 2"),
        (of(lambda x: torch.add(x, x, alpha=2)), "its alpha is 2"),
        (of(lambda x: (x > 0).float()), r"aten\.gt|is torch\.bool and not float32"),
        (of(lambda x: x + torch.rand(1)), "random"),
        (of(lambda x: F.conv2d(x, x[:, :, :3, :3])), "its weights are computed from the pixels"),
        (of(lambda x: F.pad(x, (-1, 0))), "it pads by less than nothing"),
        (lambda: nn.InstanceNorm2d(4), "aten.instance_norm"),
    ],
)
def test_what_cannot_be_exact_is_refused(module: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(UnknownOperator, match=reason):
        lower(seeded(module), (1, 9, 7, 4))


@pytest.mark.slow
def test_an_unknown_operator_goes_to_litert_torch_and_is_told(tmp_path: Path) -> None:
    variant = Variant(target="tflite", precision="fp32")
    pictures = convert.noise((SIDE, SIDE, 3), 4)
    [made] = convert.convert(with_network(Soft()), [variant], pictures, tmp_path, lambda text, share: None)
    assert made.parity is not None
    assert made.parity.sqnr_db > 90
    assert made.tools.keys() >= {"litert-torch"}
    [note] = made.notes
    assert note.startswith(
        "lowered by litert-torch, because edgekit does not lower aten.softplus in module model.head.3"
    )


def test_without_litert_torch_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tflite = plugins.load("converters", "tflite")
    monkeypatch.setattr(tflite, "find_spec", lambda name: None)
    cure = r"does not lower aten\.softplus in module model\.head\.3 .*pip install 'edgekit\[tflite-full\]'"
    with pytest.raises(MissingDependency, match=cure):
        tflite._lower(with_network(Soft()))


@pytest.mark.slow
def test_what_nobody_knows_is_named_with_its_place() -> None:
    tflite = plugins.load("converters", "tflite")
    with pytest.raises(
        ConversionError, match=r"cannot convert this model: .*bessel_j0.*in module model\.odd .*line"
    ):
        tflite._lower(with_network(Odd()))


@pytest.mark.slow
def test_what_litert_torch_writes_and_the_runtime_lacks_is_named_with_its_place() -> None:
    tflite = plugins.load("converters", "tflite")
    sorting = nn.Sequential(nn.Flatten(), Of(lambda x: torch.sort(x, dim=1)[0]), nn.Linear(SIDE * SIDE * 3, 10))
    with pytest.raises(
        ConversionError,
        match=r"LiteRT has no operator STABLEHLO_SORT; .*aten\.sort in module model\.1 .*, line \d+",
    ):
        tflite._lower(with_network(sorting))


# --- precisions -----------------------------------------------------------------------------------

# Over 4 pictures with random weights: SQNR in dB, and the size to fp32's
PRECISIONS = {
    "fp16": (55, 0.48, 0.53),
    "w8": (30, 0.24, 0.32),
    "w4": (8, 0.14, 0.24),
    "dyn8": (28, 0.25, 0.34),
    "int8": (24, 0.25, 0.34),
    "int16x8": (30, 0.25, 0.36),
}


def test_precisions_of_one_lowering(lowered: Lowered, tmp_path: Path) -> None:
    made, content = lowered("mobilenet_v3_small")
    tflite = plugins.load("converters", "tflite")
    made.once("tflite float", lambda: export.Lowered(content=content))
    assert set(PRECISIONS) | {"fp32", "sparse", "int8-mixed", "int8-qat"} == set(tflite.precisions)
    variants = [Variant(target="tflite", precision=precision) for precision in PRECISIONS]
    pictures = convert.noise((SIDE, SIDE, 3), 4)
    for file in convert.convert(made, variants, pictures, tmp_path, lambda text, share: None):
        least_db, smallest, largest = PRECISIONS[file.precision]
        assert file.parity is not None
        assert file.parity.sqnr_db > least_db, file.precision
        assert smallest < file.size_bytes / len(content) < largest, file.precision
