"""Channels that go together, budgets that are met, and networks that compute what their masked twins do."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekit import checkpoint, models
from edgekit.checkpoint import Checkpoint
from edgekit.errors import UsageError
from edgekit.models.cost import cost
from edgekit.models.layers import last_layer
from edgekit.preprocess import preset
from edgekit.prune import budget, importance, surgery
from edgekit.prune.groups import Graph, trace
from edgekit.recipe import ModelSpec
from edgekit.schema import decode, encode

SIDE, WIDTH = 32, 0.5
FAMILIES = (
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_lite0",
)
LABELS = tuple("abcdefghij")


@cache
def network(name: str, width: float = WIDTH) -> nn.Module:
    """With random weights, and batch norms that have seen noise: without, the answers vanish."""
    torch.manual_seed(0)
    options = {} if ":" in name else {"width": width}
    model = models.build(decode(ModelSpec, {"name": name, **options}), len(LABELS), SIDE)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # plain means
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, 0.1, 0.5)
    nn.init.normal_(weight(model, last_layer(model)), std=0.3)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, SIDE, SIDE))
    return model.eval()


@cache
def graph(name: str, width: float = WIDTH) -> Graph:
    return trace(network(name, width), SIDE, SIDE, name)


def chosen(found: Graph, share: float, *, scope: str = "global", step: int = 8) -> budget.Plan:
    scores, _ = importance.scores(found, nn.Identity(), "magnitude")
    return budget.choose(
        found,
        scores,
        int(share * found.macs),
        scope="layer" if scope == "layer" else "global",
        step=step,
        lowest=budget.floors(found, step),
        by_cost=False,
    )


def weight(model: nn.Module, layer: str) -> nn.Parameter:
    return model.get_parameter(f"{layer}.weight")


def answers(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_pruned_to_half_and_to_30_percent(name: str) -> None:
    dense, found = network(name), graph(name)
    assert found.macs == cost(dense, SIDE, SIDE).macs
    whole = answers(dense)
    for share, scope in ((0.5, "global"), (0.3, "layer")):
        plan = chosen(found, share, scope=scope)
        small = surgery.pruned(dense, found.groups, plan.kept)
        left = cost(small, SIDE, SIDE).macs
        assert left == plan.macs
        assert 0.99 * share <= left / found.macs <= share
        for group in found.groups:
            kept = len(plan.kept[group.name])
            assert kept % 8 == 0 or kept == group.width
            assert kept > 0
        wanted = answers(surgery.masked(dense, found.groups, plan.kept))
        spread = float((wanted - wanted.mean(0)).abs().max())
        assert spread > 1e-2  # the images are told apart: equal answers mean something
        assert float((answers(small) - wanted).abs().max()) < 1e-5 * max(1.0, float(wanted.abs().max()))
        assert float((whole - wanted).abs().max()) > 1e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_the_masked_twin_gives_zero_where_the_pruned_network_has_no_channel(name: str) -> None:
    """`masked` is ours as well: that it removes what the plan says is looked up layer by layer."""
    dense, found = network(name), graph(name)
    plan = chosen(found, 0.5)
    twin = surgery.masked(dense, found.groups, plan.kept)
    small = surgery.pruned(dense, found.groups, plan.kept)
    for layer in found.layers:
        alive = weight(twin, layer).flatten(1).abs().amax(1) > 0
        assert int(alive.sum()) == len(weight(small, layer))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pruned_checkpoint_is_an_ordinary_one(name: str, tmp_path: Path) -> None:
    dense, found = network(name), graph(name)
    small = surgery.pruned(dense, found.groups, chosen(found, 0.5).kept)
    spec = ModelSpec(name=name, width=WIDTH, channels=surgery.table(small, dense))
    contract = preset("imagenet", SIDE, SIDE)
    described = Checkpoint(model=spec, classes=LABELS, preprocess=contract)
    checkpoint.write(tmp_path / "small", described, small.state_dict())
    again = models.restore(checkpoint.read(tmp_path / "small"))
    assert torch.equal(answers(again), answers(small))
    assert decode(ModelSpec, encode(spec)) == spec


def test_a_squeeze_excite_and_a_residual_sum_lose_the_same_channels() -> None:
    found = {group.name: group for group in graph("efficientnet_b0").groups}
    # The second block of the second row: its hidden channels, and those that its skip joins with the first's.
    hidden = {(m.layer, m.side) for m in found["features.3.layers.0.0"].members}
    assert hidden == {
        ("features.3.layers.0.0", "gives"),
        ("features.3.layers.0.1", "both"),
        ("features.3.layers.1.0", "both"),
        ("features.3.layers.1.1", "both"),
        ("features.3.layers.2.reduce", "takes"),
        ("features.3.layers.2.expand", "gives"),
        ("features.3.layers.3.0", "takes"),
    }
    joined = {
        (m.layer, m.side) for m in next(g for g in found.values() if g.name == "features.2.layers.3.0").members
    }
    assert {("features.2.layers.3.0", "gives"), ("features.3.layers.3.0", "gives")} <= joined
    assert {("features.3.layers.0.0", "takes"), ("features.4.layers.0.0", "takes")} <= joined


def test_the_first_the_last_and_spared_layers_keep_what_they_give() -> None:
    dense = network("mobilenet_v2")
    found = trace(dense, SIDE, SIDE, "mobilenet_v2", spare=["features.3", "features.18.0"])
    small = surgery.pruned(dense, found.groups, chosen(found, 0.5).kept)
    for layer in ("features.0.0", "classifier", "features.18.0", "features.3.layers.0.0", "features.3.layers.2.0"):
        assert len(weight(small, layer)) == len(weight(dense, layer))
    assert found.left["features.0.0"] == "the first layer"
    assert found.left["features.18.0"] == "spared"
    assert found.left["classifier"] == "the last layer"
    assert cost(small, SIDE, SIDE).macs <= 0.5 * found.macs


def test_without_a_scope_over_the_network_each_layer_loses_the_same_share() -> None:
    found = graph("mobilenet_v1")
    plan = chosen(found, 0.5, scope="layer")
    shares = [len(plan.kept[g.name]) / g.width for g in found.groups if g.width >= 256]
    assert max(shares) - min(shares) <= 0.05
    free = chosen(found, 0.5)
    assert [*map(len, free.kept.values())] != [*map(len, plan.kept.values())]


@pytest.mark.parametrize("kind", ["magnitude", "bn", "lamp"])
def test_dead_channels_go_first(kind: str) -> None:
    torch.manual_seed(0)
    model = models.build(ModelSpec(name="mobilenet_v1", width=0.25), 10, SIDE).eval()
    dead = [1, 5, 9, 17, 33, 34, 40, 41]
    for layer in (
        "features.5.layers.1.0",
        "features.5.layers.1.1",
        "features.6.layers.0.0",
        "features.6.layers.0.1",
    ):
        weight(model, layer).data[dead] = (
            0  # of features.5, which gives 64 channels, and the depthwise one after it
        )
    weight(model, "features.6.layers.1.0").data[:, dead] = 0
    found = trace(model, SIDE, SIDE, "v1")
    scores, left = importance.scores(found, model, kind)  # type: ignore[arg-type]
    assert not left
    lowest = torch.argsort(scores["features.5.layers.1.0"])[: len(dead)]
    assert sorted(lowest.tolist()) == dead


def test_taylor_importance_is_what_the_loss_would_lose() -> None:
    """Of a channel that the next layer takes by weight zero the loss knows nothing; of no other one."""
    torch.manual_seed(0)
    model = models.build(ModelSpec(name="mobilenet_v1", width=0.25), 10, SIDE)
    found = trace(model, SIDE, SIDE, "v1")
    weight(model, "features.6.layers.0.0").data[7] = 0
    weight(model, "features.6.layers.1.0").data[:, 7] = 0
    batches = [(torch.randn(8, 3, SIDE, SIDE), torch.arange(8)) for _ in range(2)]
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None
    with torch.no_grad():
        model.train()(batches[0][0])
    scores, _ = importance.scores(found, model, "taylor", batches)
    values = scores["features.5.layers.1.0"]
    assert values[7] == 0
    assert int((values == 0).sum()) < len(values) // 2
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_narrow_network_meets_the_budget_by_finer_widths_and_says_which() -> None:
    found = graph("mobilenet_v1", 0.1)
    assert {group.width for group in found.groups} <= {8, 16, 24, 32, 48, 56, 104}
    scores, _ = importance.scores(found, nn.Identity(), "magnitude")
    least = budget.least(found, scores, budget.floors(found, 8)) / found.macs
    assert 0.4 < least < 0.6
    for percent in range(60, 96, 5):
        plan = chosen(found, percent / 100)
        assert abs(plan.macs / found.macs - percent / 100) <= 0.01 * percent / 100
        odd = {n for n, k in plan.kept.items() if len(k) % 8 and len(k) != graph_width(found, n)}
        assert set(plan.finer) == odd


def graph_width(found: Graph, name: str) -> int:
    return next(group.width for group in found.groups if group.name == name)


def test_layers_that_do_not_exist_are_named() -> None:
    dense = network("mobilenet_v2")
    with pytest.raises(UsageError, match=r"no layer 'features\.3\.layer' to spare; did you mean"):
        trace(dense, SIDE, SIDE, "mobilenet_v2", spare=["features.3.layer"])
    with pytest.raises(UsageError, match="'pool' holds no convolution"):
        trace(dense, SIDE, SIDE, "mobilenet_v2", spare=["pool"])


@pytest.mark.parametrize(
    ("channels", "fault"),
    [
        ({"features.1.layers.9.0": (8, 8)}, "has no layer 'features.1.layers.9.0'"),
        ({"features.1.layers.1.0": (4000, 8)}, r"cannot have \(4000, 8\) channels of \(16, 8\)"),
        ({"features.1.layers.0.0": (8, 16)}, r"cannot have \(8, 16\)"),
    ],
)
def test_a_table_of_channels_that_does_not_fit_is_told(channels: dict[str, tuple[int, int]], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        models.build(ModelSpec(name="mobilenet_v2", width=0.5, channels=channels), 10)


class Hard(nn.Module):
    """Its code has a number of channels in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 32, 3)
        self.last = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu()).relu()
        y = y + torch.zeros(1, 32, 1, 1)  # the line that fails
        logits: Tensor = self.last(self.third(y).mean((2, 3)))
        return logits


class Cut(Hard):
    """A path that autograd does not see."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.third(self.second(self.first(x).relu()).relu().detach())
        logits: Tensor = self.last(y.mean((2, 3)))
        return logits


def test_a_graph_that_cannot_be_followed_is_told_with_module_and_line() -> None:
    model = Hard().eval()
    found = trace(model, SIDE, SIDE, "hard.py:build")
    here = rf"hard\.py:build cannot be followed at second: .*{Path(__file__).name}, line \d+\); .*--spare second"
    with pytest.raises(UsageError, match=here):
        surgery.check(model, found.groups, {"second": range(8)}, SIDE, SIDE, "hard.py:build")
    cut = trace(Cut(), SIDE, SIDE, "cut.py:build")
    assert {group.name for group in cut.groups} == {"third"}
    assert cut.left["second"] == cut.left["first"] == "out of autograd's sight"
    name = "torchvision:shufflenet_v2_x0_5"  # a shuffle of channels, which torch-pruning takes for something else
    with pytest.raises(UsageError, match=r"after stage\d.+ \(.*shufflenetv2\.py, line \d+\)"):
        trace(network(name), SIDE, SIDE, name)


@pytest.mark.long
def test_models_of_torchvision_are_pruned_and_grouped_convolutions_stay() -> None:
    for name in ("torchvision:resnet18", "torchvision:regnet_x_400mf"):
        model, found = network(name), graph(name)
        plan = chosen(found, 0.7)
        surgery.check(model, found.groups, plan.kept, SIDE, SIDE, name)
        small = surgery.pruned(model, found.groups, plan.kept)
        assert 0.99 * 0.7 <= cost(small, SIDE, SIDE).macs / found.macs <= 0.7
        described = ModelSpec(name=name, channels=surgery.table(small, model))
        again = models.build(replace(described), len(LABELS), SIDE)
        again.load_state_dict(small.state_dict())
        assert torch.equal(answers(again.eval()), answers(small))
    assert "in 2 groups" in graph("torchvision:regnet_x_400mf").left["trunk_output.block1.block1-0.f.a.0"]
