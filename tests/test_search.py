"""The search tries few files, ends within the budget or with the best that was reached, and keeps little."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import pytest

from edgekit.artifact import Repair
from edgekit.search import Task, Trial, search
from edgekit.sensitivity import Layer, Remedy

COUNT = 1000
Wrong = Callable[[Collection[str]], int]  # of the images, for the layers that are in float


def remedy(*names: str, cost: float = 0.01) -> Remedy:
    layer = Layer(name=names[0], kind="CONV_2D", sqnr_db=0.0, own_db=10.0, rounding=0.0, macs=1)
    return Remedy(layer=layer, float_layers=names, cost=cost)


def searched(max_drop: float, wrong: Wrong, remedies: Sequence[Remedy] | None = None) -> Repair:
    """What is found where the float file is right on 900 images of 1,000 and an int8 one on *wrong* fewer."""
    truth = np.zeros(COUNT, np.int64)
    told: list[str] = []

    def answers(mistakes: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        return (np.arange(COUNT) < mistakes).astype(np.int64)

    def ranked() -> Sequence[Remedy]:
        assert remedies is not None, "nobody is to be blamed for a file within the budget"
        return remedies

    found = search(
        Task(
            max_drop=max_drop,
            truth=truth,
            images_sha256="0" * 64,
            reference=answers(100),
            make=lambda layers: Trial(predicted=answers(100 + wrong(layers)), size_bytes=1000 + 10 * len(layers)),
            remedies=ranked,
            tell=told.append,
        )
    )
    assert told == [step.tried for step in found.steps]
    return found


def layers(count: int) -> list[Remedy]:
    return [remedy(f"r{number}") for number in range(count)]


def test_int8_within_the_budget_is_one_file() -> None:
    found = searched(0.5, lambda _: 5)
    assert (found.met, found.drop, found.float_layers, found.float_top1) == (True, 0.5, (), 0.9)
    assert [step.tried for step in found.steps] == ["all in int8"]
    assert (found.images, found.steps[0].size_bytes) == (1000, 1000)
    assert found.steps[0].top1 == pytest.approx(0.895)


def test_int8_that_is_better_than_float_is_within_any_budget() -> None:
    found = searched(0.0, lambda _: -3)
    assert (found.met, found.drop) == (True, -0.3)
    assert str(searched(0.0, lambda _: 0).drop) == "0.0"


def test_the_first_of_the_ranking_alone() -> None:
    found = searched(0.5, lambda kept: 0 if "r0" in kept else 300, layers(40))
    assert found.met
    assert found.float_layers == ("r0",)
    assert [step.drop for step in found.steps] == [30.0, 0.0]
    assert found.p_value == 1.0


@pytest.mark.parametrize("needed", [1, 2, 3, 7, 11, 40])
def test_the_shortest_beginning_is_found_in_few_files(needed: int) -> None:
    wanted = {f"r{number}" for number in range(needed)}
    found = searched(0.5, lambda kept: 0 if wanted <= set(kept) else 300, layers(40))
    assert found.met
    assert set(found.float_layers) == wanted
    assert len(found.steps) <= 1 + 7 + 5 + 8


def test_what_was_not_needed_is_given_back_the_dearest_first() -> None:
    ranked = [remedy("a", cost=0.1), remedy("b", cost=0.3), remedy("c", cost=0.2), remedy("d")]
    found = searched(0.5, lambda kept: 0 if {"a", "d"} <= set(kept) else 300, ranked)
    assert found.float_layers == ("a", "d")
    assert [step.tried for step in found.steps] == [
        "all in int8",
        "1 of 4 remedies",
        "2 of 4 remedies",
        "4 of 4 remedies",
        "3 of 4 remedies",
        "without b",
        "without c",
        "without a",
        "without d",
    ]


def test_a_layer_that_another_remedy_needs_too_stays() -> None:
    ranked = [remedy("a", "b"), remedy("b", "c")]
    found = searched(0.5, lambda kept: 0 if {"b", "c"} <= set(kept) else 300, ranked)
    assert found.float_layers == ("b", "c")


def test_giving_back_many_goes_by_groups() -> None:
    wanted = {"r0", "r39"}
    found = searched(0.5, lambda kept: 0 if wanted <= set(kept) else 300, layers(40))
    assert wanted <= set(found.float_layers)
    assert len(found.float_layers) == 10  # two groups of five
    assert sum(step.tried.startswith("without") for step in found.steps) == 8


def test_a_budget_that_cannot_be_met_gives_the_best_with_the_fewest_layers() -> None:
    found = searched(0.5, lambda kept: 20 if len(kept) >= 3 else 40, layers(9))
    assert not found.met
    assert found.drop == 2.0
    assert found.float_layers == ("r0", "r1", "r2", "r3")  # 4 is tried, and 8 and 9 are no better
    assert [len(step.float_layers) for step in found.steps] == [0, 1, 2, 4, 8, 9]
    assert 0 < found.p_value < 1e-5


def test_where_nothing_may_help_int8_alone_is_the_best() -> None:
    found = searched(0.5, lambda _: 40, [])
    assert (found.met, found.drop, found.float_layers, len(found.steps)) == (False, 4.0, (), 1)
