"""What `edgekit convert` may be given: a model by name, a run, a checkpoint; each fault has its line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgekit import checkpoint, models, source
from edgekit.checkpoint import Checkpoint
from edgekit.convert import noise
from edgekit.errors import CheckpointError, ConversionError, DataError, UsageError
from edgekit.files import sha256
from edgekit.parity import faint
from edgekit.preprocess import Preprocess
from edgekit.recipe import CalibrationSpec, ModelSpec
from edgekit.runs import Run
from edgekit.source import Found

CONTRACT = Preprocess(height=8, width=8)
OWN = """
import torch
from torch import nn

def net(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))

def picture():
    return nn.Conv2d(3, 3, 1)

def pair():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair()
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def find(model: object, **options: Any) -> Found:
    given: dict[str, Any] = {
        "preprocess": CONTRACT,
        "labels": None,
        "weights": None,
        "calibrate": None,
        "confirm": lambda question: False,
    }
    return source.find(str(model), **{**given, **options})


def test_a_built_in_model_by_name() -> None:
    found = find("mobilenet_v2", preprocess=Preprocess(height=32, width=32))
    assert found.name == "mobilenet_v2"
    assert found.source.labels == tuple(map(str, range(1000)))
    assert found.source.logits(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 1000)
    assert found.source.calibrate is None
    assert not found.source.torch_model("tflite").training
    assert found.notes[0].startswith(
        "mobilenet_v2 has random weights: its latency counts, its accuracy does not (--weights FILE"
    )
    assert found.notes[1:] == ("no --labels: the 1000 classes are called 0 to 999",)


def test_random_weights_are_the_same_each_time() -> None:
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    size = Preprocess(height=32, width=32)
    first, second = (find("mobilenet_v2", preprocess=size, labels=("a", "b")).source.logits(pixels) for _ in "12")
    assert first.shape == (1, 2)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"])
def test_what_random_weights_give_can_be_held_in_fp16(name: str) -> None:
    logits = find(name, preprocess=Preprocess(height=32, width=32)).source.logits(noise((32, 32, 3), 8, seed=3))
    assert 1e-3 < float(np.abs(logits).mean()) < 10  # 1e-9 as torch makes them
    assert float(logits.std(0).mean()) > 1e-3  # and they depend on the image
    assert faint(logits) == ""


def test_finding_leaves_the_generator_as_it_was(own: Path) -> None:
    before = torch.random.get_rng_state()
    find(f"{own}:net")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_labels_set_the_number_of_classes(own: Path) -> None:
    found = find(f"{own}:net", labels=("ant", "bee", "cat"))
    assert (found.name, found.source.labels, found.notes) == ("own", ("ant", "bee", "cat"), ())
    with pytest.raises(UsageError, match=r"own\.py:fixed gives 4 scores, but there are 3 labels"):
        find(f"{own}:fixed", labels=("ant", "bee", "cat"))
    assert find(f"{own}:fixed").source.labels == ("0", "1", "2", "3")


def test_a_model_by_name_needs_a_contract(own: Path) -> None:
    for name in ("mobilenet_v2", f"{own}:net"):
        with pytest.raises(
            UsageError, match="does not say how pixels become its input: give --preprocess imagenet"
        ):
            find(name, preprocess=None)


def test_an_unknown_name_comes_before_the_contract() -> None:
    with pytest.raises(UsageError, match=r"unknown model 'mobilenetv2'.*did you mean 'mobilenet_v2'"):
        find("mobilenetv2", preprocess=None)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("picture", r"gives \(1, 3, 8, 8\); a classifier gives scores of shape \(1, classes\)"),
        ("pair", r"gives tuple; a classifier gives scores of shape \(1, classes\)"),
    ],
)
def test_a_model_that_is_no_classifier(function: str, message: str, own: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        find(f"{own}:{function}")


def test_a_model_of_another_size(own: Path) -> None:
    with pytest.raises(
        ConversionError, match=r"own\.py:net does not run on \(1, 3, 9, 9\): mat1 and mat2"
    ) as caught:
        find(f"{own}:net", preprocess=Preprocess(height=9, width=9))
    assert "\n" not in str(caught.value)


# --- weights --------------------------------------------------------------------------------------


def dense(classes: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"1.weight": torch.randn(classes, 192, generator=generator), "1.bias": torch.zeros(classes)}


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_weights_of_a_file(name: str, own: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path, tensors = tmp_path / name, dense()
    save_file(tensors, path) if name.endswith("s") else torch.save(tensors, path)
    found = find(f"{own}:fixed", weights=path, labels=tuple("abcd"))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    flat = torch.from_numpy(pixels).permute(0, 3, 1, 2).flatten(1).float() / 255
    assert np.allclose(found.source.logits(pixels), flat @ tensors["1.weight"].T, atol=1e-4)
    assert found.source.parent == sha256(path)
    assert found.notes == ()


class Payload:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (Path("unpickled"),)


OTHER_OBJECTS = "it holds other Python objects, or is damaged; save model.state_dict\\(\\) instead"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pt", b"", "Ran out of input|EOFError"),
        ("x.pt", b"text that is no archive", "."),
        ("x.safetensors", b"", "."),
        ("x.safetensors", b"text that is no safetensors file", "."),
        ("x.pt", [1, 2], "Expected state_dict to be dict-like"),
        ("x.pt", {"1.weight": torch.zeros(4, 192)}, "Missing key.*1.bias"),
        ("x.pt", {"1.weight": torch.zeros(5, 192), "1.bias": torch.zeros(5)}, "size mismatch for 1.weight"),
        ("x.pt", {"state_dict": dense()}, "Unexpected key.*state_dict"),
        ("x.pt", nn.Linear(2, 2), OTHER_OBJECTS),
        ("x.pt", Payload(), OTHER_OBJECTS),
    ],
)
def test_weights_that_do_not_fit(
    name: str, content: object, message: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(
        CheckpointError, match=rf"--weights .*x\.\w+ does not hold this model's tensors: .*({message})"
    ) as caught:
        find(f"{own}:fixed", weights=path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "unpickled").exists()  # nothing in a file is run


def test_a_missing_file_of_weights(own: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--weights: no such file: .*x\.pt"):
        find(f"{own}:fixed", weights=tmp_path / "x.pt")


# --- folders --------------------------------------------------------------------------------------

TINY = ModelSpec(name="mobilenet_v2", width=0.1, stem_stride=1)


def trained(folder: Path, classes: tuple[str, ...] = tuple("0123456789")) -> Checkpoint:
    with torch.random.fork_rng(devices=[]):
        model = models.build(TINY, len(classes))
    blank = Checkpoint(model=TINY, classes=classes, preprocess=Preprocess(height=32, width=32, resize="squash"))
    return checkpoint.write(folder, blank, dict(model.state_dict()))


def test_a_checkpoint_folder(tmp_path: Path) -> None:
    written = trained(tmp_path / "best", ("cat", "dog"))
    found = find(tmp_path / "best", preprocess=None)
    assert (found.name, found.notes, found.source.calibrate) == ("best", (), None)
    assert (found.source.labels, found.source.preprocess) == (("cat", "dog"), written.preprocess)
    assert found.source.parent == written.weights_sha256
    assert found.source.logits(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 2)


@pytest.mark.parametrize("option", [{"preprocess": CONTRACT}, {"labels": ("a",)}, {"weights": Path("x.pt")}])
def test_a_folder_brings_its_own(option: dict[str, Any], tmp_path: Path) -> None:
    trained(tmp_path / "best")
    with pytest.raises(UsageError, match="brings its own preprocess, labels and weights: leave out those options"):
        find(tmp_path / "best", **{"preprocess": None, **option})


def test_another_folder(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"is neither a run nor a checkpoint: it holds no checkpoint\.json and no train/best"
    ):
        find(tmp_path, preprocess=None)


def test_damaged_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "best"
    trained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: SHA-256"):
        find(folder, preprocess=None)
    (folder / "checkpoint.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"checkpoint\.json is damaged"):
        find(folder, preprocess=None)


def recipe_text(data: str) -> str:
    return f"""
    [model]
    name = "mobilenet_v2"
    width = 0.1
    stem_stride = 1
    [data]
    source = {json.dumps(data)}
    [data.preprocess]
    height = 32
    width = 32
    resize = "squash"
    [train]
    epochs = 1
    """


def test_a_run_calibrates_on_its_own_training_images(tmp_path: Path) -> None:
    run = Run(folder=tmp_path / "first")
    run.begin("first", "digits", recipe_text("digits"))
    trained(run.checkpoint)
    found = find(run.folder, preprocess=None)
    assert found.name == "first"
    assert found.source.calibrate is not None
    images = found.source.calibrate(CalibrationSpec(images=12, seed=5))
    assert images.pixels_NHWC.shape == (12, 32, 32, 3)
    assert (images.record.count, images.record.seed) == (12, 5)


def test_a_run_that_is_not_trained_yet(tmp_path: Path) -> None:
    run = Run(folder=tmp_path / "first")
    run.begin("first", "digits", recipe_text("digits"))
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*best: checkpoint\.json is missing"):
        find(run.folder, preprocess=None)


def test_the_data_of_a_run_may_have_gone_until_it_is_needed(tmp_path: Path) -> None:
    run = Run(folder=tmp_path / "first")
    run.begin("first", str(tmp_path / "gone"), recipe_text("digits"))
    trained(run.checkpoint)
    found = find(run.folder, preprocess=None)  # float files need none
    assert found.source.calibrate is not None
    with pytest.raises(DataError, match=r"no such data: .*gone"):
        found.source.calibrate(CalibrationSpec())


def test_calibration_images_of_a_folder(own: Path, tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(5):
            shade = 40 * index + (name == "bee")
            Image.new("RGB", (20, 16), (shade, 0, 0)).save(tmp_path / "photos" / name / f"{index}.png")
    found = find(f"{own}:fixed", calibrate=str(tmp_path / "photos"))
    assert found.source.calibrate is not None
    images = found.source.calibrate(CalibrationSpec(images=200))
    assert images.pixels_NHWC.shape[1:] == (8, 8, 3)
    assert images.record.count == len(np.unique(images.pixels_NHWC[:, 0, 0, 0])) > 0
    with pytest.raises(DataError, match="no such data"):
        find(f"{own}:fixed", calibrate=str(tmp_path / "phtos"))
