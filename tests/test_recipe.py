"""Recipes decode strictly; every shipped one builds a model that takes a step."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit import recipe
from edgekit.errors import RecipeError, UsageError
from edgekit.preprocess import preset
from edgekit.recipe import BenchSpec, CalibrationSpec, ModelSpec, Recipe, Variant

SHIPPED = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))

SMALLEST = """
[model]
name = "mobilenet_v2"
[data]
source = "digits"
[data.preprocess]
height = 32
width = 32
[train]
epochs = 1
"""


def fault(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe.parse(text, "my.toml")
    return str(caught.value)


def test_the_quickstart_is_shipped() -> None:
    assert "quickstart" in [path.stem for path in SHIPPED]
    found = recipe.load("quickstart")
    names = [variant.name for variant in found.variant]
    assert names == ["tflite-fp32", "tflite-fp16", "tflite-dyn8", "tflite-int8", "coreml-fp16", "onnx-fp32"]
    assert all(variant.calibration.images >= 200 for variant in found.variant)


def test_defaults() -> None:
    found = recipe.parse(SMALLEST, "my.toml")
    assert found.variant == ()
    assert found.bench == BenchSpec(samples=1024, seconds=60.0, blocks=5, warmup=10, warmup_seconds=2.0)
    assert replace(found.bench, samples=128, seconds=10.0) == recipe.QUICK
    assert found.model.width == 1.0


def test_variants_are_named_after_target_and_precision() -> None:
    text = (
        SMALLEST + '[[variant]]\ntarget = "tflite"\nprecision = "int8"\ncalibration = { images = 7, seed = 3 }\n'
    )
    [variant] = recipe.parse(text, "my.toml").variant
    assert variant == Variant(target="tflite", precision="int8", calibration=CalibrationSpec(images=7, seed=3))
    assert variant.name == "tflite-int8"


def test_every_fault_of_a_file_with_its_path() -> None:
    text = """
    [model]
    name = "mobilenet_v2"
    widht = 0.5
    stem_stride = 3
    [data]
    val_fraction = 0.95
    preprocess = { height = 32, width = 32, std = [1, 1, 0] }
    [train]
    epochs = 0
    learning_rate = inf
    optimizer = "adam"
    [train.augment]
    flip = "yes"
    [[variant]]
    target = "tflite"
    [bench]
    threads = [1, 0]
    """
    assert fault(text) == (
        "my.toml: 11 faults\n"
        "  model.widht: unknown key; did you mean 'width'?\n"
        "  model.stem_stride: 3 is not one of 1, 2\n"
        "  data.source: missing; it is required\n"
        "  data.val_fraction: 0.95 is out of range; it must be between 0.01 and 0.9\n"
        "  data.preprocess: std must be positive, got (1.0, 1.0, 0.0)\n"
        "  train.epochs: 0 is out of range; it must be at least 1\n"
        "  train.optimizer: 'adam' is not one of 'adamw', 'sgd', 'rmsprop'; did you mean 'adamw'?\n"
        "  train.learning_rate: expected a finite number, got inf\n"
        "  train.augment.flip: expected true or false, got 'yes'\n"
        "  variant[0].precision: missing; it is required\n"
        "  bench.threads[1]: 0 is out of range; it must be at least 1"
    )


def test_a_variant_twice() -> None:
    twice = '[[variant]]\ntarget = "onnx"\nprecision = "fp32"\n' * 2
    assert fault(SMALLEST + twice) == "my.toml: 1 fault\n  the file: variant: onnx-fp32 stands twice"


def test_a_reference_that_is_no_variant_is_found_before_the_training() -> None:
    reference = '[report]\nreference = "onnx-fp23"\n'
    assert fault(SMALLEST + reference).endswith("report.reference: 'onnx-fp23' is no variant of this recipe")
    one = '[[variant]]\ntarget = "onnx"\nprecision = "fp32"\n'
    assert fault(SMALLEST + one + reference).endswith(
        "'onnx-fp23' is no variant of this recipe; choose from onnx-fp32; did you mean 'onnx-fp32'?"
    )
    sound = recipe.parse(SMALLEST + one + reference.replace("fp23", "fp32"), "my.toml")
    assert sound.report.reference == "onnx-fp32"


@pytest.mark.parametrize("text", ["[model", "epochs == 3", 'name = "a"\nname = "b"'])
def test_what_is_no_toml(text: str) -> None:
    found = fault(text)
    assert found.startswith("my.toml: 1 fault\n  not TOML: ")
    assert len(found.splitlines()) == 2


def test_an_empty_file_lacks_three_sections() -> None:
    assert fault("") == (
        "my.toml: 3 faults\n  model: missing; it is required\n  data: missing; it is required\n"
        "  train: missing; it is required"
    )


def test_files_of_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALLEST.encode())  # as Windows editors begin a file
    assert recipe.load(str(path)) == recipe.parse(SMALLEST, "my.toml")
    path.write_bytes(SMALLEST.encode("utf-16"))
    with pytest.raises(
        RecipeError, match=r"my\.toml: 1 fault\n  not TOML, which is UTF-8: 'utf-8' codec can't decode"
    ):
        recipe.load(str(path))


def test_names_and_paths(tmp_path: Path) -> None:
    assert recipe.path_of("quickstart") == SHIPPED[0].parent / "quickstart.toml"
    with pytest.raises(UsageError, match=r"unknown recipe 'quikstart'; choose from .*did you mean 'quickstart'\?"):
        recipe.path_of("quikstart")
    with pytest.raises(UsageError, match=r"no such recipe file: .*my\.toml"):
        recipe.path_of(str(tmp_path / "my.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UsageError, match=r"no such recipe file: .*folder\.toml"):
        recipe.path_of(str(tmp_path / "folder.toml"))


def test_errors_of_recipes_end_with_2() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.parse("", "my.toml")
    assert caught.value.exit_status == 2
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize("name", ["mobilenet_v2", 'C:\\mödels "x".py:build'])
def test_the_text_for_a_model_by_name_decodes(name: str) -> None:
    text = recipe.for_model(ModelSpec(name=name), "a folder", preset("imagenet", 96, 96), epochs=7)
    found = recipe.parse(text, "my.toml")
    assert isinstance(found, Recipe)
    assert (found.model.name, found.data.source, found.train.epochs) == (name, "a folder", 7)
    assert (found.data.preprocess.height, found.data.preprocess.width) == (96, 96)
    assert tomllib.loads(text)["train"] == {"epochs": 7}


def test_a_folder_may_be_called_like_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mobilenet_v2").mkdir()
    (tmp_path / "net.pt2").touch()
    found = recipe.parse(SMALLEST, "my.toml")
    made = [
        recipe.from_anywhere(replace(found, model=ModelSpec(name=name))).model.name
        for name in ("mobilenet_v2", "net.pt2", "gone.pt2")
    ]
    assert made == ["mobilenet_v2", str(tmp_path / "net.pt2"), "gone.pt2"]
