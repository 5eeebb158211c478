"""A pruning with its training on a few digits: on disk after each step, resumed anywhere, refused if wrong."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from edgekit import checkpoint, data, files, measure, models, prune
from edgekit.artifact import Artifact
from edgekit.bench import bench
from edgekit.checkpoint import Checkpoint
from edgekit.cli import main
from edgekit.convert import convert
from edgekit.data import Dataset
from edgekit.errors import CheckpointError, DataError, UsageError
from edgekit.export import from_checkpoint
from edgekit.models.cost import cost
from edgekit.preprocess import Preprocess
from edgekit.prune import latency, schedule
from edgekit.prune.candidate import Candidate, Chooser
from edgekit.prunespec import PruneSpec
from edgekit.recipe import DataSpec, ModelSpec, Variant
from edgekit.train import state as states
from edgekit.train import train
from edgekit.trainspec import AugmentSpec, QatSpec, TrainSpec

SIDE = 16
CONTRACT = Preprocess(height=SIDE, width=SIDE, resize="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SPEC = PruneSpec(keep_macs=0.5, steps=2, epochs=2, recovery_epochs=1, images=64)
QUICK = QatSpec(epochs=1)
TRAINING = TrainSpec(epochs=2, batch_size=32, learning_rate=3e-3, augment=AugmentSpec(flip=False, shift=0.0))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    whole = data.load(DataSpec(source="digits", preprocess=CONTRACT))
    return replace(whole, train=whole.train.take(range(0, 1400, 7)), val=whole.val.take(range(0, 350, 4)))


@pytest.fixture(scope="module")
def dense(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("dense")
    train(dataset, ModelSpec(name="mobilenet_v1", width=0.25, stem_stride=1), TRAINING, folder)
    return checkpoint.read(folder / "best")


def macs(found: Checkpoint) -> int:
    return cost(models.restore(found), SIDE, SIDE).macs


@pytest.fixture(scope="module")
def whole(dense: Checkpoint, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruning that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    prune.prune(dense, SPEC, out, dataset=dataset, train_spec=TRAINING)
    return out


def test_a_schedule_ends_in_an_ordinary_checkpoint_within_the_budget(
    whole: Path, dense: Checkpoint, dataset: Dataset
) -> None:
    found, state = checkpoint.find(whole), prune.read(whole)
    assert state is not None
    assert [round(step.macs / state.macs, 2) for step in state.steps] == [0.75, 0.5]
    assert 0.495 <= macs(found) / macs(dense) <= 0.5
    assert found.classes == dense.classes
    assert found.preprocess == dense.preprocess
    assert found.provenance["pruned_from"] == dense.weights_sha256
    assert found.metrics["val_top1"] == state.steps[-1].top1
    with torch.no_grad():
        half = [checkpoint.read(whole / f"step{n}" / "pruned") for n in (1, 2)]
    assert [0.74 <= macs(half[0]) / macs(dense) <= 0.75, macs(half[1]) == macs(found)] == [True, True]
    # It goes on to be trained as any other: by its name, from these weights.
    again = train(dataset, found.model, replace(TRAINING, epochs=1), whole.parent / "again")
    assert macs(again) == macs(found)


def test_pruned_and_int8_works(whole: Path, dataset: Dataset, tmp_path: Path) -> None:
    """The int8 file of the pruned network, and the one that is trained on, agree with the float network."""
    found = from_checkpoint(checkpoint.find(whole), dataset.train, dataset.val)
    wanted = [
        Variant(target="tflite", precision="int8"),
        Variant(target="tflite", precision="int8-qat", qat=QUICK),
    ]
    for made in convert(found, wanted, dataset.val.read(), tmp_path, lambda *_: None):
        assert made.parity is not None
        assert made.parity.top1_agreement >= 0.9
        assert not made.parity.broken(made.precision)


class Stop(Exception):
    """In the place of a kill."""


@pytest.mark.parametrize("saves", [1, 2])
def test_a_schedule_that_is_cut_off_goes_on_to_the_same_weights(
    saves: int, whole: Path, dense: Checkpoint, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many epochs: of the recovery between the steps, and in the middle of the last training."""
    kept, count = states.write, 0

    def counted(folder: Path, state: states.State) -> None:
        nonlocal count
        kept(folder, state)
        count += 1
        if count == saves:
            raise Stop

    before = files.sha256(dense.path)
    with monkeypatch.context() as patch:
        patch.setattr(states, "write", counted)
        with pytest.raises(Stop):
            prune.prune(dense, SPEC, tmp_path / "out", dataset=dataset, train_spec=TRAINING)
    assert not (tmp_path / "out" / "train" / "last" / "model.safetensors").exists() or saves > 1
    found, state = prune.prune(dense, SPEC, tmp_path / "out", dataset=dataset, train_spec=TRAINING)
    assert found.weights_sha256 == checkpoint.find(whole).weights_sha256
    assert state == prune.read(whole)
    assert files.sha256(dense.path) == before


def test_between_the_checkpoint_and_its_note_nothing_is_lost(
    dense: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = PruneSpec(keep_macs=0.6, importance="lamp", epochs=0), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "cost", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            prune.prune(dense, spec, out)
    found, state = prune.prune(dense, spec, out)
    assert found.path == out / "train" / "best"
    assert state.top1 is None  # nothing is measured without images
    assert 0.594 <= macs(found) / macs(dense) <= 0.6


def test_budgets_out_of_reach_and_wrong_settings_are_refused(
    dense: Checkpoint, dataset: Dataset, whole: Path, tmp_path: Path
) -> None:
    before, plain = files.sha256(dense.path), PruneSpec(keep_macs=0.01, importance="magnitude", epochs=0)
    with pytest.raises(UsageError, match=r"keep_macs = 0\.01 cannot be met: the least reachable is 0\.\d+"):
        prune.prune(dense, plain, tmp_path / "a")
    with pytest.raises(UsageError, match=r"no layer 'features\.99' to spare"):
        prune.prune(dense, replace(plain, keep_macs=0.5, spare=("features.99",)), tmp_path / "b")
    with pytest.raises(UsageError, match="holds the network that is pruned"):
        prune.prune(dense, plain, dense.path.parent)
    with pytest.raises(UsageError, match="training needs images"):
        prune.prune(dense, replace(plain, epochs=1), tmp_path / "c")
    with pytest.raises(UsageError, match="taylor importance is measured on training images"):
        prune.prune(dense, replace(plain, keep_macs=0.5, importance="taylor"), tmp_path / "d")
    with pytest.raises(UsageError, match="holds a pruning of another network, or with other settings"):
        prune.prune(dense, replace(SPEC, epochs=3), whole, dataset=dataset, train_spec=TRAINING)
    with pytest.raises(DataError, match="other classes"):
        prune.prune(dense, SPEC, tmp_path / "e", dataset=replace(dataset, classes=tuple("abcdefghij")))
    (tmp_path / "f" / "train").mkdir(parents=True)
    with pytest.raises(UsageError, match="something else than a pruning"):
        prune.prune(dense, plain, tmp_path / "f")
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "prune.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"prune\.json is damaged"):
        prune.prune(dense, plain, tmp_path / "g")
    assert files.sha256(dense.path) == before


def test_the_least_that_is_named_can_be_reached(dense: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        prune.prune(dense, PruneSpec(keep_macs=0.01, importance="magnitude", epochs=0), tmp_path / "a")
    least = float(str(caught.value).partition("reachable is ")[2].partition(",")[0])
    spec = PruneSpec(keep_macs=least, importance="magnitude", epochs=0)
    found, _ = prune.prune(dense, spec, tmp_path / "b")
    assert 0.99 * least <= macs(found) / macs(dense) <= least


def test_a_latency_budget_is_met_by_what_is_measured(dense: Checkpoint) -> None:
    """A device whose time is a third of it fixed: half of the work is two thirds of the time."""
    spec = PruneSpec(keep_latency=0.6, importance="magnitude", epochs=0)
    chooser = Chooser(dense, spec, None, None)
    times: list[float] = []

    def meter(candidate: Candidate) -> float:
        times.append(1 / 3 + 2 / 3 * candidate.plan.macs / chooser.graph.macs)
        return times[-1]

    found, time = latency.closest(chooser, 0.6, chooser.graph.macs, meter)
    assert abs(time / 0.6 - 1) <= 0.05
    assert abs(found.plan.macs / chooser.graph.macs - 0.4) <= 0.05
    assert len(times) <= 4
    with pytest.raises(
        UsageError, match=r"keep_latency = 0\.3 cannot be met: the least reachable is 0\.4\d\d, with"
    ):
        latency.closest(chooser, 0.3, chooser.graph.macs, meter)
    noise = cycle((0.9, 0.1))
    with pytest.raises(UsageError, match="was not met within 5 %"):
        latency.closest(chooser, 0.6, chooser.graph.macs, lambda _: next(noise))


def test_no_lucky_measurement_ends_the_search(dense: Checkpoint) -> None:
    """The first one is 12 % too fast and seems to meet the budget."""
    chooser = Chooser(dense, PruneSpec(keep_latency=0.6, importance="magnitude", epochs=0), None, None)
    times: list[float] = []

    def meter(candidate: Candidate) -> float:
        real = 0.12 + 0.88 * candidate.plan.macs / chooser.graph.macs
        times.append(real * (0.9 if not times else 1.0))
        return times[-1]

    found, time = latency.closest(chooser, 0.6, chooser.graph.macs, meter)
    assert times[0] == pytest.approx(0.6, rel=0.05)
    assert 0.12 + 0.88 * found.plan.macs / chooser.graph.macs == pytest.approx(0.6, rel=0.02)
    assert time == pytest.approx(0.6, rel=0.02)
    assert len(times) <= 6


def test_a_device_with_coarse_steps_gives_the_nearest(dense: Checkpoint) -> None:
    """Where no width comes within 2 %, the best within 5 % is taken."""
    chooser = Chooser(dense, PruneSpec(keep_latency=0.6, importance="magnitude", epochs=0), None, None)
    found, time = latency.closest(
        chooser, 0.6, chooser.graph.macs, lambda one: 0.62 if one.plan.macs > 0.5 * chooser.graph.macs else 0.5
    )
    assert time == pytest.approx(0.62)
    assert found.plan.macs > 0.5 * chooser.graph.macs


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_candidate_is_measured_beside_the_dense_network(
    precision: Literal["fp32", "int8"], dense: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    measured: list[Sequence[Artifact]] = []

    def watched(files: Sequence[Artifact], *more: Any, **named: Any) -> Any:
        measured.append(files)
        return bench(files, *more, **named)

    monkeypatch.setattr(latency, "bench", watched)
    spec = PruneSpec(keep_latency=0.6, importance="lamp", epochs=0, device="fake://pi5", precision=precision)
    chooser = Chooser(dense, spec, None, None)
    share = latency.on_device(dense, spec, said.append)(chooser.candidate(chooser.graph.macs // 2))
    assert share > 0
    assert {one.precision for one in measured[0]} == {precision}
    assert said[0].startswith(f"measured on fake://pi5 in {precision}: ")
    assert f"{100 * share:.1f} % of the dense network's" in said[0]


def test_a_doubtful_measurement_says_why(dense: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MAX_OTHER_LOAD", -1.0)  # any machine is too busy
    said: list[str] = []
    spec = PruneSpec(keep_latency=0.6, importance="lamp", epochs=0)
    chooser = Chooser(dense, spec, None, None)
    latency.on_device(dense, spec, said.append)(chooser.candidate(chooser.graph.macs // 2))
    assert re.search(r"give or take [0-9.]+ %; doubtful: .*other programs kept [0-9.]+ cores busy", said[0])


def test_the_command_prunes_and_says_what_is_left(
    dense: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dense.path, "net")
    words = ["prune", "net", "--keep-macs", "0.6", "--importance", "lamp", "--epochs", "0"]
    assert main([*words, "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 0.594 <= told["kept_macs"] <= 0.6
    assert Path(told["checkpoint"]) == Path("runs/net-keep0.6/train/best")
    assert macs(checkpoint.find(Path("runs/net-keep0.6"))) == told["steps"][0]["macs"]
    assert main([*words, "--scope", "layer"]) == 2
    assert "other settings or data" in capsys.readouterr().err
    assert main([*words, "--scope", "layer", "--force"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["network", "MACs", "kept", "parameters"]
    assert "next: edgekit convert runs/net-keep0.6 " in out


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["net", "--keep-macs", "1.5"], "expected a share between 0 and 1"),
        (["net"], "give --keep-macs 0.5, --keep-latency 0.6 or --sparsity 0.7"),
        (["net", "--keep-macs", "0.5", "--device", "local"], "--device is where --keep-latency is measured"),
        (["net", "--keep-macs", "0.5", "--precision", "int8"], "--precision is of the files that --keep-latency"),
        (["missing", "--keep-macs", "0.5"], "unknown model 'missing'"),
        (["net", "--keep-macs", "0.5"], "training needs images"),
        (["net", "--keep-macs", "0.5", "--data", "nowhere"], "no such data"),
        (["net", "--keep-macs", "0.5", "--epochs", "0", "--out", "net"], "which stays as it is"),
        (["net.keras", "--keep-macs", "0.5"], "cannot be trained again"),
        (["mobilenet_v2", "--keep-macs", "0.5", "--preprocess", "imagenet"], "random weights"),
        (["net", "--keep-macs", "0.5", "--epochs", "0", "--spare", "x"], "no layer 'x'"),
        (["net", "--keep-latency", "0.5", "--epochs", "0", "--device", "nothing"], "unknown device"),
    ],
)
def test_bad_input_is_told_in_one_line(
    words: list[str],
    fault: str,
    dense: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dense.path, "net")
    before = files.sha256(Path("net"))
    try:
        status = main(["prune", "--importance", "lamp", *words])
    except SystemExit as stop:  # argparse
        status = int(stop.code or 0)
    assert status in (1, 2)
    assert fault in capsys.readouterr().err
    assert files.sha256(Path("net")) == before
