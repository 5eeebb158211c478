"""Quantization-aware training: the network in torch computes what the files compute, learns, and goes back."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit import artifact as artifacts
from edgekit import calibrate, convert, flatbuffer, models, repair
from edgekit.artifact import Artifact
from edgekit.calibrate.observe import logits
from edgekit.dissect import File, Values, constant
from edgekit.errors import ConversionError, DataError, TrainingError, UsageError
from edgekit.export import ExportSource, Lessons, PixelClassifier, lessons
from edgekit.lower import lower
from edgekit.parity import parity
from edgekit.preprocess import preset
from edgekit.qat import Network, agreement, learn
from edgekit.qat.kernels import kernel
from edgekit.quantize import quantize
from edgekit.quiet import quiet
from edgekit.recipe import CalibrationSpec, ModelSpec, Variant
from edgekit.trainspec import AugmentSpec, QatSpec
from tests import guilty_models
from tests.guilty_models import LABELS, Fault
from tests.test_classics import randomise_

FAMILIES = (
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_lite0",
)
CLASSICS = ("torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x0_5", "torchvision:googlenet")
SIDE = 64


def files_of(name: str) -> tuple[bytes, bytes]:
    """The float file of a network with random weights and statistics, and its int8 file."""
    spec = ModelSpec(name=name, width=0.5) if name in FAMILIES else ModelSpec(name=name)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        network = models.build(spec, 10, SIDE)
        randomise_(network)
        exact = lower(PixelClassifier(network, preset("imagenet", SIDE, SIDE)).eval(), (1, SIDE, SIDE, 3))
        observed = calibrate.observe(exact, convert.noise((SIDE, SIDE, 3), 24, seed=1))
        return exact, quantize(exact, "int8", calibrate.by_rule(observed, "min-max").ranges)


@pytest.mark.parametrize("name", [*FAMILIES, *CLASSICS])
def test_the_network_computes_what_the_files_compute(name: str) -> None:
    exact, int8 = files_of(name)
    network, images = Network(exact, int8), convert.noise((SIDE, SIDE, 3), 8)
    pixels = torch.from_numpy(images).float()
    with torch.no_grad(), quiet():
        in_float, rounded = network(pixels, rounding=False).numpy(), network(pixels).numpy()
        wanted_float, wanted_int8 = logits(exact, images), logits(int8, images)
    assert parity(wanted_float, in_float).sqnr_db > 100
    # What is rounded the other way in an early layer grows in a network of random weights.
    assert parity(wanted_int8, rounded).sqnr_db > 35


@pytest.mark.parametrize("name", [*FAMILIES, *CLASSICS])
def test_each_operator_rounds_as_the_files_does(name: str) -> None:
    """Fed what the file computes, each operator but two gives the file's very integers, and those nearly all."""
    exact, int8 = files_of(name)
    network, image = Network(exact, int8), convert.noise((SIDE, SIDE, 3), 1).astype(np.float32)
    known = {flatbuffer.text(tensor.name) for tensor in flatbuffer.unpack(exact).subgraphs[0].tensors}
    file = File(flatbuffer.unpack(int8), known)
    values = Values(file)
    values.run_(image[0])
    shares = []  # of what is rounded otherwise
    for place, step in enumerate(network._steps):
        name = file.names.get(step.output, "")
        held = [file.names.get(index) in values.holders or index in file.constants for index in step.inputs]
        if step.round is None or name not in values.holders or not all(held):
            continue
        given = {i: torch.from_numpy(values[file.names[i]].copy()) for i in step.inputs if i not in file.constants}
        with torch.no_grad():
            x = network._result(place, [network._value(index, given) for index in step.inputs])
            steps = (x - torch.from_numpy(values[name].copy())) / network._scale(step.round)
        shares.append(float((steps.abs() > 0.5).float().mean()))
        assert shares[-1] < 1e-2, (step.kind, name)
        assert float(steps.abs().max()) < 1.5, (step.kind, name)
    assert sum(share > 0 for share in shares) <= 2, shares
    assert len(shares) > 0.9 * sum(step.round is not None for step in network._steps) - 2


def test_what_was_not_trained_goes_back_as_it_was() -> None:
    exact, int8 = files_of("mobilenet_v3_small")
    network, images = Network(exact, int8), convert.noise((SIDE, SIDE, 3), 4)
    with quiet():
        back = quantize(network.trained_file(), "int8", network.ranges())
        assert parity(logits(exact, images), logits(network.trained_file(), images)).sqnr_db > 100
    before, after = flatbuffer.unpack(int8), flatbuffer.unpack(back)
    for one, other in zip(before.subgraphs[0].tensors, after.subgraphs[0].tensors, strict=True):
        assert one.name == other.name
        if one.quantization is not None and one.quantization.scale is not None and len(one.quantization.scale):
            assert np.allclose(one.quantization.scale, other.quantization.scale, rtol=1e-5), one.name
            assert list(one.quantization.zeroPoint) == list(other.quantization.zeroPoint), one.name


class Toy(nn.Module):
    """A stem (float in int8 files), a body that is given, and a dense layer."""

    def __init__(self, body: Callable[["Toy", Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.conv, self.join = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(16, 8, 1)
        self.early, self.norm, self.dense = nn.Conv2d(3, 3, 3, 1, 1, groups=3), nn.BatchNorm2d(8), nn.Linear(8, 10)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.dense(self.body(self, x).mean((2, 3)))
        return logits


def joined(net: Toy, x: Tensor) -> Tensor:
    """What goes into the concatenation is read by others as well, in a range of its own."""
    first: Tensor = net.stem(x).relu()
    second = 0.1 * net.conv(first)
    return cast(Tensor, net.join(torch.cat([second, first], 1)).relu() + second + first)


TOYS: dict[str, Callable[[Toy, Tensor], Tensor]] = {
    "an average pool has one range": lambda net, x: net.conv(F.avg_pool2d(net.stem(x).relu(), 2)).relu(),
    "an average pool with padding": lambda net, x: net.conv(
        F.avg_pool2d(net.stem(x).relu(), 3, 1, 1, count_include_pad=False)
    ),
    "a concatenation among others": joined,
    "pixels are rounded": lambda net, x: net.conv(net.stem(net.early(x).relu()).relu()),
    "pixels are pooled": lambda net, x: net.conv(net.stem(F.max_pool2d(x, 2)).relu()),
    "two stems": lambda net, x: net.conv(net.stem(x).relu() + net.stem(x + 1)),
    "constants are rounded": lambda net, x: net.conv(net.norm(y := net.stem(x).relu()).relu()) + y,
    "a layer used twice": lambda net, x: net.conv(net.conv(net.stem(x).relu()).relu()).relu(),
}


KEPT = {"a concatenation among others": ("model.join",), "constants are rounded": ("model.conv",)}


@pytest.mark.parametrize(("name", "keep"), [*((name, ()) for name in TOYS), *KEPT.items()])
def test_the_file_has_the_ranges_that_were_learned(name: str, keep: tuple[str, ...]) -> None:
    """All that learns is moved by chance: the file that is made of it still computes what the network does."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        randomise_(net := Toy(TOYS[name]))
        exact = lower(PixelClassifier(net, preset("imagenet", SIDE, SIDE)).eval(), (1, SIDE, SIDE, 3))
        observed = calibrate.observe(exact, convert.noise((SIDE, SIDE, 3), 24, seed=1))
        network = Network(exact, quantize(exact, "int8", calibrate.by_rule(observed, "min-max").ranges, keep))
        amounts = {"weight": 0.02, "scale": 0.2, "zero": 8.0}
        for kind, parameters in network.groups().items():
            for one in parameters:
                one.data += amounts[kind] * torch.randn(one.shape)
        images = convert.noise((SIDE, SIDE, 3), 32)
        with torch.no_grad():
            rounded = network(torch.from_numpy(images).float()).numpy()
        content = quantize(network.trained_file(), "int8", network.ranges(), keep)
        assert parity(logits(content, images), rounded).sqnr_db > 140  # equal
    dtypes = {one.name: one.dtype for one in flatbuffer.details(flatbuffer.unpack(content))}
    assert [dtypes[one] for one in keep] == ["float32"] * len(keep)


def test_biases_go_back_as_the_very_integers() -> None:
    exact, int8 = files_of("mobilenet_v2")
    network = Network(exact, int8)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for scale in network.groups()["scale"]:
            scale.add_(0.1 * torch.randn(1))
    with quiet():
        made = flatbuffer.unpack(quantize(network.trained_file(), "int8", network.ranges()))
    biases = 0
    for step in network._steps:
        if len(step.inputs) < 3 or step.inputs[0] not in network._roots or step.inputs[1] not in network._axes:
            continue
        weight, bias = network._rounded_weights(step, [network._value(index, {}) for index in step.inputs[1:]])
        axis = network._axes[step.inputs[1]]
        unit = weight.abs().amax([place for place in range(weight.ndim) if place != axis]) / 127
        wanted = (bias / (unit * network._scale(network._roots[step.inputs[0]]))).round().detach().numpy()
        assert list(constant(made, step.inputs[2])) == list(wanted), network._names[step.inputs[2]]
        biases += len(wanted)
    assert biases > 5000


def test_a_softmax_at_the_end_is_left_out_of_the_loss() -> None:
    """Scores between 0 and 1 would all seem alike to a loss that takes their softmax."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        net = nn.Sequential(Toy(TOYS["a layer used twice"]), nn.Softmax(1))
        exact = lower(PixelClassifier(net, preset("imagenet", SIDE, SIDE)).eval(), (1, SIDE, SIDE, 3))
        observed = calibrate.observe(exact, images := convert.noise((SIDE, SIDE, 3), 24, seed=1))
        network = Network(exact, quantize(exact, "int8", calibrate.by_rule(observed, "min-max").ranges))
        pixels = torch.from_numpy(images).float()
        with torch.no_grad():
            scores, before = network(pixels), network(pixels, logits=True)
    assert torch.allclose(scores.sum(1), torch.ones(len(images)), atol=0.03)
    assert torch.allclose(before.softmax(1), scores, atol=1 / 256)
    assert not torch.allclose(before, scores, atol=0.05)


def taught(fault: Fault) -> ExportSource:
    split = guilty_models.split(600, seed=5)
    return replace(
        guilty_models.source(fault), lessons=partial(lessons, split, LABELS, LABELS, AugmentSpec(flip=True))
    )


def converted(fault: Fault, out: Path, **qat: object) -> Artifact:
    variant = Variant(target="tflite", precision="int8-qat", qat=QatSpec(**qat))  # type: ignore[arg-type]
    [made] = convert.convert(taught(fault), [variant], guilty_models.images(64, seed=4)[0], out, lambda *_: None)
    return made


def test_training_mends_what_rounding_broke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel 200 times as large as the others costs int8 4 to 5 points: training brings most of them back."""
    monkeypatch.setattr(guilty_models, "FACTOR", 200.0)
    made = converted("range", tmp_path, epochs=6, batch_size=32, learning_rate=5e-3)
    source = taught("range")
    assert source.held_out is not None
    held_out = source.held_out()

    def top1(file: Artifact) -> float:
        answers = convert.converter("tflite").predict(file, held_out.pixels_NHWC).argmax(1)
        return float((answers == held_out.truth).mean())

    images = guilty_models.images(64, seed=4)[0]
    plain = [Variant(target="tflite", precision=name) for name in ("fp32", "int8")]
    exact, int8 = (top1(one) for one in convert.convert(source, plain, images, tmp_path, lambda *_: None))
    assert int8 < exact - 0.04
    assert top1(made) > exact - 0.02
    stem, *others = [one.weights for one in made_of(made) if one.macs]
    assert (stem, set(others)) == ("float32", {"int8"})
    assert any("6 epochs of 600 images" in note for note in made.notes)
    [told] = [note for note in made.notes if "give one class for" in note]
    assert re.fullmatch(r".* one class for (199|200) of 200 calibration images", told)
    assert not artifacts.unfinished(made.path).exists()
    assert sorted(path.suffix for path in tmp_path.glob("*qat*")) == [".json", ".tflite"]


def made_of(file: Artifact) -> tuple[flatbuffer.Operator, ...]:
    return flatbuffer.details(flatbuffer.unpack(file.path.read_bytes()))


def network_of(fault: Fault) -> Network:
    source = taught(fault)
    with quiet():
        exact = lower(source.model, source.shape_NHWC)
        observed = calibrate.observe(exact, guilty_models.images(64, seed=2)[0])
        return Network(exact, quantize(exact, "int8", calibrate.by_rule(observed, "min-max").ranges))


def test_torch_and_the_file_agree_on_almost_every_image(tmp_path: Path) -> None:
    source, network = taught("none"), network_of("none")
    pixels = guilty_models.images(1000, seed=9)[0]
    assert source.lessons is not None
    learn(network, source.lessons(), QatSpec(epochs=1, batch_size=32), tmp_path / "state")
    with quiet(), torch.no_grad():
        content = quantize(network.trained_file(), "int8", network.ranges())
        agreed = network(torch.from_numpy(pixels).float()).numpy().argmax(1) == logits(content, pixels).argmax(1)
    assert agreement(network, content, pixels) == agreed.sum() >= 995


def test_agreement_counts_images() -> None:
    network, pixels = network_of("none"), guilty_models.images(100, seed=9)[0]
    answers = logits(network.int8_file, pixels).argmax(1)
    other = network_of("range")
    with torch.no_grad():
        strange = other(torch.from_numpy(pixels).float()).numpy().argmax(1)
    assert agreement(network, network.int8_file, pixels) >= 99
    assert agreement(other, network.int8_file, pixels) == (answers == strange).sum() < 100


def repaired(budget: float, out: Path, learning_rate: float) -> Artifact:
    qat = QatSpec(epochs=6, batch_size=32, learning_rate=learning_rate)
    variant = Variant(target="tflite", precision="int8", max_drop=budget, qat=qat)
    [made] = convert.convert(taught("range"), [variant], guilty_models.images(64, seed=4)[0], out, lambda *_: None)
    return made


def test_training_is_the_last_resort_of_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guilty_models, "FACTOR", 200.0)
    monkeypatch.setattr(repair, "REPAIRS", {})  # equalization would do
    monkeypatch.setattr(repair, "MOST_FLOAT", 0.0)
    made = repaired(2.0, tmp_path, 5e-3)
    assert made.repair is not None
    assert [step.tried for step in made.repair.steps][-1] == "trained with its rounding in place"
    assert (made.repair.met, made.name, made.precision) == (True, "tflite-int8-qat", "int8-qat")
    assert made.repair.steps[0].drop > 4 > 2 >= made.repair.drop
    assert artifacts.read(made.path) == made
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "tflite-int8-qat.tflite",
        "tflite-int8-qat.tflite.json",
    ]


def test_a_last_resort_that_is_no_better_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "REPAIRS", {})
    monkeypatch.setattr(repair, "MOST_FLOAT", 0.0)
    own = converted("range", tmp_path, epochs=1, batch_size=128)
    made = repaired(0.0, tmp_path, 1e-12)
    assert made.repair is not None
    assert (made.repair.met, made.precision) == (False, "int8")
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"tflite-int8", "tflite-int8-qat"}
    assert artifacts.read(own.path) == own, "a training that was asked for by itself stays"


def test_a_search_that_was_cut_off_goes_on_with_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guilty_models, "FACTOR", 200.0)
    monkeypatch.setattr(repair, "REPAIRS", {})
    monkeypatch.setattr(repair, "MOST_FLOAT", 0.0)
    with monkeypatch.context() as patch:
        cut_off_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            repaired(2.0, tmp_path, 5e-3)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tflite-int8-qat.training"]
    made = repaired(2.0, tmp_path, 5e-3)
    assert any("after epoch 2" in note for note in made.notes)
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"tflite-int8-qat"}


@pytest.mark.parametrize(("budget", "told"), [(100.0, False), (0.0, True)])
def test_images_of_other_classes_calibrate_but_do_not_teach(
    budget: float, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guilty_models, "FACTOR", 200.0)
    monkeypatch.setattr(repair, "REPAIRS", {})
    monkeypatch.setattr(repair, "MOST_FLOAT", 0.0)
    split = guilty_models.split(60, seed=5)
    source = replace(taught("range"), lessons=partial(lessons, split, ("red", "green", "cat"), LABELS))
    variant = Variant(target="tflite", precision="int8", max_drop=budget)
    images = guilty_models.images(64, seed=4)[0]
    [made] = convert.convert(source, [variant], images, tmp_path, lambda *_: None)
    assert any("not trained" in note and "does not know: cat" in note for note in made.notes) == told
    assert artifacts.read(made.path) == made
    # Who asks for training is told before the long work.
    monkeypatch.setattr(calibrate, "observe", None)
    with pytest.raises(DataError, match="does not know: cat"):
        convert.convert(
            source, [Variant(target="tflite", precision="int8-qat")], images, tmp_path, lambda *_: None
        )


def test_classes_without_an_image_are_named(tmp_path: Path) -> None:
    split = guilty_models.split(60, seed=5)
    source = replace(taught("none"), lessons=lambda: Lessons(split=split, truth=(1,) * len(split)))
    variant = Variant(target="tflite", precision="int8-qat", qat=QatSpec(epochs=1))
    [made] = convert.convert(source, [variant], guilty_models.images(8, seed=4)[0], tmp_path, lambda *_: None)
    assert "no image to train on of 2 of 3 classes: red, blue" in made.notes


def test_layers_may_stay_in_float_while_the_others_learn(tmp_path: Path) -> None:
    variant = Variant(target="tflite", precision="int8-qat", keep_float=("logits",), qat=QatSpec(epochs=1))
    images = guilty_models.images(64, seed=4)[0]
    [made] = convert.convert(taught("none"), [variant], images, tmp_path, lambda *_: None)
    stem, *others, last = [one.weights for one in made_of(made) if one.macs]
    assert (stem, set(others), last) == ("float32", {"int8"}, "float32")
    assert "kept in float: logits" in made.notes


def test_training_starts_from_the_float_weights() -> None:
    with pytest.raises(ValueError, match="leave out correct_biases and adaround"):
        Variant(
            target="tflite",
            precision="int8-qat",
            calibration=CalibrationSpec(equalize=True, correct_biases=True, adaround=True),
        )


def test_layers_that_share_a_bias_get_one_each() -> None:
    """As TFLite's converters store biases of all zeros."""
    exact, _ = files_of("mobilenet_v1")
    model = flatbuffer.unpack(exact)
    graph = model.subgraphs[0]
    found = [
        one for one in graph.operators if len(one.inputs) == 3 and graph.tensors[one.inputs[2]].shape[0] == 256
    ]
    assert len(found) > 3
    for one in found[1:]:
        one.inputs = [*one.inputs[:2], found[0].inputs[2]]
    images = convert.noise((SIDE, SIDE, 3), 4)
    with quiet():
        before = logits(flatbuffer.pack(model), images)
        flatbuffer.unshare_biases_(model)
        content = flatbuffer.pack(model)
        assert np.array_equal(before, logits(content, images))
        observed = calibrate.observe(content, images)
        int8 = quantize(content, "int8", calibrate.by_rule(observed, "min-max").ranges)
        network = Network(content, int8)
        assert parity(before, logits(network.trained_file(), images)).sqnr_db > 100
    assert len(set(network._trained.values())) == len(network._trained)


def test_a_budget_and_its_last_resort_are_one_file(tmp_path: Path) -> None:
    both = [
        Variant(target="tflite", precision=name, max_drop=drop)
        for name, drop in (("int8", 1.0), ("int8-qat", None))
    ]
    with pytest.raises(UsageError, match="tflite-int8-qat, which another variant gives"):
        convert.check(both)


def cut_off_after(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt trainings when the state of this epoch is stored."""
    module = sys.modules["edgekit.qat.learn"]  # the package has a function of this name
    save = module._save

    def cut_off(path: Path, key: str, epoch: int, *rest: object) -> None:
        save(path, key, epoch, *rest)
        if epoch == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_save", cut_off)


def test_an_epoch_of_some_of_the_images() -> None:
    source, module = taught("weights"), sys.modules["edgekit.qat.learn"]
    assert source.lessons is not None
    spec = QatSpec(batch_size=32, images=90)
    plans = [[batch.tolist() for batch in module._plan(source.lessons(), spec, epoch)] for epoch in (1, 2)]
    assert [[len(batch) for batch in plan] for plan in plans] == [[32, 32, 32]] * 2
    drawn = [{number for batch in plan for number in batch} for plan in plans]
    assert [len(numbers) for numbers in drawn] == [96, 96]
    assert drawn[0] != drawn[1]


def test_a_cut_off_training_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, spec = taught("weights"), QatSpec(epochs=3, batch_size=64)
    assert source.lessons is not None
    whole, cut = network_of("weights"), network_of("weights")
    assert learn(whole, source.lessons(), spec, tmp_path / "whole") == ()

    cut_off_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        learn(cut, source.lessons(), spec, tmp_path / "cut")
    monkeypatch.undo()
    again = network_of("weights")
    [note] = learn(again, source.lessons(), spec, tmp_path / "cut")
    assert "after epoch 2" in note
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    # Another training begins anew, and so does one whose state is damaged: it says so.
    assert learn(network_of("weights"), source.lessons(), replace(spec, seed=1), tmp_path / "cut") == ()
    (tmp_path / "cut").write_bytes(b"PK damaged")
    [note] = learn(network_of("weights"), source.lessons(), spec, tmp_path / "cut")
    assert "damaged" in note


def test_a_loss_that_is_no_number_is_told(tmp_path: Path) -> None:
    source = taught("none")
    assert source.lessons is not None
    with pytest.raises(TrainingError, match=r"loss is .*qat\.learning_rate \(1e\+20\)"):
        learn(network_of("none"), source.lessons(), QatSpec(epochs=1, learning_rate=1e20), tmp_path / "state")


def test_without_labelled_images_it_says_what_to_give(tmp_path: Path) -> None:
    variant = Variant(target="tflite", precision="int8-qat")
    images = guilty_models.images(8, seed=4)[0]
    with pytest.raises(UsageError, match="--data DIR"):
        convert.convert(guilty_models.source("none"), [variant], images, tmp_path, lambda *_: None)
    assert not list(tmp_path.iterdir())


def test_an_operator_that_it_does_not_know_is_named() -> None:
    with pytest.raises(ConversionError, match="operator SPLIT_V; it knows ADD, "):
        kernel("SPLIT_V")
