"""What stands in a saved package: its description, its program, and how its weights are stored."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import ArtifactError
from edgekit.quiet import quiet
from edgekit.requires import require

# The first system of each specification version: https://apple.github.io/coremltools/mlmodel/Format/Model.html
TARGETS = {6: "iOS15", 7: "iOS16", 8: "iOS17", 9: "iOS18", 10: "iOS26"}
COMPRESSED = "constexpr_"  # how operators begin that expand constants


def load(path: Path) -> Any:
    """The main function of the package's program. Raises ArtifactError for anything that is not one."""
    with reading(path) as ct:
        from coremltools.converters.mil.frontend.milproto.load import load as load_program

        model = ct.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        kind = spec.WhichOneof("Type")
        if kind is None:
            raise ArtifactError(f"{path} is not a sound Core ML package: it holds no model")
        if kind != "mlProgram":
            raise ArtifactError(f"{path} holds a {kind}; only ML programs are supported")
        return load_program(spec, spec.specificationVersion, model.weights_dir).functions["main"]


def describe(path: Path) -> Any:
    """The package's description: inputs, outputs, metadata. Raises ArtifactError for anything that has none."""
    with reading(path) as ct:
        return ct.models.MLModel(str(path), skip_model_load=True).get_spec().description


def takes_bgr(path: Path) -> bool:
    """Whether the package's image comes as BGR. Raises ArtifactError for one without color."""
    for one in describe(path).input:
        if one.type.WhichOneof("Type") == "imageType":
            kind = one.type.imageType
            name = kind.ColorSpace.Name(kind.colorSpace)
            if name not in ("RGB", "BGR"):
                raise ArtifactError(f"{path} takes {name} images; edgekit feeds RGB, and BGR")
            return bool(name == "BGR")
    return False


def target(function: Any) -> str:
    """The oldest system that can run the program, such as ``iOS16``."""
    version = int(function.opset_version)
    return TARGETS.get(version, f"specification version {version}")


@contextmanager
def reading(path: Path) -> Iterator[Any]:
    """Gives coremltools. It reports damaged packages by many kinds of errors."""
    with quiet():
        ct = require("coremltools", feature="Reading coreml files", extra="coreml")
        from google.protobuf.message import DecodeError

        try:
            yield ct
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, AssertionError, DecodeError) as error:
            raise ArtifactError(f"{path} is not a sound Core ML package: {error}") from error


def labels(function: Any) -> tuple[str, ...]:
    """The class names in a classifier's program; none in another."""
    return tuple(
        str(label)
        for operation in function.operations
        if operation.op_type == "classify"
        for label in operation.inputs["classes"].val
    )


def operators(function: Any) -> list[str]:
    """The operator names in order, constants and what expands them left out."""
    return [one.op_type for one in function.operations if not is_constant(one)]


def forms(function: Any) -> list[str]:
    """How compressed constants are stored: the operators that expand them, in order."""
    return [one.op_type for one in function.operations if one.op_type.startswith(COMPRESSED)]


def is_constant(operation: Any) -> bool:
    """Whether it gives the same whatever the input."""
    return bool(operation.op_type == "const" or operation.op_type.startswith(COMPRESSED))


def is_float(variable: Any) -> bool:
    """Whether a variable holds fp16 or fp32."""
    from coremltools.converters.mil.mil import types

    return not isinstance(variable, list | tuple) and bool(types.is_float(variable.dtype))


def weights(function: Any) -> tuple[tuple[str, int], ...]:
    """Bytes of the stored constants by type, most first; types below a byte are packed."""
    found: Counter[str] = Counter()
    for _, _, name, size_bytes in constants(function):
        found[name] += size_bytes
    return tuple(found.most_common())


def constants(function: Any) -> Iterator[tuple[str, str, str, int]]:
    """Of each stored constant the operator that takes it first, that one's kind, its own type and its bytes."""
    for operation in function.operations:
        if operation.op_type != "const":
            continue
        variable = operation.outputs[0]
        if isinstance(variable.val, np.ndarray | np.generic) and variable.val.dtype.kind != "U":
            name, bits = _stored(variable)
            taker = variable.child_ops[0] if variable.child_ops else None
            layer, kind = (taker.name, taker.op_type) if taker else (operation.name, "")
            yield layer, kind, name, -(-variable.val.size * bits // 8)


def _stored(variable: Any) -> tuple[str, int]:
    """The type's name and its bits."""
    from coremltools.converters.mil.mil import types

    name, kind = types.builtin_to_string(variable.dtype), variable.dtype
    bits = kind.get_bitwidth() if types.is_int(kind) else 8 * variable.val.dtype.itemsize
    return {"fp16": "float16", "fp32": "float32"}.get(name, name), bits
