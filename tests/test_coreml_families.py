"""Families that are no MobileNetV2, in every Core ML precision: each file holds what coremltools reads out of it.

Their weights are random, so that few bits destroy their answers, as they would not a trained network's: how near a
compressed file is to the float model is asked of the gentle precisions only.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgekit import convert, mil, source
from edgekit.artifact import Artifact
from edgekit.export import calibration_images
from edgekit.parity import sqnr_db
from edgekit.preprocess import preset
from edgekit.quiet import quiet
from edgekit.recipe import CalibrationSpec, Variant
from tests.test_convert import patches, split

pytestmark = pytest.mark.long

NAMES = ("efficientnet_b0", "efficientnet_lite0", "mobilenet_v3_large")
LEAST_DB = {"fp32": 100.0, "fp16": 40.0, "w8": 15.0, "pal8": 10.0}
SIDE = preset("imagenet", 32, 32)
PICTURES = patches(16, SIDE, seed=2)


@pytest.fixture(scope="module", params=NAMES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The family's packages in all precisions."""
    found = source.find(
        request.param,
        preprocess=SIDE,
        labels=tuple("abcdefghij"),
        weights=None,
        calibrate=None,
        confirm=lambda _: False,
    )
    images = partial(calibration_images, split(patches(32, SIDE, seed=1)))
    spec = CalibrationSpec(images=16, seed=7, method="min-max")
    variants = [
        Variant(target="coreml", precision=name, calibration=spec)
        for name in convert.converter("coreml").precisions
    ]
    out = tmp_path_factory.mktemp(request.param)
    files = convert.convert(replace(found.source, calibrate=images), variants, PICTURES, out, lambda *_: None)
    return {one.precision: one for one in files}


def predict(path: Path) -> npt.NDArray[np.float32]:
    images = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float()
    return mil.reference(path).logits(images).numpy()


def test_every_precision_is_made_and_runs(made: dict[str, Artifact]) -> None:
    assert list(made) == list(convert.converter("coreml").precisions)
    assert len(made) == 12
    for name, least in LEAST_DB.items():
        parity = made[name].parity
        assert parity is not None
        assert parity.sqnr_db > least, name
    size = {name: one.size_bytes for name, one in made.items()}
    for smaller, larger in (("fp16", "fp32"), ("w8", "fp16"), ("w4", "w8"), ("pal6", "pal8"), ("pal4", "pal6")):
        assert size[smaller] < size[larger]
    assert size["int8"] < 0.65 * size["fp16"]


def test_the_reference_expands_weights_as_coremltools_does(made: dict[str, Artifact], tmp_path: Path) -> None:
    """A package that coremltools decompressed gives the same answers."""
    with quiet():
        import coremltools as ct

    for name, one in made.items():
        if name in ("fp32", "fp16"):
            continue
        dense = tmp_path / f"{name}.mlpackage"
        with quiet():
            model = ct.models.MLModel(str(one.path), skip_model_load=True)
            ct.optimize.coreml.decompress_weights(model).save(str(dense))
        assert not mil.forms(mil.load(dense)), name
        assert not np.array_equal(predict(made["fp16"].path), found := predict(one.path)), name
        assert sqnr_db(predict(dense), found) > 55, name
