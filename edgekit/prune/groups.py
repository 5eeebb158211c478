"""Which channels of a network go together: torch-pruning's dependency graph, as data.

A group's channels are given and taken by several layers at once: those before and after a residual sum, of a
depthwise convolution, of a squeeze-excite and of what it scales. One can only be removed from all of them.
Source: https://arxiv.org/abs/2301.12900.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgekit.errors import UsageError, nearest
from edgekit.models import channels
from edgekit.models.layers import last_layer
from edgekit.prune.failures import told, untraced
from edgekit.requires import require


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """*places*: for each channel of the group, where it stands among those that the layer takes or gives."""

    layer: str
    side: Literal["takes", "gives", "both"]
    places: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """*name*: the layer that gives its channels, the first of several. *items*: torch-pruning's own group."""

    name: str
    width: int
    members: tuple[Member, ...]
    items: Any = field(compare=False, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A layer's cost: *factor* multiply-accumulates for each pair of channels, of a tied one for each channel."""

    factor: int
    takes: int
    gives: int
    tied: bool

    def macs(self, takes: int, gives: int) -> int:
        return self.factor * gives * (1 if self.tied else takes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """*left*: layers whose channels all stay, each with the reason."""

    groups: tuple[Group, ...]
    layers: dict[str, Layer]
    left: dict[str, str]

    @property
    def macs(self) -> int:
        return sum(layer.macs(layer.takes, layer.gives) for layer in self.layers.values())


def trace(model: nn.Module, height: int, width: int, name: str, *, spare: Sequence[str] = ()) -> Graph:
    """The graph of *model*, for images of that size; the model is left as it was.

    *spare*: layers that keep what they give, or modules that hold them; the first and the last one always do.
    Raises UsageError for layers that do not exist, and for a model that cannot be followed, with the module and
    the line.
    """
    tp = require("torch_pruning", feature="Pruning", extra="prune")
    image = torch.zeros(2, 3, height, width)
    names = {module: layer for layer, module in model.named_modules()}
    with _evaluating(model):
        layers = _layers(model, image, name)
        spared = _spared(model, layers, spare)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # anomaly detection, which notes lines, warns of its slowness
            try:
                with torch.autograd.detect_anomaly(check_nan=False):
                    graph = tp.DependencyGraph().build_dependency(model, image, verbose=False)
                found = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
            except Exception as error:  # of graphs that it does not know: whatever its code runs into
                raise UsageError(f"the graph of {name} cannot be followed: {untraced(error, names)}") from error
    groups, left = [], dict[str, str]()
    for items in found:
        first = _first(graph, items, names, layers)
        reason, members = _members(graph, items, names, first, spared, tp)
        if reason:
            left[first] = reason
        else:
            groups.append(Group(name=first, width=len(items[0].idxs), members=members, items=items))
    _check_disjoint(groups, name)
    seen = {names.get(item.dep.target.module) for items in found for item in items}
    left |= {layer: "out of autograd's sight" for layer in layers if layer not in seen}
    return Graph(groups=tuple(groups), layers=layers, left=left)


def _layers(model: nn.Module, image: Tensor, name: str) -> dict[str, Layer]:
    """The convolutions and linear layers in the order in which they run, with their costs."""
    found: dict[str, Layer] = {}

    def count(layer: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            assert isinstance(module, nn.Conv2d | nn.Linear)
            takes, gives = channels.of(module)
            tied = channels.tied(module)
            factor = output.numel() // len(image) // gives * module.weight[0, 0].numel()
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                tied, factor = True, factor * module.weight.shape[1]  # of other groups the channels stay
            before = found[layer].factor if layer in found else 0
            found[layer] = Layer(factor=before + factor, takes=takes, gives=gives, tied=tied)

        return hook

    modules = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [module.register_forward_hook(count(layer)) for layer, module in modules]
    try:
        with torch.no_grad():
            model(image)
    except Exception as error:  # whatever a user's model raises
        raise UsageError(
            f"{name} does not take images of {image.shape[3]}x{image.shape[2]}: {told(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _spared(model: nn.Module, layers: dict[str, Layer], spare: Sequence[str]) -> dict[str, str]:
    """Layers that keep what they give, with the reason."""
    found = {next(iter(layers)): "the first layer", last_layer(model): "the last layer"}
    modules = dict(model.named_modules())
    for one in spare:
        if one not in modules or not one:
            raise UsageError(f"no layer {one!r} to spare{nearest(one, layers)}; layers are {_some(layers)}")
        inside = [layer for layer in layers if layer == one or layer.startswith(f"{one}.")]
        if not inside:
            raise UsageError(f"{one!r} holds no convolution and no linear layer: there is nothing to spare")
        found |= dict.fromkeys(inside, "spared")
    return found


def _some(layers: dict[str, Layer]) -> str:
    shown = [*layers][:5]
    return f"{', '.join(shown)} and {len(layers) - 5} more" if len(layers) > 5 else ", ".join(shown)


def _first(graph: Any, items: Any, names: dict[nn.Module, str], layers: dict[str, Layer]) -> str:
    """The layer that gives the channels, of several the one that runs first."""
    order = {layer: place for place, layer in enumerate(layers)}
    root = names[items[0].dep.target.module]
    found = [
        names[item.dep.target.module]
        for item in items
        if item.dep.target.module in names and graph.is_out_channel_pruning_fn(item.dep.handler)
    ]
    return min((layer for layer in found if layer in order), key=order.__getitem__, default=root)


def _members(
    graph: Any, items: Any, names: dict[nn.Module, str], first: str, spared: dict[str, str], tp: Any
) -> tuple[str, tuple[Member, ...]]:
    """Why the group is left as it is, or its members."""
    members: dict[tuple[str, str], Member] = {}
    width = len(items[0].idxs)
    for item in items:
        module, gives = item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler)
        if isinstance(module, tp.ops._OutputOp):
            return "its channels are the model's output", ()
        if isinstance(module, nn.Parameter):
            return f"tied to the parameter {graph._param_to_name.get(module, '')}", ()
        if module not in names:  # a sum, a concatenation: torch-pruning's own, without weights
            continue
        layer = names[module]
        if not channels.able(module):
            if next(module.parameters(recurse=False), None) is None and not isinstance(module, nn.Conv2d):
                continue
            return f"tied to {layer}, a {type(module).__name__}{_grouped(module)}", ()
        side = "both" if channels.tied(module) else "gives" if gives else "takes"
        if layer in spared and side != "takes":
            return spared[layer] if layer == first else f"tied to {layer}", ()
        places: list[list[int]] = [[] for _ in range(width)]
        for place, root in zip(item.idxs, item.root_idxs, strict=True):
            if root is None:
                return f"{layer} mixes its channels", ()
            places[root].append(place)
        if len({len(some) for some in places}) != 1:
            return f"{layer} does not have all of its channels", ()
        members[layer, side] = Member(layer=layer, side=side, places=tuple(map(tuple, places)))  # type: ignore[arg-type]
    return "", tuple(members.values())


def _grouped(module: nn.Module) -> str:
    return f" in {module.groups} groups" if isinstance(module, nn.Conv2d) else ""


def _check_disjoint(groups: Sequence[Group], name: str) -> None:
    """A channel that stood in two groups would be removed twice."""
    taken: dict[tuple[str, str, int], str] = {}
    for group in groups:
        for member in group.members:
            for place in (place for some in member.places for place in some):
                key = (member.layer, member.side, place)
                if key in taken:
                    raise UsageError(
                        f"the graph of {name} cannot be followed: {member.layer} has channels of both "
                        f"{taken[key]} and {group.name}"
                    )
                taken[key] = group.name


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode and with all gradients inside, as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval().requires_grad_(True)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, learns in wanted.items():
            parameter.requires_grad_(learns)
