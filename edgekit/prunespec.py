"""A section ``[[prune]]`` of a recipe: how narrow the network becomes, and how it learns again."""

from dataclasses import dataclass
from typing import Annotated, Literal

from edgekit.schema import Between
from edgekit.trainspec import Count, Positive, Share

Importance = Literal["taylor", "magnitude", "bn", "lamp"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneSpec:
    """Channels are removed until ``keep_macs`` of the dense network's multiply-accumulates are left, or until it
    takes ``keep_latency`` of the dense one's time on ``device``, both networks as TFLite files of ``precision``.

    ``importance``: ``taylor`` is by what the loss would lose, of ``images`` training images; ``magnitude`` by the
    weights, ``bn`` by batch norm's scales, ``lamp`` by the weights that are left beside. ``scope``: channels
    compete over the whole network, or each layer loses the same share. Widths are multiples of ``round_to``.
    In ``steps``, with ``recovery_epochs`` of training after each but the last; then ``epochs`` of it.
    ``learning_rate``: of both, without it the training's own. ``distill``: the dense network's share in the loss,
    at ``temperature``. ``spare``: layers that keep what they give.
    ``sparsity``: in the last training this share of the weights of 1x1 convolutions becomes zero, besides a budget
    or in its place; 0.5 with ``pattern = "2:4"`` is two of four neighbours.
    """

    keep_macs: Annotated[float, Between(0.001, 1.0)] | None = None
    keep_latency: Annotated[float, Between(0.01, 1.0)] | None = None
    device: str = "local"
    precision: Literal["fp32", "int8"] = "fp32"
    importance: Importance = "taylor"
    scope: Literal["global", "layer"] = "global"
    steps: Annotated[int, Between(1, 100)] = 1
    epochs: Annotated[int, Between(0)] = 10
    recovery_epochs: Annotated[int, Between(0)] = 1
    learning_rate: Positive | None = None
    distill: Share = 0.5
    temperature: Positive = 4.0
    round_to: Annotated[int, Between(1, 64)] = 8
    images: Count = 1024
    spare: tuple[str, ...] = ()
    sparsity: Annotated[float, Between(0.2, 0.99)] | None = None
    pattern: Literal["free", "2:4"] = "free"

    def __post_init__(self) -> None:
        budgets = (self.keep_macs is not None) + (self.keep_latency is not None)
        if budgets > 1 or not (budgets or self.sparsity):
            raise ValueError("a pruning has one budget: give keep_macs or keep_latency, or else sparsity")
        if self.precision != "fp32" and self.keep_latency is None:
            raise ValueError("precision is of the files that keep_latency measures: leave it out")
        if not budgets and self.steps > 1:
            raise ValueError("steps approach a budget, and sparsity grows by itself: leave out steps")
        if self.sparsity and not self.epochs:
            raise ValueError("sparsity grows in training: epochs = 0 leaves none")
        if self.pattern == "2:4" and self.sparsity != 0.5:
            raise ValueError("pattern 2:4 makes half of the weights zero: sparsity = 0.5")
