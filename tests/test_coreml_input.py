"""Core ML packages that are damaged, of other tools, or of no kind that edgekit reads."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit import convert, mil
from edgekit.cli import main
from edgekit.errors import ArtifactError, ConversionError, UsageError
from edgekit.mil.run import apply
from edgekit.quiet import quiet

with quiet():  # importing it warns of the versions of other packages
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

SHAPE = (1, 3, 8, 8)
WEIGHTS = np.random.default_rng(0).standard_normal((3, 192)).astype(np.float32)


def linear(x: Any) -> Any:
    return mb.linear(x=mb.reshape(x=x, shape=[1, 192]), weight=WEIGHTS)


def package(
    path: Path, body: Callable[[Any], Any] = linear, *, image: Any = None, classes: list[str] | None = None
) -> Path:
    """A package that coremltools alone makes."""
    with quiet():
        program = mb.program(input_specs=[mb.TensorSpec(shape=SHAPE)], opset_version=ct.target.iOS15)(body)
        model = ct.convert(
            program,
            convert_to="mlprogram",
            inputs=[image] if image else None,
            classifier_config=ct.ClassifierConfig(classes) if classes else None,
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS15,
            skip_model_load=True,
        )
        model.save(str(path))
    return path


def picture(layout: Any, **more: Any) -> Any:
    return ct.ImageType(name="x", shape=SHAPE, color_layout=layout, **more)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "sound.mlpackage"
    return package(path, image=picture(ct.colorlayout.RGB), classes=["a", "b", "c"])


def remove(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        one = path / "Data/com.apple.CoreML" / name
        shutil.rmtree(one) if one.is_dir() else one.unlink()

    return change


def cut(name: str, size: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        one = path / "Data/com.apple.CoreML" / name
        one.write_bytes(one.read_bytes()[:size])

    return change


def empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("x")


DAMAGES = {
    "no manifest": empty,
    "a plain file": a_file,
    "no model": remove("model.mlmodel"),
    "no weights": remove("weights"),
    "a model cut short": cut("model.mlmodel", 200),
    "an empty model": cut("model.mlmodel", 0),
    "weights cut short": cut("weights/weight.bin", 100),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_package_is_refused(
    damage: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.mlpackage"
    shutil.copytree(sound, path)
    DAMAGES[damage](path)
    with pytest.raises(ArtifactError, match=r"x\.mlpackage is not a sound Core ML package: ."):
        mil.load(path)
    assert main(["inspect", str(path)]) == 1
    told = capsys.readouterr().err
    assert "is not a sound Core ML package" in told
    assert len(told.strip().splitlines()) == 1


def test_an_mlmodel_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.mlmodel").write_bytes(b"\x08\x01")
    assert main(["inspect", str(tmp_path / "old.mlmodel")]) == 2
    told = capsys.readouterr().err
    assert "older kind of file" in told
    assert "make an ML program of the original model (.mlpackage)" in told


def test_a_package_without_an_image_is_refused(tmp_path: Path) -> None:
    path = package(tmp_path / "x.mlpackage")
    with pytest.raises(ArtifactError, match="does not take an image; edgekit reads image classifiers"):
        convert.for_file(path).inspect(path)


def test_grey_images_are_refused(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        return mb.reduce_mean(x=x, axes=[2, 3], keep_dims=False)

    with quiet():
        program = mb.program(input_specs=[mb.TensorSpec(shape=(1, 1, 8, 8))], opset_version=ct.target.iOS15)(body)
        grey = ct.ImageType(name="x", shape=(1, 1, 8, 8), color_layout=ct.colorlayout.GRAYSCALE)
        model = ct.convert(program, convert_to="mlprogram", inputs=[grey], skip_model_load=True)
        model.save(str(tmp_path / "x.mlpackage"))
    with pytest.raises(ArtifactError, match="takes GRAYSCALE images; edgekit feeds RGB, and BGR"):
        convert.for_file(tmp_path / "x.mlpackage").inspect(tmp_path / "x.mlpackage")


def test_a_classifier_of_another_tool_is_run_with_its_own_scale_and_order(tmp_path: Path) -> None:
    path = package(
        tmp_path / "x.mlpackage",
        image=picture(ct.colorlayout.BGR, scale=1 / 127.5, bias=[-1, -0.5, -0.25]),
        classes=["a", "b", "c"],
    )
    found = convert.for_file(path).inspect(path)
    assert found.labels == ("a", "b", "c")
    assert found.output.shape == (1, 3)
    pixels = np.random.default_rng(1).integers(0, 256, (5, 3, 8, 8)).astype(np.float32)  # RGB
    bgr = pixels[:, ::-1] / 127.5 + np.array([-1, -0.5, -0.25], np.float32).reshape(1, 3, 1, 1)
    given = mil.reference(path).logits(torch.from_numpy(pixels)).numpy()
    assert np.allclose(given, bgr.reshape(5, 192) @ WEIGHTS.T, atol=1e-4)


def test_scores_without_class_names(tmp_path: Path) -> None:
    path = package(tmp_path / "x.mlpackage", image=picture(ct.colorlayout.RGB))
    found = convert.for_file(path).inspect(path)
    assert found.labels == ()
    assert found.output.shape == (1, 3)
    assert found.output.dtype == "float32"


def test_an_operator_in_a_form_that_is_not_known_is_named() -> None:
    with pytest.raises(
        ConversionError, match=r"cannot run the Core ML operator 'reshape' as it stands here: KeyError"
    ):
        apply("reshape", {"x": torch.zeros(2)})


def test_a_system_too_old_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", "mobilenet_v2", "--target", "coreml", "--preprocess", "imagenet", "--out", str(tmp_path)]
    assert main([*words, "--quantize", "w4", "--deploy", "iOS15"]) == 2
    assert "coreml w4 needs iOS 18, macOS 15 or later" in capsys.readouterr().err
    assert main(["convert", "mobilenet_v2", "--target", "tflite", "--deploy", "iOS16"]) == 2
    assert "--deploy is for coreml files, not tflite" in capsys.readouterr().err
    assert main(["convert", "mobilenet_v2", "--target", "tflite", "--author", "Ada"]) == 2
    assert "--author is for coreml files, not tflite" in capsys.readouterr().err


def test_a_budget_for_what_is_not_compressed_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert", "mobilenet_v2", "--target", "coreml", "--preprocess", "imagenet", "--out", str(tmp_path)]
    assert main([*words, "--quantize", "fp16", "--max-drop", "1"]) == 2
    assert "--max-drop is for w8, pal4 or another compressed precision" in capsys.readouterr().err


def test_an_unknown_precision_names_the_choices() -> None:
    from edgekit.recipe import Variant

    with pytest.raises(
        UsageError, match=r"unknown precision for coreml 'pall4'; choose from .*did you mean 'pal4'"
    ):
        convert.check([Variant(target="coreml", precision="pall4")])
