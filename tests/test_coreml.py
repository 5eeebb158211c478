"""Core ML files in every precision: what they hold, what they need, and how near they are to the float model."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import convert, mil, source
from edgekit.artifact import Artifact, Calibration
from edgekit.coreml import activations, encode, integers, plan, program, systems
from edgekit.coreml.layers import Judged, Layer
from edgekit.coreml.repair import of_weights
from edgekit.errors import ArtifactError, UsageError
from edgekit.export import CalibrationImages, ExportSource, PixelClassifier, calibration_images
from edgekit.preprocess import Preprocess, preset
from edgekit.quiet import quiet
from edgekit.recipe import CalibrationSpec, Variant
from tests.test_classics import CLASSICS, randomise_, skip_without_timm
from tests.test_convert import LABELS, PREPROCESS, labelled, patches, split, trained

# SQNR in dB over 64 patches of photographs of a MobileNetV2 0.35 trained for 100 steps; the oldest system
EXPECTED = {
    "fp32": (100, "iOS15"),
    "fp16": (50, "iOS15"),
    "w8": (24, "iOS16"),
    "w4": (3, "iOS18"),
    "pal8": (24, "iOS16"),
    "pal6": (12, "iOS16"),
    "pal4": (0, "iOS16"),
    "pal2": (-5, "iOS16"),
    "sparse50": (-5, "iOS16"),
    "sparse75": (-5, "iOS16"),
    "sparse50-pal4": (-5, "iOS18"),
    "int8": (12, "iOS17"),
}
FORMS = {
    "w8": {"constexpr_affine_dequantize"},
    "w4": {"constexpr_blockwise_shift_scale"},
    "pal4": {"constexpr_lut_to_dense"},
    "sparse50": {"constexpr_sparse_to_dense"},
    "sparse50-pal4": {"constexpr_lut_to_sparse", "constexpr_sparse_to_dense"},
    "int8": {"constexpr_affine_dequantize"},
}


ONE = np.ones((1, 1), np.float32)


def silent(text: str, share: float) -> None: ...


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    training, classes = labelled(384, PREPROCESS, seed=1)
    origin = ExportSource(
        model=trained(PREPROCESS, training, classes),
        preprocess=PREPROCESS,
        labels=LABELS,
        calibrate=partial(calibration_images, split(training)),
    )
    calls = 0
    exported = program._export

    def counted(given: Any) -> Any:
        nonlocal calls
        calls += 1
        return exported(given)

    spec = CalibrationSpec(images=64, seed=7, method="min-max")
    variants = [Variant(target="coreml", precision=name, calibration=spec) for name in EXPECTED]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "_export", counted)
        out = tmp_path_factory.mktemp("made")
        found = convert.convert(origin, variants, patches(64, PREPROCESS, seed=2), out, silent)
    assert calls == 1
    return dict(zip(EXPECTED, found, strict=True))


@pytest.mark.long
@pytest.mark.parametrize("name", EXPECTED)
def test_parity_and_target(name: str, made: dict[str, Artifact]) -> None:
    one, (least, target) = made[name], EXPECTED[name]
    assert one.parity is not None
    assert one.parity.sqnr_db > least
    found = convert.converter("coreml").inspect(one.path)
    assert mil.target(mil.load(one.path)) == target
    assert found.needs == systems.SYSTEMS[target]
    assert one.notes[0] == f"runs from {found.needs} on"
    assert found.labels == LABELS
    assert json.loads(found.metadata["preprocess"])["height"] == 32
    assert set(mil.forms(mil.load(one.path))) == FORMS.get(name, set(mil.forms(mil.load(one.path))))


@pytest.mark.long
def test_sizes_are_in_order(made: dict[str, Artifact]) -> None:
    size = {name: one.size_bytes for name, one in made.items()}
    for smaller, larger in (("fp16", "fp32"), ("w8", "fp16"), ("w4", "w8"), ("pal6", "pal8"), ("pal4", "pal6")):
        assert size[smaller] < size[larger]
    assert size["pal2"] < size["pal4"]
    assert size["sparse50-pal4"] < size["sparse75"] < size["sparse50"] < size["fp16"]
    assert 0.5 < size["w8"] / size["fp16"] < 0.65


@pytest.mark.long
def test_int8_computes_in_int8(made: dict[str, Artifact]) -> None:
    function = mil.load(made["int8"].path)
    convolutions = [one for one in function.operations if one.op_type == "conv"]
    assert len(convolutions) == 52
    fed = {
        one.name: one.inputs["x"].op is not None and one.inputs["x"].op.op_type == "dequantize"
        for one in convolutions
    }
    left = [name for name, in_int8 in fed.items() if not in_int8]
    assert left[0] == convolutions[0].name  # the image
    said = " ".join(note for note in made["int8"].notes if note.startswith("computed in fp16"))
    assert all(f"{name} (" in said for name in left[1:])
    macs = float(re.findall(r"([0-9.]+) % of the products", said)[0]) if said else 0.0
    assert macs <= 25
    assert len(left) < 15
    record = made["int8"].calibration
    assert record is not None
    assert record.count == 64
    assert record.rules["min-max"] > 60


@pytest.mark.long
def test_layers_that_are_left_are_listed_and_hold_few_weights(made: dict[str, Artifact]) -> None:
    for name in ("w8", "pal4", "sparse50"):
        [note] = [note for note in made[name].notes if note.startswith("left in fp16")]
        assert "too small: features_" in note
    function = mil.load(made["pal4"].path)
    plain = {one.name: one.inputs["weight"] for one in program.linear_layers(function)}
    left = [one for one in plain.values() if one.op.op_type == "const"]
    total = sum(int(np.prod(one.shape)) for one in plain.values())
    assert sum(int(np.prod(one.shape)) for one in left) < 0.1 * total


def test_the_passes_that_int8_needs_are_there() -> None:
    """Their names are private to coremltools."""
    with quiet():
        from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    for name in (activations.PREFIX, activations.SUFFIX, activations.ELIMINATION):
        assert name in PASS_REGISTRY
    takes = PASS_REGISTRY[activations.PREFIX]
    assert set(takes.SUPPORTED_UNARY_OP_TYPES) == set(integers.UNARY)  # sets there, so in any order
    assert set(takes.SUPPORTED_BINARY_OP_TYPES) == set(integers.BINARY)


def judged(name: str, own_db: float, size: int, stored: int) -> Judged:
    layer = Layer(name=name, kind="conv", weights=np.zeros((size // 2, 1), np.float32), importance=ONE, macs=size)
    form = encode.Stored(values=layer.weights, size_bytes=stored, emit=lambda name, before: None)
    return Judged(layer=layer, stored=form, own_db=own_db, shift=np.zeros(1))


def test_what_stands_out_is_left_and_what_would_not_shrink() -> None:
    found = plan.choose(
        {
            "a": judged("a", 20.0, 1000, 250),
            "tiny": judged("tiny", 20.0, 100, 95),
            "bad": judged("bad", 8.0, 40, 10),
            "big": judged("big", 12.0, 1000, 250),  # as bad, but too large to be left
            "b": judged("b", 20.0, 1000, 250),
        }
    )
    assert found.small == ("tiny",)
    assert [one.layer.name for one in found.sensitive] == ["bad"]
    assert list(found.stored) == ["a", "big", "b"]
    assert found.notes() == (
        "left in fp16, 4.5 % of the weights: too small: tiny; too sensitive: bad (8.0 dB)",
        "most error by its weights alone: big (12.0 dB), a (20.0 dB), b (20.0 dB)",
    )


def test_remedies_are_ranked_by_error_for_bytes_up_to_half_of_what_is_saved() -> None:
    found = of_weights(
        {
            "large": judged("large", 10.0, 1000, 250),
            "small": judged("small", 10.0, 200, 50),
            "fine": judged("fine", 40.0, 400, 100),
        }
    )
    assert [one.float_layers for one in found] == [("small",)]
    assert found[0].cost == pytest.approx(150 / 1200)


def test_a_budget_goes_with_what_is_compressed() -> None:
    assert Variant(target="coreml", precision="pal4", max_drop=1.0).budget == 1.0
    assert Variant(target="coreml", precision="pal4", group=8).group == 8
    with pytest.raises(ValueError, match="max_drop goes with precision int8"):
        Variant(target="coreml", precision="fp16", max_drop=1.0)
    with pytest.raises(ValueError, match="group goes with pal2 to pal8 of coreml, not coreml w8"):
        Variant(target="coreml", precision="w8", group=8)


# --- how weights are stored ------------------------------------------------------------------------


def weights(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16).astype(np.float32)


def test_more_bits_leave_less_error() -> None:
    values = weights(64, 128)
    errors = [
        float(((encode.palette(values, bits, ONE, modern=False).values - values) ** 2).mean())
        for bits in (2, 4, 6, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    # Lloyd-Max for a Gaussian: 0.1175 for 2 bits, 0.009497 for 4 (Max 1960, table I)
    assert errors[0] == pytest.approx(0.1175, rel=0.05)
    assert errors[1] == pytest.approx(0.0095, rel=0.08)


def test_a_table_that_suffices_is_exact() -> None:
    values = np.random.default_rng(0).choice(np.array([-1, 0, 0.5, 3], np.float32), (8, 32))
    assert np.array_equal(encode.palette(values, 2, ONE, modern=False).values, values)


def test_importance_draws_the_table() -> None:
    values = weights(1, 4000)
    importance = np.where(values > 1, 100, 1).astype(np.float32)
    plain, weighted = (encode.palette(values, 4, one, modern=False).values - values for one in (ONE, importance))
    assert (weighted[values > 1] ** 2).mean() < 0.5 * (plain[values > 1] ** 2).mean()


def test_integers_are_within_half_a_step() -> None:
    values = weights(16, 64) * np.logspace(-3, 3, 16, dtype=np.float32)[:, None]
    stored = encode.scaled(values, 8, ONE, modern=False)
    step = np.abs(values).max(1, keepdims=True) / 127
    assert (np.abs(stored.values - values) <= 0.55 * step + 2.0**-11 * np.abs(values)).all()
    assert stored.size_bytes < 0.8 * 2 * values.size


def test_blocks_of_32_beat_a_scale_a_channel() -> None:
    values = weights(32, 256)
    values[:, :32] *= 10
    channel, block = (encode.scaled(values, 4, ONE, modern=True, block=one) for one in (None, 32))
    assert ((block.values - values) ** 2).sum() < 0.6 * ((channel.values - values) ** 2).sum()


def test_half_of_the_weights_are_zero_the_smallest() -> None:
    values = weights(8, 16)
    stored = encode.sparse(values, 0.5, ONE, modern=False)
    assert (stored.values == 0).sum() == 64
    assert np.abs(values[stored.values == 0]).max() <= np.abs(values[stored.values != 0]).min()
    importance = np.ones((1, 16), np.float32)
    importance[:, :8] = 1e-6  # of silent inputs no weight is worth keeping
    assert (encode.sparse(values, 0.5, importance, modern=False).values[:, :8] == 0).all()


def test_what_was_pruned_already_stays_so() -> None:
    values = weights(8, 16)
    values[np.abs(values) < 1] = 0
    stored = encode.sparse(values, 0.5, ONE, modern=False)
    assert np.array_equal(stored.values, values)  # two thirds are zero: no more is taken


@pytest.mark.parametrize("deploy", [None, "iOS18"])
@pytest.mark.parametrize("name", plan.SCHEMES)
def test_the_file_holds_what_was_judged(name: str, deploy: Any, tmp_path: Path) -> None:
    """A network of one dense layer: its weights, read back from the package, are the encoder's."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 3, 64), nn.ReLU(), nn.Linear(64, 6))
    small = Preprocess(height=8, width=8)
    origin = ExportSource(model=PixelClassifier(model, small).eval(), preprocess=small, labels=LABELS)
    scheme = plan.scheme_of(Variant(target="coreml", precision=name, deploy=deploy))
    assert scheme.target == deploy or not deploy
    with quiet():
        float_model = program.floats(origin, "fp16")
    function = mil.load(Path(float_model.package_path))
    layer = next(program.linear_layers(function))
    before = mil.Reference(function).constant(layer.inputs["weight"].name).numpy()
    stored = scheme.encode(before, np.ones((1, 1), np.float32))

    one = Judged(
        layer=Layer(name=layer.name, kind="linear", weights=before, importance=ONE, macs=1),
        stored=stored,
        own_db=0.0,
        shift=np.zeros(64),
    )
    with quiet():
        model_ = program.edit(
            float_model,
            lambda _, main: plan.store_(main, {layer.name: one}, correct_biases=True),
            scheme.target,
        )
        model_.save(str(tmp_path / "x.mlpackage"))
    again = mil.load(tmp_path / "x.mlpackage")
    found = mil.Reference(again).constant(next(program.linear_layers(again)).inputs["weight"].name).numpy()
    assert np.array_equal(found, stored.values)
    assert mil.target(again) == scheme.target
    blob = tmp_path / "x.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    kept = 2 * 64 * 6 + 2 * (64 + 6)
    assert blob.stat().st_size == pytest.approx(stored.size_bytes + kept, abs=900)


# --- the float program -----------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_mean_and_std_of_each_channel_are_exact(order: Any, tmp_path: Path) -> None:
    contract = Preprocess(
        height=8, width=8, mean=(0.485, 0.456, 0.1), std=(0.229, 0.5, 0.125), channel_order=order
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 6))
    origin = ExportSource(model=PixelClassifier(network, contract).eval(), preprocess=contract, labels=LABELS)
    images = patches(16, contract, seed=3)
    variants = [Variant(target="coreml", precision=one) for one in ("fp32", "fp16")]
    exact, half = convert.convert(origin, variants, images, tmp_path, silent)
    assert exact.parity is not None
    assert half.parity is not None
    assert exact.parity.sqnr_db > 120
    assert half.parity.sqnr_db > 60
    if order == "RGB":  # the standard deviation is in the convolution
        assert mil.operators(mil.load(half.path))[:3] == ["cast", "sub", "conv"]


@pytest.mark.parametrize("precision", ["fp16", "w8", "int8"])
def test_a_later_system_on_request(precision: str, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 6))
    small, images = Preprocess(height=8, width=8), patches(32, Preprocess(height=8, width=8), seed=3)
    record = Calibration(images_sha256="0" * 64, count=32, method="min-max", seed=0)
    origin = ExportSource(
        model=PixelClassifier(model, small).eval(),
        preprocess=small,
        labels=LABELS,
        calibrate=lambda spec: CalibrationImages(pixels_NHWC=images, record=record),
    )
    variant = Variant(target="coreml", precision=precision, deploy="iOS18", author="Ada", license="MIT")
    [one] = convert.convert(origin, [variant], images, tmp_path, silent)
    assert one.notes[0] == "runs from iOS 18, macOS 15 on"
    found = convert.converter("coreml").inspect(one.path).metadata
    assert (found["author"], found["license"]) == ("Ada", "MIT")
    assert one.parity is not None
    assert one.parity.sqnr_db > {"fp16": 55, "w8": 35, "int8": 25}[precision]
    forms = set(mil.forms(mil.load(one.path)))
    assert forms == (set() if precision == "fp16" else {"constexpr_blockwise_shift_scale"})


def test_a_system_too_old_for_a_precision_is_refused() -> None:
    with pytest.raises(
        UsageError,
        match=r"coreml w4 needs iOS 18, macOS 15 or later, but the file is to run from iOS16 on: "
        "ask for iOS18, or for fp32, fp16, w8, pal8",
    ):
        convert.check([Variant(target="coreml", precision="w4", deploy="iOS16")])
    with pytest.raises(UsageError, match="coreml pal4 with group needs iOS 18"):
        convert.check([Variant(target="coreml", precision="pal4", group=8, deploy="iOS17")])
    with pytest.raises(ValueError, match="deploy goes with target coreml, not tflite"):
        Variant(target="tflite", precision="fp32", deploy="iOS16")
    with pytest.raises(ValueError, match="license goes with target coreml, not onnx"):
        Variant(target="onnx", precision="fp32", license="MIT")


def test_every_precision_has_its_oldest_system() -> None:
    """And the table of `edgekit list precisions` says so."""
    precisions = convert.converter("coreml").precisions
    assert set(systems.OLDEST) == set(precisions)
    for name, system in systems.OLDEST.items():
        if system != "iOS15":
            assert f"iOS {system[3:]}" in precisions[name].does


def test_int8_needs_images(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))
    small = Preprocess(height=8, width=8)
    origin = ExportSource(model=PixelClassifier(model, small).eval(), preprocess=small, labels=LABELS)
    with pytest.raises(UsageError, match="int8 needs calibration images: give --calibrate DIR"):
        convert.convert(
            origin,
            [Variant(target="coreml", precision="int8")],
            patches(4, small, seed=0),
            tmp_path,
            silent,
        )


def test_logits_that_fp16_does_not_hold_are_told(tmp_path: Path) -> None:
    """Of an untrained network that somebody else made: its file gives zeros."""
    dense = nn.Linear(192, 6, bias=False)
    with torch.no_grad():
        dense.weight.mul_(1e-9)
    small = Preprocess(height=8, width=8)
    model = PixelClassifier(nn.Sequential(nn.Flatten(), dense), small).eval()
    origin = ExportSource(model=model, preprocess=small, labels=LABELS)
    [one] = convert.convert(
        origin, [Variant(target="coreml", precision="fp16")], patches(8, small, seed=3), tmp_path, silent
    )
    assert one.parity is not None
    assert one.parity.sqnr_db == 0
    [note] = [note for note in one.notes if note.startswith("the float model's own logits are at most ")]
    assert note.endswith("parity tells nothing before it is trained")


def test_weights_without_images_are_judged_on_noise(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 6))
    small = Preprocess(height=8, width=8)
    origin = ExportSource(model=PixelClassifier(model, small).eval(), preprocess=small, labels=LABELS)
    [one] = convert.convert(
        origin, [Variant(target="coreml", precision="w8")], patches(16, small, seed=0), tmp_path, silent
    )
    assert "no images: layers were judged on noise" in one.notes
    assert one.calibration is None


def test_a_damaged_package_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "x.mlpackage"
    folder.mkdir()
    (folder / "Manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="is not a sound Core ML package"):
        mil.load(folder)


# --- every operator that our families and the classics give ------------------------------------------

FAMILIES = (
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_lite0",
)


@pytest.mark.long
@pytest.mark.parametrize("name", [*FAMILIES, *CLASSICS], ids=lambda name: Path(name).name.rpartition(":")[2])
def test_a_network_becomes_coreml(name: str, tmp_path: Path) -> None:
    skip_without_timm(name)
    side = CLASSICS.get(name, (64, None))[0]
    found = source.find(
        name,
        preprocess=preset("imagenet", side, side),
        labels=None,
        weights=None,
        calibrate=None,
        confirm=lambda question: False,
    )
    randomise_(found.source.torch_model("coreml"))
    images = convert.noise((side, side, 3), 8)
    [made] = convert.convert(found.source, [Variant(target="coreml", precision="fp32")], images, tmp_path, silent)
    assert made.parity is not None
    assert 100 < made.parity.sqnr_db < 150
    assert made.parity.top1_agreement == 1
    print(f"{name}: {made.parity.sqnr_db:.1f} dB")  # pytest -rP shows it
