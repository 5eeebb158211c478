"""How much each channel matters, by torch-pruning's measures."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.prune.groups import Graph, Group
from edgekit.prunespec import Importance
from edgekit.requires import require


def scores(
    graph: Graph, model: nn.Module, kind: Importance, batches: Iterable[tuple[Tensor, Tensor]] = ()
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """By group the importance of each channel; and the groups that this measure cannot judge, with the reason.

    *batches*: images (N, 3, H, W) and labels (N), for ``taylor``. *model* ends on the CPU.
    """
    measure = _measure(kind)
    found = _over_batches(graph, model, measure, batches) if kind == "taylor" else _all(graph, measure)
    left = {group.name: f"not seen by {kind} importance" for group in graph.groups if group.name not in found}
    return found, left


def _all(graph: Graph, measure: Any) -> dict[str, Tensor]:
    found = {group.name: _score(measure, group) for group in graph.groups}
    return {name: value for name, value in found.items() if value is not None}


def _over_batches(
    graph: Graph, model: nn.Module, measure: Any, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """The mean over the batches: in a trained network the mean of all gradients is next to nothing."""
    sums: dict[str, Tensor] = {}
    model.eval()
    for images, labels in batches:
        model.to(images.device).zero_grad(set_to_none=False)
        nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        for parameter in model.parameters():
            if parameter.grad is None:  # of what does not take part
                parameter.grad = torch.zeros_like(parameter)
        for name, value in _all(graph, measure).items():
            sums[name] = sums[name] + value if name in sums else value
    model.zero_grad(set_to_none=True)
    model.to("cpu")
    return sums


def _score(measure: Any, group: Group) -> Tensor | None:
    value: Tensor | None = measure(group.items)
    if value is None or len(value) != group.width:
        return None
    return torch.nan_to_num(value.detach()).double().cpu()  # a mean of zero, as of dead channels


def _measure(kind: Importance) -> Any:
    known = require("torch_pruning", feature="Pruning", extra="prune").importance
    match kind:
        case "taylor":  # what the loss would lose, so that layers compare: https://arxiv.org/abs/1906.10771
            return known.GroupTaylorImportance(group_reduction="sum", normalizer=None, multivariable=True)
        case "magnitude":
            return known.GroupMagnitudeImportance(p=2)
        case "bn":  # https://arxiv.org/abs/1708.06519
            return known.BNScaleImportance()
        case "lamp":  # https://arxiv.org/abs/2010.07611
            return known.LAMPImportance()
