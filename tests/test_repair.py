"""An int8 file that loses too much is repaired by its guilty layer alone; what was tried stands in the sidecar."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit import artifact as artifacts
from edgekit import convert, repair
from edgekit.artifact import Artifact
from edgekit.cli import main
from edgekit.data.dataset import Split
from edgekit.errors import DataError, UsageError
from edgekit.export import LABELLED_IMAGES, labelled
from edgekit.profile import Costs
from edgekit.recipe import DEFAULT_MAX_DROP, REPAIRS, CalibrationSpec, Variant
from edgekit.schema import SchemaError, decode, encode
from edgekit.sensitivity import sensitivity
from tests import guilty_models
from tests.guilty_models import LABELS, Fault

CALIBRATION = CalibrationSpec(images=200, method="min-max")
BUDGET = 2.0  # points; the faults cost 50 and their repair leaves 0.25, which differs by kernels
INT8 = Variant(target="tflite", precision="int8", calibration=CALIBRATION)


@pytest.fixture
def no_repairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no repair of the weights helps: equalizing heals both faults."""
    monkeypatch.setattr(repair, "REPAIRS", {})


@pytest.fixture
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers cost alike. What is timed beside other programs may be in doubt, and is then told in a note."""
    monkeypatch.setattr(repair, "costs", lambda wanted, int8: Costs(shares={}, doubt=0.0, int8_ms=1.0))


def converted(fault: Fault, variant: Variant, out: Path) -> Artifact:
    images = guilty_models.images(64, seed=4)[0]
    [made] = convert.convert(guilty_models.source(fault), [variant], images, out, lambda *_: None)
    return made


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "layers"), [("range", ("model.4", "model.2", "model.4.pad")), ("weights", ("model.6",))]
)
@pytest.mark.usefixtures("no_repairs", "quiet_machine")
def test_the_guilty_layer_alone_is_kept_in_float(fault: Fault, layers: tuple[str, ...], tmp_path: Path) -> None:
    made = converted(fault, replace(INT8, max_drop=BUDGET), tmp_path)
    found = made.repair
    assert found is not None
    assert (found.met, found.float_layers, found.images, found.weighed_by) == (True, layers, 400, "latency")
    assert found.float_top1 > 0.9
    assert found.drop <= BUDGET
    before, *_, after = found.steps
    assert (before.drop > 40, len(found.steps)) == (True, {"range": 3, "weights": 2}[fault])
    assert after.drop == found.drop
    assert made.size_bytes == after.size_bytes < 1.25 * before.size_bytes
    assert (made.precision, made.name) == ("int8-mixed", "tflite-int8-mixed")
    assert made.notes == (f"kept in float: {', '.join(layers)}",)
    assert made.parity is not None
    assert made.parity.broken(made.precision) == ""


@pytest.mark.usefixtures("no_repairs")
def test_the_log_is_of_the_file_that_is_there(tmp_path: Path) -> None:
    made = converted("weights", replace(INT8, max_drop=BUDGET), tmp_path)
    assert artifacts.read(made.path) == made
    assert files_in(tmp_path) == ["tflite-int8-mixed.tflite", "tflite-int8-mixed.tflite.json"]
    assert made.repair is not None
    held_out = guilty_models.source("weights").held_out
    assert held_out is not None
    images = held_out()
    top1 = (convert.converter("tflite").predict(made, images.pixels_NHWC).argmax(1) == images.truth).mean()
    assert top1 == made.repair.steps[-1].top1 == pytest.approx(made.repair.float_top1 - made.repair.drop / 100)
    assert made.repair.images_sha256 == images.images_sha256


def test_a_sound_network_stays_int8(tmp_path: Path) -> None:
    made = converted("none", replace(INT8, max_drop=BUDGET), tmp_path)
    assert made.repair is not None
    assert (made.name, made.precision, made.repair.met, len(made.repair.steps)) == ("tflite-int8", "int8", True, 1)
    plain = converted("none", INT8, tmp_path / "plain")
    assert (plain.sha256, plain.repair) == (made.sha256, None)


@pytest.mark.usefixtures("no_repairs")
def test_a_budget_that_is_not_met_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "MOST_FLOAT", 0.1)  # the guilty one does 0.18 of the products
    made = converted("weights", replace(INT8, max_drop=BUDGET), tmp_path)
    found = made.repair
    assert found is not None
    assert not found.met
    assert found.drop == min(step.drop for step in found.steps) > 40
    assert found.p_value < 1e-9
    assert made.path.is_file()
    [note] = [note for note in made.notes if "NOT met" in note]
    assert note.startswith(
        f"the budget is NOT met: {found.drop:.2f} points of top-1 are lost, more than 2; the best"
    )


@pytest.mark.usefixtures("no_repairs")
def test_mixed_by_name_has_a_default_budget(tmp_path: Path) -> None:
    mixed = replace(INT8, precision="int8-mixed")
    assert mixed.budget == DEFAULT_MAX_DROP == 0.5
    made = converted("weights", mixed, tmp_path)
    assert made.repair is not None
    assert made.repair.max_drop == 0.5
    assert made.repair.steps[1].float_layers == ("model.6",)


def test_layers_that_are_named_are_kept_without_a_search(tmp_path: Path) -> None:
    named = replace(INT8, precision="int8-mixed", keep_float=("model.6", "logits"))
    source = guilty_models.source("weights", held_out=False)
    images = guilty_models.images(64, seed=4)[0]
    [made] = convert.convert(source, [named], images, tmp_path, lambda *_: None)
    assert (made.repair, made.notes) == (None, ("kept in float: model.6, logits",))
    kinds = {one.name: one.dtype for one in convert.for_file(made.path).inspect(made.path).details}
    assert (kinds["model.4"], kinds["model.6"], kinds["logits"]) == ("int8", "float32", "float32")
    with pytest.raises(UsageError, match=r"has no layer 'model\.66'; did you mean 'model\.6'\?; `edgekit inspect"):
        converted("weights", replace(named, keep_float=("model.66",)), tmp_path)


# --- repairs of the weights -----------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["range", "weights", "scales"])
def test_equalized_channels_rescue_what_int8_breaks(fault: Fault, tmp_path: Path) -> None:
    made = converted(fault, replace(INT8, max_drop=BUDGET), tmp_path)
    found = made.repair
    assert found is not None
    assert (found.met, found.repairs, found.float_layers, found.weighed_by) == (True, ("equalize",), (), "")
    assert [step.tried for step in found.steps] == ["int8 as calibrated", "equalized channels"]
    before, after = found.steps
    assert before.drop > 30
    assert after.gain == pytest.approx(before.drop - after.drop)
    assert abs(after.size_bytes - before.size_bytes) < 64
    assert (made.name, made.notes) == ("tflite-int8", ("repaired: equalized channels",))
    assert made.calibration is not None
    assert made.calibration.repairs == ("equalize",)
    assert made.parity is not None
    assert made.parity.broken("int8") == ""


def test_all_of_the_ladder_is_tried_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Corrected biases and learned rounding do not heal large weights; layer 6 in float does, as it was."""
    monkeypatch.setattr(repair, "REPAIRS", {name: text for name, text in REPAIRS.items() if name != "equalize"})
    made = converted("weights", replace(INT8, max_drop=BUDGET), tmp_path)
    found = made.repair
    assert found is not None
    assert [step.tried for step in found.steps[:4]] == [
        "int8 as calibrated",
        "corrected biases",
        "learned rounding",
        f"1 of {found.steps[3].tried.split()[2]} remedies",
    ]
    assert (found.met, found.float_layers) == (True, ("model.6",))
    assert found.weighed_by in ("latency", "products")
    kept = [step for step in found.steps if step.kept]
    assert found.repairs == kept[-1].repairs
    assert all(step.seconds is not None and step.seconds > 0 and step.p_value is not None for step in found.steps)


def test_repairs_that_are_asked_for_are_part_of_the_first_step(tmp_path: Path) -> None:
    asked = replace(INT8, max_drop=BUDGET, calibration=replace(CALIBRATION, equalize=True))
    made = converted("range", asked, tmp_path)
    assert made.repair is not None
    [step] = made.repair.steps
    assert (step.tried, step.repairs, step.drop < BUDGET) == ("int8 as calibrated", ("equalize",), True)


def test_a_broken_file_with_repairs_names_the_guilty(tmp_path: Path) -> None:
    asked = replace(CALIBRATION, correct_biases=True, adaround=True)
    made = converted("weights", replace(INT8, calibration=asked), tmp_path)
    [note] = [note for note in made.notes if note.startswith("guilty")]
    assert note.startswith("guilty, by the error that each layer adds: model.6 (")


def test_an_equalized_file_is_compared_with_the_equalized_float_file(tmp_path: Path) -> None:
    equalized = replace(CALIBRATION, equalize=True)
    images = guilty_models.images(32, seed=5)[0]
    int8 = converted("range", replace(INT8, calibration=equalized), tmp_path / "int8")
    worst = []
    for name, spec in (("plain", CALIBRATION), ("equalized", replace(equalized, adaround=True).exact)):
        like = converted("range", replace(INT8, precision="fp32", calibration=spec), tmp_path / name)
        layers = sensitivity(like.path, int8.path, images)
        worst.append(min(layer.own_db for layer in layers if not layer.in_float))
    assert worst[0] < 5
    assert worst[1] > 25


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_repairs")
def test_the_answer_under_the_other_name_goes_and_a_plain_file_stays(tmp_path: Path) -> None:
    searched = replace(INT8, max_drop=BUDGET)
    path_of = repair.path_of
    assert path_of(searched, ".tflite", tmp_path).name == "tflite-int8.tflite"
    converted("weights", searched, tmp_path)
    assert path_of(searched, ".tflite", tmp_path).name == "tflite-int8-mixed.tflite"
    assert path_of(INT8, ".tflite", tmp_path).name == "tflite-int8.tflite"
    converted("none", searched, tmp_path)
    assert files_in(tmp_path) == ["tflite-int8.tflite", "tflite-int8.tflite.json"]
    assert path_of(searched, ".tflite", tmp_path).name == "tflite-int8.tflite"
    converted("none", INT8, tmp_path)
    converted("weights", searched, tmp_path)
    assert len(files_in(tmp_path)) == 4
    assert path_of(searched, ".tflite", tmp_path).name == "tflite-int8-mixed.tflite"


@pytest.mark.parametrize("order", [1, -1])
def test_two_variants_that_end_in_one_file_are_one_artifact(order: int, tmp_path: Path) -> None:
    images = guilty_models.images(64, seed=4)[0]
    both = [INT8, replace(INT8, precision="int8-mixed")]
    [made] = convert.convert(guilty_models.source("none"), both[::order], images, tmp_path, lambda *_: None)
    assert made.repair is not None
    assert artifacts.read(made.path) == made
    with pytest.raises(UsageError, match="int8 with max_drop and int8-mixed give the same file: leave out one"):
        convert.check([replace(INT8, max_drop=1.0), both[1]])


def test_an_old_sidecar_decodes(tmp_path: Path) -> None:
    made = converted("none", INT8, tmp_path)
    old = encode(made)
    assert old.pop("repair") is None
    artifacts.sidecar(made.path).write_text(json.dumps(old))
    assert artifacts.read(made.path) == made


# --- what is asked for ----------------------------------------------------------------------------


def test_a_search_without_labelled_images(tmp_path: Path) -> None:
    source = guilty_models.source("none", held_out=False)
    with pytest.raises(UsageError, match=r"needs labelled images that were not trained on: give --data DIR"):
        convert.convert(source, [replace(INT8, max_drop=1)], np.zeros((1, 16, 16, 3), np.uint8), tmp_path, print)
    assert files_in(tmp_path) == []


def test_settings_that_do_not_go_together() -> None:
    for given, fault in (
        ({"precision": "fp16", "max_drop": 0.5}, "max_drop goes with precision int8 or int8-mixed, not fp16"),
        ({"precision": "int8", "max_drop": -0.5}, "max_drop: -0.5 is out of range; it must be between 0 and 100"),
        (
            {"precision": "int8", "keep_float": ["a"]},
            "keep_float goes with precision int8-mixed or int8-qat, not int8",
        ),
        (
            {"precision": "int8-mixed", "keep_float": ["a"], "max_drop": 1},
            "keep_float names the layers that max_drop",
        ),
    ):
        with pytest.raises(SchemaError, match=fault):
            decode(Variant, {"target": "tflite", **given})
    assert encode(INT8, defaults=False).keys() == {"target", "precision", "calibration"}


def test_classes_are_brought_into_the_models_order() -> None:
    split = guilty_models.split(10, seed=3)
    shuffled = ("blue", "red", "green")
    found = labelled(split, shuffled, LABELS)
    assert [LABELS[index] for index in found.truth] == [shuffled[index] for index in split.labels]
    with pytest.raises(DataError, match="classes that the model does not know: violet; it knows red, green, blue"):
        labelled(split, ("violet", "red", "green"), LABELS)


def test_many_images_are_a_seeded_choice() -> None:
    count = LABELLED_IMAGES + 50
    pictures = guilty_models.split(10, seed=3)
    many = Split(
        ids=tuple(map(str, range(count))), labels=(0,) * count, reader=pictures.reader, rows=np.arange(count) % 10
    )
    first, again = (labelled(many, LABELS, LABELS) for _ in range(2))
    assert len(first.truth) == LABELLED_IMAGES
    assert first.images_sha256 == again.images_sha256


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of PNG files, the contract and the labels; and a model for each fault."""
    root = tmp_path_factory.mktemp("photos")
    for part, count, seed in (("train", 120, 2), ("val", 200, 3)):
        for index, (picture, label) in enumerate(zip(*guilty_models.images(count, seed), strict=True)):
            folder = root / "data" / part / LABELS[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{index:04}.png")
    (root / "labels.txt").write_text("\n".join(LABELS))
    mean, std = guilty_models.CONTRACT.mean, guilty_models.CONTRACT.std
    (root / "contract.toml").write_text(f"mean = {list(mean)}\nstd = {list(std)}\n")
    code = "from tests import guilty_models\ndef build():\n    return guilty_models.network({!r})\n"
    for fault in ("none", "range", "weights"):
        (root / f"{fault}.py").write_text(code.format(fault))
    return root


def command(photos: Path, fault: Fault, *words: str) -> int:
    model = ("convert", f"{fault}.py:build", "--target", "tflite")
    contract = ("--preprocess", "contract.toml", "--labels", "labels.txt", "--size", "16")
    return main((*model, *contract, *words))


@pytest.mark.usefixtures("no_repairs")
def test_max_drop_repairs_and_prints_what_was_tried(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos)
    words = ("--quantize", "int8", "--max-drop", "3", "--data", "data", "--out", str(tmp_path))
    assert command(photos, "weights", *words) == 0
    out, err = capsys.readouterr()
    assert "tflite-int8-mixed: kept in float: model.6" in err
    assert "top-1 with 1 layer in float" in out
    assert ": within the budget of 3 (200 held-out images)" in out
    tried = [line.split("  ")[0] for line in out.splitlines()[-4:]]
    assert tried == ["tried", "float", "int8 as calibrated", "1 of 3 remedies"]
    made = artifacts.read(tmp_path / "tflite-int8-mixed.tflite")
    assert made.repair is not None
    assert made.repair.float_layers == ("model.6",)
    assert made.calibration is not None
    assert made.calibration.count == 120


@pytest.mark.usefixtures("no_repairs")
def test_a_budget_that_is_not_met_has_exit_status_1_and_leaves_the_best_file(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos)
    monkeypatch.setattr(repair, "MOST_FLOAT", 0.1)
    words = ("--quantize", "int8", "--max-drop", "0.5", "--calibrate", "data", "--out", str(tmp_path))
    assert command(photos, "weights", *words) == 1
    out, err = capsys.readouterr()
    assert "NOT within the budget of 0.5" in out
    assert "the budget is NOT met: " in err
    assert "guilty, by the error that each layer adds: model.6" in err
    assert any(path.suffix == ".tflite" for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--quantize", "int8", "--max-drop", "0.5"),
            "needs labelled images that were not trained on: give --data",
        ),
        (("--quantize", "int8-mixed"), "needs labelled images that were not trained on: give --data DIR"),
        (
            ("--quantize", "fp16,w8", "--max-drop", "1"),
            "--max-drop is for int8: give --quantize int8, not fp16,w8",
        ),
        (("--quantize", "int8", "--max-drop", "few"), "expected percentage points between 0 and 100, such as 0.5"),
        (("--max-drop", "0.5"), "--max-drop is for int8: give --quantize int8, not fp32"),
    ],
)
def test_what_is_missing_is_a_usage_error(
    words: tuple[str, ...],
    message: str,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(photos)
    try:
        status = command(photos, "none", *words)
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("no_repairs")
def test_mixed_by_name_says_its_budget(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos)
    words = ("--quantize", "int8-mixed", "--data", "data", "--out", str(tmp_path), "--json", "-")
    assert command(photos, "weights", *words) in (0, 1)  # one image is half a point
    out, err = capsys.readouterr()
    assert "tflite-int8-mixed may lose 0.5 points of top-1 (--max-drop)" in err
    [told] = json.loads(out)
    assert told["repair"]["max_drop"] == 0.5
    assert told["repair"]["steps"][1]["float_layers"] == ["model.6"]


def test_all_without_labelled_images_leaves_mixed_out(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a checkpoint does whose images are gone: what needs none of them is made."""
    monkeypatch.chdir(photos)
    target = convert.converter("tflite")
    monkeypatch.setattr(target, "precisions", dict.fromkeys(("fp32", "fp16", "int8-mixed"), ""))
    assert command(photos, "none", "--quantize", "all", "--out", str(tmp_path)) == 0
    assert "int8-mixed is left out: it needs labelled images (--data DIR)" in capsys.readouterr().err
    assert files_in(tmp_path)[::2] == ["tflite-fp16.tflite", "tflite-fp32.tflite"]


# --- a run ----------------------------------------------------------------------------------------

RECIPE = """
[model]
name = "mobilenet_v2"
width = 0.1
stem_stride = 2
[data]
source = "digits"
[data.preprocess]
height = 32
width = 32
resize = "squash"
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
[train]
epochs = 1
warmup_epochs = 0
[[variant]]
target = "tflite"
precision = "int8"
max_drop = 100
calibration = { method = "min-max" }
"""


def test_a_recipe_with_max_drop_is_followed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit import pipeline
    from edgekit.cli.terminal import Silent

    said: list[str] = []
    listener = Silent()
    monkeypatch.setattr(listener, "say", said.append)
    run = tmp_path / "run"

    def follow() -> None:
        pipeline.run("digits", listener=listener, text=RECIPE, out=run, until="convert")

    follow()
    made = artifacts.read(run / "artifacts" / "tflite-int8.tflite")
    assert made.repair is not None
    assert (made.repair.met, made.repair.images, made.repair.max_drop) == (True, 359, 100)
    assert "convert: 1 files" in said
    follow()
    assert "convert: 1 files: done already" in said


def test_a_recipe_with_a_search_before_the_file_that_it_ends_in(tmp_path: Path) -> None:
    from edgekit import pipeline
    from edgekit.cli.terminal import Silent

    mixed = RECIPE.replace('"int8"', '"int8-mixed"')
    text = mixed + '[[variant]]\ntarget = "tflite"\nprecision = "int8"\ncalibration = { method = "min-max" }\n'

    def follow(text: str) -> Artifact:
        pipeline.run("digits", listener=Silent(), text=text, out=tmp_path, until="convert")
        return artifacts.read(tmp_path / "artifacts" / "tflite-int8.tflite")

    made = follow(text)
    assert made.repair is not None
    assert follow(text) == made
    again = follow(text.replace('"int8"\ncalibration = { ', '"int8"\ncalibration = { images = 20, '))
    assert again.repair is not None, "the plain file was made anew, and the search after it"


def test_a_run_ends_with_status_1_where_the_budget_is_not_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "mine.toml", tmp_path / "run"
    recipe.write_text(RECIPE)
    words = ("run", str(recipe), "--out", str(out), "--until", "convert")
    assert main(words) == 0
    path = out / "artifacts" / "tflite-int8.tflite"
    made = artifacts.read(path)
    assert made.repair is not None
    artifacts.write_sidecar(replace(made, repair=replace(made.repair, met=False, drop=1.25, max_drop=0.5)))
    capsys.readouterr()
    assert main(words) == 1
    printed, told = capsys.readouterr()
    assert "run: tflite-int8 loses 1.25 points of top-1, more than its max_drop of 0.5" in told
    assert "done up to convert" in printed


def test_classes_that_were_not_measured_are_told() -> None:
    seen = np.array([0, 2, 2], np.int64)
    [note] = repair._unmeasured(("a", "b", "c", "d"), seen)
    assert note == "no held-out image of 2 of 4 classes, whose loss is not known: b, d"
    assert repair._unmeasured(("a", "b", "c"), np.arange(3)) == ()
