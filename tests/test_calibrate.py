"""Ranges of activations: what one pass keeps, what each rule makes of it, which one is chosen; bad images."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from edgekit import calibrate, convert, flatbuffer, plugins
from edgekit.artifact import Calibration
from edgekit.calibrate import Histogram, Observed, Range
from edgekit.calibrate.histogram import BINS
from edgekit.data.dataset import Memory, Split
from edgekit.errors import ConversionError, DataError
from edgekit.export import CalibrationImages, ExportSource, PixelClassifier, calibration_images
from edgekit.lower import lower
from edgekit.parity import divergence
from edgekit.preprocess import Pixels, Preprocess
from edgekit.quantize import quantize
from edgekit.quiet import quiet
from edgekit.recipe import CalibrationSpec, Variant

SIDE = 16
CONTRACT = Preprocess(height=SIDE, width=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def seen(values: npt.NDArray[np.float32], *, images: int = 4) -> Observed:
    """What is known of a tensor that held a part of *values* for each image."""
    found = Observed()
    for turn, part in enumerate(np.array_split(values, images)):
        found.add_(part, float(part.min()), float(part.max()), turn)
    return found


def normal(count: int = 40_000, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def rounded(values: npt.NDArray[np.float32], found: Range) -> npt.NDArray[np.float64]:
    """The values after a trip through uint8, computed without the histogram."""
    step = (found.high - found.low) / 255
    zero = round(-found.low / step)
    stored: npt.NDArray[np.float64] = (np.clip(np.round(values / step) + zero, 0, 255) - zero) * step
    return stored


# --- histograms -----------------------------------------------------------------------------------


def test_a_histogram_that_grows_loses_nothing() -> None:
    parts = [
        normal(1000, seed) * scale + shift for seed, (scale, shift) in enumerate([(1e-3, 0), (1, 5), (300, -7)])
    ]
    grown = Histogram()
    for part in parts:
        grown.add_(part)
    values = np.concatenate(parts)
    points, counts = grown.points()
    assert counts.sum() == 3000
    assert np.isclose((points * counts).sum(), values.sum(dtype=np.float64), rtol=1e-9)
    assert np.log2(grown.width) % 1 == 0
    assert np.ptp(values) / BINS <= grown.width <= 4 * np.ptp(values) / BINS
    edges = (grown.first + np.arange(BINS + 1)) * grown.width
    assert np.array_equal(np.histogram(values, edges)[0], grown.counts)  # as if the edges had been known before


@pytest.mark.parametrize("value", [0.0, 6.0, -3.5, 1e-30, 1e30])
def test_a_constant_has_one_point(value: float) -> None:
    points, counts = seen(np.full(100, value, np.float32)).histogram.points()
    assert np.allclose(points, [np.float32(value)], rtol=1e-6)
    assert counts.tolist() == [100]


def test_what_a_network_gives_most_often_stands_exactly_where_it_is() -> None:
    points, counts = seen(np.clip(normal() * 4, 0, 6)).histogram.points()
    assert (points[0], points[-1]) == (pytest.approx(0, abs=1e-4), 6.0)
    assert counts[0] > 19_000


def test_a_large_tensor_is_sampled_in_all_its_channels() -> None:
    channels = np.broadcast_to(np.arange(64, dtype=np.float32), (96, 96, 64))
    found = Observed()
    found.add_(np.ascontiguousarray(channels), 0.0, 63.0, 0)
    points, counts = found.histogram.points()
    assert points.tolist() == list(range(64))
    assert 16_000 < counts.sum() <= 32_768
    assert counts.max() < 1.05 * counts.min()


# --- rules ----------------------------------------------------------------------------------------


def test_min_max_is_exact_and_holds_zero() -> None:
    values = normal()
    assert calibrate.RULES["min-max"](seen(values), 8) == Range(low=float(values.min()), high=float(values.max()))
    assert calibrate.RULES["min-max"](seen(np.abs(values) + 1), 8).low == 0.0


def test_the_moving_average_is_that_of_googles_quantizer() -> None:
    from ai_edge_quantizer.utils import qsv_utils

    parts, expected = [normal(100, seed) * (1 + seed) for seed in range(8)], None
    for part in parts:
        ends = {"min": part.min(), "max": part.max()}
        expected = qsv_utils.moving_average_update(expected, ends)
    found = calibrate.RULES["moving-average"](seen(np.concatenate(parts), images=8), 8)
    assert expected is not None
    assert (found.low, found.high) == pytest.approx((expected["min"], expected["max"]), rel=1e-6)


def test_the_percentile_is_numpys() -> None:
    values = normal(400_000)
    found = calibrate.RULES["percentile"](seen(values, images=20), 8)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values, [0.005, 99.995])), abs=0.02)


@pytest.mark.parametrize("shape", ["normal", "one side", "long tails", "constant"])
def test_no_range_has_less_error_than_that_of_mse(shape: str) -> None:
    values = {
        "normal": normal(),
        "one side": np.abs(normal()),
        "long tails": np.random.default_rng(0).standard_t(3, 40_000).astype(np.float32),
        "constant": np.full(1000, 2.5, np.float32),
    }[shape]
    known = seen(values)
    errors = {}
    for name, rule in calibrate.RULES.items():
        found = rule(known, 8)
        errors[name] = float(((rounded(values, found) - values) ** 2).mean())
        assert calibrate.error(known, found, 8) == pytest.approx(errors[name], rel=0.1, abs=1e-9)
    assert errors["mse"] <= 1.02 * min(errors.values()) + 1e-9
    if shape == "long tails":
        assert errors["mse"] < 0.95 * errors["min-max"]


@pytest.mark.parametrize("rule", calibrate.RULES)
def test_no_rule_clips_the_logits(rule: str) -> None:
    tails = np.random.default_rng(0).standard_t(3, 40_000).astype(np.float32)
    chosen = calibrate.by_rule({"a": seen(tails), "logits": seen(tails)}, rule)
    assert chosen.ranges["logits"] == Range(low=float(tails.min()), high=float(tails.max()))
    assert chosen.rules == {"a": rule, "logits": "min-max"}
    assert (chosen.ranges["a"] == chosen.ranges["logits"]) is (rule == "min-max")


def test_min_max_stays_where_clipping_gains_little_and_for_the_logits() -> None:
    tails = np.random.default_rng(0).laplace(size=4_000_000).astype(np.float32) ** 3
    even = np.random.default_rng(0).uniform(-1, 1, 40_000).astype(np.float32)
    chosen = calibrate.per_tensor(
        {"a": seen(even), "b": seen(tails, images=200), "logits": seen(tails, images=200)}
    )
    assert chosen.rules == {"a": "min-max", "b": "mse", "logits": "min-max"}
    assert chosen.counts == {"min-max": 2, "mse": 1}


# --- networks -------------------------------------------------------------------------------------


class Network(nn.Module):
    """A few layers of every kind of activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.wide = nn.Conv2d(16, 32, 1)
        self.last = nn.Linear(32, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = x + nn.functional.hardswish(self.depthwise(x))
        x = nn.functional.relu6(self.wide(x))
        logits: torch.Tensor = self.last(x.mean((2, 3)))
        return logits


def source(images: CalibrationImages | None = None, scale: float = 1.0) -> ExportSource:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network()
    with torch.no_grad():
        network.last.weight *= 40 * scale
    return ExportSource(
        model=PixelClassifier(network, CONTRACT).eval(),
        preprocess=CONTRACT,
        labels=tuple("abcdef"),
        calibrate=(lambda spec: replace(images, record=replace(images.record, method=spec.method)))
        if images
        else None,
    )


def pictures(count: int, seed: int = 0) -> Pixels:
    return convert.noise((SIDE, SIDE, 3), count, seed)


def given(pixels: Pixels, **options: Any) -> CalibrationImages:
    record = Calibration(count=len(pixels), seed=0, method="auto", images_sha256="")
    return CalibrationImages(pixels_NHWC=pixels, record=record, **options)


@pytest.fixture(scope="module")
def lowered() -> bytes:
    made = source()
    return lower(made.model, made.shape_NHWC)


def test_one_pass_sees_what_torch_computes(lowered: bytes) -> None:
    images, network = pictures(20), source().model
    kept: list[torch.Tensor] = []
    network.model.get_submodule("stem").register_forward_hook(lambda *args: kept.append(args[2].relu()))
    logits = network(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    found = calibrate.observe(lowered, images)
    first, last = found["model.stem"], found["model.last"]
    assert (first.low, first.high) == pytest.approx((kept[0].min().item(), kept[0].max().item()), abs=1e-5)
    assert (last.low, last.high) == pytest.approx((logits.min().item(), logits.max().item()), rel=1e-5)
    assert np.array_equal(
        calibrate.logits(lowered, images).shape, logits.shape
    )  # the helper that compares files runs the same one
    assert sum(known.histogram.counts.sum() for known in found.values()) == 20 * sum(sizes(lowered))


def sizes(content: bytes) -> list[int]:
    model = flatbuffer.unpack(content)
    graph = model.subgraphs[0]
    return [int(np.prod(graph.tensors[op.outputs[0]].shape)) for op in graph.operators]


def test_the_order_of_the_images_does_not_matter_to_the_moving_average_of_classes(lowered: bytes) -> None:
    """In a folder one class comes after the other: the average must not be that of the last class."""
    dark, light = pictures(60) // 8, pictures(60, seed=1)
    one, other = (
        next(iter(calibrate.observe(lowered, np.concatenate(parts)).values()))
        for parts in ((dark, light), (light, dark))
    )
    assert one.average_high == pytest.approx(other.average_high, rel=0.5)


def test_the_fields_of_the_sidecar(tmp_path: Path) -> None:
    images = given(pictures(40))
    for method in ("auto", "min-max", "moving-average", "percentile", "mse"):
        asked = Variant(target="tflite", precision="int8", calibration=CalibrationSpec(method=method))
        [made] = convert.convert(source(images), [asked], pictures(8, 1), tmp_path / method, lambda *_: None)
        assert made.calibration is not None
        assert made.calibration.method == method
        assert sum(made.calibration.rules.values()) == 9  # tensors
        assert set(made.calibration.divergence) == (
            {*calibrate.RULES, "per tensor"} if method == "auto" else set()
        )
        if method != "auto":
            logits = {"min-max": 9} if method == "min-max" else {"min-max": 1, method: 8}
            assert made.calibration.rules == logits


def test_precisions_and_methods_share_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    tflite = plugins.load("converters", "tflite")
    observe = calibrate.observe
    monkeypatch.setattr(tflite.calibrate, "observe", lambda *args: passes.append(1) or observe(*args))  # type: ignore[func-returns-value]
    variants = [Variant(target="tflite", precision=precision) for precision in ("int8", "int16x8")]
    int8, int16 = convert.convert(source(given(pictures(40))), variants, pictures(8, 1), tmp_path, lambda *_: None)
    assert len(passes) == 1
    assert int16.calibration is not None
    assert int16.calibration.rules == {"min-max": 9}  # 16 bits: nothing is worth clipping
    assert int8.parity is not None
    assert int16.parity is not None
    assert int16.parity.sqnr_db > int8.parity.sqnr_db + 1


def louder(content: bytes, factor: float) -> bytes:
    """The file with the weights of its last layer times *factor*."""
    model = flatbuffer.unpack(content)
    graph = model.subgraphs[0]
    weights = model.buffers[graph.tensors[graph.operators[-1].inputs[1]].buffer]
    weights.data = (np.asarray(weights.data).view(np.float32) * np.float32(factor)).view(np.uint8)
    return flatbuffer.pack(model)


@pytest.mark.parametrize(
    ("wrong", "best"),
    [
        ({"min-max": 0.30, "moving-average": 0.5, "percentile": 0.1, "mse": 0.2}, "percentile"),
        ({"min-max": 0.30, "moving-average": 0.5, "percentile": 0.4, "mse": 0.2}, "mse"),
        ({"min-max": 0.30, "moving-average": 0.5, "percentile": 0.4, "mse": 0.297}, "min-max"),  # by chance, maybe
        ({"min-max": 0.10, "moving-average": 0.5, "percentile": 0.4, "mse": 0.3}, "min-max"),
    ],
)
def test_the_measured_file_decides(wrong: dict[str, float], best: str, lowered: bytes) -> None:
    images = pictures(40)
    observed = calibrate.observe(lowered, images)
    ranges = {rule: calibrate.by_rule(observed, rule).ranges for rule in calibrate.RULES}

    def quantize(asked: calibrate.Ranges) -> bytes:
        [rule, *_] = [rule for rule, known in ranges.items() if known == asked] or ["moving-average"]
        return louder(lowered, 1 + wrong[rule])

    chosen = calibrate.choose(observed, lowered, images, quantize)
    *others, logits = chosen.rules.values()
    assert (set(others), logits) == ({best}, "min-max")
    assert chosen.ranges == ranges[best]
    assert list(chosen.divergence) == [*calibrate.RULES, "per tensor"]


def test_auto_is_not_worse_than_any_rule_on_other_images(lowered: bytes) -> None:
    def with_ranges(ranges: calibrate.Ranges) -> bytes:
        with quiet():
            return quantize(lowered, "int8", ranges)

    images, fresh = pictures(200), pictures(200, seed=5)
    observed = calibrate.observe(lowered, images)
    wanted = calibrate.logits(lowered, fresh)

    def measured(chosen: calibrate.Chosen) -> float:
        return divergence(wanted, calibrate.logits(with_ranges(chosen.ranges), fresh))

    auto = measured(calibrate.choose(observed, lowered, images, with_ranges))
    assert auto <= 1.2 * min(measured(calibrate.by_rule(observed, rule)) for rule in calibrate.RULES)
    assert auto < 1e-3


def test_divergence_knows_what_matters() -> None:
    logits = np.array([[9.0, 8.0, -5.0]], np.float32)
    assert divergence(logits, logits + 3) == pytest.approx(0, abs=1e-9)
    assert (
        divergence(logits, logits + np.array([0, 0, 2], np.float32)) < 1e-4
    )  # a class that is out of the question
    assert divergence(logits, logits + np.array([0, 2, 0], np.float32)) > 0.3


def test_512_images_of_224_pixels_fit_into_two_gigabytes() -> None:
    """Memory does not grow with the images: what 100 of them take is next to nothing."""
    code = """
import resource, numpy as np, torch
from torch import nn
from edgekit import calibrate
from edgekit.lower import lower

network = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU6(), nn.Conv2d(32, 64, 1), nn.ReLU6())
content = lower(nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)), (1, 224, 224, 3))
images = np.random.default_rng(0).integers(0, 256, (512, 224, 224, 3), dtype=np.uint8)
for count in (8, 108):
    calibrate.observe(content, images[:count])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before_kb, after_kb = map(int, done.stdout.split())
    assert after_kb - before_kb < 20_000
    assert after_kb < 2_000_000


# --- bad images -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pictures(1), "calibration needs at least 2 images, better 200 or more; got 1"),
        (pictures(0), "at least 2 images, better 200 or more; got 0"),
        (
            np.full((5, SIDE, SIDE, 3), [[[[9, 8, 7]]]], np.uint8),
            "each of the 5 calibration images is of one colour",
        ),
        (pictures(1).repeat(7, 0), "all 7 calibration images are the same"),
    ],
)
def test_images_that_cannot_set_ranges(images: Pixels, message: str, lowered: bytes) -> None:
    with pytest.raises(DataError, match=message):
        calibrate.observe(lowered, images)


def test_activations_that_are_no_numbers_name_the_tensor_and_the_image() -> None:
    dense = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        dense.weight.fill_(1e37)  # what is brighter than 11 overflows
    content = lower(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense), (1, SIDE, SIDE, 3))
    images = pictures(4) // 64
    calibrate.observe(content, images)
    images[2] = 200 + pictures(1)[0] // 64
    with pytest.raises(
        ConversionError, match=r"3 of 3 values of \w+ are NaN or infinite for image dog/2\.jpg: the"
    ):
        calibrate.observe(content, images, ("cat/0.jpg", "cat/1.jpg", "dog/2.jpg", "dog/3.jpg"))


def test_doubts_come_with_numbers() -> None:
    images = pictures(300)
    assert calibrate.doubts(given(images)) == ()
    images[:3] = 77
    assert calibrate.doubts(given(images)) == ("3 of 300 calibration images are of one colour",)
    assert calibrate.doubts(given(images[3:20])) == (
        "calibrated on 17 images only: with fewer than 200 ranges are uncertain",
    )
    lacking = tuple(f"{name}/1.jpg" for name in ("ant", "bee", "cat", "dog", "elk", "fox", "gnu"))
    assert calibrate.doubts(given(pictures(300), lacking=lacking)) == (
        "the calibration images show nothing of 7 of the classes: those of ant/1.jpg, bee/1.jpg, cat/1.jpg, "
        "dog/1.jpg, elk/1.jpg and 2 more",
    )
    assert calibrate.doubts(given(pictures(300), absent=("ant", "bee"))) == (
        "there is no calibration image of 2 of the model's classes: ant, bee",
    )


@pytest.mark.parametrize(("bias", "noted"), [(-1e4, 1), (0.0, 0)])
def test_tensors_of_zeros_are_told(bias: float, noted: int, tmp_path: Path) -> None:
    made = source(given(pictures(24)))
    wide = made.model.model.wide
    assert isinstance(wide, nn.Conv2d)
    assert wide.bias is not None
    with torch.no_grad():
        wide.bias += bias
    [file] = convert.convert(
        made, [Variant(target="tflite", precision="int8")], pictures(8), tmp_path, lambda *_: None
    )
    told = [note for note in file.notes if note.startswith("no values but zeros on the calibration images: ")]
    assert len(told) == noted
    assert all("model.wide" in note for note in told)


def test_classes_that_the_choice_lacks_are_known() -> None:
    labels = (0,) * 30 + (1, 1) + (2,) * 30
    ids = tuple(f"{'abc'[label]}/{row}.jpg" for row, label in enumerate(labels))
    split = Split(ids=ids, labels=labels, reader=Memory(pixels=pictures(62)), rows=np.arange(62))
    found = calibration_images(split, CalibrationSpec(images=8))
    assert found.lacking == ("b/30.jpg",)
    assert len(found.ids) == 8
    whole = CalibrationSpec(images=62)
    assert calibration_images(split, whole).lacking == ()
    found = calibration_images(split, whole, classes=("a", "b", "c"), labels=("a", "b", "c", "d", "e"))
    assert (found.lacking, found.absent) == ((), ("d", "e"))
    assert calibration_images(split, whole, classes=("x", "y", "z"), labels=("a", "b")).absent == ()
