"""What a precision does to the weights: the system it needs, how layers are stored, and which are left in fp16.

A layer is left where compressing it makes it no smaller, or where it adds far more error than the others do, as
far as those left are few.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgekit.coreml import encode
from edgekit.coreml.encode import Array, Stored
from edgekit.coreml.layers import Judged
from edgekit.coreml.program import linear_layers
from edgekit.coreml.systems import OLDEST, TARGETS, target
from edgekit.recipe import Variant

SOUND_DB = 35.0  # a layer with less error than that is no worse than its neighbours' fp16 and int8
OUTLIER_DB = 3.0  # below the median layer: twice its error
LEFT_SHARE = 0.05  # of the weights that may be left because they are sensitive
_GAIN = 0.9  # of a layer's bytes: what saves less is not compressed


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """How weights are stored: in integers (``w8``), with a table (``pal4``), with zeros (``sparse50``) or both.

    *target*: the system that it is stored for. *bits*: of integers or indices, 0 for fp16. *table*: bits are
    indices. *zeros*: the share of weights that are 0. *group*: the outputs that share a table, or the inputs that
    share a scale; None for all.
    """

    target: str
    bits: int = 0
    table: bool = False
    zeros: float = 0.0
    group: int | None = None

    @property
    def modern(self) -> bool:
        return TARGETS[self.target] >= TARGETS["iOS18"]

    def encode(self, weights: Array, importance: Array) -> Stored:
        """The weights (O, I, ...) in this form."""
        if self.zeros:
            bits = self.bits or None
            return encode.sparse(weights, self.zeros, importance, modern=self.modern, bits=bits)
        if self.table:
            return encode.palette(weights, self.bits, importance, modern=self.modern, group=self.group)
        return encode.scaled(weights, self.bits, importance, modern=self.modern, block=self.group)


SCHEMES = {
    "w8": Scheme(target=OLDEST["w8"], bits=8),
    "w4": Scheme(target=OLDEST["w4"], bits=4, group=encode.BLOCK),
    "pal8": Scheme(target=OLDEST["pal8"], bits=8, table=True),
    "pal6": Scheme(target=OLDEST["pal6"], bits=6, table=True),
    "pal4": Scheme(target=OLDEST["pal4"], bits=4, table=True),
    "pal2": Scheme(target=OLDEST["pal2"], bits=2, table=True),
    "sparse50": Scheme(target=OLDEST["sparse50"], zeros=0.5),
    "sparse75": Scheme(target=OLDEST["sparse75"], zeros=0.75),
    "sparse50-pal4": Scheme(target=OLDEST["sparse50-pal4"], zeros=0.5, bits=4, table=True),
    "int8": Scheme(target=OLDEST["int8"], bits=8),  # its activations: see `activations`
}


def scheme_of(variant: Variant) -> Scheme:
    """The scheme of the variant's precision, for its system, and with its group's tables."""
    scheme = replace(SCHEMES[variant.precision], target=target(variant))
    return scheme if variant.group is None else replace(scheme, group=variant.group)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The layers to compress, by name; those that are left, with the reason."""

    stored: Mapping[str, Judged]
    small: tuple[str, ...] = ()
    sensitive: tuple[Judged, ...] = ()
    asked: tuple[str, ...] = ()
    left_bytes: int = 0
    total_bytes: int = 0
    worst: tuple[Judged, ...] = field(default_factory=tuple)

    def notes(self) -> tuple[str, ...]:
        """For the sidecar."""
        parts = []
        if self.small:
            parts.append(f"too small: {', '.join(self.small)}")
        if self.sensitive:
            listed = ", ".join(f"{one.layer.name} ({one.own_db:.1f} dB)" for one in self.sensitive)
            parts.append(f"too sensitive: {listed}")
        if self.asked:
            parts.append(f"as asked: {', '.join(self.asked)}")
        share = 100 * self.left_bytes / max(self.total_bytes, 1)
        left = (f"left in fp16, {share:.1f} % of the weights: {'; '.join(parts)}",) if parts else ()
        worst = ", ".join(f"{one.layer.name} ({one.own_db:.1f} dB)" for one in self.worst)
        return (*left, *((f"most error by its weights alone: {worst}",) if worst else ()))


def choose(judged: Mapping[str, Judged], keep: Sequence[str] = ()) -> Plan:
    """Which layers to compress; *keep* names others that are left."""
    total = sum(one.layer.size_bytes for one in judged.values())
    small = [name for name, one in judged.items() if one.stored.size_bytes >= _GAIN * one.layer.size_bytes]
    rest = {name: one for name, one in judged.items() if name not in small and name not in keep}
    sensitive = _sensitive(list(rest.values()), LEFT_SHARE * total)
    for one in sensitive:
        del rest[one.layer.name]
    left = [one.layer.size_bytes for name, one in judged.items() if name not in rest]
    return Plan(
        stored=rest,
        small=tuple(name for name in small if name not in keep),
        sensitive=tuple(sensitive),
        asked=tuple(name for name in judged if name in keep),
        left_bytes=sum(left),
        total_bytes=total,
        worst=tuple(one for one in sorted(rest.values(), key=lambda one: one.own_db)[:3] if one.own_db < SOUND_DB),
    )


def _sensitive(judged: list[Judged], most_bytes: float) -> list[Judged]:
    """Those whose error stands out, the most error for their bytes first, in the order of the program."""
    if not judged:
        return []
    bar = min(SOUND_DB, float(np.median([one.own_db for one in judged])) - OUTLIER_DB)
    left: list[Judged] = []
    for one in sorted(judged, key=lambda one: -one.noise / one.layer.size_bytes):
        joined = sum(other.layer.size_bytes for other in left) + one.layer.size_bytes
        if one.own_db < bar and joined <= most_bytes:
            left.append(one)
    return [one for one in judged if one in left]


def store_(function: Any, stored: Mapping[str, Judged], *, correct_biases: bool) -> None:
    """Put compressed weights into the program; with *correct_biases* take their mean errors out of the biases."""
    from coremltools.converters.mil import Builder as mb

    for operation in list(linear_layers(function)):
        if operation.name not in stored:
            continue
        one = stored[operation.name]
        old = operation.inputs["weight"]
        new = one.stored.emit(f"{operation.name}_weights", operation)
        function.replace_uses_of_var_after_op(
            anchor_op=new.op, old_var=old, new_var=new, no_check_var_types=True, end_op=operation
        )
        bias = operation.inputs.get("bias")
        if correct_biases and bias is not None and bias.val is not None:
            value = (bias.val.astype(np.float64) - one.shift).astype(bias.val.dtype)
            fresh = mb.const(val=value, name=f"{operation.name}_bias", before_op=operation)
            function.replace_uses_of_var_after_op(
                anchor_op=fresh.op, old_var=bias, new_var=fresh, end_op=operation
            )
