"""The page in a real browser: keys, a phone, dark and light, paper, many files; nothing asked of the network."""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from edgekit.measure import Telemetry
from edgekit.report import Extras, compare, find_flips, page, read_contents
from edgekit.result import Result
from tests import test_flips, tiny_models
from tests.browser import CHROMIUM, Page, browser
from tests.report_samples import quickstart, result
from tests.test_flips import photos  # noqa: F401

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium found: the page is not opened in a browser")

PHONE, DESK = (390, 844), (1280, 900)
FOCUSED = "document.activeElement"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's page, telemetry, sizes and all."""
    folder = tmp_path_factory.mktemp("report")
    results, made = quickstart()
    results = [warm(one) for one in results]
    artifact = tiny_models.tflite(folder / "dense.tflite")
    contents = {one.sha256: read_contents([artifact])[artifact.sha256] for one in made}
    path = folder / "report.html"
    path.write_text(page(compare(results, made), title="Digits", provenance={}, extras=Extras(contents=contents)))
    return path


def warm(one: Result) -> Result:
    starts = one.measurement.starts_ns
    points = range(starts[0], starts[-1], max(1, (starts[-1] - starts[0]) // 20))
    told = tuple(
        Telemetry(time_ns=at, temperature_c=50.0 + i / 4, clock_mhz=1800.0) for i, at in enumerate(points)
    )
    return replace(one, telemetry=told)


def fresh(opened: Page, path: Path, size: tuple[int, int] = DESK, *, dark: bool = False) -> None:
    opened.screen(*size, dark=dark, mobile=size[0] < 500)
    opened.asked.clear()
    opened.said.clear()
    opened.open(path)


def names(opened: Page, selector: str) -> list[str]:
    rows = f"[...document.querySelectorAll({json.dumps(selector)})]"
    found: list[str] = opened.eval(f"{rows}.map((one) => one.querySelector('.name').textContent)")
    return found


def test_it_asks_for_nothing_but_itself_and_says_nothing(opened: Page, report: Path) -> None:
    fresh(opened, report)
    assert [one for one in opened.asked if not one.startswith("data:")] == [report.resolve().as_uri()]
    assert opened.said == []


def test_tab_goes_through_the_rows_and_enter_selects(opened: Page, report: Path) -> None:
    fresh(opened, report)
    opened.eval("document.querySelector('.filter').focus()")
    seen: list[str] = []
    for _ in range(40):
        opened.press("Tab")
        if opened.eval(f"{FOCUSED}.tagName") == "TR":
            seen.append(opened.eval(f"{FOCUSED}.cells[0].dataset.order"))
            if seen[-1] == "tflite-int8":
                opened.press("Enter")
    assert seen == ["tflite-fp32", "tflite-fp16", "tflite-dyn8", "tflite-int8", "onnx-fp32", "coreml-fp16"]
    assert names(opened, "tr[aria-current]") == ["tflite-int8"]
    assert opened.eval("document.querySelectorAll('circle.selected').length") == 1


def test_the_arrows_go_from_row_to_row_past_those_that_are_filtered_out(opened: Page, report: Path) -> None:
    fresh(opened, report)
    opened.eval(
        "{ const field = document.querySelector('.filter'); field.value = '-fp'; "
        "field.dispatchEvent(new Event('input')); "
        "document.querySelector('table.variants tbody tr').focus() }"
    )
    seen = []
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"):
        opened.press(key)
        seen.append(opened.eval(f"{FOCUSED}.cells[0].dataset.order"))
    assert seen == ["tflite-fp16", "onnx-fp32", "coreml-fp16", "coreml-fp16", "onnx-fp32"]


def test_a_point_is_reached_by_keys_and_tells_its_figures(opened: Page, report: Path) -> None:
    fresh(opened, report)
    for _ in range(10):
        opened.press("Tab")
        if opened.eval("document.activeElement.tagName") == "circle":
            break
    tip = "document.querySelector('.tip')"
    assert not opened.eval(f"{tip}.hidden")
    assert "0.392 ms" in opened.eval(f"{tip}.textContent")
    opened.press("Enter")
    assert names(opened, "tr[aria-current]") == ["tflite-fp32"]
    opened.press("Escape")
    assert opened.eval(f"{tip}.hidden")


def test_the_keyboard_opens_what_is_folded_away(opened: Page, report: Path) -> None:
    fresh(opened, report)
    opened.eval("document.querySelector('.series summary').focus()")
    opened.press("Enter")
    assert opened.eval("document.querySelector('.series').open")
    assert opened.eval("document.querySelector('.series svg').getBoundingClientRect().height") > 200


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [PHONE, DESK])
def test_nothing_overflows_and_the_ground_follows_the_scheme(
    opened: Page, report: Path, size: tuple[int, int], dark: bool, tmp_path: Path
) -> None:
    fresh(opened, report, size, dark=dark)
    opened.eval("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    root = "document.documentElement"
    assert opened.eval(f"{root}.scrollWidth") <= size[0]
    assert (
        opened.eval("Math.max(...[...document.querySelectorAll('figure svg')].map((one) => one.clientWidth))")
        > 300
    )
    small = "[...document.querySelectorAll('body *')].filter((one) => one.textContent.trim() && one.clientWidth)"
    assert opened.eval(f"Math.min(...{small}.map((one) => parseFloat(getComputedStyle(one).fontSize)))") >= 10
    picture = tmp_path / "page.png"
    opened.picture(picture, whole=False)
    with Image.open(picture) as found:
        ground = found.convert("L").getpixel((3, 3))
    assert isinstance(ground, int)
    assert ground < 40 if dark else ground > 240
    assert opened.said == []


def test_it_prints_light_and_whole(opened: Page, report: Path) -> None:
    fresh(opened, report, dark=True)
    printed = opened.printed()
    pages = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert 2 <= pages <= 8
    assert printed.startswith(b"%PDF")
    opened.call("Emulation.setEmulatedMedia", media="print")
    ground = opened.eval("getComputedStyle(document.body).backgroundColor")
    hidden = opened.eval("getComputedStyle(document.querySelector('.filter')).display")
    wide = opened.eval("getComputedStyle(document.querySelector('.scroll')).overflowX")
    assert (ground, hidden, wide) == ("rgb(255, 255, 255)", "none", "visible")
    assert zlib.crc32(printed)  # it is read to its end


def test_the_pictures_that_flipped_are_shown(opened: Page, photos: Path, tmp_path: Path) -> None:  # noqa: F811
    comparison = test_flips.compared(photos)
    found = find_flips(comparison, [test_flips.split_of(photos)], 5, "photos")
    path = tmp_path / "flips.html"
    path.write_text(page(comparison, title="t", provenance={}, extras=Extras(flips=found)))
    fresh(opened, path, PHONE)
    opened.eval("document.querySelector('.flips').open = true")
    opened.eval("Promise.all([...document.images].map((one) => one.decode()))")
    assert opened.eval("[...document.images].map((one) => one.naturalWidth)") == [8, 8, 8]
    assert [one for one in opened.asked if not one.startswith("data:")] == [path.resolve().as_uri()]
    assert opened.said == []


def test_many_files_have_few_labels_and_one_stop_of_the_tab_key(opened: Page, tmp_path: Path) -> None:
    many = [result("tflite", "int8", 1 + i / 50, i % 9, seed=i, file=f"f{i:03}.tflite") for i in range(80)]
    path = tmp_path / "many.html"
    comparison = compare([result("tflite", "fp32", 9.0), *many])
    path.write_text(page(comparison, title="t", provenance={}))
    fresh(opened, path)
    chief = {"tflite-fp32", comparison.groups[0].choice.pick, *comparison.groups[0].choice.pareto}
    labels = opened.eval("[...document.querySelectorAll('.scatter text.label')].map((one) => one.textContent)")
    assert {label.removesuffix(" (reference)") for label in labels} == chief
    assert opened.eval("document.querySelectorAll('table.variants tr[tabindex=\"0\"]').length") == 1
    assert opened.eval("document.querySelectorAll('.series').length") == 40
    assert "What follows is of 40 of the 81 files" in path.read_text()
    assert opened.eval("document.querySelector('.scroll.long').clientHeight") < DESK[1]
    opened.eval("document.querySelector('table.variants tr[tabindex=\"0\"]').focus()")
    opened.press("ArrowDown", 3)
    opened.press("Enter")
    assert names(opened, "tr[aria-current]") == ["f002"]
    assert opened.said == []
