"""Every Core ML operator of the reference against its definition, written out anew with NumPy or torch.

Each program is built with coremltools, saved as a package and read back, as a converted model is.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional as F

from edgekit import mil
from edgekit.errors import ArtifactError, ConversionError
from edgekit.mil.run import OPERATORS
from edgekit.quiet import quiet

with quiet():  # importing it warns of the versions of other packages
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

Array = npt.NDArray[Any]
Body = Callable[[Any], Any]


def array(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X = array(1, 4, 7, 6)


def saved(body: Body, shape: Sequence[int], path: Path, target: Any = ct.target.iOS15) -> Path:
    """The package of a program of one input."""
    with quiet():
        program = mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=target)(body)
        model = ct.convert(
            program,
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=target,
            pass_pipeline=ct.PassPipeline.EMPTY,  # the program as it is written here
            skip_model_load=True,
        )
        model.save(str(path))
    return path


def run(body: Body, x: Array, path: Path, target: Any = ct.target.iOS15) -> Array:
    function = mil.load(saved(body, x.shape, path / "tested.mlpackage", target))
    return mil.Reference(function).output(torch.from_numpy(x)).numpy()


def fp16(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float32)


CHANNEL, SIX = array(4, seed=6), array(6, seed=7)
C1 = CHANNEL[:, None, None]
SECOND, MATRIX, ROW = array(1, 4, 7, 6, seed=1), array(5, 6, seed=2), array(5, seed=3)

SIMPLE: dict[str, tuple[Body, Array]] = {
    "abs": (lambda x: mb.abs(x=x), np.abs(X)),
    "elu": (lambda x: mb.elu(x=x, alpha=0.7), np.where(X > 0, X, 0.7 * (np.exp(X) - 1))),
    "erf": (lambda x: mb.erf(x=x), np.vectorize(math.erf)(X)),
    "exp": (lambda x: mb.exp(x=x), np.exp(X)),
    "identity": (lambda x: mb.identity(x=x), X),
    "inverse": (lambda x: mb.inverse(x=mb.square(x=x), epsilon=0.5), 1 / (X**2 + 0.5)),
    "leaky_relu": (lambda x: mb.leaky_relu(x=x, alpha=0.2), np.where(X >= 0, X, 0.2 * X)),
    "log": (lambda x: mb.log(x=mb.square(x=x), epsilon=0.5), np.log(X**2 + 0.5)),
    "maximum": (lambda x: mb.maximum(x=x, y=SECOND[:, :, :1]), np.maximum(X, SECOND[:, :, :1])),
    "minimum": (lambda x: mb.minimum(x=x, y=SECOND[:, :, :1]), np.minimum(X, SECOND[:, :, :1])),
    "pow": (lambda x: mb.pow(x=mb.abs(x=x), y=np.float32(1.5)), np.abs(X) ** 1.5),
    "prelu": (lambda x: mb.prelu(x=x, alpha=CHANNEL), np.where(X >= 0, X, C1 * X)),
    "rsqrt": (lambda x: mb.rsqrt(x=mb.square(x=x), epsilon=0.5), 1 / np.sqrt(X**2 + 0.5)),
    "scaled_tanh": (lambda x: mb.scaled_tanh(x=x, alpha=0.5, beta=2.0), 0.5 * np.tanh(2 * X)),
    "softplus": (lambda x: mb.softplus(x=mb.mul(x=x, y=np.float32(12))), np.logaddexp(0, np.float32(12) * X)),
    "softsign": (lambda x: mb.softsign(x=x), X / (1 + np.abs(X))),
    "sqrt": (lambda x: mb.sqrt(x=mb.abs(x=x)), np.sqrt(np.abs(X))),
    "square": (lambda x: mb.square(x=x), X**2),
    "tanh": (lambda x: mb.tanh(x=x), np.tanh(X)),
    "threshold": (lambda x: mb.threshold(x=x, alpha=0.25), np.maximum(X, 0.25)),
    "expand_dims": (lambda x: mb.expand_dims(x=mb.squeeze(x=x), axes=[1, -1]), X[0][:, None, ..., None]),
    "squeeze": (lambda x: mb.squeeze(x=x), X[0]),
    "squeeze, axis": (lambda x: mb.squeeze(x=mb.expand_dims(x=x, axes=[2]), axes=[2]), X),
    "stack": (lambda x: mb.stack(values=[x, SECOND], axis=1), np.stack([X, SECOND], 1)),
    "reduce_max": (lambda x: mb.reduce_max(x=x, axes=[1, 3], keep_dims=True), X.max((1, 3), keepdims=True)),
    "reduce_min": (lambda x: mb.reduce_min(x=x, axes=[-1], keep_dims=False), X.min(3)),
    "reduce_l2_norm": (
        lambda x: mb.reduce_l2_norm(x=x, axes=[1], keep_dims=False),
        np.sqrt(np.square(X).sum(1)),
    ),
    "add": (lambda x: mb.add(x=x, y=SECOND), X + SECOND),
    "add, broadcast": (lambda x: mb.add(x=x, y=SECOND[:, :, :1, :1]), X + SECOND[:, :, :1, :1]),
    "batch_norm": (
        lambda x: mb.batch_norm(
            x=x, mean=CHANNEL, variance=CHANNEL**2, gamma=CHANNEL + 1, beta=CHANNEL - 1, epsilon=0.5
        ),
        (X - C1) / np.sqrt(C1**2 + 0.5) * (C1 + 1) + C1 - 1,
    ),
    "batch_norm, bare": (
        lambda x: mb.batch_norm(x=x, mean=CHANNEL, variance=CHANNEL**2, epsilon=0.5),
        (X - C1) / np.sqrt(C1**2 + 0.5),
    ),
    "layer_norm": (
        lambda x: mb.layer_norm(x=x, axes=[-1], gamma=SIX, beta=SIX + 1, epsilon=0.25),
        (X - X.mean(3, keepdims=True)) / np.sqrt(X.var(3, keepdims=True) + 0.25) * SIX + SIX + 1,
    ),
    "layer_norm, two axes": (
        lambda x: mb.layer_norm(x=x, axes=[2, 3], epsilon=0.25),
        (X - X.mean((2, 3), keepdims=True)) / np.sqrt(X.var((2, 3), keepdims=True) + 0.25),
    ),
    "gelu": (lambda x: mb.gelu(x=x), X / 2 * (1 + np.vectorize(math.erf)(X / math.sqrt(2)))),
    "gelu, tanh": (
        lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        X / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),
    ),
    "gelu, sigmoid": (lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"), X / (1 + np.exp(-1.702 * X))),
    "thresholded_relu": (lambda x: mb.thresholded_relu(x=x, alpha=0.5), np.where(X >= 0.5, X, 0)),
    "split": (lambda x: mb.split(x=x, num_splits=2, axis=1)[1], X[:, 2:]),
    "split, sizes": (lambda x: mb.split(x=x, split_sizes=[1, 4, 1], axis=-1)[1], X[..., 1:5]),
    "sub": (lambda x: mb.sub(x=SECOND[0, 0], y=x), SECOND[0, 0] - X),
    "mul": (lambda x: mb.mul(x=x, y=SECOND[:, :1]), X * SECOND[:, :1]),
    "pad": (
        lambda x: mb.pad(x=x, pad=[1, 2, 0, 3], mode="constant", constant_val=np.float32(0)),
        np.pad(X, [(0, 0), (0, 0), (1, 2), (0, 3)]),
    ),
    "pad, all axes": (
        lambda x: mb.pad(x=x, pad=[0, 0, 2, 1, 1, 0, 0, 1], mode="constant", constant_val=np.float32(-1.5)),
        np.pad(X, [(0, 0), (2, 1), (1, 0), (0, 1)], constant_values=np.float32(-1.5)),
    ),
    "real_div": (lambda x: mb.real_div(x=x, y=np.float32(3.0)), X / np.float32(3)),
    "clip": (lambda x: mb.clip(x=x, alpha=-0.5, beta=0.75), np.minimum(np.maximum(X, -0.5), np.float32(0.75))),
    "relu": (lambda x: mb.relu(x=x), np.where(X > 0, X, 0)),
    "relu6": (lambda x: mb.relu6(x=mb.mul(x=x, y=np.float32(5))), np.minimum(np.where(X > 0, 5 * X, 0), 6)),
    "sigmoid": (lambda x: mb.sigmoid(x=x), 1 / (1 + np.exp(-X))),
    "sigmoid_hard": (
        lambda x: mb.sigmoid_hard(x=x, alpha=0.4, beta=0.3),
        np.clip(np.float32(0.4) * X + np.float32(0.3), 0, 1),
    ),
    "silu": (lambda x: mb.silu(x=x), X / (1 + np.exp(-X))),
    "softmax": (
        lambda x: mb.add(x=mb.softmax(x=x, axis=1), y=np.float32(1)),
        1 + np.exp(X) / np.exp(X).sum(1, keepdims=True),
    ),
    "linear": (lambda x: mb.linear(x=x, weight=MATRIX, bias=ROW), X @ MATRIX.T + ROW),
    "linear, no bias": (lambda x: mb.linear(x=x, weight=MATRIX), X @ MATRIX.T),
    "matmul": (lambda x: mb.matmul(x=x, y=MATRIX.T.copy()), X @ MATRIX.T),
    "matmul, transposed": (
        lambda x: mb.matmul(x=x, y=SECOND, transpose_x=True, transpose_y=False),
        np.einsum("abij,abik->abjk", X, SECOND),
    ),
    "matmul, transposed y": (
        lambda x: mb.matmul(x=x, y=MATRIX, transpose_y=True),
        np.einsum("abij,kj->abik", X, MATRIX),
    ),
    "concat": (lambda x: mb.concat(values=[x, SECOND], axis=1), np.concatenate([X, SECOND], 1)),
    "concat, last axis": (lambda x: mb.concat(values=[x, SECOND], axis=-1), np.concatenate([X, SECOND], 3)),
    "concat, interleaved": (
        lambda x: mb.concat(values=[x, SECOND], axis=1, interleave=True),
        np.stack([pair[i] for i in range(4) for pair in (X[0], SECOND[0])])[None],
    ),
    "reshape": (lambda x: mb.reshape(x=x, shape=[1, 28, 6]), X.reshape(1, 28, 6)),
    "reshape, rest": (lambda x: mb.reshape(x=x, shape=[1, -1]), X.reshape(1, 168)),
    "transpose": (lambda x: mb.transpose(x=x, perm=[0, 2, 3, 1]), np.moveaxis(X, 1, 3)),
    "transpose, negative": (lambda x: mb.transpose(x=x, perm=[0, -1, -2, -3]), X.swapaxes(1, 3)),
    "reduce_mean": (lambda x: mb.reduce_mean(x=x, axes=[2, 3], keep_dims=True), X.mean((2, 3), keepdims=True)),
    "reduce_mean, dropped": (lambda x: mb.reduce_mean(x=x, axes=[-1, -2], keep_dims=False), X.mean((2, 3))),
    "reduce_mean, all": (lambda x: mb.reduce_mean(x=x, keep_dims=True), X.mean(keepdims=True)),
    "reduce_sum": (lambda x: mb.reduce_sum(x=x, axes=[1], keep_dims=False), X.sum(1)),
    "slice_by_index": (lambda x: mb.slice_by_index(x=x, begin=[0, 2, 0, 1], end=[1, 3, 7, 5]), X[:, 2:3, :, 1:5]),
    "slice_by_index, masks": (
        lambda x: mb.slice_by_index(
            x=x,
            begin=[0, 3, 1, -2],
            end=[1, 0, -1, 0],
            stride=[1, -1, 2, 1],
            begin_mask=[True, False, False, False],
            end_mask=[False, True, False, True],
        ),
        X[:, 3::-1, 1:-1:2, -2:],
    ),
    "slice_by_index, one": (
        lambda x: mb.slice_by_index(
            x=x, begin=[0, -1, 0, 0], end=[1, 0, 7, 6], squeeze_mask=[False, True, False, False]
        ),
        X[:, -1],
    ),
}


@pytest.mark.parametrize("name", SIMPLE)
def test_operator(name: str, tmp_path: Path) -> None:
    body, expected = SIMPLE[name]
    found = run(body, X, tmp_path)
    assert found.shape == expected.shape
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_every_operator_of_the_table_is_tested() -> None:
    tested = {name.partition(",")[0] for name in SIMPLE} | {"conv", "max_pool", "avg_pool", "cast"}
    tested |= {"quantize", "dequantize"}  # in test_mil_constexpr
    assert tested == set(OPERATORS)


def conv(
    x: Array, weight: Array, *, strides: Sequence[int], pad: Sequence[int], dilations: Sequence[int], groups: int
) -> Array:
    """The definition, sum by sum. *pad*: top, bottom, left, right."""
    padded = np.pad(x[0], ((0, 0), (pad[0], pad[1]), (pad[2], pad[3])))
    outs, ins, high, wide = weight.shape
    rows = (padded.shape[1] - (high - 1) * dilations[0] - 1) // strides[0] + 1
    columns = (padded.shape[2] - (wide - 1) * dilations[1] - 1) // strides[1] + 1
    result = np.zeros((1, outs, rows, columns), np.float32)
    for out, i, j in np.ndindex(outs, rows, columns):
        first = out // (outs // groups) * ins
        for c, k, m in np.ndindex(ins, high, wide):
            at = padded[first + c, i * strides[0] + k * dilations[0], j * strides[1] + m * dilations[1]]
            result[0, out, i, j] += at * weight[out, c, k, m]
    return result


# kind of padding, pad given, pad that it means for 7 x 6, kernel 3 x 2
PADDINGS: dict[str, tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]]] = {
    "valid": ((0, 0, 0, 0), (0, 0, 0, 0), (1, 1), (1, 1)),
    "custom": ((2, 0, 1, 3), (2, 0, 1, 3), (2, 1), (1, 1)),  # as stride-2 models of TensorFlow pad
    "same": ((0, 0, 0, 0), (1, 1, 0, 0), (2, 2), (1, 1)),
    "same, stride 1": ((0, 0, 0, 0), (1, 1, 0, 1), (1, 1), (1, 1)),
    "same, dilated": ((0, 0, 0, 0), (1, 2, 1, 2), (2, 1), (2, 3)),
    "same_lower": ((0, 0, 0, 0), (1, 1, 1, 0), (1, 1), (1, 1)),
    "same_lower, dilated": ((0, 0, 0, 0), (2, 1, 2, 1), (2, 1), (2, 3)),
}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("case", PADDINGS)
def test_conv(case: str, groups: int, tmp_path: Path) -> None:
    given, meant, strides, dilations = PADDINGS[case]
    x = array(1, 4, 6, 6) if case.endswith("dilated") else X  # of 6 rows the sum of the padding is odd
    weight, kind = array(8, 4 // groups, 3, 2, seed=4), case.partition(",")[0]
    found = run(
        lambda x: mb.conv(
            x=x, weight=weight, strides=strides, pad_type=kind, pad=given, dilations=dilations, groups=groups
        ),
        x,
        tmp_path,
        ct.target.iOS16,
    )
    expected = conv(x, weight, strides=strides, pad=meant, dilations=dilations, groups=groups)
    assert found.shape == expected.shape
    assert np.allclose(found, expected, atol=1e-5)


def test_conv_bias_and_one_dimension(tmp_path: Path) -> None:
    weight, bias = array(3, 4, 5, seed=4), array(3, seed=5)
    found = run(
        lambda x: mb.conv(x=x, weight=weight, bias=bias, pad_type="custom", pad=[0, 3]),
        X[:, :, :, 0].copy(),
        tmp_path,
    )
    expected = conv(
        X[:, :, None, :, 0], weight[:, :, None], strides=(1, 1), pad=(0, 0, 0, 3), dilations=(1, 1), groups=1
    )[:, :, 0]
    assert np.allclose(found, expected + bias[:, None], atol=1e-5)


def windows(x: Array, pad: Sequence[int], sizes: Sequence[int], strides: Sequence[int]) -> Array:
    """(channels, rows, columns, kernel): the values under each window, NaN where it looks at padding."""
    padded = np.pad(x[0], ((0, 0), (pad[0], pad[1]), (pad[2], pad[3])), constant_values=np.nan)
    view = np.lib.stride_tricks.sliding_window_view(padded, sizes, axis=(1, 2))
    return view[:, :: strides[0], :: strides[1]].reshape(
        len(view), *view[:, :: strides[0], :: strides[1]].shape[1:3], -1
    )


def average(options: dict[str, Any], excluded: bool) -> Body:
    return lambda x: mb.avg_pool(x=x, exclude_padding_from_average=excluded, **options)


# pad_type, pad given, pad meant, kernel, strides
POOLS = {
    "valid": ("valid", (0, 0, 0, 0), (0, 0, 0, 0), (3, 2), (2, 2)),
    "custom": ("custom", (2, 0, 0, 1), (2, 0, 0, 1), (3, 2), (2, 1)),
    "same": ("same", (0, 0, 0, 0), (1, 1, 0, 1), (3, 2), (2, 1)),
    "same, even": ("same", (0, 0, 0, 0), (0, 1, 1, 1), (2, 4), (2, 2)),
    "same_lower": ("same_lower", (0, 0, 0, 0), (1, 0, 1, 1), (2, 4), (2, 2)),
}


@pytest.mark.parametrize("case", POOLS)
def test_pools(case: str, tmp_path: Path) -> None:
    kind, given, meant, sizes, strides = POOLS[case]
    seen = windows(X - 3, meant, sizes, strides)  # all below 0: a zero of the padding would win
    options = {"kernel_sizes": sizes, "strides": strides, "pad_type": kind, "pad": given}
    biggest = run(lambda x: mb.max_pool(x=x, **options), X - 3, tmp_path, ct.target.iOS16)
    assert np.array_equal(biggest[0], np.nanmax(seen, 3))
    for excluded, expected in ((True, np.nanmean(seen, 3)), (False, np.nansum(seen, 3) / np.prod(sizes))):
        found = run(
            average(options, excluded),
            X - 3,
            tmp_path,
            ct.target.iOS16,
        )
        assert found.shape == (1, *expected.shape)
        assert np.allclose(found[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "stride", "pad", "side"),
    [(2, 2, 0, 4), (3, 2, 0, 3), (3, 2, 1, 4), (2, 2, 1, 4), (2, 3, 1, 3), (3, 3, 1, 3), (1, 4, 0, 2)],
)
def test_ceil_mode_is_torchs(size: int, stride: int, pad: int, side: int, tmp_path: Path) -> None:
    x = array(1, 4, 7, 7) - 3
    options = {
        "kernel_sizes": [size] * 2,
        "strides": [stride] * 2,
        "pad_type": "custom",
        "pad": [pad] * 4,
        "ceil_mode": True,
    }
    biggest = run(lambda x: mb.max_pool(x=x, **options), x, tmp_path)
    assert biggest.shape == (1, 4, side, side)
    assert np.array_equal(biggest, F.max_pool2d(torch.from_numpy(x), size, stride, pad, ceil_mode=True).numpy())
    for excluded in (True, False):
        found = run(
            average(options, excluded),
            x,
            tmp_path,
        )
        expected = F.avg_pool2d(
            torch.from_numpy(x), size, stride, pad, ceil_mode=True, count_include_pad=not excluded
        ).numpy()
        assert np.allclose(found, expected, atol=1e-5)


def test_fp16_rounds_after_every_operator(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        half = mb.cast(x=x, dtype="fp16")
        return mb.cast(x=mb.mul(x=mb.add(x=half, y=np.float16(1000)), y=np.float16(3)), dtype="fp32")

    expected = fp16(fp16(fp16(X) + 1000) * 3)
    assert np.array_equal(run(body, X, tmp_path), expected)
    assert np.abs(expected - 3 * (X + 1000)).max() > 0.5  # rounding once at the end would be nearer


def test_fp16_sums_are_wide(tmp_path: Path) -> None:
    ones = np.full((1, 4096), 1.0, np.float16)

    def body(x: Any) -> Any:
        return mb.linear(x=mb.cast(x=x, dtype="fp16"), weight=ones, bias=np.zeros(1, np.float16))

    x = np.full((1, 4096), 1.0, np.float32)  # a sum in fp16 would stop at 2048
    assert run(body, x, tmp_path) == 4096


def test_casts_to_whole_numbers_cut(tmp_path: Path) -> None:
    x = np.array([[-1.75, -0.5, 0.5, 1.75]], np.float32)
    found = run(lambda x: mb.cast(x=mb.cast(x=x, dtype="int32"), dtype="fp32"), x, tmp_path)
    assert found.tolist() == [[-1.0, 0.0, 0.0, 1.0]]


def test_logits_stand_before_the_last_softmax_only(tmp_path: Path) -> None:
    def attention(x: Any) -> Any:
        weights = mb.softmax(x=x, axis=-1)
        return mb.softmax(x=mb.mul(x=weights, y=np.float32(8)), axis=-1)

    x = array(2, 5)
    exponent = np.exp(x)
    assert np.allclose(run(attention, x, tmp_path), 8 * exponent / exponent.sum(1, keepdims=True), atol=1e-5)


def test_a_softmax_that_is_not_the_end_is_computed(tmp_path: Path) -> None:
    x = array(2, 5)
    found = run(lambda x: mb.mul(x=mb.softmax(x=x, axis=-1), y=np.float32(2)), x, tmp_path)
    assert np.allclose(found.sum(1), 2, atol=1e-6)


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    function = mil.load(saved(lambda x: mb.cumsum(x=mb.relu(x=x)), X.shape, tmp_path / "x.mlpackage"))
    assert mil.operators(function) == ["relu", "cumsum"]
    assert mil.labels(function) == ()
    with pytest.raises(ConversionError, match="the reference does not know the Core ML operator 'cumsum'"):
        mil.Reference(function).output(torch.from_numpy(X))


def test_a_network_of_another_format_is_refused(tmp_path: Path) -> None:
    with quiet():
        from coremltools.models import datatypes
        from coremltools.models.neural_network import NeuralNetworkBuilder

        builder = NeuralNetworkBuilder([("x", datatypes.Array(3))], [("y", datatypes.Array(3))])
        builder.add_activation("relu", "RELU", "x", "y")
        ct.models.MLModel(builder.spec, skip_model_load=True).save(str(tmp_path / "old.mlmodel"))
    with pytest.raises(ArtifactError, match="holds a neuralNetwork; only ML programs are supported"):
        mil.load(tmp_path / "old.mlmodel")


def test_constants_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """coremltools names the constants that a file holds without a name anew, some of them alike."""
    function = mil.load(saved(lambda x: mb.mul(x=mb.add(x=x, y=SECOND), y=SIX), X.shape, tmp_path / "x.mlpackage"))
    for operation in function.operations:
        if operation.op_type == "const":
            operation.outputs[0].name = "const_0"
    assert np.allclose(mil.Reference(function).output(torch.from_numpy(X)).numpy(), (X + SECOND) * SIX, atol=1e-6)
