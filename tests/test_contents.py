"""What takes the space in a file: the constants add up, and the page tells them by type, kind and layer."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from edgekit.artifact import Artifact
from edgekit.convert import for_file
from edgekit.report import Extras, compare, page, read_contents
from edgekit.result import Result
from tests import tiny_models
from tests.report_samples import result


def measured(artifact: Artifact) -> Result:
    return replace(result(wrong=None), artifact=artifact)


def shown(artifact: Artifact) -> str:
    extras = Extras(contents=read_contents([artifact]))
    return page(compare([measured(artifact)]), title="t", provenance={}, extras=extras)


def test_the_parts_of_a_file_are_all_its_constants(tmp_path: Path) -> None:
    path = tiny_models.tflite(tmp_path / "dense.tflite").path
    found = for_file(path).inspect(path)
    (dense,) = [part for part in found.parts if part.kind == "FULLY_CONNECTED"]
    assert (dense.dtype, dense.size_bytes) == ("float32", 4 * 8 * 8 * 3 * 4)
    assert sum(part.size_bytes for part in found.parts) == sum(size for _, size in found.weights)


def test_the_page_tells_types_kinds_and_layers(tmp_path: Path) -> None:
    artifact = tiny_models.tflite(tmp_path / "dense.tflite")
    text = shown(artifact)
    share = f"{100 * 3072 / artifact.size_bytes:.1f} %"
    assert "<h3>What takes the space</h3>" in text
    assert f": FULLY_CONNECTED takes {share}, " in text
    assert f"<td>float32</td><td>3.07 kB</td><td>{share}</td>" in text
    assert "<td>FULLY_CONNECTED</td><td>1</td><td>float32</td><td>3.07 kB</td>" in text
    assert "the graph, names, labels" in text


def test_a_file_that_cannot_be_read_says_why_and_one_that_is_not_here_says_nothing(tmp_path: Path) -> None:
    artifact = tiny_models.tflite(tmp_path / "<b>.tflite")
    artifact.path.write_bytes(b"nothing")
    assert "is not a TFLite model" in shown(artifact)
    assert "&lt;b&gt;.tflite is not" in shown(artifact)
    assert "What takes the space" not in page(compare([result()]), title="t", provenance={})


def test_an_onnx_file_tells_its_layers(tmp_path: Path) -> None:
    artifact = tiny_models.onnx(tmp_path / "dense.onnx")
    (part,) = for_file(artifact.path).inspect(artifact.path).parts
    assert (part.layer, part.kind, part.dtype, part.size_bytes) == ("weights", "MatMul", "float32", 3072)
    assert "<td>weights</td><td>MatMul</td><td>float32</td><td>3.07 kB</td>" in shown(artifact)


def test_a_core_ml_program_tells_who_takes_its_constants(tmp_path: Path) -> None:
    from edgekit import mil
    from tests.test_mil import array, saved  # first: it imports coremltools without its warnings

    mb = import_module("coremltools.converters.mil").Builder

    def body(x: Any) -> Any:
        return mb.conv(x=x, weight=array(8, 4, 3, 2), bias=array(8), name="stem")

    function = mil.load(saved(body, (1, 4, 7, 6), tmp_path / "x.mlpackage"))
    found = [(layer, kind, dtype) for layer, kind, dtype, size in mil.constants(function) if size > 30]
    assert found == [("stem", "conv", "float32")] * 2
    assert sum(size for *_, size in mil.constants(function)) == sum(size for _, size in mil.weights(function))
    assert max(size for *_, size in mil.constants(function)) == 8 * 4 * 3 * 2 * 4
