"""The built-in architectures by name, without torch: their module and class, arguments and native resolution."""

from dataclasses import dataclass, field
from typing import Any

_COMMON = ("width", "stem_stride", "stage_stride", "dropout", "activation", "padding")
_SQUEEZED = (*_COMMON, "squeeze_excite")


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltIn:
    """*resolution*: height and width of the published figures. *options*: settings of ModelSpec that it takes."""

    module: str
    architecture: str
    resolution: int = 224
    arguments: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = _COMMON


def _v3(form: str, *, minimalistic: bool) -> BuiltIn:
    return BuiltIn(
        module="mobilenet_v3",
        architecture="MobileNetV3",
        arguments={"form": form, "minimalistic": minimalistic},
        options=_SQUEEZED,
    )


def _efficientnet(scale: str, resolution: int) -> BuiltIn:
    return BuiltIn(
        module="efficientnet",
        architecture="EfficientNet",
        resolution=resolution,
        arguments={"scale": scale},
        options=(*_SQUEEZED, "drop_path"),
    )


# Resolutions of EfficientNet: the files named beside SCALES in efficientnet.py.
BUILT_IN = {
    "mobilenet_v1": BuiltIn(module="mobilenet_v1", architecture="MobileNetV1"),
    "mobilenet_v2": BuiltIn(module="mobilenet_v2", architecture="MobileNetV2"),
    "mobilenet_v3_large": _v3("large", minimalistic=False),
    "mobilenet_v3_large_minimalistic": _v3("large", minimalistic=True),
    "mobilenet_v3_small": _v3("small", minimalistic=False),
    "mobilenet_v3_small_minimalistic": _v3("small", minimalistic=True),
    "efficientnet_b0": _efficientnet("b0", 224),
    "efficientnet_b1": _efficientnet("b1", 240),
    "efficientnet_b2": _efficientnet("b2", 260),
    "efficientnet_b3": _efficientnet("b3", 300),
    "efficientnet_b4": _efficientnet("b4", 380),
    "efficientnet_b5": _efficientnet("b5", 456),
    "efficientnet_b6": _efficientnet("b6", 528),
    "efficientnet_b7": _efficientnet("b7", 600),
    "efficientnet_lite0": _efficientnet("lite0", 224),
    "efficientnet_lite1": _efficientnet("lite1", 240),
    "efficientnet_lite2": _efficientnet("lite2", 260),
    "efficientnet_lite3": _efficientnet("lite3", 280),
    "efficientnet_lite4": _efficientnet("lite4", 300),
}
