"""One network becomes six files that compute the same; contracts, interruption, damage, foreign files."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgekit import artifact as artifacts
from edgekit import convert, files, flatbuffer, inputs, models, plugins
from edgekit.artifact import Artifact
from edgekit.convert import Converter
from edgekit.data.dataset import Memory, Split
from edgekit.errors import ArtifactError, ConversionError, EdgekitError, UsageError
from edgekit.export import ExportSource, Logits, PixelClassifier, calibration_images
from edgekit.parity import parity
from edgekit.preprocess import Pixels, Preprocess, normalized, pixels
from edgekit.recipe import CalibrationSpec, ModelSpec, Variant
from edgekit.schema import decode
from tests import tiny_models

if TYPE_CHECKING:
    import converters.coreml
    import converters.onnx
    import converters.tflite

    _modules: tuple[Converter, ...] = (converters.coreml, converters.onnx, converters.tflite)

TARGETS = ("coreml", "onnx", "tflite")
ALL = ("tflite-fp32", "tflite-fp16", "tflite-dyn8", "tflite-int8", "coreml-fp16", "onnx-fp32")
LABELS = ("cat", "Straßenbahn", "日本語", 'a "quote", \\', "<script>alert(1)</script>", "back\tslash'")
STEPS = 100
PREPROCESS = Preprocess(height=32, width=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SMALL = Preprocess(height=8, width=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def quiet_progress(text: str, share: float) -> None: ...


def variant(name: str) -> Variant:
    target, _, precision = name.partition("-")
    return Variant(target=target, precision=precision)


def one(source: ExportSource, name: str, images: Pixels, out: Path) -> Artifact:
    [made] = convert.convert(source, [variant(name)], images, out, quiet_progress)
    return made


def photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_image

    return [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]


def split(images: Pixels) -> Split:
    count = len(images)
    ids = tuple(f"{index:03}.png" for index in range(count))
    return Split(ids=ids, labels=(0,) * count, reader=Memory(pixels=images), rows=np.arange(count))


def labelled(count: int, preprocess: Preprocess, seed: int) -> tuple[Pixels, list[int]]:
    """Pieces of two photographs; the class is the picture and where in it: at the top, the middle, the bottom."""
    rng, pictures, found, classes = np.random.default_rng(seed), photographs(), [], []
    for index in range(count):
        picture, third = pictures[index % 2], index // 2 % 3
        side, left, shift = (
            int(rng.integers(120, 160)),
            int(rng.integers(picture.width - 160)),
            int(rng.integers(20)),
        )
        top = third * (picture.height - 180) // 2 + shift
        found.append(pixels(picture.crop((left, top, left + side, top + side)), preprocess))
        classes.append(3 * (index % 2) + third)
    return np.stack(found), classes


def patches(count: int, preprocess: Preprocess, seed: int) -> Pixels:
    return labelled(count, preprocess, seed)[0]


@contextmanager
def one_thread() -> Iterator[None]:
    """The same sums on any machine; and threads that wait for each other crawl where others work, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def trained(preprocess: Preprocess, images: Pixels, classes: list[int]) -> PixelClassifier:
    """A small MobileNetV2 after a few steps: the logits of random weights would drown in the noise of int8."""
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(0)
        network = models.build(ModelSpec(name="mobilenet_v2", width=0.35, stem_stride=1), len(LABELS))
        model = PixelClassifier(network, preprocess)
        batch, truth = torch.from_numpy(images).permute(0, 3, 1, 2).float(), torch.tensor(classes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(STEPS):
            chosen = torch.randint(len(batch), (32,))
            loss = nn.functional.cross_entropy(model(batch[chosen]), truth[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        for module in network.modules():  # statistics of the weights as they are now
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # the mean over all batches
        with torch.no_grad():
            model(batch)
    return model.eval()


@dataclass(frozen=True)
class World:
    source: ExportSource
    images: Pixels
    made: dict[str, Artifact]
    lowerings: int


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    training, classes = labelled(384, PREPROCESS, seed=1)
    source = ExportSource(
        model=trained(PREPROCESS, training, classes),
        preprocess=PREPROCESS,
        labels=LABELS,
        parent="f" * 64,
        calibrate=partial(calibration_images, split(training)),
    )
    images = patches(64, PREPROCESS, seed=2)
    calls: list[ExportSource] = []
    tflite = plugins.load("converters", "tflite")
    with pytest.MonkeyPatch.context() as patch:
        lower = tflite._lower

        def counted(source: ExportSource) -> Any:
            calls.append(source)
            return lower(source)

        patch.setattr(tflite, "_lower", counted)
        variants = [replace(variant(name), calibration=CalibrationSpec(images=100, seed=7)) for name in ALL]
        made = convert.convert(source, variants, images, tmp_path_factory.mktemp("made"), quiet_progress)
    return World(source, images, dict(zip(ALL, made, strict=True)), len(calls))


def small(seed: int = 0, preprocess: Preprocess = SMALL) -> ExportSource:
    """One dense layer: converted in a second."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(preprocess.height * preprocess.width * 3, len(LABELS)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in network.parameters():
            weights.copy_(torch.randn(weights.shape, generator=generator) / 10)
    calibrate = partial(calibration_images, split(patches(32, preprocess, seed=3)))
    return ExportSource(
        model=PixelClassifier(network, preprocess).eval(),
        preprocess=preprocess,
        labels=LABELS,
        calibrate=calibrate,
    )


def predict(artifact: Artifact, images: Pixels) -> Logits:
    return convert.converter(artifact.target).predict(artifact, images)


# --- one network, six files -----------------------------------------------------------------------

# Over 64 patches: SQNR in dB, agreement of the top-1
BARS = {
    "tflite-fp32": (90, 1.0),
    "tflite-fp16": (45, 1.0),
    "tflite-dyn8": (18, 0.9),
    "tflite-int8": (14, 0.9),
    "coreml-fp16": (42, 0.98),
    "onnx-fp32": (90, 1.0),
}


def test_the_networks_logits_differ_clearly(world: World) -> None:
    logits = world.source.logits(world.images)
    assert 2 < logits.std(0).mean() < 8
    assert len(set(logits.argmax(1).tolist())) == len(LABELS)


@pytest.mark.parametrize("name", ALL)
def test_parity(name: str, world: World) -> None:
    found = world.made[name].parity
    assert found is not None
    assert found.images == 64
    assert found.sqnr_db > BARS[name][0]
    assert found.top1_agreement >= BARS[name][1]
    assert found.broken(world.made[name].precision) == ""


@pytest.mark.parametrize("name", ALL)
def test_a_photograph_gives_the_same_answer(name: str, world: World) -> None:
    picture = pixels(photographs()[0], PREPROCESS)[None]
    with torch.no_grad():
        normal = torch.from_numpy(normalized(picture, PREPROCESS)).permute(0, 3, 1, 2)
        expected = world.source.model.model(normal).numpy()  # the network alone, fed as training feeds it
    found = predict(world.made[name], picture)
    assert found.shape == (1, len(LABELS))
    assert found.argmax() == expected.argmax()
    assert np.abs(found - expected).max() < {"fp32": 1e-3, "fp16": 0.05}.get(world.made[name].precision, 1.5)


@pytest.mark.parametrize("name", ALL)
def test_labels_and_contract_are_in_file_and_sidecar(name: str, world: World, tmp_path: Path) -> None:
    made = world.made[name]
    assert artifacts.read(made.path) == made
    assert (made.labels, made.preprocess, made.parent) == (LABELS, PREPROCESS, "f" * 64)
    assert made.size_bytes == files.size_bytes(made.path)
    assert made.tools.keys() >= {"edgekit", "torch"}
    alone = tmp_path / f"copy{made.path.suffix}"
    (shutil.copytree if made.path.is_dir() else shutil.copy)(made.path, alone)
    inside = convert.for_file(alone).inspect(alone)
    assert inside.labels == LABELS
    assert decode(Preprocess, json.loads(inside.metadata["preprocess"])) == PREPROCESS
    assert (inside.input, inside.output) == (made.input, made.output)


@pytest.mark.parametrize("name", ALL)
def test_every_file_takes_raw_pixels(name: str, world: World) -> None:
    made = world.made[name]
    assert made.input_is == "pixels"
    if made.target == "coreml":
        assert (made.input.shape, made.input.dtype, made.output.name) == (
            (1, 3, 32, 32),
            "image",
            "classLabel_probs",
        )
        return
    assert (made.input.name, made.input.shape, made.input.dtype) == ("pixels", (1, 32, 32, 3), "uint8")
    quantized = (1.0, 0) if made.target == "tflite" else (None, None)
    assert (made.input.scale, made.input.zero_point) == quantized
    assert (made.output.name, made.output.shape, made.output.dtype) == ("logits", (1, 6), "float32")


def test_weights_are_stored_as_the_precision_says(world: World) -> None:
    stored = {
        name: dict(convert.for_file(made.path).inspect(made.path).weights) for name, made in world.made.items()
    }
    parameters = sum(tensor.numel() for tensor in world.source.model.parameters())
    assert 4 * parameters * 0.9 < stored["tflite-fp32"]["float32"] < 4 * parameters * 1.05
    assert 4 * parameters * 0.9 < stored["onnx-fp32"]["float32"] < 4 * parameters * 1.05
    assert 2 * parameters * 0.9 < stored["tflite-fp16"]["float16"] < 2 * parameters * 1.05
    assert 2 * parameters * 0.9 < stored["coreml-fp16"]["float16"] < 2 * parameters * 1.05
    assert parameters * 0.85 < stored["tflite-int8"]["int8"] < parameters * 1.05
    assert parameters * 0.85 < stored["tflite-dyn8"]["int8"] < parameters * 1.05


def test_sizes(world: World) -> None:
    whole = world.made["tflite-fp32"].size_bytes
    share = {name: made.size_bytes / whole for name, made in world.made.items()}
    assert 1.5e6 < whole < 2e6
    assert 0.5 < share["tflite-fp16"] < 0.65
    assert 0.25 < share["tflite-int8"] < 0.5
    assert 0.25 < share["tflite-dyn8"] < 0.5
    assert 0.45 < share["coreml-fp16"] < 0.6
    assert 0.9 < share["onnx-fp32"] < 1.25


def test_int8_computes_in_int8(world: World) -> None:
    path = world.made["tflite-int8"].path
    model, kinds = flatbuffer.unpack(path.read_bytes()), flatbuffer.schema().TensorType
    graph = model.subgraphs[0]
    codes = [code.builtinCode for code in model.operatorCodes]
    convolutions = {
        flatbuffer.schema().BuiltinOperator.CONV_2D,
        flatbuffer.schema().BuiltinOperator.DEPTHWISE_CONV_2D,
    }
    types = [
        graph.tensors[tensor].type
        for operator in graph.operators
        if codes[operator.opcodeIndex] in convolutions
        for tensor in (operator.inputs[0], operator.inputs[1], operator.outputs[0])
    ]
    assert len(types) == 3 * 52  # the convolutions of MobileNetV2
    assert set(types[:3]) == {kinds.FLOAT32}  # three channels fill no vector of bytes
    assert set(types[3:]) == {kinds.INT8}


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("tflite")])
def test_tflite_weights_are_aligned(name: str, world: World) -> None:
    content = world.made[name].path.read_bytes()
    model = flatbuffer.schema().Model.GetRootAsModel(content, 0)
    buffers = [model.Buffers(index) for index in range(model.BuffersLength())]
    starts = [buffer._tab.Vector(buffer._tab.Offset(4)) for buffer in buffers if buffer.DataLength()]
    assert len(starts) > 100
    assert {start % 16 for start in starts} == {0}


def test_the_precisions_of_tflite_share_one_lowering(world: World) -> None:
    assert world.lowerings == 1


def test_a_file_with_zeroed_weights_is_broken(world: World, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    sound = world.made["onnx-fp32"]
    model = onnx.load(str(sound.path))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 4 and values.size > 3:  # not the contract's mean and std
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(values), tensor.name))
    onnx.save(model, str(tmp_path / "zeroed.onnx"))
    broken = parity(
        world.source.logits(world.images), predict(replace(sound, path=tmp_path / "zeroed.onnx"), world.images)
    )
    assert broken.broken("fp32").startswith("SQNR ")
    assert broken.broken("int8").startswith("top-1 agrees with the float model on ")
    assert broken.top1_agreement < 0.6


# --- the contract is inside the graph -------------------------------------------------------------

CONTRACTS = {
    "other mean and std": replace(SMALL, mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25)),
    "BGR": replace(SMALL, channel_order="BGR"),
}


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("name", ["tflite-fp32", "onnx-fp32", "coreml-fp32"])
def test_another_contract_gives_other_logits(name: str, contract: str, tmp_path: Path) -> None:
    images, plain, source = patches(8, SMALL, seed=4), small(), small(preprocess=CONTRACTS[contract])
    found = predict(one(source, name, images, tmp_path), images)
    dense = source.model.model.get_submodule("1")
    assert isinstance(dense, nn.Linear)
    rows = normalized(images, source.preprocess).transpose(0, 3, 1, 2).reshape(8, -1)
    expected = rows @ dense.weight.detach().numpy().T + dense.bias.detach().numpy()
    assert np.allclose(found, expected, atol=1e-4)
    assert np.abs(found - plain.logits(images)).max() > 0.5


# --- calibration ----------------------------------------------------------------------------------


def test_calibration_is_recorded(world: World) -> None:
    made = world.made["tflite-int8"].calibration
    assert made is not None
    assert (made.count, made.seed, made.method) == (100, 7, "auto")
    assert world.source.calibrate is not None
    assert made.images_sha256 == world.source.calibrate(CalibrationSpec(images=100, seed=7)).record.images_sha256
    assert made.images_sha256 != world.source.calibrate(CalibrationSpec(images=100, seed=8)).record.images_sha256
    assert all(world.made[name].calibration is None for name in ALL if name != "tflite-int8")


def test_calibration_takes_each_image_once_and_all_where_there_are_few() -> None:
    numbered = np.arange(20, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    chosen = (
        calibration_images(split(numbered), CalibrationSpec(images=12, seed=1)).pixels_NHWC[:, 0, 0, 0].tolist()
    )
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 12
    few = calibration_images(split(numbered), CalibrationSpec(images=256))
    assert few.record.count == len(few.pixels_NHWC) == 20


def test_methods_and_seeds_of_calibration_give_other_files(tmp_path: Path) -> None:
    images, source, hashes = patches(8, SMALL, seed=4), small(), set()
    for index, spec in enumerate(
        (
            CalibrationSpec(images=4),
            CalibrationSpec(images=4, seed=1),
            CalibrationSpec(images=4, method="moving-average"),
        )
    ):
        asked = Variant(target="tflite", precision="int8", calibration=spec)
        [made] = convert.convert(source, [asked], images, tmp_path / str(index), quiet_progress)
        assert made.calibration is not None
        assert made.calibration.method == spec.method
        hashes.add(made.sha256)
    assert len(hashes) == 3


def test_int8_without_images_names_the_cure(tmp_path: Path) -> None:
    source = replace(small(), calibrate=None)
    with pytest.raises(UsageError, match="int8 needs calibration images: give --calibrate DIR"):
        one(source, "tflite-int8", patches(4, SMALL, seed=4), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tflite-fp32", "tflite-int8", "onnx-fp32"])
def test_converting_again_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    images = patches(4, SMALL, seed=4)
    first, again, other = (
        one(small(seed), name, images, tmp_path / folder) for folder, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.sha256 == again.sha256 != other.sha256


def test_converting_to_coreml_again_gives_the_same_weights_but_other_identifiers(tmp_path: Path) -> None:
    images = patches(4, SMALL, seed=4)
    first, again = (one(small(), "coreml-fp16", images, tmp_path / folder) for folder in ("a", "b"))
    assert sorted(files.members(first.path)) == [
        first.path / "Data/com.apple.CoreML/model.mlmodel",
        first.path / "Data/com.apple.CoreML/weights/weight.bin",
        first.path / "Manifest.json",
    ]
    weights = [path / "Data/com.apple.CoreML/weights/weight.bin" for path in (first.path, again.path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert first.parity == again.parity
    assert first.sha256 != again.sha256  # coremltools draws random UUIDs


# --- interruption ---------------------------------------------------------------------------------


def interrupted(error: BaseException) -> Callable[..., Any]:
    def convert(source: ExportSource, variant: Variant, out: Path) -> None:
        out.write_bytes(b"half a fi")
        raise error

    return convert


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConversionError("no"), OSError(28, "No space left")])
def test_a_failed_conversion_leaves_the_old_file_and_its_sidecar(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = patches(4, SMALL, seed=4)
    old = one(small(), "onnx-fp32", images, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(plugins.load("converters", "onnx"), "convert", interrupted(error))
        with pytest.raises(type(error)):
            one(small(1), "onnx-fp32", images, tmp_path)
    assert artifacts.read(old.path) == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["onnx-fp32.onnx", "onnx-fp32.onnx.json"]
    new = one(small(1), "onnx-fp32", images, tmp_path)
    assert artifacts.read(old.path) == new != old


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConversionError("no")])
def test_a_failed_first_conversion_leaves_nothing(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins.load("converters", "tflite"), "convert", interrupted(error))
    with pytest.raises(type(error)):
        one(small(), "tflite-fp32", patches(4, SMALL, seed=4), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_made_before_the_failure_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins.load("converters", "tflite"), "convert", interrupted(KeyboardInterrupt()))
    seen: list[tuple[str, float]] = []
    with pytest.raises(KeyboardInterrupt):
        convert.convert(
            small(),
            [variant("onnx-fp32"), variant("tflite-fp32")],
            patches(4, SMALL, seed=4),
            tmp_path,
            lambda text, share: seen.append((text, share)),
        )
    assert seen == [("onnx-fp32", 0.0), ("tflite-fp32", 0.5)]
    assert artifacts.read(tmp_path / "onnx-fp32.onnx").parity is not None
    assert len(list(tmp_path.iterdir())) == 2


# --- models that cannot be converted --------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(192, len(LABELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.dense(x.flatten(1) * 2 if x.sum() > 0 else x.flatten(1))
        return logits


class Bessel(Branching):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.dense(torch.special.bessel_j0(x.flatten(1)))
        return logits


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("network", "cause"), [(Branching, "data-dependent"), (Bessel, "bessel_j0")])
def test_a_model_that_cannot_be_converted_is_one_line(
    network: type[nn.Module], cause: str, target: str, tmp_path: Path
) -> None:
    source = replace(small(), model=PixelClassifier(network(), SMALL).eval(), _memo={})
    with pytest.raises(ConversionError, match=rf"^[\w.-]+ cannot convert this model: .*{cause}") as caught:
        one(source, f"{target}-fp32", patches(2, SMALL, seed=4), tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_gives_no_numbers_is_named(tmp_path: Path) -> None:
    source = small()
    with torch.no_grad():
        next(source.model.model.parameters()).fill_(float("nan"))
    with pytest.raises(
        ConversionError, match=r"is broken: the model gives NaN or infinite logits for \d+ of \d+ images"
    ):
        one(source, "onnx-fp32", patches(2, SMALL, seed=4), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_parity_is_measured_on_the_images_that_are_given(tmp_path: Path) -> None:
    source = small()
    first, second = (one(source, "onnx-fp32", patches(8, SMALL, seed=seed), tmp_path) for seed in (4, 5))
    assert first.parity is not None
    assert second.parity is not None
    assert min(first.parity.sqnr_db, second.parity.sqnr_db) > 100


# --- converters and names -------------------------------------------------------------------------


def test_each_converter_gives_the_protocols_names() -> None:
    assert tuple(plugins.names("converters")) == TARGETS
    wanted = set(Converter.__annotations__) | {
        name for name in vars(Converter) if name in ("check", "convert", "predict", "inspect")
    }
    assert len(wanted) == 8
    for target in TARGETS:
        module = convert.converter(target)
        assert wanted <= set(dir(module))
        assert module.target == target
        assert module.suffix.startswith(".")
        assert all(all(told) and name == name.lower() for name, told in module.precisions.items())
        convert.check([Variant(target=target, precision=name) for name in module.precisions])


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'tflit'; choose from coreml, onnx, tflite; did you mean 'tflite'\?"):
        convert.check([Variant(target="tflit", precision="fp32")])
    with pytest.raises(
        UsageError,
        match=r"unknown precision for tflite 'int9'; choose from dyn8, fp16, .*, w8; did you mean 'int8'\?",
    ):
        convert.check([Variant(target="tflite", precision="int9")])
    with pytest.raises(UsageError, match=r"unknown precision for onnx 'int8'; choose from fp32$"):
        convert.check([Variant(target="tflite", precision="int8"), Variant(target="onnx", precision="int8")])


def test_loading_every_converter_needs_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from edgekit import convert; from pathlib import Path; convert.for_file(Path('x.onnx'));"
        "print(sorted({'torch', 'coremltools', 'onnx', 'litert_torch'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"


def test_noise_is_seeded_and_smooth() -> None:
    made = convert.noise((8, 12, 3), 5)
    assert made.shape == (5, 8, 12, 3)
    assert made.dtype == np.uint8
    assert np.array_equal(made, convert.noise((8, 12, 3), 5))
    assert not np.array_equal(made, convert.noise((8, 12, 3), 5, seed=1))
    assert np.array_equal(made[:, ::2, ::3], made[:, 1::2, 2::3])  # 4 x 4 blobs


# --- int8 in and out, for microcontrollers ----------------------------------------------------------

MICRO = Variant(target="tflite", precision="int8", io="int8", calibration=CalibrationSpec(images=100, seed=7))


@pytest.fixture(scope="module")
def micro(world: World, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    [made] = convert.convert(world.source, [MICRO], world.images, tmp_path_factory.mktemp("micro"), quiet_progress)
    return made


def test_the_int8_file_holds_integers_only(micro: Artifact) -> None:
    assert (micro.name, micro.precision) == ("tflite-int8-io-int8", "int8")
    model = flatbuffer.unpack(micro.path.read_bytes())
    kinds = flatbuffer.schema().TensorType
    assert {tensor.type for tensor in model.subgraphs[0].tensors} == {kinds.INT8, kinds.INT32}
    assert flatbuffer.in_float(model) == ()
    assert not {"QUANTIZE", "DEQUANTIZE"} & dict(flatbuffer.operators(model)).keys()


def test_its_ends_say_how_they_are_quantized(micro: Artifact) -> None:
    assert (micro.input.dtype, micro.input.scale, micro.input.zero_point) == ("int8", 1.0, -128)
    assert (micro.output.dtype, micro.output.shape) == ("int8", (1, 6))
    assert micro.output.scale is not None
    assert 0.02 < micro.output.scale < 1


def test_it_answers_as_the_default_int8_file_does(micro: Artifact, world: World) -> None:
    pictures, classes = labelled(120, PREPROCESS, seed=11)
    default, own = (predict(one, pictures) for one in (world.made["tflite-int8"], micro))
    assert (default.argmax(1) == own.argmax(1)).mean() >= 0.95
    accuracy = [float((scores.argmax(1) == classes).mean()) for scores in (default, own)]
    assert abs(accuracy[0] - accuracy[1]) <= 0.025
    assert parity(world.source.logits(pictures), own).sqnr_db > 13
    assert own.dtype == np.float32


def test_it_is_fed_pixels_less_128(micro: Artifact, world: World) -> None:
    fed = inputs.convert(world.images, micro)
    assert fed.dtype == np.int8
    assert np.array_equal(fed.astype(int), world.images.astype(int) - 128)


def test_it_is_known_without_its_sidecar(micro: Artifact, tmp_path: Path) -> None:
    shutil.copy(micro.path, tmp_path / "micro.tflite")
    found = convert.foreign(tmp_path / "micro.tflite", contract, LABELS)
    assert (found.input_is, found.input, found.output) == ("pixels", micro.input, micro.output)


def test_both_int8_files_share_one_calibration(world: World, tmp_path: Path) -> None:
    source = replace(world.source, _memo={})
    variants = [replace(MICRO, io="uint8"), MICRO]
    first, second = convert.convert(source, variants, world.images, tmp_path, quiet_progress)
    assert first.calibration == second.calibration


def test_an_operator_without_int8_is_named(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.3), nn.Flatten(), nn.Linear(288, len(LABELS)))
    source = replace(small(), model=PixelClassifier(network, SMALL).eval(), _memo={})
    with pytest.raises(ConversionError, match=r"io int8 needs integers throughout.* has no int8 for LEAKY_RELU"):
        convert.convert(source, [MICRO], patches(8, SMALL, seed=4), tmp_path, quiet_progress)


def test_what_int8_ends_do_not_go_with() -> None:
    with pytest.raises(ValueError, match="io int8 goes with precision int8, not fp16"):
        Variant(target="tflite", precision="fp16", io="int8")
    with pytest.raises(ValueError, match="io int8 leaves no layer in float, as max_drop may"):
        Variant(target="tflite", precision="int8", io="int8", max_drop=0.5)


# --- files of other tools -------------------------------------------------------------------------


def contract(height: int, width: int) -> Preprocess:
    return replace(PREPROCESS, height=height, width=width)


@pytest.mark.parametrize("name", ["tflite-fp32", "tflite-int8", "onnx-fp32", "coreml-fp16"])
def test_a_file_without_its_sidecar(name: str, world: World, tmp_path: Path) -> None:
    made = world.made[name]
    path = tmp_path / f"v1.0{made.path.suffix}"
    (shutil.copytree if made.path.is_dir() else shutil.copy)(made.path, path)
    found = convert.foreign(path, contract, LABELS)
    assert found == replace(
        made,
        file=path.name,
        precision="foreign",
        notes=("not made by edgekit",),
        parent="",
        tools={},
        calibration=None,
        parity=None,
    )
    assert found.name == "v1.0"
    assert found.input_is == "pixels"
    assert convert.foreign(path, contract, ()).labels == tuple("012345")
    with pytest.raises(UsageError, match=r"v1\.0\.\w+ gives 6 scores, but there are 5 labels"):
        convert.foreign(path, contract, LABELS[:5])


def test_a_model_of_floats_wants_normalized_values(tmp_path: Path) -> None:
    """As `litert_torch.convert` or TensorFlow leave it: no contract inside, float32 NHWC."""
    images, source = patches(8, SMALL, seed=4), small()
    bare = plugins.load("converters", "tflite")._lower(replace(source, model=source.model.model, _memo={}))  # type: ignore[arg-type]
    (tmp_path / "bare.tflite").write_bytes(bare.content)
    found = convert.foreign(tmp_path / "bare.tflite", lambda height, width: SMALL, LABELS)
    assert (found.input_is, found.input.dtype, found.input.shape) == ("normalized", "float32", (1, 8, 8, 3))
    assert np.allclose(predict(found, images), source.logits(images), atol=1e-4)


def test_a_model_for_any_size_is_refused(tmp_path: Path) -> None:
    import onnx

    made = tiny_models.onnx(tmp_path / "free.onnx")
    model = onnx.load(str(made.path))
    sides = model.graph.input[0].type.tensor_type.shape.dim
    sides[0].dim_param = "batch"
    onnx.save(model, str(made.path))
    assert convert.foreign(made.path, contract, ()).input.shape == (1, 8, 8, 3)
    sides[1].dim_param, sides[2].dim_param = "height", "width"
    onnx.save(model, str(made.path))
    with pytest.raises(ArtifactError, match=r"free\.onnx takes pictures of any size: fix its height and width"):
        convert.foreign(made.path, contract, ())


def test_a_tflite_model_for_any_size_is_refused(tmp_path: Path) -> None:
    made = tiny_models.tflite(tmp_path / "free.tflite")
    model = flatbuffer.unpack(made.path.read_bytes())
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].shapeSignature = [-1, -1, -1, 3]
    made.path.write_bytes(flatbuffer.pack(model))
    with pytest.raises(ArtifactError, match=r"free\.tflite takes pictures of any size: fix its height and width"):
        convert.foreign(made.path, contract, ())


def test_a_model_whose_weights_lie_elsewhere_is_refused(tmp_path: Path) -> None:
    import onnx

    made = tiny_models.onnx(tmp_path / "parted.onnx")
    onnx.save(onnx.load(str(made.path)), str(made.path), save_as_external_data=True, size_threshold=0)
    with pytest.raises(ArtifactError, match=r"parted\.onnx keeps its weights in other files: save it whole"):
        convert.foreign(made.path, contract, ())


def test_labels_of_another_tools_metadata_are_left_alone(tmp_path: Path) -> None:
    import onnx

    made = tiny_models.onnx(tmp_path / "theirs.onnx")
    for text in ("ant,bee", '{"0": "ant"}', "[1, 2]"):
        model = onnx.load(str(made.path))
        onnx.helper.set_model_props(model, {"labels": text})
        onnx.save(model, str(made.path))
        found = convert.for_file(made.path).inspect(made.path)
        assert (found.labels, found.metadata["labels"]) == ((), text)


# --- damaged files --------------------------------------------------------------------------------


def text_file(path: Path) -> None:
    path.write_text("a list of things to do\n" * 20)


def empty_file(path: Path) -> None:
    path.touch()


def empty_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("suffix", "make", "message"),
    [
        (".tflite", text_file, "is not a TFLite model: it lacks the identifier TFL3"),
        (".tflite", empty_file, "is not a TFLite model"),
        (".onnx", text_file, "is not an ONNX model"),
        (".onnx", empty_file, "is not an ONNX model"),
        (".mlpackage", text_file, "is not a sound Core ML package"),
        (".mlpackage", empty_folder, "is not a sound Core ML package"),
    ],
)
def test_what_is_no_model_is_said_in_one_line(
    suffix: str, make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    make(path)
    with pytest.raises(ArtifactError, match=message) as caught:
        convert.foreign(path, contract, ())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tflite-int8", "onnx-fp32"])
def test_a_truncated_file_is_never_a_traceback(name: str, world: World, tmp_path: Path) -> None:
    path = tmp_path / world.made[name].path.name
    content = world.made[name].path.read_bytes()
    for share in (0.0001, 0.01, 0.2, 0.5, 0.9, 0.99):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ArtifactError, match=r"damaged|is not an ONNX model|is not a TFLite model"):
            convert.foreign(path, contract, ())


def test_flipped_bytes_are_never_a_traceback(world: World, tmp_path: Path) -> None:
    path, rng = tmp_path / "flipped.tflite", np.random.default_rng(0)
    made = tiny_models.tflite(path)
    content, refused = made.path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(8, len(content), 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            convert.foreign(path, contract, ())
        except EdgekitError:
            refused += 1
    assert 20 < refused < 300


@pytest.mark.parametrize("lost", ["Manifest.json", "model.mlmodel", "weight.bin"])
def test_a_package_with_a_part_damaged(lost: str, world: World, tmp_path: Path) -> None:
    path = tmp_path / "model.mlpackage"
    shutil.copytree(world.made["coreml-fp16"].path, path)
    [part] = [member for member in files.members(path) if member.name == lost]
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"model\.mlpackage is not a sound Core ML package"):
        convert.foreign(path, contract, ())
    part.unlink()
    with pytest.raises(ArtifactError, match=r"model\.mlpackage is not a sound Core ML package"):
        convert.foreign(path, contract, ())


def test_suffixes_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no such file: .*model.tflite"):
        convert.foreign(tmp_path / "model.tflite", contract, ())
    text_file(tmp_path / "model.tflit")
    with pytest.raises(
        UsageError,
        match=r"unknown kind of model file '\.tflit'; choose from .*, \.tflite; did you mean '\.tflite'\?",
    ):
        convert.foreign(tmp_path / "model.tflit", contract, ())
    text_file(tmp_path / "model")
    with pytest.raises(UsageError, match="unknown kind of model file 'model'"):
        convert.foreign(tmp_path / "model", contract, ())


def test_a_model_that_is_no_classifier_of_pictures(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    def made(shape: tuple[int, ...], out: tuple[int, ...]) -> Path:
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", out))]
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
        save(helper.make_model(graph, ir_version=9), str(tmp_path / "x.onnx"))
        return tmp_path / "x.onnx"

    with pytest.raises(
        ArtifactError, match=r"takes \(1, 16000\); an image classifier takes \(1, height, width, 3\)"
    ):
        convert.foreign(made((1, 16000), (1, 10)), contract, ())
    with pytest.raises(ArtifactError, match=r"gives \(1, 1\); an image classifier gives scores"):
        convert.foreign(made((1, 3, 8, 8), (1, 1)), contract, ())
    assert convert.foreign(made((1, 3, 8, 8), (1, 9)), contract, ()).labels == tuple("012345678")


def test_the_hash_of_a_file_is_plain_sha256(world: World) -> None:
    made = world.made["tflite-fp32"]
    assert made.sha256 == hashlib.sha256(made.path.read_bytes()).hexdigest()
