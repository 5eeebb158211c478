"""What a model file takes: pixels brought into its shape, type and quantization, as an ``.npy`` file.

Shapes: N images, H height, W width.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import units
from edgekit.artifact import Artifact, TensorSpec
from edgekit.errors import ArtifactError, DataError
from edgekit.preprocess import Pixels, Preprocess, normalized

CHUNK = 256  # images converted at a time: the float copy of all of them may not fit
NOISE_IMAGES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The size of the pictures that an input takes, and whether colour comes before height (NCHW)."""

    height: int
    width: int
    channels_first: bool


def layout(artifact: Artifact) -> Layout:
    """How the artifact's input is laid out. Raises ArtifactError when it is not one RGB picture."""
    shape = artifact.input.shape
    if len(shape) == 4 and shape[0] in (1, 0, -1):
        if shape[3] == 3:
            return Layout(height=shape[1], width=shape[2], channels_first=False)
        if shape[1] == 3:
            return Layout(height=shape[2], width=shape[3], channels_first=True)
    raise ArtifactError(
        f"{artifact.file} takes input of shape {shape}; edgekit can feed (1, H, W, 3) and (1, 3, H, W)"
    )


def key(artifact: Artifact) -> tuple[object, ...]:
    """Equal for artifacts that take the same inputs."""
    spec = artifact.input
    preprocess = artifact.preprocess
    return (preprocess, artifact.input_is, spec.shape, spec.dtype, spec.scale, spec.zero_point)


def noise(artifact: Artifact) -> Callable[[Preprocess], Pixels]:
    """A reader of seeded random pictures (N, H, W, 3) in the artifact's size."""
    size = layout(artifact)

    def read(_: Preprocess) -> Pixels:
        rng = np.random.default_rng(0)
        return rng.integers(0, 256, (NOISE_IMAGES, size.height, size.width, 3), dtype=np.uint8)

    return read


def convert(pixels_NHWC: Pixels, artifact: Artifact) -> npt.NDArray[Any]:
    """The pixels as the artifact takes them (N, ...)."""
    spec = artifact.input
    values: Any = pixels_NHWC
    if artifact.input_is == "normalized":
        values = normalized(pixels_NHWC, artifact.preprocess)
    if layout(artifact).channels_first:
        values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    dtype = _dtype(artifact)
    if dtype.kind == "f" or (artifact.input_is == "pixels" and dtype == np.uint8):
        return values.astype(dtype, copy=False)  # type: ignore[no-any-return]
    return _quantized(values, spec, dtype, artifact.file)


def _dtype(artifact: Artifact) -> np.dtype[Any]:
    try:
        dtype = np.dtype("uint8" if artifact.input.dtype == "image" else artifact.input.dtype)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.name not in ("uint8", "int8", "int16", "float16", "float32"):
        raise ArtifactError(f"{artifact.file} takes {artifact.input.dtype}, which edgekit cannot feed")
    return dtype


def _quantized(values: Any, spec: TensorSpec, dtype: np.dtype[Any], file: str) -> npt.NDArray[Any]:
    if not spec.scale:
        raise ArtifactError(
            f"{file} takes {spec.dtype}, but neither file nor sidecar tells its scale and zero point"
        )
    limits = np.iinfo(dtype)
    steps = np.rint(values.astype(np.float32) / spec.scale) + (spec.zero_point or 0)
    quantized: npt.NDArray[Any] = np.clip(steps, limits.min, limits.max).astype(dtype)
    return quantized


def write(artifact: Artifact, pixels_NHWC: Pixels, path: Path) -> None:
    """The ``.npy`` file of all pictures at *path*. Raises DataError when the disk is too small for it."""
    size = layout(artifact)
    if pixels_NHWC.shape[1:] != (size.height, size.width, 3):
        height, width = pixels_NHWC.shape[1:3]
        raise ArtifactError(
            f"{artifact.file} takes pictures of {size.width}x{size.height}, "
            f"but its preprocess makes {width}x{height}"
        )
    shape = (len(pixels_NHWC), *convert(pixels_NHWC[:1], artifact).shape[1:])
    dtype = _dtype(artifact)
    needed, free = int(np.prod(shape)) * dtype.itemsize, shutil.disk_usage(path.parent).free
    if needed > free:
        raise DataError(
            f"the inputs for {artifact.file} take {units.size(needed)}, but {path.parent} has {units.size(free)} "
            "free: make room, name another folder in TMPDIR, or use fewer images"
        )
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    try:
        # Not a memory map: on a disk that fills up meanwhile, writing to one kills the process.
        with path.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for at in range(0, len(pixels_NHWC), CHUNK):
                stream.write(convert(pixels_NHWC[at : at + CHUNK], artifact).tobytes())
    except OSError as error:
        raise DataError(f"cannot write the inputs for {artifact.file}: {error}") from error
