"""Compressed constants as numbers: each ``constexpr_`` operator of iOS16 and iOS18, by its definition.

Legend: D the expanded shape, B the number of blocks along each of its axes, V values per entry of a table.
Source: coremltools's iOS16 ``constexpr_ops`` and iOS18 ``compression``.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import ConversionError

Array = npt.NDArray[Any]


def expand(operation: Any, inputs: dict[str, Any]) -> tuple[Array, ...]:
    """What the operator gives for its inputs, in the type of its scale, table or data.

    Raises ConversionError for an operator that is not known.
    """
    rule = _RULES.get(operation.op_type)
    if rule is None:
        raise ConversionError(f"the reference does not know the Core ML operator {operation.op_type!r}")
    found = rule(inputs)
    return found if isinstance(found, tuple) else (found,)


def unpack(packed: Array, bits: int, count: int) -> Array:
    """The first *count* numbers of *bits* each in bytes, least significant bit first."""
    ones = np.unpackbits(packed.astype(np.uint8).reshape(-1), bitorder="little")[: count * bits]
    places = (1 << np.arange(bits)).astype(np.uint16)
    return ones.reshape(count, bits).astype(np.uint16) @ places


def _spread(values: Array, shape: tuple[int, ...]) -> Array:
    """*values* (B), each repeated over its block of *shape* (D)."""
    for axis, (blocks, length) in enumerate(zip(values.shape, shape, strict=True)):
        values = np.repeat(values, length // blocks, axis)
    return values


def _shift_scale(data: Array, scale: Array, offset: Array | None) -> Array:
    """scale * (data - offset), computed in fp32 and rounded once, to the scale's type."""
    shifted = data.astype(np.float32) - (0 if offset is None else offset.astype(np.float32))
    return (scale.astype(np.float32) * shifted).astype(scale.dtype)


def _affine_dequantize(a: dict[str, Any]) -> Array:
    """iOS16: one scale, or one for each place along the axis."""
    data, axis = a["quantized_data"], int(a["axis"]) % a["quantized_data"].ndim
    shape = [-1 if place == axis else 1 for place in range(data.ndim)]
    return _shift_scale(data, *(np.asarray(a[name]).reshape(shape) for name in ("scale", "zero_point")))


def _blockwise(data: Array, a: dict[str, Any]) -> Array:
    offset = a.get("offset")
    return _shift_scale(
        data, _spread(a["scale"], data.shape), None if offset is None else _spread(offset, data.shape)
    )


def _dense(data: Array, mask: Array) -> Array:
    """Zeros, but *data* in order where the mask (D) is set."""
    found = np.zeros(mask.shape, data.dtype)
    found[mask != 0] = data.reshape(-1)
    return found


def _looked_up(indices: Array, table: Array, axis: int | None) -> Array:
    """Entries of the table (B, entries, V); the V values of an entry lie along *axis*."""
    *blocks, entries, values = table.shape
    numbers = _spread(np.arange(int(np.prod(blocks))).reshape(blocks), indices.shape)
    found = table.reshape(-1, entries, values)[numbers, indices.astype(np.int64)]  # (indices, V)
    if values == 1:
        return found[..., 0]
    assert axis is not None
    axis %= indices.ndim
    shape = [length * values if place == axis else length for place, length in enumerate(indices.shape)]
    return np.moveaxis(found, -1, axis + 1).reshape(shape)


def _lut_to_dense(a: dict[str, Any]) -> Array:
    """iOS16 packs indices into bytes and has one table; iOS18 has a table a block."""
    if "shape" not in a:
        return _looked_up(a["indices"], a["lut"], _axis(a))
    shape, table = tuple(int(side) for side in a["shape"]), a["lut"]
    indices = unpack(a["indices"], int(np.log2(table.size)), int(np.prod(shape)))
    found: Array = table[indices].reshape(shape)
    return found


def _sparse_to_dense(a: dict[str, Any]) -> Array:
    mask = a["mask"]
    if "shape" in a:
        shape = tuple(int(side) for side in a["shape"])
        mask = unpack(mask, 1, int(np.prod(shape))).reshape(shape)
    return _dense(a["nonzero_data"], mask)


def _lut_to_sparse(a: dict[str, Any]) -> tuple[Array, Array]:
    mask, table, axis = a["indices_mask"], a["lut"], _axis(a)
    found = _looked_up(_dense(a["indices_nonzero_data"], mask), table, axis)
    if table.shape[-1] > 1:
        assert axis is not None
        mask = np.repeat(mask, table.shape[-1], axis)
    return mask, found[mask != 0]


def _sparse_blockwise(a: dict[str, Any]) -> tuple[Array, Array]:
    mask = a["data_mask"]
    return mask, _blockwise(_dense(a["nonzero_data"], mask), a)[mask != 0]


def _axis(a: dict[str, Any]) -> int | None:
    return int(a["vector_axis"]) if a.get("vector_axis") is not None else None


_RULES: dict[str, Callable[[dict[str, Any]], Array | tuple[Array, ...]]] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": lambda a: _blockwise(a["data"], a),
    "constexpr_cast": lambda a: a["source_val"].astype(np.float32),
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_lut_to_sparse": _lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": _sparse_blockwise,
    "constexpr_sparse_to_dense": _sparse_to_dense,
}
