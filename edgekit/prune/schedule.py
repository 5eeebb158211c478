"""A pruning from the dense checkpoint to the trained narrow one, in steps, each of them on disk.

prune.json       what it is made of, and the figures of each step that is done
step1/pruned     the checkpoint right after the channels went
step1/train      its training, as any other: best, last, state.pt; the last step's is in train/
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from edgekit import __version__, checkpoint, files, models
from edgekit.checkpoint import Checkpoint
from edgekit.data import Dataset
from edgekit.errors import CheckpointError, DataError, UsageError
from edgekit.models.cost import cost
from edgekit.prune.budget import floors
from edgekit.prune.candidate import Candidate, Chooser, top1
from edgekit.prune.groups import trace
from edgekit.prune.latency import Meter, closest, on_device
from edgekit.prunespec import PruneSpec
from edgekit.schema import SchemaError, decode, encode
from edgekit.train import train
from edgekit.train.learner import silent
from edgekit.train.zeros import left_out, share
from edgekit.trainspec import DistillSpec, FinetuneSpec, SparsifySpec, TrainSpec

FORMAT = 1
STATE = "prune.json"
FOREIGN = TrainSpec(epochs=1, learning_rate=2e-4)  # of a model that was not trained by edgekit


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """*pruned_top1*: right after the channels went; *top1*: after training. None where nothing was measured.

    *finer*: layers whose width could not be a multiple of what was asked for. *latency*: of the dense network's.
    """

    macs: int
    parameters: int
    pruned_top1: float | None = None
    top1: float | None = None
    latency: float | None = None
    finer: tuple[str, ...] = ()
    left: dict[str, str] = field(default_factory=dict)
    trained: bool = False
    sparsity: float = 0.0  # the share of the weights of 1x1 convolutions that are zero


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """``key``: of what the pruning is made. ``macs``, ``parameters`` and ``top1`` are the dense network's."""

    format: int = FORMAT
    key: str
    macs: int
    parameters: int
    top1: float | None = None
    steps: tuple[Step, ...] = ()


def prune(
    dense: Checkpoint,
    spec: PruneSpec,
    out: Path,
    *,
    start: Checkpoint | None = None,
    dataset: Dataset | None = None,
    train_spec: TrainSpec | None = None,
    say: Callable[[str], None] = silent,
) -> tuple[Checkpoint, State]:
    """The trained narrow checkpoint, in ``out/train/best``, and the figures of the way there.

    *start*: where channels go from, the dense network or one that was pruned before; budgets are shares of
    *dense*, which also teaches. *train_spec*: how the dense network was trained.
    Interrupted, the same call goes on after the last whole epoch.

    Raises UsageError for a budget that cannot be met, layers that do not exist, and a model that cannot be
    followed; DataError, CheckpointError, and what training raises.
    """
    start = start or dense
    check(dense, spec, out, dataset)
    training = train_spec or FOREIGN
    key = files.sha256_of(
        [
            FORMAT,
            dense.weights_sha256,
            start.weights_sha256,
            encode(spec, defaults=False),
            encode(training, defaults=False),
            [dataset.train.images_sha256, dataset.val.images_sha256] if dataset else [],
        ]
    )
    state = read(out)
    if state is not None and not state.steps:  # nothing was done yet, as for a budget out of reach
        state = None
    if state is not None and state.key != key:
        raise UsageError(
            f"{out} holds a pruning of another network, or with other settings or data: give another --out, or "
            "--force to replace it"
        )
    work = _Work(dense, spec, out, dataset, training, say)
    state = state or work.begun(key)
    now = start
    for number in range(1, spec.steps + 1):
        if number > len(state.steps):
            state = work.narrowed(now, state, number)
        say(_told(number, spec, state))
        now = checkpoint.read(work.place(number) / "pruned")
        if (epochs := spec.epochs if number == spec.steps else spec.recovery_epochs) or number == spec.steps:
            state = work.trained(now, state, number, epochs)
            now = checkpoint.read(work.learning(number) / "best")
    return now, state


@dataclass(frozen=True)
class _Work:
    """What all steps share."""

    dense: Checkpoint
    spec: PruneSpec
    out: Path
    dataset: Dataset | None
    training: TrainSpec
    say: Callable[[str], None]

    def place(self, number: int) -> Path:
        return self.out / f"step{number}"

    def learning(self, number: int) -> Path:
        return (self.out if number == self.spec.steps else self.place(number)) / "train"

    @cached_property
    def floors(self) -> dict[str, int]:
        """The fewest channels, by the dense network's."""
        contract, name = self.dense.preprocess, self.dense.model.name
        graph = trace(models.restore(self.dense), contract.height, contract.width, name, spare=self.spec.spare)
        return floors(graph, self.spec.round_to)

    @cached_property
    def meter(self) -> Meter | None:
        """What measures a latency budget."""
        return on_device(self.dense, self.spec, self.say) if self.spec.keep_latency is not None else None

    def begun(self, key: str) -> State:
        """Where nothing is done yet."""
        network, contract = models.restore(self.dense), self.dense.preprocess
        found = cost(network, contract.height, contract.width)
        measured = top1(network, self.dense, self.dataset.val) if self.dataset else None
        return self.kept(State(key=key, macs=found.macs, parameters=found.parameters, top1=measured))

    def narrowed(self, now: Checkpoint, state: State, number: int) -> State:
        """Channels go where a budget says so, and the checkpoint without them is written."""
        if self.spec.keep_macs is None and self.spec.keep_latency is None:
            return self.whole(now, state, number)
        images, contract = self.dataset.train if self.dataset else None, self.dense.preprocess
        chooser = Chooser(now, self.spec, images, self.floors)
        candidate, latency = _next(chooser, self.spec, state.macs, number, self.meter)
        measured = top1(candidate.model, self.dense, self.dataset.val) if self.dataset else None
        made = replace(
            candidate.described,
            provenance=_provenance(self.dense, candidate, state.macs),
            metrics={} if measured is None else {"val_top1": measured},
        )
        checkpoint.write(self.place(number) / "pruned", made, candidate.model.state_dict())
        step = Step(
            macs=candidate.plan.macs,
            parameters=cost(candidate.model, contract.height, contract.width).parameters,
            pruned_top1=measured,
            latency=latency,
            finer=candidate.plan.finer,
            left=candidate.left,
        )
        return self.kept(replace(state, steps=(*state.steps, step)))

    def whole(self, now: Checkpoint, state: State, number: int) -> State:
        """All channels stay."""
        network, contract = models.restore(now), now.preprocess
        found = cost(network, contract.height, contract.width)
        measured = top1(network, self.dense, self.dataset.val) if self.dataset else None
        checkpoint.write(self.place(number) / "pruned", now, checkpoint.read_weights(now))
        step = Step(macs=found.macs, parameters=found.parameters, pruned_top1=measured)
        return self.kept(replace(state, steps=(*state.steps, step)))

    def trained(self, now: Checkpoint, state: State, number: int, epochs: int) -> State:
        """It learns for so many epochs; after the last step without any it is what it is."""
        step, folder = state.steps[number - 1], self.learning(number)
        if step.trained:
            return state
        if epochs:
            assert self.dataset is not None
            learning = relearning(self.training, self.spec, epochs, now, self.dense)
            if self.spec.sparsity and number == self.spec.steps:
                learning = replace(learning, sparsify=_sparsify(self.spec))
            made = train(self.dataset, now.model, learning, folder, resume=True, say=self.say)
            made = replace(made, provenance={**now.provenance, **made.provenance})
            checkpoint.write(folder / "best", made, checkpoint.read_weights(made))
        else:
            made = checkpoint.write(folder / "best", now, checkpoint.read_weights(now))
        step = replace(step, top1=made.metrics.get("val_top1"), sparsity=share(models.restore(made)), trained=True)
        return self.kept(replace(state, steps=(*state.steps[: number - 1], step, *state.steps[number:])))

    def kept(self, state: State) -> State:
        files.write_json(self.out / STATE, encode(state))
        return state


def check(dense: Checkpoint, spec: PruneSpec, out: Path, dataset: Dataset | None) -> None:
    """Find what would fail later. Raises UsageError or DataError."""
    if out.resolve() in (dense.path.resolve(), *dense.path.resolve().parents):
        raise UsageError(f"{out} holds the network that is pruned, which stays as it is: give another --out")
    trains = spec.epochs or (spec.recovery_epochs and spec.steps > 1)
    if spec.sparsity:
        left_out(models.restore(dense), _sparsify(spec))
    if dataset is None and trains:
        raise UsageError("training needs images: give --data DIR, or --epochs 0 and --recovery-epochs 0")
    if dataset is not None and dataset.classes != dense.classes:
        raise DataError(
            f"{dataset.name} has other classes ({', '.join(dataset.classes[:5])}, ...) than the network "
            f"({', '.join(dense.classes[:5])}, ...): prune it with the data that it was trained on"
        )


def read(out: Path) -> State | None:
    """What is done in *out*, or None. Raises CheckpointError for a damaged file."""
    path = out / STATE
    if not path.is_file():
        if (out / "train").exists() or (out / "step1").exists():
            raise UsageError(f"{out} holds something else than a pruning: give another --out")
        return None
    try:
        return decode(State, json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, SchemaError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): prune anew with --force, or restore it") from error


def clear(out: Path) -> None:
    """Remove a pruning."""
    for path in (out / STATE, out / "train", *sorted(out.glob("step*"))):
        files.remove(path)


def _next(
    chooser: Chooser, spec: PruneSpec, dense_macs: int, number: int, meter: Meter | None
) -> tuple[Candidate, float | None]:
    """The candidate of one step, and its measured latency. Raises UsageError for a budget out of reach."""
    least = chooser.least
    if spec.keep_latency is not None:
        assert meter is not None
        candidate, latency = closest(chooser, spec.keep_latency, dense_macs, meter)
        if number == spec.steps:
            return candidate, latency
        wanted = candidate.plan.macs
    else:
        assert spec.keep_macs is not None
        wanted = int(spec.keep_macs * dense_macs)
        if wanted < least:
            raise UsageError(
                f"keep_macs = {spec.keep_macs:g} cannot be met: the least reachable is "
                f"{_up(least / dense_macs):.4f}{_why(chooser)}"
            )
    now = chooser.graph.macs
    left = spec.steps - number + 1
    return chooser.candidate(max(least, now - (now - wanted) // left)), None


def _up(share: float) -> float:
    """Rounded up to four places, so that it can be met."""
    return -(-share * 10_000 // 1) / 10_000


def _why(chooser: Chooser) -> str:
    kept = [f"{layer} ({reason})" for layer, reason in chooser.left.items()]
    more = f" and {len(kept) - 4} more" if len(kept) > 4 else ""
    return f", with widths in multiples of {chooser.spec.round_to}; what stays: {', '.join(kept[:4])}{more}"


def relearning(
    training: TrainSpec, spec: PruneSpec, epochs: int, start: Checkpoint, dense: Checkpoint
) -> TrainSpec:
    """How the network learns again: as it was trained, and from the dense one's answers as well.

    At the rate that it was trained at: https://arxiv.org/abs/2003.02389 found that to beat a low one.
    """
    teacher = str(dense.path.resolve())
    return replace(
        training,
        epochs=epochs,
        learning_rate=spec.learning_rate or training.learning_rate,
        warmup_epochs=min(training.warmup_epochs, epochs / 10),
        progressive=None,
        patience=0,
        finetune=FinetuneSpec(weights=str(start.path.resolve())),
        distill=DistillSpec(teacher=teacher, weight=spec.distill, temperature=spec.temperature)
        if spec.distill
        else None,
    )


def _sparsify(spec: PruneSpec) -> SparsifySpec:
    assert spec.sparsity is not None
    return SparsifySpec(share=spec.sparsity, pattern=spec.pattern, spare=spec.spare)


def _provenance(dense: Checkpoint, candidate: Candidate, dense_macs: int) -> dict[str, str]:
    return {
        **dense.provenance,
        "pruned_from": dense.weights_sha256,
        "kept_macs": f"{candidate.plan.macs} of {dense_macs}",
        "edgekit": __version__,
    }


def _told(number: int, spec: PruneSpec, state: State) -> str:
    step = state.steps[number - 1]
    which = f"step {number} of {spec.steps}: " if spec.steps > 1 else ""
    accuracy = "" if step.pruned_top1 is None else f", top-1 {100 * step.pruned_top1:.2f} % before training"
    speed = "" if step.latency is None else f", {100 * step.latency:.1f} % of its time in {spec.precision}"
    return (
        f"{which}{100 * step.macs / state.macs:.2f} % of {state.macs / 1e6:.1f} M multiply-accumulates and "
        f"{100 * step.parameters / state.parameters:.1f} % of the parameters are left{speed}{accuracy}"
    )
