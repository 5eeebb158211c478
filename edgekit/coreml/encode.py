"""Arrays of weights as Core ML stores them: integers with scales, tables (palettes), masks of zeros.

Legend: O outputs, I inputs of a group; weights are (O, I, ...). *importance*, as large or broadcast to it, weighs
the squared errors: the mean square of what a weight is multiplied by. What an encoder gives is what files hold:
scales and tables are rounded to fp16 before weights are fitted to them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Emit = Callable[[str, Any], Any]  # name, the operator before which it stands -> coremltools's variable
BLOCK = 32  # inputs that share a scale of 4 bits
_OVERHEAD = 128  # bytes that each stored constant takes beside its numbers: its header, and padding to 64
_SHRINK = np.linspace(1.0, 0.6, 17)  # parts of the whole range that are tried for the least error
_ROUNDS = 60  # of k-means: it ends sooner


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """Weights in a compressed form. *values*: what a runtime makes of them; *emit* adds them to a program."""

    values: Array
    size_bytes: int
    emit: Emit


def scaled(weights: Array, bits: int, importance: Array, *, modern: bool, block: int | None = None) -> Stored:
    """Symmetric integers; a scale for each output, or for *block* inputs of it (iOS18) where they divide."""
    outputs, inputs = weights.shape[:2]
    size = block if block and modern and inputs % block == 0 else inputs
    rows = weights.reshape(outputs * (inputs // size), -1)
    weight = np.broadcast_to(importance, weights.shape).reshape(rows.shape)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = _best_scales(rows, weight, -high if bits == 8 else low, high)
    stored = np.clip(np.rint(rows / scale), low, high).astype(np.int8).reshape(weights.shape)
    values = (stored.reshape(rows.shape) * scale).astype(np.float16).astype(np.float32).reshape(weights.shape)
    blocks = scale.astype(np.float16).reshape(outputs, inputs // size, *[1] * (weights.ndim - 2))

    def emit(name: str, before: Any) -> Any:
        mb, types = _tools()
        if modern:
            data = stored.astype(types.nptype_from_builtin(types.int4 if bits == 4 else types.int8))
            return mb.constexpr_blockwise_shift_scale(data=data, scale=blocks, name=name, before_op=before)
        return mb.constexpr_affine_dequantize(
            quantized_data=stored,
            zero_point=np.zeros(outputs, np.int8),
            scale=blocks.reshape(-1),
            axis=np.int32(0),
            name=name,
            before_op=before,
        )

    return Stored(values=values, size_bytes=stored.size * bits // 8 + 2 * blocks.size + 2 * _OVERHEAD, emit=emit)


def _best_scales(rows: Array, importance: Array, low: int, high: int) -> Array:
    """For each row (R, n) the fp16 scale (R, 1) of least weighted squared error."""
    whole = np.abs(rows).max(1, keepdims=True) / high
    best, least = np.ones_like(whole), np.full(whole.shape, np.inf, np.float32)
    for part in _SHRINK:
        # Below fp16's normal range scales are coarse: rows are fitted to what is left of them.
        scale = np.maximum((whole * part).astype(np.float16), np.float16(6e-8)).astype(np.float32)
        wrong = np.clip(np.rint(rows / scale), low, high) * scale - rows
        error = (importance * wrong**2).sum(1, keepdims=True)
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    found: Array = best.astype(np.float32)
    return found


def palette(weights: Array, bits: int, importance: Array, *, modern: bool, group: int | None = None) -> Stored:
    """Indices into a table of 2^bits numbers; a table for each *group* outputs (iOS18) where they divide."""
    outputs = len(weights)
    groups = outputs // group if group and modern and outputs % group == 0 else 1
    rows = weights.reshape(groups, -1)
    weight = np.broadcast_to(importance, weights.shape).reshape(groups, -1)
    fitted = [table(row, one, 2**bits) for row, one in zip(rows, weight, strict=True)]
    indices = np.stack([nearest(row, one) for row, one in zip(rows, fitted, strict=True)]).reshape(weights.shape)
    tables = np.stack(fitted)
    values = np.take_along_axis(tables, indices.reshape(groups, -1), 1).reshape(weights.shape)

    def emit(name: str, before: Any) -> Any:
        mb, types = _tools()
        if not modern:
            return mb.constexpr_lut_to_dense(
                indices=_packed(indices, bits),
                lut=tables.reshape(-1).astype(np.float16),
                shape=np.array(weights.shape, np.uint32),
                name=name,
                before_op=before,
            )
        shape = (groups, *[1] * (weights.ndim - 1), 2**bits, 1)
        return mb.constexpr_lut_to_dense(
            indices=indices.astype(_unsigned(types, bits)),
            lut=tables.astype(np.float16).reshape(shape),
            name=name,
            before_op=before,
        )

    size = indices.size * bits // 8 + 2 * tables.size + 2 * _OVERHEAD
    return Stored(values=values, size_bytes=size, emit=emit)


def sparse(weights: Array, share: float, importance: Array, *, modern: bool, bits: int | None = None) -> Stored:
    """At least this share of zeros: those of the smallest |weight| times what it is multiplied by.

    The others are fp16, or with *bits* (iOS18) indices into one table. That metric: https://arxiv.org/abs/2306.11695
    """
    worth = (np.abs(weights) * np.sqrt(np.broadcast_to(importance, weights.shape))).reshape(-1)
    mask = np.zeros(weights.size, bool)
    mask[np.argsort(worth, kind="stable")[int(np.ceil(share * weights.size)) :]] = True
    mask &= weights.reshape(-1) != 0
    kept = weights.reshape(-1)[mask].astype(np.float16).astype(np.float32)
    fitted, indices = np.zeros(0, np.float32), np.zeros(0, np.uint8)
    if bits:
        fitted = table(kept, np.broadcast_to(importance, weights.shape).reshape(-1)[mask], 2**bits)
        indices = nearest(kept, fitted)
        kept = fitted[indices]
    values = np.zeros(weights.size, np.float32)
    values[mask] = kept
    shaped = mask.reshape(weights.shape)

    def emit(name: str, before: Any) -> Any:
        mb, types = _tools()
        if not modern:
            return mb.constexpr_sparse_to_dense(
                nonzero_data=kept.astype(np.float16),
                mask=np.packbits(mask, bitorder="little"),
                shape=np.array(weights.shape, np.uint32),
                name=name,
                before_op=before,
            )
        data, places = kept.astype(np.float16), shaped.astype(_unsigned(types, 1))
        if bits:
            places, data = mb.constexpr_lut_to_sparse(
                indices_mask=places,
                indices_nonzero_data=indices.astype(_unsigned(types, bits)),
                lut=fitted.astype(np.float16).reshape(*[1] * weights.ndim, -1, 1),
                name=f"{name}_palette",
                before_op=before,
            )
        return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=places, name=name, before_op=before)

    count = kept.size * bits // 8 + 2 * fitted.size + _OVERHEAD if bits else 2 * kept.size
    return Stored(
        values=values.reshape(weights.shape), size_bytes=weights.size // 8 + count + 2 * _OVERHEAD, emit=emit
    )


def table(values: Array, importance: Array, size: int) -> Array:
    """The (size,) fp16 numbers of least weighted squared distance from *values* (n,): k-means in one dimension.

    Sorted, its clusters are stretches, so that sums over them are differences. The better one of two beginnings.
    """
    values, importance = np.append(values, 0.0), np.append(importance, 0.0)  # an empty array has a table, too
    order = np.argsort(values, kind="stable")
    x, w = values[order].astype(np.float64), importance[order].astype(np.float64) + 1e-12
    weight, moment = (np.concatenate([[0.0], np.cumsum(one)]) for one in (w, w * x))
    best, least = np.zeros(size), np.inf
    for start in (np.quantile(x, (np.arange(size) + 0.5) / size), np.linspace(x[0], x[-1], size)):
        found = start
        for _ in range(_ROUNDS):
            ends = np.searchsorted(x, (found[1:] + found[:-1]) / 2)
            edges = np.concatenate([[0], ends, [x.size]])
            mass, total = np.diff(weight[edges]), np.diff(moment[edges])
            moved = np.where(mass > 0, total / np.maximum(mass, 1e-300), found)
            if np.allclose(moved, found, rtol=1e-6, atol=0):
                break
            found = np.sort(moved)
        rounded = found.astype(np.float16).astype(np.float64)
        error = float((w * (rounded[nearest(x, rounded)] - x) ** 2).sum())
        if error < least:
            best, least = rounded, error
    return best.astype(np.float32)


def nearest(values: npt.NDArray[Any], sorted_table: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The index of the nearest number of the table for each value (n,)."""
    return np.searchsorted((sorted_table[1:] + sorted_table[:-1]) / 2, values).astype(np.uint8)


def _packed(indices: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """iOS16's packing: least significant bit first."""
    ones = np.unpackbits(indices.reshape(-1, 1), axis=1, bitorder="little")[:, :bits]
    return np.packbits(ones.reshape(-1), bitorder="little")


def _unsigned(types: Any, bits: int) -> Any:
    return types.nptype_from_builtin(types.get_nbits_int_builtin_type(bits, False))


def _tools() -> tuple[Any, Any]:
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import types

    return Builder, types
