"""The lines that `edgekit inspect` prints for apps: Python's are run on real files, the others read."""

import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekit import convert, files
from edgekit.artifact import Artifact, TensorSpec, sidecar
from edgekit.cli import main
from edgekit.convert import Inspection
from edgekit.errors import ArtifactError, UsageError
from edgekit.preprocess import Preprocess, load_pixels
from edgekit.schema import encode
from edgekit.snippet import snippet
from tests import tiny_models

SIDE = tiny_models.SIDE


def described(path: Path, **changes: Any) -> Artifact:
    """A real file with its sidecar, whose preprocess is that of *changes*."""
    found = tiny_models.tflite(path)
    found = replace(found, preprocess=Preprocess(height=SIDE, width=SIDE, **changes))
    files.write_json(sidecar(path), encode(found))
    return found


def pictures(folder: Path) -> list[Path]:
    """Smooth pictures of several shapes."""
    rng, found = np.random.default_rng(3), []
    for number, size in enumerate([(64, 64), (90, 60), (60, 90), (33, 47), (128, 40)] * 4):
        coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        found.append(folder / f"{number}.png")
        coarse.resize(size, Image.Resampling.BICUBIC).save(found[-1])
    return found


@pytest.mark.parametrize(
    "contract",
    [
        {"resize": "squash"},
        {"resize": "crop"},
        {"resize": "crop", "crop_fraction": 0.8, "interpolation": "bicubic"},
        {"resize": "pad"},
    ],
    ids=lambda contract: "-".join(map(str, contract.values())),
)
def test_the_python_lines_classify_as_edgekit_does(
    contract: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = described(tmp_path / 'it\'s "a" model.tflite', **contract)
    assert main(["inspect", str(artifact.path), "--python"]) == 0
    (tmp_path / "lines.py").write_text(capsys.readouterr().out)
    classify = runpy.run_path(str(tmp_path / "lines.py"))["classify"]
    paths = pictures(tmp_path)
    pixels = np.stack([load_pixels(path, artifact.preprocess) for path in paths])
    wanted = convert.converter("tflite").predict(artifact, pixels).argmax(1)
    assert len(set(wanted.tolist())) > 1
    assert [classify(str(path)) for path in paths] == [artifact.labels[i] for i in wanted]


def test_the_python_lines_run_as_a_program_of_their_own(tmp_path: Path) -> None:
    artifact = described(tmp_path / "model.tflite", resize="squash")
    (path, *_) = pictures(tmp_path)
    text = snippet("python", artifact.path, convert.for_file(artifact.path).inspect(artifact.path), None)
    (tmp_path / "lines.py").write_text(f"{text}\nimport sys\nprint(classify(sys.argv[1]))\n")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "lines.py"), str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in map(str, range(4))  # the file has no labels inside


INT8 = Inspection(
    input=TensorSpec(name="pixels", shape=(1, 24, 32, 3), dtype="int8", scale=1.0, zero_point=-128),
    output=TensorSpec(name="logits", shape=(1, 3), dtype="int8", scale=0.1, zero_point=3),
    operators=(),
    weights=(),
    labels=('a "b"', "$cost\\", "tab\there"),
)


def test_the_kotlin_lines_have_the_files_own_figures() -> None:
    text = snippet("kotlin", Path("m.tflite"), INT8, Preprocess(height=24, width=32, resize="squash"))
    assert (
        "// Put m.tflite into app/src/main/assets. It takes pixels (int8 1x24x32x3) and gives logits (int8 1x3)"
        in text
    )
    assert "Bitmap.createScaledBitmap(picture, 32, 24, true)" in text
    assert "for (y in 0 until 24) for (x in 0 until 32)" in text
    assert "(value - 128).toByte()" in text
    assert "arrayOf(ByteArray(3))" in text
    assert r'"a \"b\"", "\$cost\\", "tab\u0009here",' in text
    assert "$w" not in text.replace("\\$", "")
    for opening, closing in ("()", "{}"):
        assert text.count(opening) == text.count(closing)
    floats = replace(INT8, output=replace(INT8.output, dtype="float32"))
    padded = snippet("kotlin", Path("m.tflite"), floats, Preprocess(height=24, width=32, resize="pad"))
    assert "arrayOf(FloatArray(3))" in padded
    assert "minOf(32 / picture.width.toFloat(), 24 / picture.height.toFloat())" in padded


def test_int8_pixels_in_python(tmp_path: Path) -> None:
    text = snippet("python", Path("m.tflite"), INT8, Preprocess(height=24, width=32, resize="squash"))
    scope: dict[str, Any] = {"np": np, "image": np.array([[0, 127, 128, 255]], np.uint8)}
    value = re.search(r'\["index"\], (.*)\[None\]\)', text)
    assert value
    assert eval(value[1], scope).tolist() == [[-128, -1, 0, 127]]
    scope = {}
    exec(text[text.index("LABELS") : text.index("def ")], scope)
    assert scope["LABELS"] == list(INT8.labels)


COREML = Inspection(
    input=TensorSpec(name="image", shape=(1, 3, 24, 32), dtype="image"),
    output=TensorSpec(name="classLabel_probs", shape=(1, 7), dtype="dictionary"),
    operators=(),
    weights=(),
    labels=("ant", "bee", "cat\ndog", "eel", "fox", "gnu", "hen"),
    needs="iOS 16, macOS 13",
)


def test_the_swift_lines_have_the_files_own_names() -> None:
    text = snippet("swift", Path("coreml-w8.mlpackage"), COREML, Preprocess(height=24, width=32, resize="pad"))
    assert "It takes an image of 32x24, image.\n// It runs from iOS 16, macOS 13 on." in text
    assert 'forResource: "coreml-w8", withExtension: "mlmodelc"' in text
    assert "pixelsWide: 32, pixelsHigh: 24" in text
    assert "VNImageCropAndScaleOption.scaleFit.rawValue" in text
    assert '["image": image]' in text
    assert "// 7 classes: ant, bee, cat dog, eel, fox, ..." in text
    assert 'featureValue(for: "classLabel_probs")!.dictionaryValue[label]' in text
    for opening, closing in ("()", "{}", "[]"):
        assert text.count(opening) == text.count(closing)
    plain = replace(COREML, output=TensorSpec(name="scores", shape=(1, 7), dtype="float32"), labels=())
    text = snippet("swift", Path("x.mlpackage"), plain, None)
    assert "throws -> MLMultiArray {" in text
    assert 'featureValue(for: "scores")!.multiArrayValue!' in text
    assert ".centerCrop." in text


def test_a_thousand_labels_are_wrapped() -> None:
    many = replace(INT8, labels=tuple(f"class number {i}" for i in range(1000)))
    lines = snippet("kotlin", Path("m.tflite"), many, None).splitlines()
    assert max(map(len, lines[30:])) <= 100
    assert lines[-2].endswith('"class number 999",')


def test_a_language_that_does_not_go_with_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = described(tmp_path / "m.tflite").path
    assert main(["inspect", str(path), "--swift"]) == 2
    assert (
        "--swift is for .mlpackage files, and m.tflite is none: give --kotlin or --python"
        in capsys.readouterr().err
    )
    with pytest.raises(UsageError, match=r"--python is for \.tflite files, and x\.onnx is none$"):
        snippet("python", Path("x.onnx"), INT8, None)
    assert main(["inspect", str(path), "--kotlin", "--json", "-"]) == 2
    assert "leave out --json" in capsys.readouterr().err


def test_a_file_that_takes_no_raw_pixels_is_refused() -> None:
    floats = replace(INT8, input=TensorSpec(name="x", shape=(1, 8, 8, 3), dtype="float32"))
    with pytest.raises(ArtifactError, match=r"takes x \(float32 1x8x8x3\), not raw pixels"):
        snippet("kotlin", Path("m.tflite"), floats, None)
