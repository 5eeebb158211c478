"""Result files as they come: cut off, of another version, edited by hand. Each is compared, or refused by name."""

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import report, result, runs
from edgekit.cli import main
from edgekit.errors import EdgekitError, ResultError
from edgekit.measure import Telemetry
from edgekit.operators import Cost, Profile
from edgekit.schema import encode
from tests.report_samples import measurement, predictions
from tests.report_samples import result as sample

WHOLE = replace(
    sample("tflite", "int8", seed=2),
    measurement=measurement(0.1, count=140),
    telemetry=(Telemetry(time_ns=5, temperature_c=50.0, clock_mhz=1800.0, throttled=False),),
    profile=Profile(runs=3, total_us=9.0, costs=(Cost(operator="Conv", layer="a", delegated=True, mean_us=4.0),)),
    predictions=predictions(3, count=40),
)
BASE = replace(sample(), measurement=measurement(0.4, count=140), predictions=predictions(1, count=40))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    result.write(BASE, tmp_path / "base.json")
    result.write(WHOLE, tmp_path / "other.json")
    return tmp_path


def test_what_is_written_reads_back(folder: Path) -> None:
    assert result.read(folder / "other.json") == WHOLE


def deep(text: str) -> str:
    return "[" * 100_000


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda text: text[: len(text) // 2], "other.json is damaged: .*run the benchmark again"),
        (lambda text: text[:-3], "other.json is damaged"),
        (lambda text: "", "other.json is damaged"),
        (deep, "other.json is damaged"),
        (lambda text: "[1, 2]", r"is not a result of format 1, which this edgekit reads: format is None"),
        (lambda text: text.replace('"format":1', '"format":2', 1), "is not a result of format 1.*format is 2"),
        (lambda text: text.replace('"format":1', '"format":"1"', 1), "is not a result of format 1.*format is '1'"),
        (lambda text: text.replace('"visit"', '"vist"'), "is not a whole result: vist: unknown key.*'visit'"),
        (lambda text: text.replace('"load_ms":4.2', '"load_ms":NaN'), "load_ms: expected a finite number"),
        (lambda text: text.replace('"load_ms":4.2', '"load_ms":"4.2"'), "load_ms: expected a number, got '4.2'"),
        (
            lambda text: text.replace('"samples_ns":[', '"samples_ns":[1,'),
            "samples_ns, starts_ns and blocks differ",
        ),
        (lambda text: text.replace('"samples_ns":[', '"samples_ns":[-'), "a sample is not positive"),
        (
            lambda text: text.replace('"samples_ns":[', '"samples_ns":[1.'),
            r"samples_ns\[0\]: expected a whole number",
        ),
        (lambda text: text.replace('"top":[', '"top":[99999999'), "a class index is beyond 1,000,000"),
        (lambda text: text.replace('"size_bytes":1000000', '"size_bytes":0'), "size_bytes: 0 is out of range"),
        (lambda text: text.replace('"threads":1', '"threads":0'), "threads: 0 is out of range"),
    ],
)
def test_a_damaged_one_is_named_with_its_fault(folder: Path, changed: Callable[[str], str], message: str) -> None:
    path = folder / "other.json"
    before = path.read_text()
    after = changed(before)
    assert after != before
    path.write_text(after)
    with pytest.raises(ResultError, match=message):
        runs.collect([folder])


def test_a_file_that_is_no_text_and_a_missing_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "other.json").write_bytes(b"\xff\xfe\x00")
    assert main(["compare", str(folder)]) == 1
    assert "other.json is damaged: 'utf-8' codec can't decode" in capsys.readouterr().err
    assert main(["compare", str(folder / "none.json")]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of the values; of long lists the first and the last."""
    if isinstance(value, dict) and value:
        for key in value:
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, list) and value:
        for index in sorted({0, len(value) - 1}):
            yield from leaves(value[index], (*path, index))
    yield path


ODD: tuple[Any, ...] = (
    0,
    -1,
    1,
    2**40,
    2**62,
    10**30,
    1e-300,
    1e300,
    0.5,
    True,
    None,
    "",
    "x",
    [],
    [0],
    {},
    {"a": 1},
)


def with_odd_values(value: Any, rng: np.random.Generator, count: int) -> Any:
    """The value with that many of its leaves replaced."""
    made = copy.deepcopy(value)
    for _ in range(count):
        places = [path for path in leaves(made) if path]
        *way, last = places[rng.integers(len(places))]
        holder = made
        for step in way:
            holder = holder[step]
        # Mostly of the same type: another type is refused at once.
        alike = [odd for odd in ODD if type(odd) is type(holder[last])] if rng.random() < 0.9 else []
        choices = alike or list(ODD)
        holder[last] = choices[rng.integers(len(choices))]
    return made


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_edited_is_compared_or_refused(folder: Path, seed: int) -> None:
    """With no traceback, and no warning of NumPy's: these are errors here."""
    rng, path, whole = np.random.default_rng(seed), folder / "other.json", encode(WHOLE)
    compared, refused = 0, list[str]()
    for number in range(50):
        path.write_text(json.dumps(with_odd_values(whole, rng, 1 + number % 2)))
        try:
            found, _ = runs.collect([folder])
            comparison = report.compare(found, allow_invalid=bool(number % 2))
        except EdgekitError as error:
            refused.append(str(error))
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            report.page(comparison, title="x", provenance={})
            report.as_text(comparison)
            report.as_csv(comparison)
            report.as_markdown(comparison)
            json.dumps(report.as_json(comparison), allow_nan=False)
        compared += 1
    assert compared > 0
    assert refused
    assert all("other.json" in text for text in refused)
