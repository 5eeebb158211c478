"""Which channels go, so that the multiply-accumulates meet a budget."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edgekit.prune.groups import Graph, Group

CLOSE = 0.01  # a budget is met within this share of it
Order = Literal["cost", "worth", "share"]
FLOOR = 0.1  # of a group's channels that stay in any case


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """*kept*: of each group, by name, the channels that stay. *macs*: what is left with them.

    *round_to*: what the widths are multiples of; *finer*: groups whose width had to be a multiple of less.
    """

    kept: dict[str, tuple[int, ...]]
    macs: int
    finer: tuple[str, ...] = ()


class Widths:
    """The width of each group while a plan is made, and what it costs. *scores*: of the channels, by group."""

    def __init__(self, graph: Graph, scores: Mapping[str, Tensor], floors: Mapping[str, int]) -> None:
        self.graph = graph
        self.groups = [group for group in graph.groups if group.name in scores]
        self.now = {group.name: group.width for group in self.groups}
        self.full = dict(self.now)
        self.floor = {name: min(floors.get(name, 1), width) for name, width in self.now.items()}
        self.order = {name: torch.argsort(scores[name], stable=True) for name in self.now}
        # What the first so many channels are worth, from the least important one on.
        self.worth: dict[str, list[float]] = {
            name: [0.0, *torch.cumsum(scores[name][self.order[name]], 0).tolist()] for name in self.now
        }
        self.touched = {group.name: self._touched(group) for group in self.groups}
        self.at = {name: [layer.takes, layer.gives] for name, layer in graph.layers.items()}
        self.macs = graph.macs

    def _touched(self, group: Group) -> dict[str, list[int]]:
        """How many channels each layer takes and gives for one of the group's."""
        found: dict[str, list[int]] = {}
        for member in group.members:
            if member.layer in self.graph.layers:
                each, many = found.setdefault(member.layer, [0, 0]), len(member.places[0])
                each[0] += many if member.side != "gives" else 0
                each[1] += many if member.side != "takes" else 0
        return found

    def saving(self, name: str, count: int) -> int:
        """The multiply-accumulates that *count* channels less would save; of a negative one, cost."""
        saved = 0
        for layer, (takes, gives) in self.touched[name].items():
            now, cost = self.at[layer], self.graph.layers[layer].macs
            saved += cost(*now) - cost(now[0] - count * takes, now[1] - count * gives)
        return saved

    def loss(self, name: str, count: int) -> float:
        """The importance of the next *count* channels that would go; negative: of those that come back."""
        gone = self.full[name] - self.now[name]
        worth = self.worth[name]
        return worth[gone + count] - worth[gone]

    def remove(self, name: str, count: int) -> None:
        self.macs -= self.saving(name, count)
        self.now[name] -= count
        for layer, (takes, gives) in self.touched[name].items():
            self.at[layer][0] -= count * takes
            self.at[layer][1] -= count * gives

    def down(self, name: str, step: int) -> int:
        """How many channels go to reach the next lower multiple of *step*, 0 where that is too few."""
        count = self.now[name] % step or step
        return count if self.now[name] - count >= self.floor[name] else 0

    def up(self, name: str, step: int) -> int:
        """How many channels come back to reach the next multiple of *step*, or all; 0 where none is gone."""
        count = step - self.now[name] % step
        return min(count, self.full[name] - self.now[name])

    def plan(self, step: int) -> Plan:
        kept = {
            name: tuple(sorted(self.order[name][self.full[name] - width :].tolist()))
            for name, width in self.now.items()
        }
        finer = tuple(n for n, width in self.now.items() if width % step and width != self.full[n])
        return Plan(kept=kept, macs=self.macs, finer=finer)


def floors(graph: Graph, step: int) -> dict[str, int]:
    """The fewest channels of each group: a tenth of them, in multiples of *step*."""
    return {group.name: min(group.width, step * math.ceil(group.width * FLOOR / step)) for group in graph.groups}


def least(graph: Graph, scores: Mapping[str, Tensor], lowest: Mapping[str, int]) -> int:
    """The fewest multiply-accumulates that can be left."""
    widths = Widths(graph, scores, lowest)
    for name, width in list(widths.now.items()):
        widths.remove(name, width - widths.floor[name])
    return widths.macs


def choose(
    graph: Graph,
    scores: Mapping[str, Tensor],
    budget: int,
    *,
    scope: Literal["global", "layer"],
    step: int,
    lowest: Mapping[str, int],
    by_cost: bool,
) -> Plan:
    """The plan that leaves at most *budget*, and at least 99 % of it where any does.

    Widths are multiples of *step*. Where no combination of them comes close, the last of them are of half the
    step, and so on. Globally the channels go first that are worth least, *by_cost* for what they cost.
    """
    widths = Widths(graph, scores, lowest)
    order: Order = "share" if scope == "layer" else "cost" if by_cost else "worth"
    if scope == "layer":
        _same_share(widths, budget, step)
    for finer in dict.fromkeys([step, *_halves(step)]):
        _shrink(widths, budget, finer, order)
        if widths.macs <= budget or _exchange(widths, budget, finer):
            break
    return widths.plan(step)


def _halves(step: int) -> Iterator[int]:
    while step > 1:
        step = math.ceil(step / 2)
        yield step


def _shrink(widths: Widths, budget: int, step: int, order: Order) -> None:
    """Remove block after block, never to below 99 % of the budget, until it is met or no block fits.

    First goes what is worth least, in itself or for its cost, or what is left the largest share.
    """
    lowest = (1 - CLOSE) * budget
    while widths.macs > budget:
        options = []
        for name in widths.now:
            count = widths.down(name, step)
            if count and 0 < (saved := widths.saving(name, count)) <= widths.macs - lowest:
                loss = widths.loss(name, count)
                match order:
                    case "cost":
                        rank = loss / saved
                    case "worth":
                        rank = loss / count
                    case "share":
                        rank = -widths.now[name] / widths.full[name]
                options.append((rank, name, count))
        if not options:
            return
        _, name, count = min(options)
        widths.remove(name, count)


def _exchange(widths: Widths, budget: int, step: int) -> bool:
    """Remove some blocks and bring another back where that meets the budget, for the least importance lost."""
    best: tuple[float, str, int, str, int] | None = None
    names = list(widths.now)
    for out in names:
        for blocks in (1, 2, 3):
            count = widths.down(out, step) + (blocks - 1) * step
            if not widths.down(out, step) or widths.now[out] - count < widths.floor[out]:
                break
            lost = widths.loss(out, count)
            widths.remove(out, count)
            for back in names:
                if back == out or not (more := widths.up(back, step)):
                    continue
                if (1 - CLOSE) * budget <= widths.macs - widths.saving(back, -more) <= budget:
                    option = (lost + widths.loss(back, -more), out, count, back, more)
                    best = option if best is None else min(best, option)
            widths.remove(out, -count)
    if best is None:
        return False
    _, out, count, back, more = best
    widths.remove(out, count)
    widths.remove(back, -more)
    return True


def _same_share(widths: Widths, budget: int, step: int) -> None:
    """Leave every group the same share of its channels, as little as stays above the budget."""

    def wanted(share: float) -> dict[str, int]:
        return {
            name: min(full, max(widths.floor[name], step * round(full * share / step)))
            for name, full in widths.full.items()
        }

    def put(target: dict[str, int]) -> None:
        for name, width in target.items():
            widths.remove(name, widths.now[name] - width)

    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        put(wanted(middle))
        low, high = (low, middle) if widths.macs > budget else (middle, high)
    put(wanted(high))
