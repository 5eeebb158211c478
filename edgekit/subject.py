"""What `edgekit prune MODEL` may be given: the dense checkpoint, the images, and how it was trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit import checkpoint, data, source
from edgekit.checkpoint import Checkpoint
from edgekit.data import Dataset
from edgekit.errors import CheckpointError, UsageError
from edgekit.export import ExportSource
from edgekit.keras_model import is_keras
from edgekit.models import foreign
from edgekit.preprocess import Preprocess
from edgekit.recipe import DataSpec, ModelSpec, absolute, from_anywhere
from edgekit.runs import Run, is_run
from edgekit.trainspec import TrainSpec

DENSE = "dense"  # in the output folder: a network that was no checkpoint before


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """*given*: a model by name, which is no checkpoint yet, and its *spec*."""

    name: str
    spec: ModelSpec
    dense: Checkpoint | None
    given: ExportSource | None
    dataset: Dataset | None
    training: TrainSpec | None


def find(
    model: str,
    *,
    data_source: str | None,
    preprocess: Preprocess | None,
    labels: tuple[str, ...] | None,
    weights: str | None,
    confirm: Callable[[str], bool],
) -> Subject:
    """The network that *model* names. Raises UsageError, CheckpointError or DataError."""
    path = Path(model)
    if data_source:
        data.check(data_source)
    if is_keras(path) or foreign.kind(model) == "exported":
        raise UsageError(
            f"{model} cannot be trained again, and so not be pruned: name the model's own file, FILE.py:F"
        )
    if path.is_dir():
        if preprocess or labels or weights:
            raise UsageError(f"{path} brings its own preprocess, labels and weights: leave out those options")
        return _from_folder(path, data_source, confirm)
    found = source.find(
        model, preprocess=preprocess, labels=labels, weights=weights, calibrate=None, confirm=confirm
    )
    assert isinstance(found.source, ExportSource)
    if weights is None and ".py:" not in model:
        raise UsageError(f"{model} has random weights: give --weights FILE or imagenet")
    spec = DataSpec(source=data_source, preprocess=found.source.preprocess) if data_source else None
    return Subject(
        name=found.name,
        spec=absolute(ModelSpec(name=model)),
        dense=None,
        given=found.source,
        dataset=data.load(spec, confirm=confirm) if spec else None,
        training=None,
    )


def _from_folder(path: Path, data_source: str | None, confirm: Callable[[str], bool]) -> Subject:
    name = path.resolve().name
    if not is_run(path):
        found = checkpoint.find(path)
        spec = DataSpec(source=data_source, preprocess=found.preprocess) if data_source else None
        dataset = data.load(spec, confirm=confirm) if spec else None
        return Subject(name=name, spec=found.model, dense=found, given=None, dataset=dataset, training=None)
    run = Run(folder=path)
    state, recipe = run.state(), run.recipe()
    assert state is not None
    if not (run.checkpoint / checkpoint.DESCRIPTION).is_file():
        raise CheckpointError(f"{path} holds no trained network yet: edgekit run, or train, finishes it")
    dataset = data.load(recipe.data, source=data_source or state.source, confirm=confirm)
    dense = checkpoint.read(run.checkpoint)
    training = from_anywhere(recipe).train
    return Subject(name=name, spec=dense.model, dense=dense, given=None, dataset=dataset, training=training)


def refuse_inside(found: Subject, out: Path) -> None:
    """Raise UsageError where the output would lie in the network's own folder."""
    if found.dense and out.resolve() in (found.dense.path.resolve(), *found.dense.path.resolve().parents):
        raise UsageError(f"{out} holds the network that is pruned, which stays as it is: give another --out")


def stored(found: Subject, out: Path) -> Checkpoint:
    """The dense checkpoint; of a model by name one in *out*, where training finds its teacher."""
    if found.dense:
        return found.dense
    given, folder = found.given, out / DENSE
    assert given is not None
    described = Checkpoint(model=found.spec, classes=given.labels, preprocess=given.preprocess)
    module = given.model.model
    return checkpoint.write(folder, described, module.state_dict())
