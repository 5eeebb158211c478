"""A checkpoint reads back as it was written; a damaged one says what is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgekit import checkpoint
from edgekit.checkpoint import Checkpoint
from edgekit.errors import CheckpointError
from edgekit.preprocess import Preprocess
from edgekit.recipe import ModelSpec

BLANK = Checkpoint(
    model=ModelSpec(name="mobilenet_v2", width=0.35),
    classes=("cat", "dog"),
    preprocess=Preprocess(height=32, width=48, mean=(0.1, 0.2, 0.3)),
    metrics={"val_top1": 0.5},
    provenance={"data": "pets"},
)
WEIGHTS = {
    "conv": torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "count": torch.tensor(3),
}


def test_it_reads_back(tmp_path: Path) -> None:
    written = checkpoint.write(tmp_path / "best", BLANK, WEIGHTS)
    assert checkpoint.read(tmp_path / "best") == written == replace(BLANK, weights_sha256=written.weights_sha256)
    weights = checkpoint.read_weights(written)
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in WEIGHTS.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]


def test_tensors_that_share_memory_are_kept(tmp_path: Path) -> None:
    tied = torch.ones(2, 2)
    weights = checkpoint.read_weights(checkpoint.write(tmp_path / "best", BLANK, {"a": tied, "b": tied}))
    assert torch.equal(weights["a"], weights["b"])


def test_the_new_one_replaces_the_old_one_whole(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "best", BLANK, WEIGHTS)
    (tmp_path / "best" / "extra").touch()
    checkpoint.write(tmp_path / "best", replace(BLANK, classes=("a",)), WEIGHTS)
    assert checkpoint.read(tmp_path / "best").classes == ("a",)
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["checkpoint.json", "model.safetensors"]


def test_a_failed_write_leaves_the_old_one(tmp_path: Path) -> None:
    before = checkpoint.write(tmp_path / "best", BLANK, WEIGHTS)
    with pytest.raises(AttributeError):
        checkpoint.write(tmp_path / "best", BLANK, {"a": "no tensor"})  # type: ignore[dict-item]
    assert checkpoint.read(tmp_path / "best") == before
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*: checkpoint.json is missing"):
        checkpoint.read(tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    written = checkpoint.write(tmp_path / "best", BLANK, WEIGHTS)
    path = tmp_path / "best" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"is damaged: SHA-256 .*, expected .*; train again"):
        checkpoint.read_weights(written)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"no weights in .*: model.safetensors is missing"):
        checkpoint.read_weights(written)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged: "),
        ("[]", "is not a checkpoint of format 1: "),
        ('{"format": 1}', "is not a checkpoint of format 1: model: missing"),
    ],
)
def test_a_damaged_description(text: str, message: str, tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "best", BLANK, WEIGHTS)
    (tmp_path / "best" / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read(tmp_path / "best")


def test_another_format(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "best", BLANK, WEIGHTS)
    path = tmp_path / "best" / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 9}))
    with pytest.raises(CheckpointError, match="has format 9; this edgekit reads format 1"):
        checkpoint.read(tmp_path / "best")
