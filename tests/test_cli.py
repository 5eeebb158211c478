"""The command line as a user meets it: help, choices, exit statuses, one clear line for bad input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from edgekit import artifact as artifacts
from edgekit.cli import COMMANDS, main
from tests import tiny_models

ROOT = Path(__file__).parent.parent


class Told:
    """What a call printed and returned."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *words: str) -> None:
        try:
            self.status = main(words)
        except SystemExit as stop:  # argparse, for --help and missing arguments
            self.status = int(stop.code or 0)
        self.out, self.err = capsys.readouterr()


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_names_every_command_and_gives_examples(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(capsys, "--help")
    assert told.status == 0
    assert all(f"\n  {name} " in told.out for name in COMMANDS)
    assert "edgekit run quickstart" in told.out
    assert max(map(len, told.out.splitlines())) <= 100


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(capsys, command, "--help")
    assert told.status == 0
    assert f"usage: edgekit {command}" in told.out
    assert f"  edgekit {command}" in told.out.partition("examples:")[2]


def test_python_m_edgekit_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "edgekit 0.1.0\n"


BAD = [
    (("runn",), 2, "unknown command 'runn'", "did you mean 'run'?"),
    (("run", "quickstrat"), 2, "unknown recipe 'quickstrat'", "did you mean 'quickstart'?"),
    (("run", "missing.toml"), 2, "no such recipe file: missing.toml", ""),
    (("run", "quickstart", "--data", "photoz"), 1, "no such data: 'photoz'", "digits"),
    (("run", "quickstart", "--data", "empty"), 1, "the folder", "is empty"),
    (("run", "quickstart", "--until", "bensch"), 2, "unknown stage 'bensch'", "did you mean 'bench'?"),
    (
        ("run", "quickstart", "--device", "telepathy://x"),
        2,
        "unknown device 'telepathy'",
        "choose from adb, fake, local, mac, mac+ssh, reference",
    ),
    (("run", "quickstart", "--device", "fake://pi9"), 2, "'pi9'", "pi5"),
    (("run", "quickstart", "--out", "taken"), 2, "taken exists and is no run of edgekit", "--out"),
    (("run", "bad.toml"), 2, "bad.toml: 4 faults", "model.nam: unknown key; did you mean 'name'?"),
    (("train", "mobilenet_v9"), 2, "'mobilenet_v9' is neither a recipe nor a model", "mobilenet_v2"),
    (("train", "mobilenet_v2"), 2, "needs images", "--data DIR"),
    (("train", "quickstart", "--epochs", "3"), 2, "--epochs and --weights belong to a model's name", "edit it"),
    (("convert", "nothing", "--target", "tflite"), 2, "unknown model 'nothing'", "mobilenet_v2"),
    (("convert", "mobilenet_v2", "--target", "tflit"), 2, "unknown target 'tflit'", "did you mean 'tflite'?"),
    (
        ("convert", "mobilenet_v2", "--target", "tflite", "--quantize", "int9"),
        2,
        "unknown precision for tflite 'int9'",
        "did you mean 'int8'?",
    ),
    (("convert", "mobilenet_v2", "--target", "onnx"), 2, "does not say how pixels become its input", "imagenet"),
    (
        ("convert", "empty", "--target", "tflite", "--quantize", "int8,fp16", "--io", "int8"),
        2,
        "--io int8 is for int8 alone",
        "give --quantize int8, not int8,fp16",
    ),
    (
        ("convert", "empty", "--target", "tflite", "--quantize", "int8", "--qat-epochs", "3"),
        2,
        "--qat-epochs is for training",
        "give --quantize int8-qat, or int8 with --max-drop",
    ),
    (
        ("convert", "empty", "--target", "tflite", "--quantize", "fp16", "--qat-images", "300"),
        2,
        "--qat-images is for training",
        "give --quantize int8-qat, or int8 with --max-drop",
    ),
    (
        ("convert", "empty", "--target", "tflite", "--quantize", "int8", "--io", "int8", "--max-drop", "1"),
        2,
        "--io int8 leaves no layer in float",
        "leave out one of them",
    ),
    (("convert", "x", "--target", "tflite", "--size", "96x"), 2, "expected width and height", "got '96x'"),
    (("convert", "no.keras", "--target", "tflite"), 2, "no.keras does not say how pixels become its", "0to255"),
    (
        ("convert", "no.keras", "--target", "tflite", "--preprocess", "0to255"),
        2,
        "no such file: no.keras",
        "",
    ),
    (("convert", "empty", "--target", "onnx"), 1, "neither a run nor a checkpoint", ""),
    (("bench", "missing.tflite"), 1, "no such file: missing.tflite", ""),
    (("bench", "lonely.tflite"), 1, "has no sidecar lonely.tflite.json", "--preprocess"),
    (("bench", "empty"), 2, "empty is neither a run nor a folder of files that edgekit made", ""),
    (("bench", "lonely.tflite", "--preprocess", "0to2"), 1, "not a TFLite model", ""),
    (
        ("bench", "lonely.tflite", "--split", "val"),
        2,
        "--split val chooses among the images of --data",
        "--data DIR",
    ),
    (("bench", "lonely.tflite", "--sustained", "5", "--quick"), 2, "leave out --quick", ""),
    (("bench", "lonely.tflite", "--sustained", "5", "--threads", "1,2"), 2, "one thread count", "--threads 4"),
    (("bench", "lonely.tflite", "--sustained", "0"), 2, "expected minutes", "'0'"),
    (("bench", "--wait", "lonely.tflite"), 2, "expected minutes between 0.1 and 1440, got 'lonely.tflite'", ""),
    (("bench", "lonely.tflite", "--cool-down", "cold"), 2, "expected seconds up to 3600, or off", "'cold'"),
    (("compare", "missing"), 2, "no such file or folder: missing", ""),
    (("compare", "empty"), 2, "neither a run folder nor a folder of result files", ""),
    (("compare", "bad.json"), 1, "bad.json is damaged", "run the benchmark again"),
    (("inspect", "missing.onnx"), 1, "no such file", ""),
    (("inspect", "bad.toml"), 2, "unknown kind of model file '.toml'", ".tflite"),
    (("inspect", "lonely.tflite"), 1, "lonely.tflite is not a TFLite model", ""),
    (("compare", "bad.json", "--json", "taken"), 2, "taken is a folder: name a file", ""),
    (("show", "binary.toml"), 2, "binary.toml: 1 fault", "UTF-8"),
    (("run", "binary.toml"), 2, "binary.toml: 1 fault", "UTF-8"),
    (("list", "recipe"), 2, "unknown kind 'recipe'", "did you mean 'recipes'?"),
    (("list", "precisions", "--target", "tf"), 2, "unknown target 'tf'", "tflite"),
    (("show", "nothing"), 2, "unknown recipe 'nothing'", "quickstart"),
    (("copy", "quickstart", "bad.toml"), 2, "bad.toml exists already", "choose another name"),
    (("copy", "quickstart", "mine"), 2, "a recipe's name ends in .toml", "'mine'"),
]


@pytest.mark.parametrize(("words", "status", "what", "cure"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_bad_input_gets_one_clear_answer(
    words: tuple[str, ...], status: int, what: str, cure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("taken").mkdir()
    Path("taken", "letter.txt").write_text("dear diary")
    Path("bad.toml").write_text("[model]\nnam = 'x'\n")
    Path("binary.toml").write_bytes(b"\xff[model]")
    Path("bad.json").write_text('{"format": 1, ')
    Path("lonely.tflite").write_bytes(b"not a model at all")
    before = sorted(path for path in Path().rglob("*") if path.name != ".lock")
    told = Told(capsys, *words)
    assert told.status == status
    assert what in told.err
    assert cure in told.err
    assert "Traceback" not in told.err
    assert told.out == ""
    assert sorted(path for path in Path().rglob("*") if path.name != ".lock") == before, (
        "something was left behind"
    )


def test_all_faults_of_a_recipe_come_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    main(["copy", "quickstart", "mine.toml"])
    text = Path("mine.toml").read_text()
    text = re.sub(r"epochs = \d+\n", "epochs = 0\n", text, count=1)
    Path("mine.toml").write_text(text.replace("\nwidth = 0.35", "\nwidht = 0.35").replace('"squash"', '"squish"'))
    capsys.readouterr()
    told = Told(capsys, "show", "mine.toml")
    assert told.err.splitlines() == [
        "edgekit: mine.toml: 3 faults",
        "  model.widht: unknown key; did you mean 'width'?",
        "  data.preprocess.resize: 'squish' is not one of 'crop', 'squash', 'pad'; did you mean 'squash'?",
        "  train.epochs: 0 is out of range; it must be at least 1",
    ]


def test_debug_shows_the_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "show", "nothing", "--debug"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "UsageError" in done.stderr


def test_copy_gives_the_recipe_and_show_json_its_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert Told(capsys, "copy", "quickstart", "mine.toml").out == "mine.toml\n"
    assert Told(capsys, "show", "mine.toml").out == Path("mine.toml").read_text()
    value = json.loads(Told(capsys, "show", "mine.toml", "--json", "-").out)
    assert value["train"]["momentum"] == 0.9
    assert [variant["precision"] for variant in value["variant"]] == [
        "fp32",
        "fp16",
        "dyn8",
        "int8",
        "fp16",
        "fp32",
    ]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("recipes", ["quickstart"]),
        ("models", ["mobilenet_v2", "torchvision:NAME", "FILE.py:FACTORY"]),
        ("targets", ["coreml", "onnx", "tflite", ".mlpackage"]),
        ("precisions", ["fp32", "fp16", "dyn8", "int8"]),
        ("devices", ["local", "fake"]),
        ("datasets", ["digits", "cifar10", "DIR"]),
    ],
)
def test_list(kind: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(capsys, "list", kind)
    assert told.status == 0
    assert all(word in told.out for word in words)
    rows = json.loads(Told(capsys, "list", kind, "--json", "-").out)
    assert len(rows) == len(told.out.splitlines()) - 1


def test_doctor_says_what_is_here_and_how_to_get_the_rest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    whole = importlib.metadata.version

    def version(name: str) -> str:
        if name == "coremltools":
            raise importlib.metadata.PackageNotFoundError(name)
        return whole(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setenv("PATH", "")
    told = Told(capsys, "doctor")
    assert told.status == 0
    (line,) = [line for line in told.out.splitlines() if line.startswith("devices over adb")]
    assert "sudo apt install adb" in line
    (line,) = [line for line in told.out.splitlines() if line.startswith("convert to coreml")]
    assert "missing" in line
    assert "pip install 'edgekit[coreml]'" in line
    (line,) = [line for line in told.out.splitlines() if line.startswith("convert to tflite")]
    assert "ok" in line


def test_a_full_disk_is_told_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    told = Told(capsys, "copy", "quickstart", "mine.toml")
    assert told.status == 1
    assert (
        told.err == "edgekit: mine.toml: No space left on device; free some space and run the same command again\n"
    )
    assert not list(Path().iterdir())


def test_an_interrupt_ends_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit import recipe

    def interrupt(name: str) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "path_of", interrupt)
    told = Told(capsys, "run", "quickstart")
    assert told.status == 130
    assert told.err == "edgekit: interrupted; the same command goes on where it stopped\n"


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m edgekit list recipes | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode in (0, 1)
    assert done.stderr == ""


def test_images_without_class_folders(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8)).save(f"photos/{number}.png")
    told = Told(capsys, "run", "quickstart", "--data", "photos")
    assert told.status == 1
    assert "holds 3 images" in told.err
    assert "no class folders" in told.err


def test_bench_takes_a_folder_of_files(capsys: pytest.CaptureFixture[str]) -> None:
    Path("made").mkdir()
    for name in ("a", "b"):
        artifacts.write_sidecar(tiny_models.tflite(Path("made", f"{name}.tflite")))
    told = Told(capsys, "bench", "made", "--quick", "--device", "fake://pi5", "--out", "results")
    assert told.status == 0
    assert sorted(path.name for path in Path("results").glob("*.json")) == ["a.json", "b.json"]
