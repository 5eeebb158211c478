"""Every family in every precision with LiteRT's arm64 build under QEMU: what XNNPACK takes, what it answers.

Speed cannot be seen there. `scripts/setup-emulated-devices` makes what this needs; else the tests are skipped.
"""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import convert, flatbuffer, models
from edgekit.artifact import Calibration
from edgekit.export import CalibrationImages, ExportSource, PixelClassifier
from edgekit.preprocess import preset
from edgekit.recipe import ModelSpec, Variant
from tests.emulated import CPUS, PYTHON, environment, needs_arm64

pytestmark = [pytest.mark.slow, pytest.mark.arm64, needs_arm64]
FAMILIES = (
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_lite0",
)
SIDE, IMAGES, CLASSES = 64, 4, 100
PROGRAM = Path(__file__).with_name("on_arm64.py")
LIMIT_S = 900
# Signal over difference to this machine's answers, in dB, at least. Float kernels add in another order, int8 ones
# may round a product differently (here 109 dB and more). What dyn8 rounds on its way, and int8-mixed after each of
# its layers in float, random weights make larger from layer to layer: the signal over its own error is 1 to 16 dB,
# over that between machines 17 and more, and the class may be another.
NEAR_DB = {"fp32": 90.0, "fp16": 90.0, "w8": 90.0, "int8": 40.0}
ROUGH_DB = {"dyn8": 12.0, "int8-mixed": 12.0}
PRECISIONS = (*NEAR_DB, *ROUGH_DB)
Answer = dict[str, Any]


def alive(name: str) -> PixelClassifier:
    """A network of random weights whose answers depend on the image, as a trained one's do.

    Its batch norms have the statistics of pictures; with those of a fresh network all logits round to one int8.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PixelClassifier(models.build(ModelSpec(name=name), CLASSES), preset("imagenet", SIDE, SIDE))
        norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        model.eval()
        for norm in norms:
            norm.train().momentum = None  # the mean over all batches
        with torch.no_grad():
            for seed in range(2):
                model(torch.from_numpy(convert.noise((SIDE, SIDE, 3), 16, seed)).permute(0, 3, 1, 2).float())
    return model.eval()


def written(name: str, out: Path) -> list[Path]:
    """The family's file in each precision. int8-mixed keeps the middle third of the convolutions in float."""
    pictures = convert.noise((SIDE, SIDE, 3), 16)
    record = Calibration(count=len(pictures), seed=0, method="min-max", images_sha256="")
    source = ExportSource(
        model=alive(name),
        preprocess=preset("imagenet", SIDE, SIDE),
        labels=tuple(map(str, range(CLASSES))),
        calibrate=lambda spec: CalibrationImages(pixels_NHWC=pictures, record=record),
    )
    found = []
    layers: list[str] = []
    for precision in PRECISIONS:
        keep = tuple(layers[len(layers) // 3 : 2 * len(layers) // 3]) if precision == "int8-mixed" else ()
        path = out / f"{name}-{precision}.tflite"
        variant = Variant(target="tflite", precision=precision, keep_float=keep)
        convert.converter("tflite").convert(source, variant, path)
        if precision == "fp32":
            details = flatbuffer.details(flatbuffer.unpack(path.read_bytes()))
            layers = [one.name for one in details if "CONV" in one.kind]
        found.append(path)
    return found


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arm64")
    inputs, path = folder / "inputs.npy", folder / "job.json"
    np.save(inputs, convert.noise((SIDE, SIDE, 3), IMAGES, seed=7))
    files = [str(file) for name in FAMILIES for file in written(name, folder)]
    path.write_text(json.dumps({"inputs": str(inputs), "files": files}))
    return path


@cache
def answers(job: Path, cpu: str) -> dict[str, Answer]:
    """What each file gives on *cpu*; "" is this machine."""
    python, variables = (str(PYTHON), environment(cpu)) if cpu else (sys.executable, None)
    command = [python, str(PROGRAM), str(job)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {Path(one["file"]).stem: one for one in found}


def sqnr_db(reference: list[list[float]], values: list[list[float]]) -> float:
    wanted, found = np.array(reference), np.array(values)
    wanted, found = wanted - wanted.mean(axis=0), found - wanted.mean(axis=0)  # what depends on the image
    return float(10 * np.log10((wanted**2).sum() / max(((wanted - found) ** 2).sum(), 1e-12)))


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("family", FAMILIES)
def test_xnnpack_takes_every_operator(job: Path, family: str, cpu: str) -> None:
    for precision in PRECISIONS:
        found, here = (answers(job, where)[f"{family}-{precision}"] for where in (cpu, ""))
        assert found["machine"] == "aarch64"
        outside = found["taken"].count(False)
        assert (precision, outside) == (precision, 0)
        assert found["taken"] == here["taken"]  # so what `edgekit inspect` says here holds there


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_answers_are_those_of_this_machine(job: Path, family: str, cpu: str) -> None:
    for precision, bound_db in (NEAR_DB | ROUGH_DB).items():
        found, here = (answers(job, where)[f"{family}-{precision}"]["answers"] for where in (cpu, ""))
        assert np.ptp(np.array(here), axis=0).max() > 0  # they depend on the image
        assert (precision, sqnr_db(here, found) > bound_db) == (precision, True)
        if precision in NEAR_DB:
            assert np.argmax(found, axis=1).tolist() == np.argmax(here, axis=1).tolist()
