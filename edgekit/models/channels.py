"""Channels of single layers: a pruned model is its architecture with narrower layers.

A convolution, a linear layer or a batch norm takes and gives so many channels; of a depthwise convolution and a
batch norm the two are one. Convolutions in groups that are not depthwise keep theirs.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from edgekit.errors import UsageError, nearest

Layer = nn.Conv2d | nn.Linear | nn.modules.batchnorm._BatchNorm


def depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def tied(module: nn.Module) -> bool:
    """Whether the layer gives each channel that it takes."""
    return depthwise(module) or isinstance(module, nn.modules.batchnorm._BatchNorm)


def able(module: nn.Module) -> bool:
    """Whether a layer of this kind can be made narrower."""
    return isinstance(module, nn.Linear | nn.modules.batchnorm._BatchNorm) or (
        isinstance(module, nn.Conv2d) and (module.groups == 1 or depthwise(module))
    )


def of(module: Layer) -> tuple[int, int]:
    """The channels that the layer takes and gives."""
    match module:
        case nn.Conv2d():
            return module.in_channels, module.out_channels
        case nn.Linear():
            return module.in_features, module.out_features
        case _:
            return module.num_features, module.num_features


def narrow_(model: nn.Module, channels: Mapping[str, tuple[int, int]], name: str) -> None:
    """Keep the first channels of the layers in the table. Raises UsageError for what *model* has not."""
    layers = {layer: module for layer, module in model.named_modules() if able(module)}
    for layer, (taken, given) in channels.items():
        if layer not in layers:
            raise UsageError(
                f"model.channels: {name} has no layer {layer!r} with channels{nearest(layer, layers)}"
            )
        module = layers[layer]
        assert isinstance(module, Layer)
        has = of(module)
        if taken > has[0] or given > has[1] or (tied(module) and taken != given):
            raise UsageError(f"model.channels: {layer} of {name} cannot have {taken, given} channels of {has}")
        cut_(module, slice(taken), slice(given))


def cut_(module: Layer, taken: "slice | Tensor", given: "slice | Tensor") -> None:
    """Keep the channels *taken* and *given* of the layer, with their values."""
    whole = tied(module)
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if tensor.ndim == 0:  # a counter
            continue
        kept = tensor.detach()[given]
        if tensor.ndim > 1 and not whole:
            kept = kept[:, taken]
        kept = kept.clone()
        if isinstance(tensor, nn.Parameter):
            setattr(module, name, nn.Parameter(kept, requires_grad=tensor.requires_grad))
        else:
            module.register_buffer(name, kept)
    match module:
        case nn.Conv2d():
            module.out_channels = len(module.weight)
            module.in_channels = module.out_channels if whole else module.weight.shape[1]
            module.groups = module.out_channels if whole else 1
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.modules.batchnorm._BatchNorm():
            of_all = module.weight if module.affine else module.running_mean
            assert of_all is not None
            module.num_features = len(of_all)
