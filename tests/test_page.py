"""The report page: escaped, free of the network, whole without scripts, and drawn by a real browser."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgekit.artifact import Repair, RepairStep
from edgekit.report import compare, page, write_page
from edgekit.report.charts import QUANTILES
from tests.report_samples import DEVICE, quickstart, result

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "\"'><img src=x onerror=alert(1)></script><script>alert(2)</script>&amp;"
PROVENANCE = {"Recipe": "quickstart", "Commands": "edgekit run quickstart\nedgekit compare runs/quickstart"}


def built() -> str:
    return page(compare(*quickstart()), title="Handwritten digits", provenance=PROVENANCE)


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text of one id."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text += data

    def count(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.tags)


def chart_json(source: str) -> Any:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', source, re.DOTALL)
    assert match
    return json.loads(match[1])


def own_part(source: str) -> str:
    """The page without the two vendored libraries and their licences."""
    return re.sub(r"<!--\n.*?-->\n<script>.*?</script>", "", source, flags=re.DOTALL)


def test_the_page_loads_nothing() -> None:
    source = built()
    loading = r"""(?ix) (?:src|href|srcset|action|data) \s*=\s* ["']? \s* (?:https?:|//)
        | url\( \s* ["']? (?:https?:|//) | @import | fetch\( \s* ["'`]
        | importScripts | XMLHttpRequest | WebSocket"""
    assert not re.findall(loading, source)
    for word in ("http", "url(", "fetch", "@import"):
        assert word not in own_part(source).replace("http-equiv", ""), word
    for tag, attributes in Elements(source).tags:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "data:,").startswith("data:"), tag
    assert "default-src 'none'" in source  # the browser refuses what a mistake might ask for


def test_the_page_carries_the_licences_of_its_libraries() -> None:
    source = built()
    assert source.count("Permission to use, copy, modify, and/or distribute this software") == 2
    assert "Mike Bostock" in source
    assert "Observable, Inc." in source


def test_the_page_stays_small() -> None:
    source = built()
    assert len(source) < 600_000
    assert len(own_part(source)) < 100_000
    assert all(len(strip["ticks"]) == QUANTILES for strip in chart_json(source)[0]["strips"])


def test_names_cannot_become_markup() -> None:
    device = replace(DEVICE, model=EVIL, cpu=EVIL, os=EVIL)
    named = result(file=f"{EVIL}.tflite", notes=("<b>odd</b>",), device=device)
    other = result("onnx", "fp32", 0.2, device=device)
    source = page(compare([named, other]), title=EVIL, provenance={EVIL: EVIL})
    plain = page(compare([result(notes=("x",), device=device), other]), title="x", provenance={"x": "x"})
    for tag in ("script", "img", "style", "table", "tr", "b"):
        assert Elements(source).count(tag) == Elements(plain).count(tag), tag
    assert "<script>alert" not in source
    assert "<img" not in source
    assert EVIL in Elements(source).text
    assert named.name in [point["name"] for point in chart_json(source)[0]["points"]]


def test_placeholders_in_names_are_left_alone() -> None:
    assert "$data and ${css}" in page(compare([result()]), title="$data and ${css}", provenance={})


def test_the_table_reads_without_scripts() -> None:
    source = built()
    text = re.sub(r"\s+", " ", Elements(source).text)
    for name in ("tflite-fp32", "tflite-fp16", "tflite-dyn8", "tflite-int8", "onnx-fp32", "coreml-fp16"):
        assert name in text
    for piece in (
        "Ship tflite-int8",
        "not measured here",
        "98.3 %",
        "335 kB",
        "edgekit run quickstart",
        "invalid",
    ):
        assert piece in text
    assert Elements(source).count("h1") == 1
    assert quickstart()[0][0].artifact.sha256 in text


def test_a_long_value_of_the_provenance_is_folded_away() -> None:
    recipe = "\n".join(f"line = {EVIL}{number}" for number in range(30))
    source = page(compare(*quickstart()), title="x", provenance={"Recipe": recipe})
    assert "<details><summary>30 lines</summary><pre>line = " in source
    assert html.escape(f"{EVIL}29") in source
    assert "<details><summary>2 lines" not in built()


def test_every_setting_gets_its_own_section() -> None:
    results, artifacts = quickstart()
    source = page(compare([*results, result(threads=4)], artifacts), title="Two", provenance={})
    assert source.count('<section class="group"') == 2
    assert len(chart_json(source)) == 2


def test_write_page_replaces_the_file_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    for title in ("first", "second"):
        write_page(compare([result()]), path, title=title, provenance={})
    assert "<title>second</title>" in path.read_text(encoding="utf-8")
    assert [child.name for child in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("wrong", [6, None])
def test_pages_without_points_are_whole(wrong: int | None) -> None:
    results = [result(wrong=wrong)] if wrong is None else []
    source = page(compare(results, quickstart()[1]), title="x", provenance={})
    assert 'class="chart scatter"' not in source
    assert "No choice can be made" in source


# In a browser. It writes what it sees into the page itself, which --dump-dom then gives.

LOOK = """<script>
document.querySelectorAll("thead button")[2].click();
document.querySelector("circle").focus();
document.querySelector("circle").dispatchEvent(new MouseEvent("click", { bubbles: true }));
const root = document.documentElement, find = (s) => [...document.querySelectorAll(s)];
root.dataset.seen = JSON.stringify({
  dots: find(".scatter g[aria-label=dot] circle").length,
  labels: find(".scatter text.label").map((n) => n.textContent),
  strips: find(".strips svg").length,
  sorted: find("th[aria-sort]").map((n) => [n.textContent, n.getAttribute("aria-sort")]),
  order: find("table.variants tbody tr").map((n) => n.querySelector(".name").textContent),
  selected: [find("tr.selected .name").map((n) => n.textContent), find("circle.selected").length],
  filtered: (() => {
    const field = document.querySelector(".filter");
    field.value = "DYN8 tflite";
    field.dispatchEvent(new Event("input"));
    const left = find("table.variants tbody tr").filter((n) => !n.hidden).length;
    field.value = "";
    field.dispatchEvent(new Event("input"));
    return [left, find("table.variants tbody tr").filter((n) => !n.hidden).length];
  })(),
  tip: find(".tip").map((n) => [n.hidden, n.textContent]),
  overflow: root.scrollWidth - root.clientWidth,
  errors: window.seenErrors,
});
</script>"""
LISTEN = (
    '<script>window.seenErrors = []; addEventListener("error", (e) => seenErrors.push(String(e.message)));'
    'addEventListener("securitypolicyviolation", (e) => seenErrors.push(e.blockedURI));</script>'
)


def opened(source: str, folder: Path, width: int) -> tuple[dict[str, Any], str]:
    """What a browser saw of the page, and what it wrote to its console."""
    path = folder / "report.html"
    path.write_text(
        source.replace("<head>", f"<head>{LISTEN}").replace("</body>", f"{LOOK}</body>"), encoding="utf-8"
    )
    switches = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=5000 "
        "--dump-dom"
    )
    assert CHROMIUM
    done = subprocess.run(
        [
            CHROMIUM,
            *switches.split(),
            f"--user-data-dir={folder / 'user'}",
            f"--window-size={width},900",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    match = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert match, done.stderr[-2000:]
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(html.unescape(match[1])), console


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium found: the page is not opened in a browser")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_draws_the_charts_and_sorts_the_table(tmp_path: Path, width: int) -> None:
    seen, console = opened(built(), tmp_path, width)
    assert (seen["errors"], console) == ([], "")
    assert (seen["dots"], seen["strips"]) == (5, 1)
    assert sorted(seen["labels"]) == sorted(
        ["tflite-fp32 (reference)", "tflite-fp16", "tflite-dyn8", "tflite-int8", "onnx-fp32"]
    )
    assert seen["sorted"] == [["Latency", "ascending"]]
    assert seen["order"] == [
        "tflite-int8",
        "onnx-fp32",
        "tflite-dyn8",
        "tflite-fp32",
        "tflite-fp16",
        "coreml-fp16",
    ]
    assert seen["selected"] == [["tflite-fp32"], 1]
    assert seen["filtered"] == [1, 6]
    assert seen["overflow"] <= 0
    hidden, tip = seen["tip"][0]
    assert not hidden
    assert tip.startswith("tflite-fp32")
    assert "0.392 ms" in tip


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium found: the page is not opened in a browser")
def test_a_browser_runs_no_script_from_a_name(tmp_path: Path) -> None:
    named = result(file=f"{EVIL}.tflite", notes=(EVIL,))
    source = page(compare([named, result("onnx", "fp32", 0.2)]), title=EVIL, provenance={EVIL: EVIL})
    seen, console = opened(source, tmp_path, 900)
    assert (seen["errors"], console) == ([], "")
    assert seen["dots"] == 2
    assert seen["overflow"] <= 0


# --- what was tried -------------------------------------------------------------------------------


def repaired(*, met: bool = True, tried: str = "equalized channels") -> Repair:
    steps = (
        RepairStep(
            tried="int8 as calibrated", float_layers=(), top1=0.5, drop=40.0, size_bytes=1000, p_value=1e-9
        ),
        RepairStep(
            tried=tried,
            float_layers=("model.2",),
            repairs=("equalize",),
            top1=0.9,
            drop=0.25,
            gain=39.75,
            kept=True,
            p_value=0.5,
            size_bytes=1200,
            seconds=3.21,
        ),
    )
    return Repair(
        max_drop=0.5,
        met=met,
        drop=0.25,
        p_value=0.5,
        float_top1=0.9025,
        images=400,
        images_sha256="0" * 64,
        float_layers=("model.2",),
        repairs=("equalize",),
        weighed_by="latency",
        steps=steps,
    )


def with_repair(repair: Repair) -> str:
    results, made = quickstart()
    results = [replace(one, artifact=replace(one.artifact, repair=repair)) for one in results[:1]] + results[1:]
    return page(compare(results, made), title="Digits", provenance={})


def test_each_repaired_file_has_a_section_with_what_was_tried() -> None:
    source = with_repair(repaired())
    assert source.count('<section class="repair"') == 1
    text = " ".join(Elements(source).text.split())
    assert "keeps its accuracy" in text
    assert (
        "90.00 % top-1 with 1 layer in float, 0.25 points below float (p = 0.5): within the budget of 0.5" in text
    )
    row = re.search(r'<tr><th scope="row">equalized channels</th>(.*?)</tr>', source)
    assert row
    assert re.findall("<td>(.*?)</td>", row[1]) == [
        "1",
        "90.00 %",
        "0.25",
        "+39.75",
        "p = 0.5",
        "1.2 kB",
        "3.2",
        "yes",
    ]
    assert (
        'chosen for the error that they add and the latency that they cost: <b class="name">model.2</b>' in source
    )
    assert '<section class="repair"' not in built()


def test_a_budget_that_is_not_met_is_said_and_names_are_escaped() -> None:
    source = with_repair(repaired(met=False, tried=EVIL))
    assert "NOT within the budget" in source
    assert "What was tried to keep the accuracy of" in source
    assert "<img" not in own_part(source)
    assert html.escape(EVIL) in source
