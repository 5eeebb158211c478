"""A sidecar reads back; a missing, damaged or foreign one is named with its cure."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit import artifact as artifacts
from edgekit.artifact import Artifact, Calibration, Parity
from edgekit.errors import ArtifactError
from tests import tiny_models


def full(path: Path) -> Artifact:
    """A real file with every field of the sidecar set."""
    return replace(
        tiny_models.tflite(path),
        labels=("a", "Straße", '"<script>"', "日本語"),
        parent="0" * 64,
        tools={"torch": "2.14.1", "edgekit": "0.1"},
        calibration=Calibration(count=3, seed=1, method="min-max", images_sha256="1" * 64),
        parity=Parity(images=3, sqnr_db=31.25, top1_agreement=2 / 3, largest_difference=0.1),
        notes=("a note",),
    )


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    artifact = full(tmp_path / "v1.0.tflite")
    artifacts.write_sidecar(artifact)
    return artifact


def test_it_reads_back(made: Artifact) -> None:
    found = artifacts.read(made.path)
    assert found == made
    assert found.path == made.path
    assert sorted(path.name for path in made.path.parent.iterdir()) == ["v1.0.tflite", "v1.0.tflite.json"]


def test_it_reads_back_elsewhere(made: Artifact, tmp_path: Path) -> None:
    """The sidecar holds no folder: both files can be moved together."""
    other = tmp_path / "moved"
    other.mkdir()
    for path in (made.path, artifacts.sidecar(made.path)):
        path.rename(other / path.name)
    assert artifacts.read(other / made.file) == made
    assert str(tmp_path) not in artifacts.sidecar(other / made.file).read_text()


def test_a_renamed_file_has_its_new_name(made: Artifact) -> None:
    """Results are named after files, and two of one name cannot be told apart: renaming is the cure."""
    other = made.path.with_name("older.tflite")
    artifacts.sidecar(made.path).rename(artifacts.sidecar(other))
    assert artifacts.read(made.path.rename(other)) == replace(made, file="older.tflite")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("tflite-int8.tflite", "tflite-int8"),
        ("coreml-fp16.mlpackage", "coreml-fp16"),
        ("mobilenet_v2_1.0_224.tflite", "mobilenet_v2_1.0_224"),  # TensorFlow's own names hold dots
        ("mobilenet_v2_1.4_224.tflite", "mobilenet_v2_1.4_224"),
    ],
)
def test_a_name_is_the_file_without_its_suffix(file: str, name: str, made: Artifact) -> None:
    assert replace(made, file=file).name == name


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"^no such file: .*x\.tflite$"):
        artifacts.read(tmp_path / "x.tflite")


def test_a_missing_sidecar(made: Artifact) -> None:
    artifacts.sidecar(made.path).unlink()
    with pytest.raises(
        ArtifactError,
        match=r"has no sidecar v1\.0\.tflite\.json: give --preprocess and --labels .*, or convert it",
    ):
        artifacts.read(made.path)


def changed(**values: object) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **values})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], r"\.json is damaged: .*; convert the model again"),
        (lambda text: "", r"\.json is damaged: "),
        (lambda text: "[]", r"is not a sidecar of format 1: the file: expected a table, got \[\]"),
        (changed(format=2), "has format 2; this edgekit reads format 1"),
        (changed(taget="x"), "is not a sidecar of format 1: taget: unknown key; did you mean 'target'"),
        (changed(size_bytes=None), "is not a sidecar of format 1: size_bytes: expected a whole number, got None"),
        (changed(input_is="floats"), "input_is: 'floats' is not one of 'pixels', 'normalized'"),
        (changed(calibration={"count": 3}), r"calibration\.seed: missing; it is required"),
    ],
)
def test_a_damaged_sidecar(damage: Callable[[str], str], message: str, made: Artifact) -> None:
    path = artifacts.sidecar(made.path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ArtifactError, match=message) as caught:
        artifacts.read(made.path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_sidecar_that_is_no_text(made: Artifact) -> None:
    artifacts.sidecar(made.path).write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(ArtifactError, match="is damaged: 'utf-8' codec can't decode"):
        artifacts.read(made.path)


def test_another_hash(made: Artifact) -> None:
    content = bytearray(made.path.read_bytes())
    content[-1] ^= 1
    made.path.write_bytes(content)
    with pytest.raises(
        ArtifactError,
        match=rf"is not the file that its sidecar describes: SHA-256 \w{{12}}, expected {made.sha256[:12]};",
    ):
        artifacts.read(made.path)
    assert artifacts.read(made.path, verify=False) == made


def test_a_folder_as_artifact(tmp_path: Path, made: Artifact) -> None:
    from edgekit import files

    package = tmp_path / "x.mlpackage"
    package.mkdir()
    (package / "Manifest.json").write_text("{}")
    described = replace(
        made, file=package.name, path=package, sha256=files.sha256(package), size_bytes=files.size_bytes(package)
    )
    artifacts.write_sidecar(described)
    assert artifacts.read(package) == described
    (package / "more").touch()
    with pytest.raises(ArtifactError, match="is not the file that its sidecar describes"):
        artifacts.read(package)
