"""The search tries few files, ends within the budget or with the best that was reached, and keeps little."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import pytest

from edgekit.artifact import Repair
from edgekit.search import Step, Task, Trial, search
from edgekit.sensitivity import Remedy

COUNT = 1000
Wrong = Callable[[Collection[str]], int]  # of the images, for the layers that are in float


def remedy(*names: str, cost: float = 0.01) -> Remedy:
    return Remedy(name=names[0], float_layers=names, cost=cost)


def searched(
    max_drop: float,
    wrong: Wrong,
    remedies: Sequence[Remedy] | None = None,
    repairs: Sequence[str] = (),
    last: int | None = None,
) -> Repair:
    """What is found where the float file is right on 900 images of 1,000 and an int8 one on *wrong* fewer.

    *wrong* is asked with the names of layers and of repairs together; *last*: how many fewer the last resort has.
    """
    truth = np.zeros(COUNT, np.int64)
    told: list[str] = []
    asked: list[tuple[str, ...]] = []

    def answers(mistakes: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        return (np.arange(COUNT) < mistakes).astype(np.int64)

    def ranked(kept: tuple[str, ...]) -> Sequence[Remedy]:
        assert remedies is not None, "nobody is to be blamed for a file within the budget"
        asked.append(kept)
        return remedies

    def make(kept: tuple[str, ...], layers: tuple[str, ...]) -> Trial:
        return Trial(predicted=answers(100 + wrong((*kept, *layers))), size_bytes=1000 + 10 * len(layers))

    def train() -> Trial:
        assert last is not None
        return Trial(predicted=answers(100 + last), size_bytes=1000)

    found, place = search(
        Task(
            max_drop=max_drop,
            truth=truth,
            images_sha256="0" * 64,
            reference=answers(100),
            make=make,
            remedies=ranked,
            repairs=[(name, f"{name}d") for name in repairs],
            last=None if last is None else Step(name="trained", make=train),
            tell=told.append,
        )
    )
    assert told == [step.tried for step in found.steps]
    chosen = found.steps[place]
    assert (chosen.drop, chosen.float_layers, chosen.repairs, chosen.kept) == (
        found.drop,
        found.float_layers,
        found.repairs,
        True,
    )
    assert all(kept == found.repairs for kept in asked) or last is not None
    return found


def layers(count: int) -> list[Remedy]:
    return [remedy(f"r{number}") for number in range(count)]


def test_int8_within_the_budget_is_one_file() -> None:
    found = searched(0.5, lambda _: 5)
    assert (found.met, found.drop, found.float_layers, found.float_top1) == (True, 0.5, (), 0.9)
    assert [step.tried for step in found.steps] == ["int8 as calibrated"]
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
        "int8 as calibrated",
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


# --- repairs of the weights, and the last resort --------------------------------------------------


def lost(amount: int, **gains: int) -> Wrong:
    """Wrong answers that each repair makes fewer, or with a negative gain more, whatever the others do."""
    return lambda kept: amount - sum(gain for name, gain in gains.items() if name in kept)


def test_a_repair_that_helps_is_kept_and_one_that_does_not_is_not() -> None:
    found = searched(0.5, lost(40, scale=10, shift=-5, round=26), repairs=("scale", "shift", "round"))
    assert found.met
    assert found.repairs == ("scale", "round")
    assert [(step.tried, step.repairs, step.drop, step.gain, step.kept) for step in found.steps] == [
        ("int8 as calibrated", (), 4.0, 0.0, False),
        ("scaled", ("scale",), 3.0, 1.0, True),
        ("shiftd", ("scale", "shift"), 3.5, -0.5, False),
        ("roundd", ("scale", "round"), 0.4, 2.6, True),
    ]


def test_repairs_end_within_the_budget() -> None:
    found = searched(0.5, lost(40, scale=36, shift=4), repairs=("scale", "shift"))
    assert (found.met, found.drop, found.repairs, len(found.steps)) == (True, 0.4, ("scale",), 2)
    assert all(step.seconds is not None and step.seconds < 1 for step in found.steps)
    assert found.p_value == found.steps[-1].p_value == 0.125  # of four images, all one way


def test_a_repair_that_changes_nothing_is_not_kept() -> None:
    found = searched(0.5, lost(40, scale=0, round=20), repairs=("scale", "round"), remedies=[])
    assert (found.met, found.drop, found.repairs) == (False, 2.0, ("round",))


def test_layers_go_to_float_on_top_of_the_repairs_that_were_kept() -> None:
    found = searched(0.5, lost(40, scale=10, shift=-1, r0=28), layers(3), repairs=("scale", "shift"))
    assert (found.met, found.repairs, found.float_layers) == (True, ("scale",), ("r0",))
    assert [step.gain for step in found.steps] == [0.0, 1.0, -0.1, 2.8]


@pytest.mark.parametrize(("last", "met", "drop"), [(2, True, 0.2), (12, False, 1.2), (35, False, 3.0)])
def test_the_last_resort_is_tried_when_nothing_else_suffices(last: int, met: bool, drop: float) -> None:
    found = searched(0.5, lost(40, scale=10), layers(1), repairs=("scale",), last=last)
    assert [step.tried for step in found.steps] == ["int8 as calibrated", "scaled", "1 of 1 remedies", "trained"]
    assert (found.met, found.drop) == (met, drop)
    assert found.repairs == (("scale",) if last == 35 else ())
    assert searched(0.5, lost(40, scale=36), repairs=("scale",), last=2).steps[-1].tried == "scaled"
