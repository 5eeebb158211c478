"""Training: resumed runs equal whole ones, files are whole, settings are checked, digits are learnt."""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import checkpoint, data, models
from edgekit.checkpoint import Checkpoint
from edgekit.data import Dataset, Split, memory
from edgekit.data.dataset import Memory
from edgekit.errors import CheckpointError, DataError, TrainingError, UsageError
from edgekit.models.normalize import Normalize
from edgekit.preprocess import Preprocess
from edgekit.recipe import DataSpec, ModelSpec
from edgekit.train import BEST, LAST, METRICS, STATE, accelerator, batches, loop, train
from edgekit.train import state as states
from edgekit.train.augment import augmented
from edgekit.train.average import Average
from edgekit.train.loop import MADE
from edgekit.train.optimizer import parameter_groups
from edgekit.train.schedule import learning_rate
from edgekit.train.seeds import generator
from edgekit.trainspec import AugmentSpec, TrainSpec

TINY = ModelSpec(name="mobilenet_v2", width=0.05, stem_stride=2, dropout=0.3)
SPEC = TrainSpec(
    epochs=4, batch_size=12, learning_rate=1e-2, ema=0.9, augment=AugmentSpec(flip=True, shift=0.1, scale=0.1)
)


def images(count: int, seed: int) -> Split:
    """Pictures of noise whose brightness tells the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    pixels = (rng.integers(0, 100, (count, 16, 16, 3)) + labels[:, None, None, None] * 70).astype(np.uint8)
    return Split(
        ids=tuple(f"{seed}/{i}" for i in range(count)),
        labels=tuple(int(label) for label in labels),
        reader=Memory(pixels=pixels),
        rows=np.arange(count),
    )


def noise() -> Dataset:
    contract = Preprocess(height=16, width=16, mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3))
    return Dataset(
        name="noise", classes=("a", "b", "c"), train=images(50, 1), val=images(20, 2), preprocess=contract
    )


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return noise()


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the training may handle it."""


def killed_at(name: str, call: int, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """The *call*-th call (from 1) of a function ends the training before it does anything."""
    real: Callable[..., Any] = getattr(module, name)
    calls = 0

    def count(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return real(*args, **named)

    monkeypatch.setattr(module, name, count)


def same(first: Checkpoint, second: Checkpoint) -> bool:
    one, two = checkpoint.read_weights(first), checkpoint.read_weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def rows(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without the times, which differ."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


@pytest.fixture(scope="module")
def whole(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted training of 4 epochs."""
    out = tmp_path_factory.mktemp("whole")
    train(dataset, TINY, SPEC, out)
    return out


def assert_equal_runs(first: Path, second: Path) -> None:
    assert rows(first) == rows(second)
    for name in (BEST, LAST):
        one, two = checkpoint.read(first / name), checkpoint.read(second / name)
        assert replace(one, path=Path()) == replace(two, path=Path())
        assert same(one, two)
    assert sorted(path.name for path in second.iterdir()) == sorted([*MADE, STATE])


def test_what_a_training_leaves(whole: Path, dataset: Dataset) -> None:
    assert sorted(path.name for path in whole.iterdir()) == sorted([*MADE, STATE])
    lines = rows(whole)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    best, last = checkpoint.read(whole / BEST), checkpoint.read(whole / LAST)
    assert best.metrics["val_top1"] == max(line["val_top1"] for line in lines)
    assert last.metrics == {"val_top1": lines[-1]["val_top1"], "epoch": 4.0}
    assert best.classes == ("a", "b", "c")
    assert best.preprocess == dataset.preprocess
    assert best.provenance["val_images_sha256"] == dataset.val.images_sha256
    # What is saved is what was validated.
    model = models.restore(last)
    layer = Normalize(dataset.preprocess)
    with torch.inference_mode():
        found = model(layer(torch.from_numpy(dataset.val.read()).permute(0, 3, 1, 2))).argmax(1)
    assert float((found == torch.tensor(dataset.val.labels)).float().mean()) == pytest.approx(
        last.metrics["val_top1"]
    )


def test_the_same_seed_gives_the_same_weights(whole: Path, dataset: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(1234)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    train(dataset, TINY, SPEC, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert_equal_runs(whole, tmp_path)
    other = train(dataset, TINY, replace(SPEC, seed=1), tmp_path)
    assert not same(other, checkpoint.read(whole / BEST))


@pytest.mark.parametrize(
    ("name", "call", "module"),
    [
        ("_epoch", 3, loop),  # in the third epoch
        ("augmented", 14, loop),  # in the middle of the fourth batch of it
        ("write", 3, states),  # before its state was written
        ("_line", 3, loop),  # after that, before its metrics
        ("_write", 3, loop),  # before its checkpoints
        ("write", 6, checkpoint),  # between best and last of the third epoch, or of another
        ("augmented", 2, loop),  # before there is any state
    ],
)
def test_a_killed_training_goes_on_bit_for_bit(
    name: str,
    call: int,
    module: Any,
    whole: Path,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        killed_at(name, call, patched, module)
        with pytest.raises(Killed):
            train(dataset, TINY, SPEC, tmp_path)
    # What a kill inside of a write leaves besides:
    (tmp_path / f".state.{1}.part.pt").write_bytes(b"half")
    (tmp_path / f".best.{1}.part").mkdir()
    if (tmp_path / METRICS).exists():
        with (tmp_path / METRICS).open("a") as stream:
            stream.write('{"epoch": 3, "lo')
    train(dataset, TINY, SPEC, tmp_path, resume=True)
    assert_equal_runs(whole, tmp_path)


def test_a_process_that_is_killed_goes_on(whole: Path, dataset: Dataset, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from edgekit.train import train\n"
        "from tests.test_train import SPEC, TINY, noise\n"
        "train(noise(), TINY, SPEC, Path(sys.argv[1]), resume=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parent.parent)
    while not (tmp_path / STATE).exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)  # at whatever moment after the first epoch
    process.wait()
    train(dataset, TINY, SPEC, tmp_path, resume=True)
    assert_equal_runs(whole, tmp_path)


def test_resuming_a_finished_training_trains_nothing(whole: Path, dataset: Dataset) -> None:
    before = (whole / STATE).stat().st_mtime_ns
    found = train(dataset, TINY, SPEC, whole, resume=True)
    assert found == checkpoint.read(whole / BEST)
    assert (whole / STATE).stat().st_mtime_ns == before


def test_without_resume_an_earlier_training_is_removed(dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, TINY, replace(SPEC, epochs=2), tmp_path)
    train(dataset, TINY, replace(SPEC, epochs=1), tmp_path)
    assert len(rows(tmp_path)) == 1


def test_other_settings_are_named(whole: Path, dataset: Dataset) -> None:
    with pytest.raises(
        CheckpointError, match=r"other settings: train.learning_rate was 0.01 and is 0.02\. Go on with"
    ):
        train(dataset, TINY, replace(SPEC, learning_rate=0.02), whole, resume=True)
    unflipped = replace(SPEC, augment=replace(SPEC.augment, flip=False))
    with pytest.raises(
        CheckpointError, match=r"model.width was 0.05 and is 0.1; train.augment.flip was True and is"
    ):
        train(dataset, replace(TINY, width=0.1), unflipped, whole, resume=True)
    with pytest.raises(CheckpointError, match=r"data.train_images was '\w+' and is '\w+'"):
        train(replace(dataset, train=images(51, 1)), TINY, SPEC, whole, resume=True)


def test_a_damaged_state_is_named(whole: Path, dataset: Dataset, tmp_path: Path) -> None:
    content = (whole / STATE).read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    for damaged in (content[: len(content) // 2], b"", b"hello", bytes(flipped)):
        (tmp_path / STATE).write_bytes(damaged)
        with pytest.raises(
            CheckpointError, match=r"state.pt is damaged: .+; remove it, or train without resuming"
        ):
            train(dataset, TINY, SPEC, tmp_path, resume=True)


def test_a_state_is_never_unpickled(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / STATE).write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    with pytest.raises(CheckpointError, match="is damaged"):
        train(dataset, TINY, SPEC, tmp_path, resume=True)
    assert not (tmp_path / "owned").exists()


OWN = """
from torch import nn

class Net(nn.Module):
    calls = 0

    def __init__(self, classes):
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3, classes))

    def forward(self, x):
        y = self.layers(x)
        if self.training:
            Net.calls += 1
            if Net.calls == 7:
                y = y * float("nan")
        return y
"""


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    out = tmp_path / "out"
    # 50 images in batches of 12 make 5 steps: the 7th is the 2nd of epoch 2.
    expected = (
        rf"epoch 2, step 2: the loss is nan; the checkpoints of epoch 1 are kept in {out}\. Lower train\.learn"
    )
    with pytest.raises(TrainingError, match=expected):
        train(dataset, ModelSpec(name=f"{tmp_path / 'own.py'}:Net"), replace(SPEC, ema=0.0), out)
    assert len(rows(out)) == 1
    for name in (BEST, LAST):
        weights = checkpoint.read_weights(checkpoint.read(out / name))
        assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


def test_models_that_do_not_fit_are_refused_before_training(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def wide(classes):\n    return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3, 1000))\n"
        "def large(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, classes))\n"
    )
    with pytest.raises(UsageError, match=r"gives \(2, 1000\) for 2 images; with 3 classes it must give \(2, 3\)"):
        train(dataset, ModelSpec(name=f"{tmp_path / 'own.py'}:wide"), SPEC, tmp_path / "out")
    with pytest.raises(UsageError, match="does not take images of 16x16: mat1 and mat2"):
        train(dataset, ModelSpec(name=f"{tmp_path / 'own.py'}:large"), SPEC, tmp_path / "out")
    assert not (tmp_path / "out" / STATE).exists()


def test_settings_that_cannot_be_trained(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch_size = 1: batch norm needs two images"):
        train(dataset, TINY, replace(SPEC, batch_size=1), tmp_path)
    with pytest.raises(DataError, match="noise has 1 training and 20 held-out images"):
        train(replace(dataset, train=images(1, 1)), TINY, SPEC, tmp_path)
    if not torch.cuda.is_available():
        for precision in ("fp16", "bf16"):
            half: Any = {"precision": precision}
            with pytest.raises(UsageError, match=f"precision = '{precision}' needs a GPU"):
                train(dataset, TINY, replace(SPEC, **half), tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"optimizer": "sgd"}, {"ema": 0.0}, {"precision": "fp32"}, {"label_smoothing": 0.0, "warmup_epochs": 9.0}],
)
def test_other_settings_train(change: dict[str, Any], dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, TINY, replace(SPEC, epochs=1, **change), tmp_path)
    assert len(rows(tmp_path)) == 1


def test_files_on_disk_train_like_pixels_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            values = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / "images" / name / f"{number}.png")
    spec = DataSpec(source=str(tmp_path / "images"), preprocess=Preprocess(height=16, width=16))
    resident = train(data.load(spec), TINY, replace(SPEC, epochs=2), tmp_path / "resident")
    monkeypatch.setattr(memory, "MEMORY_BYTES", 1)
    assert not data.load(spec).train.in_memory
    assert same(train(data.load(spec), TINY, replace(SPEC, epochs=2), tmp_path / "lazy"), resident)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    rate = learning_rate(TrainSpec(epochs=11, learning_rate=2.0), 10)
    rates = [rate(step) for step in range(110)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert rates[35] == pytest.approx(1 + math.cos(math.pi / 4))
    assert rates[109] == pytest.approx(1 + math.cos(math.pi * 0.99))
    assert learning_rate(TrainSpec(epochs=1, learning_rate=2.0, warmup_epochs=0), 10)(0) == 2.0
    assert learning_rate(TrainSpec(epochs=1, learning_rate=2.0, warmup_epochs=9), 10)(9) == 2.0


def test_the_learning_rate_falls_in_steps() -> None:
    spec = TrainSpec(
        epochs=8, learning_rate=0.1, warmup_epochs=1, schedule="step", step_epochs=2.5, step_factor=0.5
    )
    rate = learning_rate(spec, 10)
    assert [rate(step) for step in (0, 9, 10, 24)] == pytest.approx([0.01, 0.1, 0.1, 0.1])
    assert [rate(step) for step in (25, 49, 50, 79)] == pytest.approx([0.05, 0.05, 0.025, 0.0125])


def test_norms_and_biases_are_not_decayed() -> None:
    model = models.build(TINY, 3)
    decayed, plain = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    kinds = {id(p): type(m) for m in model.modules() for p in m.parameters(recurse=False)}
    assert {kinds[id(p)] for p in decayed["params"]} == {nn.Conv2d, nn.Linear}
    assert {kinds[id(p)] for p in plain["params"]} == {nn.BatchNorm2d, nn.Linear}
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_the_average_follows_weights_and_statistics() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    linear, norm = model[0], model[1]
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.num_batches_tracked is not None
    nn.init.zeros_(linear.weight)
    average = Average(model, decay=0.5)
    nn.init.ones_(linear.weight)
    norm.running_mean.fill_(10.0)
    norm.num_batches_tracked.fill_(7)
    expected = 0.0
    for update in range(12):
        average.update(model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay)
        state = average.module.state_dict()
        assert state["0.weight"].item() == pytest.approx(expected)
        assert state["1.running_mean"].item() == pytest.approx(10 * expected)
        assert state["1.num_batches_tracked"].item() == 7
    assert not average.module.training


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(50, 12, [12, 12, 12, 12, 2]), (49, 12, [12] * 4), (3, 64, [3]), (100, 12, [12] * 8), (24, 12, [12, 12])],
)
def test_an_incomplete_batch_is_trained_only_where_it_counts(count: int, size: int, expected: list[int]) -> None:
    plan = batches.shuffled(count, size, (0, 1))
    assert [len(indices) for indices in plan] == expected
    assert len(set(torch.cat(plan).tolist())) == sum(expected)
    assert batches.steps(count, size) == len(expected)


def ramp() -> torch.Tensor:
    """8 copies of a 3x10x10 picture, uint8, all its pixels different from their neighbours."""
    return (torch.arange(100).view(1, 1, 10, 10) + 1).expand(8, 3, 10, 10).to(torch.uint8)


def test_nothing_to_augment_changes_nothing() -> None:
    found = augmented(ramp(), AugmentSpec(flip=False, shift=0.0), (0,))
    assert found.dtype == torch.float32
    assert torch.equal(found, ramp().float())


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = ramp().repeat(32, 1, 1, 1)
    found = augmented(images, AugmentSpec(flip=True, shift=0.0), (0,)).round()
    plain = (found == images).flatten(1).all(1)
    mirrored = (found == images.flip(3)).flatten(1).all(1)
    assert bool((plain ^ mirrored).all())
    assert 96 < int(plain.sum()) < 160


def test_shift_moves_by_whole_pixels_and_fills_with_black() -> None:
    found = augmented(ramp(), AugmentSpec(flip=False, shift=0.2), (3,))
    seen = set()
    for image in found:
        moves = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.allclose(image, moved(ramp()[0].float(), dy, dx), atol=1e-2)
        ]
        assert len(moves) == 1
        seen.add(moves[0])
    assert len(seen) > 3


def moved(image: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    padded = nn.functional.pad(image, (2, 2, 2, 2))
    return padded[:, 2 + dy : 12 + dy, 2 + dx : 12 + dx]


def test_scale_zooms_about_the_middle() -> None:
    images = torch.full((64, 3, 20, 20), 255, dtype=torch.uint8)
    found = augmented(images, AugmentSpec(flip=False, shift=0.0, scale=0.5), (0,))
    filled = (found[:, 0, 10] > 127).sum(1).float()
    assert filled.max() == 20  # zoomed in: no border
    assert 10 <= filled.min() < 14  # zoomed out by up to a half


def test_one_augmentation_leaves_the_draws_of_the_others() -> None:
    both = augmented(ramp(), AugmentSpec(flip=True, shift=0.2), (5,))
    shifted = augmented(ramp(), AugmentSpec(flip=False, shift=0.2), (5,))
    kept = [bool(torch.allclose(one, two, atol=1e-2)) for one, two in zip(both, shifted, strict=True)]
    assert any(kept)
    assert not all(kept)


def test_seeds_are_named_and_not_drawn() -> None:
    assert torch.equal(
        torch.rand(3, generator=generator(0, 1, "flip")), torch.rand(3, generator=generator(0, 1, "flip"))
    )
    assert not torch.equal(torch.rand(3, generator=generator(0, 1)), torch.rand(3, generator=generator(0, 2)))


def test_threads_are_as_before_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), accelerator.using_threads(before + 1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def test_digits_are_learnt_in_seconds(tmp_path: Path) -> None:
    contract = Preprocess(height=16, width=16, resize="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    found = train(
        data.load(DataSpec(source="digits", preprocess=contract)),
        ModelSpec(name="mobilenet_v2", width=0.2, stem_stride=1, dropout=0.0),
        TrainSpec(
            epochs=5, batch_size=32, learning_rate=5e-3, ema=0.9, augment=AugmentSpec(flip=False, shift=0.0)
        ),
        tmp_path,
    )
    assert found.metrics["val_top1"] > 0.8


def test_a_full_disk_is_an_oserror_that_names_the_file(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own writer would raise a RuntimeError from its destructor."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        train(dataset, TINY, SPEC, tmp_path)
    assert caught.value.filename == str(tmp_path / "state.pt")
    assert not list(tmp_path.rglob(".*"))
