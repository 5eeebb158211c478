"""Channels taken out of a network, and the table that says how to build it again."""

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.models import channels
from edgekit.prune.failures import told
from edgekit.prune.groups import Group

Kept = Mapping[str, Sequence[int]]  # of a group, by name: the channels that stay, in order


def pruned(model: nn.Module, groups: Sequence[Group], kept: Kept) -> nn.Module:
    """A copy of *model* without the channels of *groups* that are not *kept*."""
    small = copy.deepcopy(model)
    layers = dict(small.named_modules())
    for name, (taken, given) in _places(small, groups, kept).items():
        module = layers[name]
        assert isinstance(module, channels.Layer)
        channels.cut_(module, taken, given)
    return small


def masked(model: nn.Module, groups: Sequence[Group], kept: Kept) -> nn.Module:
    """A copy of *model* that gives zero where a channel is not *kept*: what `pruned` must compute."""
    twin = copy.deepcopy(model)
    layers = dict(twin.named_modules())
    for group in groups:
        stay = set(kept.get(group.name, range(group.width)))
        for member in group.members:
            if member.side == "takes":
                continue
            gone = [p for channel, some in enumerate(member.places) if channel not in stay for p in some]
            for parameter in layers[member.layer].parameters(recurse=False):
                parameter.data[gone] = 0
    return twin


def table(model: nn.Module, dense: nn.Module) -> dict[str, tuple[int, int]]:
    """The channels of each layer of *model* where they are fewer than in the architecture, *dense*."""
    found, wide = {}, dict(dense.named_modules())
    for name, module in model.named_modules():
        if channels.able(module):
            assert isinstance(module, channels.Layer)
            other = wide[name]
            assert isinstance(other, channels.Layer)
            if channels.of(module) != channels.of(other):
                found[name] = channels.of(module)
    return found


def check(model: nn.Module, groups: Sequence[Group], kept: Kept, height: int, width: int, name: str) -> None:
    """Raise UsageError where the pruned network does not compute what its masked twin does.

    Then the graph was not followed rightly: the groups that fail by themselves are named.
    """
    if not _fault(model, groups, kept, height, width):
        return
    narrower = [one for one in groups if len(kept.get(one.name, range(one.width))) < one.width]
    faults = {one.name: _fault(model, [one], kept, height, width) for one in narrower}
    guilty = {layer: fault for layer, fault in faults.items() if fault}
    where = ", ".join(list(guilty)[:5]) or "several layers together"
    why = next(iter(guilty.values()), "its channels are mixed up")
    spare = " ".join(f"--spare {layer}" for layer in guilty)
    cure = f"; leave those layers as they are: {spare}" if spare else ""
    raise UsageError(f"the graph of {name} cannot be followed at {where}: {why}{cure}")


def _fault(model: nn.Module, groups: Sequence[Group], kept: Kept, height: int, width: int) -> str:
    """What goes wrong without these channels, or nothing."""
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    small, twin = pruned(model, groups, kept).eval(), masked(model, groups, kept).eval()
    with torch.no_grad():
        wanted = twin(images)
        try:
            found = small(images)
        except Exception as error:  # whatever a user's model raises
            return told(error)
    off = float((found - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-30)
    return "" if off < 1e-3 else f"the pruned network's answers differ by {off:.1%} of the largest"


def _places(model: nn.Module, groups: Sequence[Group], kept: Kept) -> dict[str, tuple[Tensor, Tensor]]:
    """For each layer that changes the channels it goes on to take and to give."""
    gone: dict[tuple[str, Literal["takes", "gives"]], set[int]] = {}
    for group in groups:
        stay = set(kept.get(group.name, range(group.width)))
        for member in group.members:
            out = {p for channel, some in enumerate(member.places) if channel not in stay for p in some}
            sides: tuple[Literal["takes", "gives"], ...] = ("takes", "gives")
            for side in sides if member.side == "both" else (member.side,):
                gone.setdefault((member.layer, side), set()).update(out)
    layers = dict(model.named_modules())

    def stays(count: int, out: set[int]) -> Tensor:
        return torch.tensor([place for place in range(count) if place not in out])

    found = {}
    for name in dict.fromkeys(name for name, _ in gone):
        module = layers[name]
        assert isinstance(module, channels.Layer)
        takes, gives = channels.of(module)
        taken, given = gone.get((name, "takes"), set()), gone.get((name, "gives"), set())
        found[name] = stays(takes, taken), stays(gives, given)
    return found
