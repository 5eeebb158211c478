"""Pruned networks become files of every target, and the files compute what the networks do."""

from pathlib import Path

import pytest
import torch

from edgekit import checkpoint, models
from edgekit.checkpoint import Checkpoint
from edgekit.convert import convert, noise
from edgekit.export import from_checkpoint
from edgekit.preprocess import preset
from edgekit.prune import surgery
from edgekit.recipe import ModelSpec, Variant
from tests.test_prune import FAMILIES, LABELS, SIDE, WIDTH, chosen, graph, network


def pruned(name: str, share: float, folder: Path) -> Checkpoint:
    dense, found = network(name), graph(name)
    small = surgery.pruned(dense, found.groups, chosen(found, share, scope="layer").kept)
    spec = ModelSpec(name=name, width=WIDTH, channels=surgery.table(small, dense))
    described = Checkpoint(model=spec, classes=LABELS, preprocess=preset("imagenet", SIDE, SIDE))
    return checkpoint.write(folder, described, small.state_dict())


def converted(found: Checkpoint, target: str, out: Path) -> float:
    """The signal to noise of the file, in decibels; it is sound."""
    source = from_checkpoint(found, None)
    images = noise(source.shape_NHWC[1:], 16)
    with torch.no_grad():
        [made] = convert(source, [Variant(target=target, precision="fp32")], images, out, lambda *_: None)
    assert made.parity is not None
    assert not made.parity.broken("fp32")
    return made.parity.sqnr_db


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small"])
def test_a_family_at_half_is_converted_to_tflite(name: str, tmp_path: Path) -> None:
    found = pruned(name, 0.5, tmp_path / "net")
    assert converted(found, "tflite", tmp_path / "files") > 80
    dense = sum(p.numel() for p in network(name).parameters())
    left = sum(p.numel() for p in models.restore(found).parameters())
    size = (tmp_path / "files" / "tflite-fp32.tflite").stat().st_size
    assert left < 0.8 * dense
    assert 4 * left * 0.95 < size < 4 * left + 60_000  # batch norms are folded; the graph takes some


@pytest.mark.long
@pytest.mark.parametrize("target", ["tflite", "onnx", "coreml"])
@pytest.mark.parametrize("share", [0.5, 0.3])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_converted_to_every_target(name: str, share: float, target: str, tmp_path: Path) -> None:
    assert converted(pruned(name, share, tmp_path / "net"), target, tmp_path / "files") > 60
