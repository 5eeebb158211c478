"""A recipe with [[prune]]: the stage of a run, done once, done anew when the section changes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit import artifact, checkpoint, models, pipeline, recipe, source
from edgekit.errors import RecipeError, UsageError
from edgekit.models.cost import cost
from edgekit.runs import Run
from tests.test_pipeline import SMALL, Silent

SECTIONS = """
[[prune]]
keep_macs = 0.8
epochs = 0
images = 64
[[prune]]
keep_macs = {keep}
epochs = 1
importance = "lamp"
"""


def photos(folder: Path) -> str:
    """Pictures of three colours, 12 each."""
    made = np.random.default_rng(0)
    for place, name in enumerate(("blue", "green", "red")):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = made.integers(0, 120, (32, 32, 3), dtype=np.uint8)
            pixels[:, :, 2 - place] += 130
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    return str(folder / "photos")


def written(folder: Path, keep: float) -> str:
    path = folder / "small.toml"
    path.write_text(
        SMALL.format(epochs=1, seconds=0.5).replace("width = 0.1", "width = 0.2") + SECTIONS.format(keep=keep)
    )
    return str(path)


def macs(folder: Path) -> int:
    return cost(models.restore(checkpoint.read(folder)), 32, 32).macs


def test_a_run_prunes_between_training_and_conversion(tmp_path: Path) -> None:
    run, listener, images = Run(folder=tmp_path / "run"), Silent(), photos(tmp_path)
    pipeline.run(written(tmp_path, 0.6), data=images, listener=listener, out=run.folder, until="convert")
    shares = [macs(run.pruned(number)) / macs(run.dense) for number in (1, 2)]
    assert 0.792 <= shares[0] <= 0.8
    assert 0.594 <= shares[1] <= 0.6
    assert run.checkpoint == run.folder / "prune" / "2" / "train" / "best"
    files = [artifact.read(path) for path in sorted((run.folder / "artifacts").glob("*.tflite"))]
    assert len(files) == 2
    assert not [
        one.name for one in files if one.parity and one.parity.broken(one.precision) and one.precision == "fp32"
    ]
    found = source.find(
        str(run.folder), preprocess=None, labels=None, weights=None, calibrate=None, confirm=lambda _: False
    )
    assert found.source.parent == checkpoint.read(run.checkpoint).weights_sha256
    first = checkpoint.read(run.pruned(1)).weights_sha256

    again = Silent()
    pipeline.run(written(tmp_path, 0.6), data=images, listener=again, out=run.folder, until="convert")
    assert [text.partition(",")[0] for text in again.said if text.startswith("prune")] == [
        "prune: section 1 done already",
        "prune: section 2 done already",
    ]
    assert "convert: 2 files: done already" in again.said

    other = Silent()
    pipeline.run(written(tmp_path, 0.5), data=images, listener=other, out=run.folder, until="prune")
    assert "prune: section 1 done already" in {text.partition(",")[0] for text in other.said}
    assert 0.495 <= macs(run.checkpoint) / macs(run.dense) <= 0.5
    assert checkpoint.read(run.pruned(1)).weights_sha256 == first


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ("keep_macs = 0.5\nkeep_latency = 0.5", "a pruning has one budget"),
        ("epochs = 3", "a pruning has one budget"),
        ("keep_macs = 0", "out of range"),
        ("keep_macs = 0.5\nprecision = 'int8'", "precision is of the files that keep_latency measures"),
        ("keep_macs = 0.5\nimportance = 'tailor'", "'tailor' is not one of .*; did you mean 'taylor'"),
        ("keep_macs = 0.5\nstep = 2", r"prune\[0\]\.step: unknown key; did you mean 'steps'"),
        ("keep_macs = 0.5\n[[prune]]\nkeep_macs = 0.7", "each keep_macs must be less than the one before"),
    ],
)
def test_sections_are_decoded_strictly(section: str, fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        recipe.parse(SMALL.format(epochs=1, seconds=1) + f"\n[[prune]]\n{section}\n", "small.toml")


def test_a_layer_that_does_not_exist_ends_the_stage_and_leaves_the_training(tmp_path: Path) -> None:
    path = Path(written(tmp_path, 0.6))
    path.write_text(path.read_text().replace("images = 64", "images = 64\nspare = ['features.77']"))
    with pytest.raises(UsageError, match=r"no layer 'features\.77' to spare"):
        pipeline.run(str(path), data=photos(tmp_path), listener=Silent(), out=tmp_path / "run", until="prune")
    assert checkpoint.find(tmp_path / "run").metrics["val_top1"] > 0
