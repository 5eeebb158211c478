"""Compressed constants and 8-bit activations against their definitions, worked out by hand or with plain loops.

Each program is built with coremltools, saved as a package and read back; where coremltools itself expands a
constant, its result is compared, too.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgekit import mil
from edgekit.errors import ConversionError
from edgekit.mil.constexpr import unpack
from edgekit.quiet import quiet

with quiet():  # importing it warns of the versions of other packages
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)


def small_type(bits: int, signed: bool = False) -> Any:
    return types.nptype_from_builtin(types.get_nbits_int_builtin_type(bits, signed))


def run(body: Callable[[Any], Any], x: Array, path: Path, target: Any, kind: str = "fp32") -> tuple[Array, Any]:
    """The result for *x*, and the program as it stands in the file."""
    with quiet():
        specs = [mb.TensorSpec(shape=x.shape, dtype=types.string_to_builtin(kind))]
        program = mb.program(input_specs=specs, opset_version=target)(body)
        model = ct.convert(
            program,
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=target,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        model.save(str(path / "tested.mlpackage"))
    function = mil.load(path / "tested.mlpackage")
    return mil.Reference(function).output(torch.from_numpy(x)).numpy(), function


def expanded(make: Callable[[], Any], shape: tuple[int, ...], path: Path, target: Any) -> Array:
    """The constant that *make* adds to a program: the program gives 0 + it."""
    zeros = np.zeros(shape, np.float32)
    found, function = run(lambda x: mb.add(x=x, y=make()), zeros, path, target)
    form = next(one for one in reversed(function.operations) if one.op_type.startswith("constexpr_"))
    theirs = form.materialized_val_inference()  # coremltools's own
    assert np.array_equal(found, theirs.astype(np.float32))
    return found


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_affine_dequantize(axis: int, tmp_path: Path) -> None:
    data = RNG.integers(-128, 128, (4, 3, 5)).astype(np.int8)
    length = data.shape[axis]
    scale, zero = np.linspace(0.5, 2, length).astype(np.float32), np.arange(length).astype(np.int8)
    found = expanded(
        lambda: mb.constexpr_affine_dequantize(quantized_data=data, zero_point=zero, scale=scale, axis=axis),
        data.shape,
        tmp_path,
        ct.target.iOS16,
    )
    moved = np.moveaxis(data.astype(np.float32), axis, -1)
    assert np.array_equal(found, np.moveaxis((moved - zero) * scale, -1, axis))


def test_affine_dequantize_of_one_scale_and_unsigned(tmp_path: Path) -> None:
    data = np.array([[0, 7, 255]], np.uint8)
    found = expanded(
        lambda: mb.constexpr_affine_dequantize(
            quantized_data=data, zero_point=np.uint8(7), scale=np.float32(0.5), axis=0
        ),
        data.shape,
        tmp_path,
        ct.target.iOS16,
    )
    assert found.tolist() == [[-3.5, 0.0, 124.0]]


@pytest.mark.parametrize(("bits", "signed"), [(4, True), (4, False), (8, True), (8, False)])
@pytest.mark.parametrize("with_offset", [True, False])
def test_blockwise_shift_scale(bits: int, signed: bool, with_offset: bool, tmp_path: Path) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    kind = small_type(bits, signed)
    data = RNG.integers(low, low + 2**bits, (4, 6)).astype(kind)
    scale = RNG.standard_normal((2, 3)).astype(np.float32)  # blocks of 2 x 2
    offset = RNG.integers(low, low + 2**bits, (2, 3)).astype(kind) if with_offset else None
    found = expanded(
        lambda: mb.constexpr_blockwise_shift_scale(data=data, scale=scale, offset=offset),
        data.shape,
        tmp_path,
        ct.target.iOS18,
    )
    for i, j in np.ndindex(4, 6):
        shift = 0 if offset is None else int(offset[i // 2, j // 2])
        assert found[i, j] == np.float32(scale[i // 2, j // 2] * np.float32(int(data[i, j]) - shift))


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_lut_to_dense_of_ios16(bits: int, tmp_path: Path) -> None:
    shape = (3, 5, 1)  # 15 indices end inside a byte
    indices = RNG.integers(0, 2**bits, 15)
    text = "".join("".join(reversed(f"{int(i):0{bits}b}")) for i in indices)  # least significant bit first
    text += "0" * (-len(text) % 8)
    packed = np.array([int(text[i : i + 8][::-1], 2) for i in range(0, len(text), 8)], np.uint8)
    assert unpack(packed, bits, 15).tolist() == indices.tolist()
    table = RNG.standard_normal(2**bits).astype(np.float32)
    found = expanded(
        lambda: mb.constexpr_lut_to_dense(indices=packed, lut=table, shape=np.array(shape, np.uint32)),
        shape,
        tmp_path,
        ct.target.iOS16,
    )
    assert np.array_equal(found, table[indices].reshape(shape))


def test_lut_to_dense_has_a_table_a_group(tmp_path: Path) -> None:
    """The example of coremltools's documentation."""
    indices = np.array([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3]).reshape(6, 2).astype(small_type(2))
    table = np.array([1, 5, 9, 13, 2, 10, 18, 26], np.float32).reshape(2, 1, 4, 1)
    found = expanded(
        lambda: mb.constexpr_lut_to_dense(indices=indices, lut=table), (6, 2), tmp_path, ct.target.iOS18
    )
    assert found.tolist() == [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_lut_to_dense_of_vectors(axis: int, tmp_path: Path) -> None:
    indices = np.array([0, 0, 1, 0, 1, 1, 0, 0]).reshape(2, 2, 2).astype(small_type(1))
    table = np.array([1, 2, 3, 7, 8, 9], np.float32).reshape(1, 1, 1, 2, 3)
    shape = tuple(6 if place == axis else 2 for place in range(3))
    found = expanded(
        lambda: mb.constexpr_lut_to_dense(indices=indices, lut=table, vector_axis=np.int32(axis)),
        shape,
        tmp_path,
        ct.target.iOS18,
    )
    for at in np.ndindex(2, 2, 2):
        for k in range(3):
            place = [3 * at[i] + k if i == axis else at[i] for i in range(3)]
            assert found[tuple(place)] == table[0, 0, 0, int(indices[at]), k]


def test_sparse_to_dense_of_ios16(tmp_path: Path) -> None:
    found = expanded(
        lambda: mb.constexpr_sparse_to_dense(
            nonzero_data=np.array([3, 5], np.float32),
            mask=np.array([0b01100], np.uint8),
            shape=np.array([5], np.uint32),
        ),
        (5,),
        tmp_path,
        ct.target.iOS16,
    )
    assert found.tolist() == [0, 0, 3, 5, 0]


MASK = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]]


def test_sparse_blockwise_shift_scale(tmp_path: Path) -> None:
    """The example of coremltools's documentation; the last row's numbers there are 8 and 9."""
    data = np.array([10, 11, 3, 4, 5, 6, 7, 8, 9], np.int8)
    scale = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)

    def make() -> Any:
        mask, dense = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=np.array(MASK).astype(small_type(1)),
            nonzero_data=data,
            scale=scale,
            offset=np.array([[1, 2, 3, 4]], np.int8),
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=dense, mask=mask)

    found = expanded(make, (4, 4), tmp_path, ct.target.iOS18)
    expected = [[0.9, 1.8, 0, 0], [0.2, 0.4, 0.6, 0], [0, 0, 0.9, 1.2], [0.7, 1.4, 0, 0]]
    assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("vectors", [1, 2])
def test_lut_to_sparse(vectors: int, tmp_path: Path) -> None:
    """The example of coremltools's documentation, with numbers and with pairs."""
    mask = [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1], [0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]]
    table = np.repeat(np.array([2, 3], np.float32), vectors).reshape(1, 1, 2, vectors)

    def make() -> Any:
        grown, dense = mb.constexpr_lut_to_sparse(
            indices_mask=np.array(mask).astype(small_type(1)),
            indices_nonzero_data=np.array([0, 1, 1, 0, 1, 1, 0, 0, 1]).astype(small_type(1)),
            lut=table,
            vector_axis=np.int32(0) if vectors > 1 else None,
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=dense, mask=grown)

    rows = [[2, 3, 0, 0, 0, 0], [3, 2, 0, 0, 0, 3], [0, 3, 2, 0, 2, 0], [0, 0, 0, 3, 0, 0]]
    found = expanded(make, (4 * vectors, 6), tmp_path, ct.target.iOS18)
    assert np.array_equal(found, np.repeat(np.array(rows, np.float32), vectors, axis=0))


def test_a_quantized_table(tmp_path: Path) -> None:
    """pal4 with an int8 table: what expands one constant feeds what expands the next."""
    indices = np.array([[3, 0], [1, 2]]).astype(small_type(2))

    def make() -> Any:
        table = mb.constexpr_blockwise_shift_scale(
            data=np.array([-4, -1, 2, 6], np.int8).reshape(1, 1, 4, 1),
            scale=np.array([0.5], np.float32).reshape(1, 1, 1, 1),
        )
        return mb.constexpr_lut_to_dense(indices=indices, lut=table)

    found, _ = run(lambda x: mb.add(x=x, y=make()), np.zeros((2, 2), np.float32), tmp_path, ct.target.iOS18)
    assert found.tolist() == [[3, -2], [-0.5, 1]]


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    data, scale = np.array([[127, -3, 77]], np.int8), np.float16(0.1)
    found, _ = run(
        lambda x: mb.cast(
            x=mb.add(
                x=mb.cast(x=x, dtype="fp16"),
                y=mb.constexpr_affine_dequantize(quantized_data=data, zero_point=np.int8(0), scale=scale, axis=0),
            ),
            dtype="fp32",
        ),
        np.zeros((1, 3), np.float32),
        tmp_path,
        ct.target.iOS17,
    )
    assert found.tolist() == [[float(np.float16(float(scale) * int(one))) for one in data[0]]]


def test_an_unknown_form_is_named() -> None:
    class Strange:
        op_type = "constexpr_zip_to_dense"

    with pytest.raises(ConversionError, match="does not know the Core ML operator 'constexpr_zip_to_dense'"):
        mil.expand(Strange(), {})


X = np.array([[-1000.0, -1.3, -0.25, 0.0, 0.25, 0.75, 1.2, 1000.0]], np.float32)


@pytest.mark.parametrize(
    ("kind", "zero", "expected"),
    [
        ("int8", 0, [-128, -3, 0, 0, 0, 2, 2, 127]),  # halves to the even number
        ("int8", -5, [-128, -8, -5, -5, -5, -3, -3, 127]),
        ("uint8", 10, [0, 7, 10, 10, 10, 12, 12, 255]),
    ],
)
def test_quantize_and_dequantize(kind: str, zero: int, expected: list[int], tmp_path: Path) -> None:
    point = np.array(zero, kind)[()]

    def body(x: Any) -> Any:
        stored = mb.quantize(input=x, scale=np.float32(0.5), zero_point=point, output_dtype=kind)
        return mb.dequantize(input=stored, scale=np.float32(0.5), zero_point=point)

    found, _ = run(body, X, tmp_path, ct.target.iOS17)
    assert found.tolist() == [[(one - zero) * 0.5 for one in expected]]


@pytest.mark.parametrize("axis", [1, -2])
def test_quantize_along_an_axis(axis: int, tmp_path: Path) -> None:
    x = RNG.standard_normal((1, 3, 4)).astype(np.float32)
    scale, zero = np.array([0.1, 0.2, 0.4], np.float32), np.array([0, 3, -3], np.int8)

    def body(x: Any) -> Any:
        stored = mb.quantize(input=x, scale=scale, zero_point=zero, axis=axis, output_dtype="int8")
        return mb.dequantize(input=stored, scale=scale, zero_point=zero, axis=axis)

    found, _ = run(body, x, tmp_path, ct.target.iOS17)
    steps, points = scale[:, None], zero[:, None].astype(np.float32)
    expected = (np.clip(np.rint(x / steps) + points, -128, 127) - points) * steps
    assert np.allclose(found, expected, atol=1e-6)
