"""What is written reads back; what is wrong is named, all of it at once."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from edgekit.integers import Integers
from edgekit.schema import Between, SchemaError, decode, encode


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    size_mm: Annotated[float, Between(10, 900)]
    spokes: Annotated[int, Between(1)] = 32

    def __post_init__(self) -> None:
        if self.spokes == 13:
            raise ValueError("13 spokes bring bad luck")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bike:
    name: str
    kind: Literal["road", "cargo", 7] = "road"
    bell: bool = False
    price: float | None = None
    wheels: tuple[Wheel, ...] = ()
    rgb: tuple[float, float, float] = (0.0, 0.0, 0.0)
    gears: tuple[tuple[str, int], ...] = ()
    extras: dict[str, float] = field(default_factory=dict)
    note: Any = None
    seen: int = field(default=0, metadata={"skip": True})


FULL = Bike(
    name="Rosinante",
    kind="cargo",
    bell=True,
    price=12.5,
    wheels=(Wheel(size_mm=622), Wheel(size_mm=406.0, spokes=28)),
    rgb=(0.1, 0.2, 0.3),
    gears=(("low", 1), ("high", 9)),
    extras={"bell": 3.0},
    note=[1, {"a": None}],
)


def faults(value: object, cls: Any = Bike, path: str = "") -> list[str]:
    with pytest.raises(SchemaError) as caught:
        decode(cls, value, path)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return caught.value.faults


def test_it_reads_back_through_json() -> None:
    assert decode(Bike, json.loads(json.dumps(encode(FULL)))) == FULL
    assert decode(Bike, {"name": "x"}) == Bike(name="x")


def test_a_skipped_field_is_neither_written_nor_read() -> None:
    assert "seen" not in encode(Bike(name="x", seen=3))
    assert faults({"name": "x", "seen": 3})[0].startswith("seen: unknown key; known keys: name, kind")


def test_all_faults_come_at_once_in_the_files_order() -> None:
    value = {
        "kid": "road",
        "kind": "rod",
        "bell": 1,
        "price": "cheap",
        "wheels": [{"size_mm": 5}, {"spokes": 0}, 3, {"size_mm": 622, "spokes": 13}],
        "rgb": [0, 1],
        "gears": [["low", "1"]],
        "extras": {"bell": "loud"},
    }
    assert faults(value) == [
        "kid: unknown key; did you mean 'kind'?",
        "name: missing; it is required",
        "kind: 'rod' is not one of 'road', 'cargo', 7; did you mean 'road'?",
        "bell: expected true or false, got 1",
        "price: expected a number, got 'cheap'",
        "wheels[0].size_mm: 5.0 is out of range; it must be between 10 and 900",
        "wheels[1].size_mm: missing; it is required",
        "wheels[1].spokes: 0 is out of range; it must be at least 1",
        "wheels[2]: expected a table, got 3",
        "wheels[3]: 13 spokes bring bad luck",
        "rgb: expected 3 values, got [0, 1]",
        "gears[0][1]: expected a whole number, got '1'",
        "extras.bell: expected a number, got 'loud'",
    ]


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("name", 3, "expected a string, got 3"),
        ("name", None, "expected a string, got None"),
        ("name", "", None),
        ("seen", 1, "unknown key"),
        ("bell", 0, "expected true or false, got 0"),
        ("kind", 7, None),
        ("kind", 7.0, "7.0 is not one of"),
        ("kind", True, "True is not one of"),
        ("kind", ["road"], "['road'] is not one of"),
        ("price", None, None),
        ("price", 3, None),
        ("price", True, "expected a number, got True"),
        ("price", math.nan, "expected a finite number, got nan"),
        ("price", -math.inf, "expected a finite number, got -inf"),
        ("price", 10**400, "expected a finite number, got 1000"),
        ("wheels", {}, "expected a list, got {}"),
        ("wheels", "ab", "expected a list, got 'ab'"),
        ("rgb", [0, 0, math.nan], "expected a finite number, got nan"),
        ("gears", [["low", "high"]], "expected a whole number, got 'high'"),  # not two strings
        ("gears", [[1, 1]], "expected a string, got 1"),
        ("gears", [["low"]], "expected 2 values, got ['low']"),
        ("extras", [], "expected a table, got []"),
        ("extras", {"a": math.inf}, "expected a finite number, got inf"),
    ],
)
def test_one_value(key: str, value: object, fault: str | None) -> None:
    given = {"name": "x", key: value}
    if fault is None:
        assert getattr(decode(Bike, given), key) == value
    else:
        [found] = faults(given)
        assert found.startswith(key)
        assert fault in found


def test_whole_numbers_become_floats() -> None:
    decoded = decode(Bike, {"name": "x", "price": 3, "rgb": [1, 0, 2]})
    assert [type(value) for value in (decoded.price, *decoded.rgb)] == [float] * 4


@pytest.mark.parametrize(("value", "inside"), [(9.99, False), (10, True), (900, True), (900.1, False)])
def test_bounds_are_inclusive(value: float, inside: bool) -> None:
    if inside:
        assert decode(Wheel, {"size_mm": value}).size_mm == value
    else:
        assert faults({"size_mm": value}, Wheel) == [
            f"size_mm: {value} is out of range; it must be between 10 and 900"
        ]


def test_infinity_is_not_at_least_1() -> None:
    assert faults({"size_mm": math.inf}, Wheel) == ["size_mm: expected a finite number, got inf"]


def test_a_fault_of_the_whole() -> None:
    assert faults([]) == ["the file: expected a table, got []"]
    assert faults(3, path="bikes[2]") == ["bikes[2]: expected a table, got 3"]
    assert faults({"size_mm": 20, "spokes": 13}, Wheel) == ["the file: 13 spokes bring bad luck"]


def test_long_values_are_cut() -> None:
    [found] = faults({"name": list(range(1000))})
    assert found == f"name: expected a string, got {str(list(range(1000)))[:57]}..."


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    counts: tuple[int, ...] = ()
    bounded: tuple[Annotated[int, Between(1)], ...] = ()


def test_lists_of_samples() -> None:
    many = list(range(100_000))
    assert decode(Samples, {"counts": many}).counts == tuple(many)
    assert faults({"counts": [1, 2.5, True, "3"]}, Samples) == [
        "counts[1]: expected a whole number, got 2.5",
        "counts[2]: expected a whole number, got True",
        "counts[3]: expected a whole number, got '3'",
    ]
    assert faults({"bounded": [1, 0]}, Samples) == ["bounded[1]: 0 is out of range; it must be at least 1"]
    assert decode(Samples, {"counts": [], "bounded": []}) == Samples()


@dataclass(frozen=True, kw_only=True, slots=True)
class Bulk:
    times_ns: Sequence[int] = ()


def test_numbers_in_bulk_are_held_in_8_bytes_each() -> None:
    many = [0, -5, 2**63 - 1, *range(100_000)]
    found = decode(Bulk, {"times_ns": many}).times_ns
    assert isinstance(found, Integers)
    assert found == many
    assert found == tuple(many)
    assert found[1:3] == (-5, 2**63 - 1)
    assert encode(Bulk(times_ns=found)) == {"times_ns": many}
    assert np.asarray(found).dtype == np.int64
    assert np.asarray(found, np.float64)[1] == -5.0
    assert not np.asarray(found).flags.writeable
    assert {found, Integers(many)} == {found}
    assert repr(Integers(range(9))) == "Integers(0, 1, 2, 3, 4, 5, ... 9 in all)"


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([1, True], "times_ns[1]: expected a whole number, got True"),
        ([1, "2"], "times_ns[1]: expected a whole number, got '2'"),
        ([1, 2.0], "times_ns[1]: expected a whole number, got 2.0"),
        ([1, 2**63], f"times_ns: expected whole numbers of at most 64 bits, got {2**63}"),
        ("12", "times_ns: expected a list, got '12'"),
    ],
)
def test_what_is_no_number_in_bulk(value: object, fault: str) -> None:
    assert faults({"times_ns": value}, Bulk) == [fault]
