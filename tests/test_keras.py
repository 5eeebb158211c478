"""Keras files and SavedModels become TFLite files like torch models do; what cannot has its line."""

import shutil
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import convert, data, flatbuffer, keras_model, keras_source, source, xnnpack
from edgekit.artifact import Artifact
from edgekit.errors import CheckpointError, ConversionError, MissingDependency, UsageError
from edgekit.export import calibration_images, labelled
from edgekit.preprocess import Pixels, Preprocess, normalized, preset
from edgekit.recipe import CalibrationSpec, Variant
from edgekit.source import Found
from edgekit.trainspec import QatSpec

pytestmark = [
    pytest.mark.skipif(find_spec("tensorflow") is None, reason="the extra keras is not installed"),
    # Keras reads NumPy's old names, and saving as .h5 warns of itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:You are saving your model:UserWarning"),
]

SIDE = 32
CONTRACT = preset("0to255", SIDE, SIDE)
PRECISIONS = ("fp32", "fp16", "w8", "w4", "dyn8", "int8", "int16x8")
# Lowest SQNR in dB and agreement of top-1 on 256 images.
BARS = {"fp32": (90, 1.0), "fp16": (45, 0.99), "w8": (25, 0.97), "dyn8": (20, 0.97), "int8": (20, 0.97)}


@pytest.fixture(scope="module", autouse=True)
def _started() -> None:
    """In the order in which they get on: the tests themselves import Keras."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras_model.start()


def quiet_progress(text: str, share: float) -> None: ...


def digits(part: str) -> Any:
    return data.evaluation("digits", CONTRACT, part, confirm=lambda question: False)  # type: ignore[arg-type]


def network() -> Any:
    """Strides, h-swish, SiLU, ReLU6, squeeze and excite, and its own normalisation."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers

    def block(x: Any, width: int, stride: int, activation: str) -> Any:
        x = layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False)(x)
        x = layers.Activation(activation)(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.Conv2D(width, 1, use_bias=False)(x)
        return layers.Activation(activation)(layers.BatchNormalization(momentum=0.9)(x))

    image = layers.Input((SIDE, SIDE, 3))
    x = layers.Rescaling(1 / 127.5, -1)(image)
    x = layers.Conv2D(16, 3, 2, padding="same", use_bias=False, name="stem")(x)
    x = layers.Activation("hard_swish")(layers.BatchNormalization(momentum=0.9)(x))
    x = block(block(block(x, 32, 1, "relu6"), 48, 2, "hard_swish"), 64, 1, "silu")
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(16, 1, activation="relu")(gate)
    gate = layers.Conv2D(64, 1, activation="hard_sigmoid")(gate)
    x = layers.GlobalAveragePooling2D()(layers.Multiply()([x, gate]))
    return keras.Model(image, layers.Dense(10, name="logits")(x))  # a name that the file itself has


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network, saved in each way."""
    import keras

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made, out, split = network(), tmp_path_factory.mktemp("keras"), digits("train").split
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        made.compile(keras.optimizers.Adam(3e-3), loss)
        made.fit(split.read().astype(np.float32), np.array(split.labels), epochs=8, batch_size=32, verbose=0)
        made.save(out / "net.keras")
        made.save(out / "net.h5")
        made.export(str(out / "saved"), verbose=False)
    return out


def find(path: Path, **options: Any) -> Found:
    given: dict[str, Any] = {"preprocess": CONTRACT, "labels": None, "weights": None, "calibrate": None}
    return source.find(str(path), confirm=lambda question: False, **{**given, **options})


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    return find(folder / "net.keras", calibrate="digits")


@pytest.fixture(scope="module")
def images(found: Found) -> Pixels:
    assert found.source.calibrate is not None
    return found.source.calibrate(CalibrationSpec(images=256, seed=1)).pixels_NHWC


@pytest.fixture(scope="module")
def made(found: Found, images: Pixels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    variants = [Variant(target="tflite", precision=name) for name in PRECISIONS]
    variants.append(Variant(target="tflite", precision="int8", io="int8"))
    files = convert.convert(found.source, variants, images, tmp_path_factory.mktemp("made"), quiet_progress)
    return {one.name.removeprefix("tflite-"): one for one in files}


def top1(artifact: Artifact, split: data.Split) -> float:
    scores = convert.converter("tflite").predict(artifact, split.read())
    return float((scores.argmax(1) == np.array(split.labels)).mean())


def test_what_is_found(found: Found, folder: Path) -> None:
    assert (found.name, found.notes) == ("net", ("no --labels: the 10 classes are called 0 to 9",))
    assert (found.source.shape_NHWC, found.source.labels) == ((1, SIDE, SIDE, 3), tuple("0123456789"))
    assert len(found.source.parent) == 64
    assert find(folder / "net.keras", labels=tuple("abcdefghij")).source.labels == tuple("abcdefghij")


@pytest.mark.parametrize("name", sorted(BARS))
def test_each_precision_computes_what_keras_computes(name: str, made: dict[str, Artifact]) -> None:
    parity = made[name].parity
    assert parity is not None
    assert parity.sqnr_db > BARS[name][0]
    assert parity.top1_agreement >= BARS[name][1]
    assert {"tensorflow", "keras", "edgekit"} <= made[name].tools.keys()
    assert made[name].size_bytes < {"fp32": 1.3, "fp16": 0.75}.get(name, 0.75) * made["fp32"].size_bytes + 1


def test_accuracy_of_the_files(made: dict[str, Artifact], found: Found) -> None:
    """On held-out digits: the float file as good as Keras, int8 within 1.5 points, with either input."""
    split = digits("val").split
    own = float((found.source.logits(split.read()).argmax(1) == np.array(split.labels)).mean())
    assert own > 0.9
    assert top1(made["fp32"], split) == own
    for name in ("fp16", "w8", "dyn8", "int8", "int8-io-int8"):
        assert abs(top1(made[name], split) - own) <= 0.015, name


def test_the_file_takes_raw_pixels_and_is_all_taken_by_xnnpack(made: dict[str, Artifact]) -> None:
    for name in ("fp32", "fp16", "int8"):
        one = made[name]
        assert (one.input.name, one.input.dtype, one.input.shape) == ("pixels", "uint8", (1, SIDE, SIDE, 3))
        assert (one.output.name, one.output.dtype) == ("logits", "float32")
        assert all(xnnpack.taken(one.path)), name
        assert convert.for_file(one.path).inspect(one.path).labels == tuple("0123456789")


def test_int8_for_microcontrollers_has_no_float(made: dict[str, Artifact]) -> None:
    one = made["int8-io-int8"]
    assert (one.input.dtype, one.input.scale, one.input.zero_point) == ("int8", 1.0, -128)
    assert (one.output.dtype, one.precision) == ("int8", "int8")
    assert flatbuffer.in_float(flatbuffer.unpack(one.path.read_bytes())) == ()
    assert flatbuffer.in_float(flatbuffer.unpack(made["int8"].path.read_bytes())) != ()


def test_tensors_are_named_by_layers(made: dict[str, Artifact]) -> None:
    names = [one.name for one in convert.for_file(made["fp32"].path).inspect(made["fp32"].path).details]
    assert len(set(names)) == len(names)
    assert {"stem", "conv2d", "depthwise_conv2d", "conv2d_4"} <= set(names)
    assert not [name for name in names if ";" in name or len(name) > 60]
    assert names[-1] == "logits"


@pytest.mark.parametrize("form", ["net.h5", "saved"])
def test_each_way_of_saving_gives_the_same_file(
    form: str, folder: Path, found: Found, images: Pixels, made: dict[str, Artifact], tmp_path: Path
) -> None:
    other = find(folder / form, calibrate="digits").source
    assert np.allclose(other.logits(images), found.source.logits(images), atol=1e-4)
    [one] = convert.convert(other, [Variant(target="tflite", precision="fp32")], images, tmp_path, quiet_progress)
    assert one.parity is not None
    assert one.parity.sqnr_db > 90
    assert one.size_bytes == pytest.approx(made["fp32"].size_bytes, rel=0.03)


def test_layers_stay_in_float_by_name(found: Found, images: Pixels, tmp_path: Path) -> None:
    kept = Variant(target="tflite", precision="int8-mixed", keep_float=("conv2d_1", "logits"))
    [one] = convert.convert(found.source, [kept], images, tmp_path, quiet_progress)
    details = {layer.name: layer for layer in convert.for_file(one.path).inspect(one.path).details}
    assert (details["conv2d_1"].dtype, details["logits"].dtype) == ("float32", "float32")
    assert details["depthwise_conv2d_1"].dtype == "int8"


def test_a_budget_of_accuracy(found: Found, images: Pixels, tmp_path: Path) -> None:
    """The search over layers runs as it does for torch models."""
    budget = Variant(target="tflite", precision="int8", max_drop=0.6)
    [one] = convert.convert(found.source, [budget], images, tmp_path, quiet_progress)
    assert one.repair is not None
    assert one.repair.met


@pytest.mark.parametrize("name", ["imagenet", "minus1to1", "0to1", "BGR"])
def test_the_contract_is_inside_the_file(name: str, tmp_path: Path) -> None:
    import keras

    contract = preset(name, 8, 8) if name != "BGR" else Preprocess(height=8, width=8, channel_order="BGR")
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
    model.save(tmp_path / "dense.keras")
    images = convert.noise((8, 8, 3), 16)
    given = find(tmp_path / "dense.keras", preprocess=contract).source
    expected = model(normalized(images, contract)).numpy()
    assert np.allclose(given.logits(images), expected, atol=1e-4)
    [one] = convert.convert(given, [Variant(target="tflite", precision="fp32")], images, tmp_path, quiet_progress)
    assert np.allclose(convert.converter("tflite").predict(one, images), expected, atol=1e-4)


def test_a_model_that_ends_in_softmax_gives_probabilities(tmp_path: Path) -> None:
    import keras

    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4, activation="softmax")]
    keras.Sequential(layers).save(tmp_path / "soft.keras")
    given = find(tmp_path / "soft.keras", preprocess=preset("0to1", 8, 8)).source
    images = convert.noise((8, 8, 3), 16)
    [one] = convert.convert(given, [Variant(target="tflite", precision="fp32")], images, tmp_path, quiet_progress)
    assert one.notes == ("the model ends in softmax: its scores are probabilities, and so are the file's",)
    assert np.allclose(convert.converter("tflite").predict(one, images).sum(1), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0"])
def test_networks_of_keras_applications(name: str, tmp_path: Path) -> None:
    """Each is lean: batch norm folded, activations fused, all of it taken by XNNPACK, in float and in int8."""
    import keras

    keras.utils.set_random_seed(0)
    contract = preset("minus1to1" if name in ("MobileNet", "MobileNetV2") else "0to255", 96, 96)
    images = convert.noise((96, 96, 3), 32)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(96, 96, 3), classes=10, classifier_activation=None
    )
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    for norm in norms:  # statistics as of real activations: with random ones the answers are all the same
        norm.momentum = 0.0
    model(normalized(images, contract), training=True)
    model.save(tmp_path / "net.keras")
    split = data.dataset.Split(
        ids=tuple(map(str, range(32))),
        labels=(0,) * 32,
        reader=data.dataset.Memory(pixels=images),
        rows=np.arange(32),
    )
    given = keras_source.find(tmp_path / "net.keras", contract, None)
    given = replace(given, calibrate=partial(calibration_images, split))
    variants = [Variant(target="tflite", precision=precision) for precision in ("fp32", "int8")]
    variants.append(Variant(target="tflite", precision="int8", io="int8"))
    float_file, int8, micro = convert.convert(given, variants, images, tmp_path, quiet_progress)
    assert float_file.parity is not None
    assert float_file.parity.sqnr_db > 80
    for one in (float_file, int8):
        assert all(xnnpack.taken(one.path))
        kinds = dict(convert.for_file(one.path).inspect(one.path).operators)
        assert not kinds.keys() & {"TRANSPOSE", "RSQRT", "BATCH_MATMUL", "CUSTOM"}
    weights = model.count_params()
    assert float_file.size_bytes == pytest.approx(4 * weights, rel=0.03)
    assert int8.size_bytes < 1.35 * weights
    assert flatbuffer.in_float(flatbuffer.unpack(micro.path.read_bytes())) == ()


# --- what cannot be converted ---------------------------------------------------------------------


def saved(model: Any, path: Path, *, shape: tuple[int | None, ...] = (None, 8, 8, 3)) -> Path:
    """A SavedModel of a function of one tensor."""
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec(shape, tf.float32, name="x")
    module.call = tf.function(model, input_signature=[spec])
    tf.saved_model.save(module, str(path), signatures=module.call.get_concrete_function())
    return path


def two_inputs(tmp_path: Path) -> Path:
    import keras

    ends = [keras.Input((8, 8, 3)), keras.Input((4,))]
    flat = keras.layers.Concatenate()([keras.layers.Flatten()(ends[0]), ends[1]])
    keras.Model(ends, keras.layers.Dense(4)(flat)).save(tmp_path / "x.keras")
    return tmp_path / "x.keras"


def of_layers(shape: tuple[int, ...], make: Callable[[Any], list[Any]], path: Path) -> Path:
    import keras

    keras.Sequential([keras.Input(shape), *make(keras.layers)]).save(path / "x.keras")
    return path / "x.keras"


def channels_first(tmp_path: Path) -> Path:
    return of_layers((3, 8, 8), lambda layers: [layers.Flatten(), layers.Dense(4)], tmp_path)


def sound(tmp_path: Path) -> Path:
    return of_layers((16000,), lambda layers: [layers.Dense(4)], tmp_path)


def pictures(tmp_path: Path) -> Path:
    return of_layers((8, 8, 3), lambda layers: [layers.Conv2D(3, 3)], tmp_path)


def larger(tmp_path: Path) -> Path:
    return of_layers((12, 16, 3), lambda layers: [layers.Flatten(), layers.Dense(4)], tmp_path)


def training_mode(tmp_path: Path) -> Path:
    import keras

    norm, dense = keras.layers.BatchNormalization(), keras.layers.Dense(4)

    def call(x: Any) -> Any:
        return dense(keras.ops.reshape(norm(x, training=True), (-1, 192)))

    call(np.zeros((1, 8, 8, 3), np.float32))
    import tensorflow as tf

    module = tf.Module()
    module.held = [variable.value for layer in (norm, dense) for variable in layer.variables]
    module.call = tf.function(call, input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.float32)])
    tf.saved_model.save(module, str(tmp_path / "x"), signatures=module.call.get_concrete_function())
    return tmp_path / "x"


def four_at_once(tmp_path: Path) -> Path:
    import tensorflow as tf

    return saved(lambda x: tf.reshape(x, (4, 192))[:, :5], tmp_path / "x", shape=(4, 8, 8, 3))


def nan(tmp_path: Path) -> Path:
    import tensorflow as tf

    return saved(lambda x: tf.math.erfinv(tf.reshape(x, (-1, 192))[:, :4] + 2), tmp_path / "x")


def no_signature(tmp_path: Path) -> Path:
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(tmp_path / "x"))
    return tmp_path / "x"


def lambda_layer(tmp_path: Path) -> Path:
    return of_layers(
        (8, 8, 3), lambda layers: [layers.Lambda(lambda x: x * 2), layers.Flatten(), layers.Dense(4)], tmp_path
    )


def lambda_in_h5(tmp_path: Path) -> Path:
    import keras

    path = lambda_layer(tmp_path)
    model = keras.saving.load_model(path, safe_mode=False)
    model.save(tmp_path / "x.h5")
    return tmp_path / "x.h5"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (two_inputs, ConversionError, "has 2 inputs and 1 output; a classifier takes one image"),
        (channels_first, ConversionError, r"takes \(any, 3, 8, 8\), channels first: TFLite has no convolutions"),
        (sound, ConversionError, r"takes \(any, 16000\); an image classifier takes \(any, height, width, 3\)"),
        (pictures, ConversionError, r"gives \(1, 6, 6, 3\); a classifier gives scores of shape \(1, classes\)"),
        (larger, UsageError, "takes 16x12 pixels, not 8x8: give --size 16x12"),
        (training_mode, ConversionError, "answers differently for an image alone and among others: batch norm"),
        (nan, ConversionError, "gives NaN or infinite scores for noise"),
        (four_at_once, ConversionError, "takes 4 images at once"),
        (no_signature, ConversionError, r"has no signature serving_default \(there: none\)"),
        (lambda_in_h5, CheckpointError, "cannot be read: .*[Ll]ambda"),
        (lambda_layer, CheckpointError, "cannot be read: .*[Ll]ambda.*; if it is sound and needs code of its own"),
    ],
)
def test_models_that_cannot_be_converted(
    make: Callable[[Path], Path], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        find(make(tmp_path), preprocess=preset("0to1", 8, 8))
    assert "\n" not in str(caught.value)


def test_an_operator_that_tflite_lacks_is_named(tmp_path: Path) -> None:
    import tensorflow as tf

    path = saved(lambda x: tf.math.bessel_i0(tf.reshape(x, (-1, 192))[:, :4]), tmp_path / "x")
    given = find(path, preprocess=preset("0to1", 8, 8)).source
    with pytest.raises(ConversionError, match=r"no operator for TensorFlow's BesselI0\b.*\(Flex\)") as caught:
        given.float_tflite()
    assert "\n" not in str(caught.value)


def test_its_layer_is_named_too(tmp_path: Path) -> None:
    import keras

    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="stem")(image)
    x = keras.layers.UnitNormalization(name="between")(keras.ops.erfinv(keras.ops.tanh(x) / 2))
    x = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(image, x).save(tmp_path / "model.keras")
    given = find(tmp_path / "model.keras", preprocess=preset("0to1", 8, 8)).source
    with pytest.raises(ConversionError, match=r"no operator for TensorFlow's Erfinv \(in erfinv\), and edgekit"):
        given.float_tflite()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_weights(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config)


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
@pytest.mark.parametrize("damage", [empty, truncated, without_weights])
def test_damaged_files(name: str, damage: Callable[[Path], None], folder: Path, tmp_path: Path) -> None:
    if damage is without_weights and name == "net.h5":
        pytest.skip("an .h5 file is no archive")
    shutil.copy(folder / name, tmp_path / name)
    damage(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read: \w+") as caught:
        find(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lost", ["saved_model.pb", "variables/variables.data-00000-of-00001"])
def test_a_damaged_folder(lost: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "saved", tmp_path / "saved")
    truncated(tmp_path / "saved" / lost)
    with pytest.raises(CheckpointError, match=r"saved cannot be read: \w+"):
        find(tmp_path / "saved")


def test_layers_without_biases_learn_apart(tmp_path: Path) -> None:
    """TFLiteConverter stores zeros once for all layers of a width that have no bias."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    image = layers.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(8, 3, 2, "same", activation="relu", use_bias=False)(image)
    for _ in range(2):
        x = layers.Conv2D(8, 3, padding="same", activation="relu", use_bias=False)(x)
    x = layers.GlobalAveragePooling2D()(layers.AveragePooling2D(2)(x))
    keras.Model(image, layers.Dense(10, activation="softmax")(x)).save(tmp_path / "zeros.keras")
    one = find(tmp_path / "zeros.keras", calibrate="digits", labels=tuple(map(str, range(10)))).source
    variant = Variant(target="tflite", precision="int8-qat", qat=QatSpec(epochs=1))
    pixels = digits("val").split.sample(64)
    [made] = convert.convert(one, [variant], pixels, tmp_path, quiet_progress)
    assert made.parity is not None
    assert made.parity.top1_agreement > 0.9
    content = one.float_tflite()
    assert content is not None
    graph = flatbuffer.unpack(content.content).subgraphs[0]
    biases = [int(operator.inputs[2]) for operator in graph.operators if len(operator.inputs) == 3]
    assert len(biases) == len(set(biases)) >= 4


def test_options_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"net\.keras gives 10 scores, but there are 2 labels"):
        find(folder / "net.keras", labels=("a", "b"))
    with pytest.raises(UsageError, match=r"net\.keras brings its own weights: leave out --weights"):
        find(folder / "net.keras", weights="imagenet")
    with pytest.raises(UsageError, match=r"does not say how pixels become its input: give --preprocess .*0to255"):
        find(folder / "net.keras", preprocess=None)
    with pytest.raises(UsageError, match=r"no such file: .*x\.keras"):
        find(tmp_path / "x.keras")


@pytest.mark.parametrize("target", ["coreml", "onnx"])
def test_a_keras_model_goes_to_tflite_only(target: str, found: Found, images: Pixels, tmp_path: Path) -> None:
    module = {"coreml": "coremltools", "onnx": "onnx"}[target]
    pytest.importorskip(module, reason=f"the extra {target} is not installed")
    with pytest.raises(ConversionError, match=f"a Keras model goes to tflite only, not to {target}"):
        convert.convert(found.source, [Variant(target=target, precision="fp32")], images, tmp_path, quiet_progress)


def test_held_out_labels_are_the_models(found: Found) -> None:
    assert found.source.held_out is not None
    split = digits("val")
    wanted = labelled(split.split, split.classes, found.source.labels)
    assert np.array_equal(found.source.held_out().truth, wanted.truth)


def test_without_tensorflow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, *, feature: str, extra: str) -> Any:
        raise MissingDependency(f"{feature} needs the package {module}: pip install 'edgekit[{extra}]'")

    monkeypatch.setattr(keras_model, "require", missing)
    with pytest.raises(
        MissingDependency,
        match=r"Converting Keras models needs the package tensorflow: pip install 'edgekit\[keras\]'",
    ):
        find(folder / "net.keras")
