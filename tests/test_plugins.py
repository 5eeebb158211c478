import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import plugins
from edgekit.errors import MissingDependency, UsageError
from edgekit.requires import require

ROOT = Path(__file__).parent.parent


def test_names_are_the_files_of_a_checkout() -> None:
    assert plugins.names("converters") == ["coreml", "onnx", "tflite"]
    assert plugins.names("devices") == ["adb", "fake", "local", "mac", "mac+ssh", "reference", "ssh"]
    assert plugins.names("recipes") == sorted(path.stem for path in (ROOT / "recipes").glob("*.toml"))


@pytest.mark.parametrize("name", plugins.names("devices"))
def test_a_device_says_what_it_is(name: str) -> None:
    """`edgekit device list` shows it."""
    module = plugins.load("devices", name)
    assert module.ADDRESS.partition("://")[0].partition("[")[0] == name
    assert module.ABOUT
    assert callable(module.connect)


def test_a_plug_in_is_loaded_once_under_edgekits_name() -> None:
    found = plugins.load("devices", "fake")
    assert found.__name__ == "edgekit.devices.fake"
    assert plugins.load("devices", "fake") is found


@pytest.mark.parametrize("name", ["lokal", "_agent", "../devices/local", ""])
def test_an_unknown_name_is_told_with_the_choices(name: str) -> None:
    with pytest.raises(
        UsageError, match=r"unknown device .*; choose from adb, fake, local, mac, mac\+ssh, reference"
    ):
        plugins.load("devices", name)


def test_a_missing_package_is_named_with_its_cure() -> None:
    with pytest.raises(MissingDependency) as caught:
        require("no_such_package.part", feature="Converting to nothing", extra="tflite")
    assert str(caught.value) == (
        "Converting to nothing needs the package no_such_package: pip install 'edgekit[tflite]'"
    )


def test_an_entry_point_of_another_package_is_found(tmp_path: Path) -> None:
    """A third party's converter, installed as its own distribution."""
    (tmp_path / "other_tool.py").write_text("target = 'other'\n")
    info = tmp_path / "other_tool-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-tool\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgekit.converters]\nother = other_tool\n")
    code = "from edgekit import plugins\n"
    code += "print(plugins.names('converters'), plugins.load('converters', 'other').target)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.strip() == "['coreml', 'onnx', 'other', 'tflite'] other"
