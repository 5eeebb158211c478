"""The tensors' names of torchvision's and timm's modules, and ours for them.

Ours: features.I is the stem, a block or the head; features.I.layers.J a block's J-th layer; in a ConvNormAct
.0 is the convolution and .1 the batch norm. Then hidden (MobileNetV3) and classifier.
"""

import re
from collections.abc import Collection


def renamed(names: Collection[str]) -> dict[str, str]:
    """Our name for each of the names of a torchvision or timm module; those that we cannot place are left out."""
    return _from_timm(names) if "conv_stem.weight" in names else _from_torchvision(names)


def _places(names: Collection[str], pattern: str) -> dict[tuple[str, str], int]:
    """The blocks of all stages in order, as (stage, block), numbered from 1: our features.0 is the stem."""
    found = {match.groups() for name in names if (match := re.match(pattern, name))}
    order = sorted(found, key=lambda pair: (int(pair[0]), int(pair[1])))
    return {(stage, block): 1 + place for place, (stage, block) in enumerate(order)}


_LAST = {"classifier.0": "hidden", "classifier.1": "classifier", "classifier.3": "classifier"}


def _from_torchvision(names: Collection[str]) -> dict[str, str]:
    """Blocks: features.I.conv.J in mobilenet_v2, features.I.block.J in _v3, features.STAGE.K.block.J elsewhere."""
    places = _places(names, r"features\.(\d+)\.(\d+)\.block\.")
    last_stage = max((int(stage) for stage, _ in places), default=0)
    found = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        parts = module.split(".")
        if module in _LAST:
            found[name] = f"{_LAST[module]}.{kind}"
        elif (stage := re.match(r"features\.(\d+)\.(\d+)\.block\.(.+)", module)) is not None:
            found[name] = f"features.{places[stage[1], stage[2]]}.layers.{_squeeze(stage[3])}.{kind}"
        elif (block := re.match(r"features\.(\d+)\.block\.(.+)", module)) is not None:
            found[name] = f"features.{block[1]}.layers.{_squeeze(block[2])}.{kind}"
        elif (conv := re.match(r"features\.(\d+)\.conv\.(\d+)\.(\d)$", module)) is not None:
            found[name] = f"features.{conv[1]}.layers.{conv[2]}.{conv[3]}.{kind}"
        elif (flat := re.match(r"features\.(\d+)\.conv\.(\d+)$", module)) is not None:
            # The projection and its norm are not wrapped: the one counts on from the other.
            norm = f"{module}.running_mean" in names
            found[name] = f"features.{flat[1]}.layers.{int(flat[2]) - norm}.{int(norm)}.{kind}"
        elif re.match(r"features\.\d+\.[01]$", module):  # the stem and the head
            head = places and int(parts[1]) == last_stage + 1
            found[name] = f"features.{len(places) + 1 if head else parts[1]}.{parts[2]}.{kind}"
    return found


def _squeeze(layer: str) -> str:
    return re.sub(r"\.fc2$", ".expand", re.sub(r"\.fc1$", ".reduce", layer))


_BLOCK = {  # of an inverted residual
    "conv_pw": "0.0",
    "bn1": "0.1",
    "conv_dw": "1.0",
    "bn2": "1.1",
    "conv_pwl": "2.0",
    "bn3": "2.1",
}
_SEPARABLE = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1.0", "bn2": "1.1"}  # without expansion


def _from_timm(names: Collection[str]) -> dict[str, str]:
    """conv_stem, bn1; blocks.STAGE.K.conv_pw and so on; conv_head, bn2; classifier. Without squeeze-excite."""
    places = _places(names, r"blocks\.(\d+)\.(\d+)\.")
    ends = {
        "conv_stem": "features.0.0",
        "bn1": "features.0.1",
        "conv_head": f"features.{len(places) + 1}.0",
        "bn2": f"features.{len(places) + 1}.1",
        "classifier": "classifier",
    }
    found = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        if module in ends:
            found[name] = f"{ends[module]}.{kind}"
        elif (block := re.match(r"blocks\.(\d+)\.(\d+)\.(\w+)$", module)) is not None:
            stem = f"blocks.{block[1]}.{block[2]}"
            layers = _BLOCK if f"{stem}.conv_pwl.weight" in names else _SEPARABLE
            if block[3] in layers:
                found[name] = f"features.{places[block[1], block[2]]}.layers.{layers[block[3]]}.{kind}"
    return found
