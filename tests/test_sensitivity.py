"""The layer that was made bad for int8 is the one that is blamed, with its cause and what would mend it."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from edgekit import convert
from edgekit.artifact import Artifact
from edgekit.errors import ArtifactError
from edgekit.export import ExportSource
from edgekit.parity import CAP_DB
from edgekit.recipe import CalibrationSpec, Variant
from edgekit.sensitivity import Layer, rank, remedies, sensitivity, worst
from tests import guilty_models, tiny_models
from tests.guilty_models import Fault

CALIBRATION = CalibrationSpec(images=200, method="min-max")
LAYERS = ("model.2", "model.4.pad", "model.4", "model.6", "model.8", "logits")


@dataclass(frozen=True)
class Case:
    source: ExportSource
    folder: Path
    reference: Artifact

    def made(self, precision: str, *keep: str) -> Artifact:
        asked = Variant(target="tflite", precision=precision, keep_float=keep, calibration=CALIBRATION)
        out = self.folder / "-".join((precision, *keep))
        [made] = convert.convert(self.source, [asked], guilty_models.images(64, seed=4)[0], out, lambda *_: None)
        return made

    def layers(self, precision: str, *keep: str) -> dict[str, Layer]:
        images = guilty_models.images(32, seed=5)[0]
        found = sensitivity(self.reference.path, self.made(precision, *keep).path, images)
        return {layer.name: layer for layer in found}


def case(fault: Fault, folder: Path) -> Case:
    source = guilty_models.source(fault)
    made = Case(source, folder, tiny_models.tflite(folder / "unused.tflite"))
    return replace(made, reference=made.made("fp32"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case("none", tmp_path_factory.mktemp("none"))


@pytest.fixture(scope="module")
def large_channel(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case("range", tmp_path_factory.mktemp("range"))


@pytest.fixture(scope="module")
def large_weights(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case("weights", tmp_path_factory.mktemp("weights"))


def test_the_faults_change_nothing_in_float(sound: Case, large_channel: Case, large_weights: Case) -> None:
    images = guilty_models.images(32, seed=5)[0]
    wanted = sound.source.logits(images)
    for faulty in (large_channel, large_weights):
        assert np.abs(faulty.source.logits(images) - wanted).max() < 2e-3


def test_a_float_file_adds_no_error(sound: Case) -> None:
    layers = sound.layers("fp32")
    assert tuple(layers)[-6:] == LAYERS
    assert all(layer.sqnr_db == layer.own_db == CAP_DB and layer.in_float for layer in layers.values())
    assert not remedies(list(layers.values()))
    assert not worst(list(layers.values()))


def test_a_sound_int8_file_has_no_layer_below_30_db(sound: Case) -> None:
    layers = sound.layers("int8")
    assert min(layer.own_db for layer in layers.values()) > 30
    assert [name for name, layer in layers.items() if not layer.in_float] == list(LAYERS)
    assert layers["model.2"].macs == 8 * 8 * 16 * 24
    assert layers["model.4.pad"].users == ("model.4",)


def test_a_channel_that_is_a_thousand_times_as_large(large_channel: Case) -> None:
    layers = large_channel.layers("int8")
    guilty = layers["model.2"]
    assert guilty.own_db < 10
    assert guilty.rounding > 0.99
    assert min(layer.own_db for name, layer in layers.items() if name != "model.2") > 30
    # The tensor itself looks well: the large channel is its power. Its reader knows better.
    assert guilty.sqnr_db > 30
    assert layers["model.4"].sqnr_db < 10
    assert worst(list(layers.values())) == (guilty,)
    # To be rid of the scale, all who read it through the padding must be in float, too.
    assert ("model.2", "model.4.pad", "model.4") in [one.float_layers for one in remedies(list(layers.values()))]


def test_large_weights_for_a_channel_that_is_always_zero(large_weights: Case) -> None:
    layers = large_weights.layers("int8")
    guilty = layers["model.6"]
    assert guilty.own_db < 5
    assert guilty.rounding < 0.01
    assert min(layer.own_db for name, layer in layers.items() if name != "model.6") > 30
    assert str(guilty) == f"model.6 ({guilty.own_db:.1f} dB by its weights)"
    assert worst(list(layers.values())) == (guilty,)
    assert ("model.6",) in [one.float_layers for one in remedies(list(layers.values()))]


@pytest.mark.parametrize(("name", "maker"), [("model.6", "model.4"), ("logits", "model.8")])
def test_its_own_error_is_what_a_layer_adds_when_it_alone_is_quantized(
    large_weights: Case, name: str, maker: str
) -> None:
    """And the rounding of its input, the maker's: the noise of the file with one layer in int8 is both."""
    everything = large_weights.layers("int8")
    alone = large_weights.layers("int8-mixed", *(other for other in LAYERS if other != name))[name]
    before = everything[maker].rounding * everything[maker].own_noise
    assert 10 ** (-alone.sqnr_db / 10) == pytest.approx(everything[name].own_noise + before, rel=0.2)


def test_a_broken_file_names_the_guilty(large_weights: Case, sound: Case) -> None:
    broken = large_weights.made("int8")
    assert broken.parity is not None
    assert broken.parity.broken("int8").startswith("top-1 agrees with the float model on ")
    said, note = broken.notes
    assert said == f"broken: {broken.parity.broken('int8')}"
    assert note.startswith("guilty, by the error that each layer adds: model.6 (3.")
    assert sound.made("int8").notes == ()


@pytest.mark.parametrize(
    ("precision", "least"), [("fp16", 50), ("w8", 30), ("w4", 3), ("dyn8", 25), ("int16x8", 30)]
)
def test_other_precisions_are_measured_too(sound: Case, precision: str, least: float) -> None:
    layers = sound.layers(precision)
    assert set(layers) >= set(LAYERS)
    worst_db = min(layer.own_db for layer in layers.values())
    assert least < worst_db < least + 30


def test_a_file_of_another_network(sound: Case, tmp_path: Path) -> None:
    other = tiny_models.tflite(tmp_path / "other.tflite")
    with pytest.raises(
        ArtifactError, match=r"other\.tflite has no tensor of the names and shapes in .*fp32\.tflite"
    ):
        sensitivity(sound.reference.path, other.path, guilty_models.images(1, seed=5)[0])
    (tmp_path / "text.tflite").write_text("a list of things to do")
    with pytest.raises(ArtifactError, match=r"text\.tflite is not a TFLite model"):
        sensitivity(sound.reference.path, tmp_path / "text.tflite", guilty_models.images(1, seed=5)[0])


def layer(name: str, own_db: float, macs: int, rounding: float = 0.0, users: tuple[str, ...] = ()) -> Layer:
    return Layer(name=name, kind="CONV_2D", sqnr_db=0.0, own_db=own_db, rounding=rounding, macs=macs, users=users)


NETWORK = [
    layer("dear", 10, 600),
    layer("cheap", 11, 10),
    layer("ranged", 20, 190, rounding=0.9, users=("reader",)),
    layer("reader", 40, 190),
    layer("sound", CAP_DB, 10),
]


def test_remedies_are_of_layers_that_add_error_and_of_those_who_read_a_range() -> None:
    found = remedies(NETWORK)
    assert [one.float_layers for one in found] == [("dear",), ("cheap",), ("ranged", "reader"), ("reader",)]
    assert [round(one.cost, 2) for one in found] == [0.65, 0.06, 0.43, 0.24]  # 0.05 for the way to float and back
    timed = remedies(NETWORK, {"dear": -0.2, "cheap": 0.3, "ranged": 0.1, "reader": 0.1})
    assert [round(one.cost, 2) for one in timed] == [0.01, 0.31, 0.21, 0.11]
    assert [one.name for one in worst(NETWORK)] == ["dear", "cheap", "ranged"]


def test_remedies_are_ranked_by_harm_for_their_cost_up_to_a_share_of_the_products() -> None:
    found = remedies(NETWORK)

    def names(harms: list[float], most: float = 1.0) -> list[str]:
        return [one.name for one in rank(found, harms, most * 1000)]

    assert names([0.65, 0.12, 0.43, 0.1]) == ["cheap", "dear", "ranged"]  # "ranged" takes "reader" along
    assert names([0.65, 0.01, 0.5, 0.24]) == ["ranged", "dear", "cheap"]
    assert names([0.65, 0.01, 0.5, 0.24], most=0.5) == ["ranged", "cheap"]
    assert names([0.65, 0.01, 0.5, 0.24], most=0.2) == ["reader", "cheap"]
    assert names([0.0, -0.01, 0.1, 0.0]) == ["ranged"]
