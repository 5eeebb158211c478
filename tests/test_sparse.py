"""Zeros in 1x1 convolutions: how they grow in training, that they stay, and the files that leave them out."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import artifact, checkpoint, convert, flatbuffer, models, pipeline, recipe, sparse
from edgekit.cli import main
from edgekit.errors import ConversionError, RecipeError, UsageError
from edgekit.export import PixelClassifier
from edgekit.lower import lower
from edgekit.operators import Cost, Profile
from edgekit.preprocess import preset
from edgekit.prunespec import PruneSpec
from edgekit.qat.learn import _zeros
from edgekit.qat.network import Network
from edgekit.recipe import ModelSpec
from edgekit.report import Comparison, as_json, as_text, compare
from edgekit.result import Result
from edgekit.runs import Run
from edgekit.train.accelerator import choose
from edgekit.train.learner import Learner
from edgekit.train.zeros import Zeros, left_out, share
from edgekit.trainspec import SparsifySpec, TrainSpec
from tests.emulated import PYTHON, environment, needs_arm64
from tests.report_samples import result
from tests.test_pipeline import ROOT, SMALL, Silent
from tests.test_prune_run import photos

SIDE = 64
SPEC = SparsifySpec(share=0.75, every=2)


def network(name: str = "mobilenet_v2", zeros: float = 0.75, **options: Any) -> PixelClassifier:
    """Random weights, that share of the 1x1 ones zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        width = 0.35 if name != "mobilenet_v1" else 0.25
        model = PixelClassifier(
            models.build(ModelSpec(name=name, width=width, **options), 10), preset("imagenet", SIDE, SIDE)
        )
    if zeros:
        made = Zeros(model, SparsifySpec(share=zeros, ramp=0.1), 10)
        made.after_step_(model)
        assert share(model) == pytest.approx(zeros, abs=1e-3)
    return model.eval()


def written(path: Path, model: PixelClassifier) -> tuple[Path, Path]:
    """The dense file and the one without zeros."""
    content = lower(model, (1, SIDE, SIDE, 3))
    dense, thin = path / "dense.tflite", path / "sparse.tflite"
    dense.write_bytes(content)
    thin.write_bytes(sparse.stored(content)[0])
    return dense, thin


def answer(path: Path, seed: int = 0) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    pixels = np.random.default_rng(seed).integers(0, 256, (1, SIDE, SIDE, 3)).astype(np.float32)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def verdict(path: Path) -> str:
    with flatbuffer.reading(path) as model:
        return sparse.verdict(model)


def test_a_file_without_zeros_gives_the_answers_of_the_dense_one(tmp_path: Path) -> None:
    dense, thin = written(tmp_path, network())
    for seed in range(3):
        np.testing.assert_allclose(answer(thin, seed), answer(dense, seed), rtol=0, atol=1e-6)
    with flatbuffer.reading(thin) as model, flatbuffer.reading(dense) as whole:
        assert sparse.zeros(model) == sparse.zeros(whole)
        assert dict(flatbuffer.operators(model))["DENSIFY"] == 34
    assert thin.stat().st_size < 0.65 * dense.stat().st_size
    assert verdict(thin).startswith("taken on ARM: 75.0 % of the weights of its 1x1 convolutions are zero")
    assert "they are stored: convert to precision sparse" in verdict(dense)


@pytest.mark.parametrize("inputs", [16, 300, 70_000])
def test_positions_take_as_few_bytes_as_they_fit_in(inputs: int) -> None:
    rows = np.zeros((2, inputs), np.float32)
    rows[1, [0, inputs - 1]] = 1
    found = sparse._rows(rows).dimMetadata[3].arrayIndices
    assert found.values.dtype.itemsize == {16: 1, 300: 2, 70_000: 4}[inputs]
    assert found.values.tolist() == [0, inputs - 1]


@pytest.mark.parametrize(
    ("options", "zeros", "fault"),
    [
        ({"stem_stride": 1}, 0.75, "the first convolution has to be 3x3 with stride 2, and is 3x3 with stride 1"),
        ({"padding": "same"}, 0.75, "its padding is not 1 on every side"),
        ({}, 0.6, "60.0 % of the weights of its 1x1 convolutions are zero, and it takes more than 66.7 %"),
    ],
)
def test_the_verdict_says_why_the_sparse_kernels_refuse(
    tmp_path: Path, options: dict[str, Any], zeros: float, fault: str
) -> None:
    _, thin = written(tmp_path, network(zeros=zeros, **options))
    assert verdict(thin).startswith("not taken: ")
    assert fault in verdict(thin)


def test_a_network_without_zeros_is_refused() -> None:
    with pytest.raises(ConversionError, match=r"is for networks with zeros.* edgekit prune --sparsity 0\.75"):
        sparse.stored(lower(network(zeros=0), (1, SIDE, SIDE, 3)))


def learner(spec: TrainSpec, model: nn.Module | None = None) -> Learner:
    found = network(zeros=0).model if model is None else model
    made = Learner(found, preset("imagenet", SIDE, SIDE), spec, choose("fp32"), steps=20)
    made.begin_epoch(frozen=False)
    return made


def steps(made: Learner, first: int, last: int) -> list[float]:
    """The share of zeros after each step."""
    found = []
    for step in range(first, last):
        pixels = torch.from_numpy(convert.noise((SIDE, SIDE, 3), 4, step)).permute(0, 3, 1, 2).float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step)  # of dropout
            made.step(pixels, torch.tensor([0, 1, 2, 3]), 1e-2)
        found.append(share(made.model))
    return found


TRAIN = TrainSpec(epochs=1, ema=0.9, sparsify=SPEC)


def test_zeros_grow_as_the_paper_says_and_stay(tmp_path: Path) -> None:
    made = learner(TRAIN)
    found = steps(made, 0, 14)
    wanted = [0.75 * (1 - (1 - step / 10) ** 3) for step in range(2, 11, 2)]
    assert found[1:10:2] == pytest.approx(wanted, abs=2e-3)
    assert found[10:] == [found[9]] * 4
    assert share(made.best_model) >= found[9]
    assert made.zeros.grown
    assert made.best_model is not made.model

    # Trained again, as after a pruning or for other images, it stays as sparse.
    later = learner(TrainSpec(epochs=1), made.best_model.requires_grad_(True))
    assert steps(later, 0, 3) == [pytest.approx(share(made.best_model), abs=1e-9)] * 3


def test_an_interrupted_growth_goes_on_to_the_same_weights() -> None:
    whole, first = learner(TRAIN), learner(TRAIN)
    steps(whole, 0, 8)
    steps(first, 0, 5)
    second = learner(TRAIN)
    second.load_state_dict(first.state_dict())
    steps(second, 5, 8)
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, second.weights()[name]), name


def test_two_of_four_neighbours() -> None:
    made = learner(TrainSpec(epochs=1, sparsify=SparsifySpec(share=0.5, pattern="2:4", every=3)))
    found = steps(made, 0, 11)
    assert 0 < found[2] < found[5] < found[9] == found[10]
    assert made.zeros.spec is not None
    skipped = left_out(made.model, made.zeros.spec)
    for name, mask in made.zeros.masks.items():
        weight = made.model.get_parameter(name).detach()
        assert (weight.flatten(1).reshape(-1, 4) == 0).sum(1).eq(2).all(), name
        assert mask.shape == weight.shape
        assert name.removesuffix(".weight") not in skipped


def test_quantization_aware_training_keeps_zeros() -> None:
    content = lower(network(), (1, SIDE, SIDE, 3))
    float_network = Network(content, content)
    held = _zeros(float_network)
    assert len(held) == 34
    assert sum(int((~mask).sum()) for _, mask in held) / sum(mask.numel() for _, mask in held) > 0.74


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ("epochs = 3", "give keep_macs or keep_latency, or else sparsity"),
        ("sparsity = 0.7\nepochs = 0", "epochs = 0 leaves none"),
        ("sparsity = 0.7\nsteps = 2", "leave out steps"),
        ('sparsity = 0.7\npattern = "2:4"', "sparsity = 0.5"),
        ('sparsity = 0.5\npattern = "1:4"', "'1:4' is not one of 'free', '2:4'"),
        ("sparsity = 1.0", "out of range"),
    ],
)
def test_sections_with_sparsity_are_decoded_strictly(section: str, fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        recipe.parse(SMALL.format(epochs=1, seconds=1) + f"\n[[prune]]\n{section}\n", "small.toml")
    assert PruneSpec(sparsity=0.7).keep_macs is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give --keep-macs 0.5, --keep-latency 0.6 or --sparsity 0.7"),
        (["--sparsity", "3:4"], "expected a share between 0.2 and 0.99, or 2:4, got '3:4'"),
        (["--sparsity", "0.7", "--epochs", "0"], "sparsity grows in training"),
    ],
)
def test_bad_options_are_told(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    try:
        status = main(["prune", "nowhere", *words])
    except SystemExit as ended:
        status = int(str(ended.code))
    assert status == 2
    assert said in capsys.readouterr().err.replace("such as 0.7, ", "")


def test_a_network_without_1x1_convolutions_is_refused() -> None:
    with pytest.raises(UsageError, match="this network has none"):
        left_out(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), SPEC)
    with pytest.raises(UsageError, match="this network has none"):
        left_out(nn.Sequential(nn.Conv2d(3, 8, 1)), replace(SPEC, share=0.5, pattern="2:4"))


@pytest.mark.slow
@pytest.mark.arm64
@needs_arm64
def test_the_verdict_is_what_the_arm64_runtime_does(tmp_path: Path) -> None:
    """Under QEMU, by the runtime's own profiler: whether sparse kernels ran, and how far the answers differ."""
    cases: dict[str, tuple[PixelClassifier, bool]] = {
        "v1": (network("mobilenet_v1"), True),
        "v2": (network(), True),
        "v3": (network("mobilenet_v3_small"), True),
        "b0": (network("efficientnet_b0"), True),
        "same": (network(padding="same"), False),
        "stem": (network(stem_stride=1), False),
        "few": (network(zeros=0.66), False),
        "enough": (network(zeros=0.68), True),
    }
    files = {}
    for name, (model, taken) in cases.items():
        (tmp_path / name).mkdir()
        files[name] = written(tmp_path / name, model)
        assert verdict(files[name][1]).startswith("taken" if taken else "not taken"), name
    job = tmp_path / "job.json"
    job.write_text(json.dumps([str(path) for pair in files.values() for path in pair]))
    program = Path(__file__).with_name("sparse_on_arm64.py")
    done = subprocess.run(
        [str(PYTHON), str(program), str(ROOT / "devices/_agent.py"), str(job)],
        capture_output=True,
        text=True,
        env=environment("cortex-a76"),
        timeout=550,
        check=True,
    )
    found = {line["file"]: line for line in map(json.loads, done.stdout.splitlines())}
    for name, (dense, thin) in files.items():
        told = found[str(thin)]
        assert ("SPMM" in " ".join(told["operators"])) == cases[name][1], (name, told["operators"])
        assert "SPMM" not in " ".join(found[str(dense)]["operators"])
        np.testing.assert_allclose(told["answer"], found[str(dense)]["answer"], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_run_makes_a_sparse_network_and_its_file(tmp_path: Path) -> None:
    """Of the epochs only those count that are as sparse as was asked for, whatever their top-1."""
    text = SMALL.format(epochs=2, seconds=0.2).partition("[[variant]]")[0].replace("width = 0.1", "width = 0.2")
    (tmp_path / "small.toml").write_text(
        f'{text}[[prune]]\nsparsity = 0.75\nepochs = 4\n[[variant]]\ntarget = "tflite"\nprecision = "sparse"\n'
        '[[variant]]\ntarget = "tflite"\nprecision = "int8-qat"\nqat = { epochs = 1 }\n'
    )
    out = tmp_path / "out"
    pipeline.run(str(tmp_path / "small.toml"), data=photos(tmp_path), listener=Silent(), out=out, until="convert")
    made = checkpoint.read(Run(folder=out).checkpoint)
    assert share(models.restore(made)) == pytest.approx(0.75, abs=5e-3)
    rows = [json.loads(line) for line in (out / "prune/1/train/metrics.jsonl").read_text().splitlines()]
    assert [row["sparse"] for row in rows] == [0, 1, 1, 1]
    assert made.metrics["epoch"] >= 2
    thin = artifact.read(out / "artifacts/tflite-sparse.tflite")
    assert thin.parity is not None
    assert thin.parity.sqnr_db > 100
    with flatbuffer.reading(thin.path) as model:
        none, size = sparse.zeros(model)
        assert none / size == pytest.approx(0.75, abs=5e-3)
    with flatbuffer.reading(out / "artifacts/tflite-int8-qat.tflite") as model:
        graph, kinds = model.subgraphs[0], flatbuffer.schema().TensorType
        weights = [
            np.asarray(model.buffers[one.buffer].data).view(np.int8)
            for one in graph.tensors
            if one.type == kinds.INT8 and len(one.shape) == 4 and [*one.shape[1:3]] == [1, 1] and one.shape[0] > 1
            if model.buffers[one.buffer].data is not None
        ]
    assert len(weights) > 20
    assert all(np.mean(one == 0) >= 0.74 for one in weights)


def test_the_comparison_says_whether_zeros_paid() -> None:
    def of(precision: str, p50_ms: float, place: int) -> Result:
        found = result("tflite", precision, p50_ms, 7, first=place, seed=place)
        ran = "Convolution (NCHW, F32) SPMM" if precision == "sparse" else "Fully Connected (NC, F32) GEMM"
        profile = Profile(
            runs=3, total_us=1e3, costs=(Cost(operator=ran, layer="one", delegated=True, mean_us=1e3),)
        )
        return replace(found, artifact=replace(found.artifact, parent="the same"), profile=profile)

    def comparison(sparse_ms: float) -> Comparison:
        return compare([of("fp32", 0.4, 0), of("sparse", sparse_ms, 1)])

    def told(sparse_ms: float) -> str:
        return as_text(comparison(sparse_ms))

    def data(found: Comparison) -> list[Any]:
        return [row["sparse"] for row in as_json(found)["groups"][0]["rows"]]

    fast = " ".join(told(0.2).split())
    assert "1 of 1 operators ran as sparse kernels; it paid: 2.00x faster" in fast
    assert "it did not pay: 2.00x slower" in " ".join(told(0.8).split())
    none, told_fast = data(comparison(0.2))
    assert none is None
    assert (told_fast["kernels"], told_fast["operators"], told_fast["paid"]) == (1, 1, True)
    assert told_fast["dense"] == "tflite-fp32"
    assert told_fast["speed"]["ratio"] == pytest.approx(0.5, rel=0.02)
    assert told_fast["words"] in fast
    assert data(comparison(0.8))[1]["paid"] is False
    [alone] = data(compare([replace(of("sparse", 0.2, 1), profile=None)]))
    assert [alone[key] for key in ("kernels", "operators", "dense", "speed", "paid")] == [None] * 5
    assert "the runtime does not tell; its fp32 file was not measured here" in alone["words"]
