"""The training loop: epochs of steps, a validation after each, and everything on disk after each."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from edgekit import __version__, checkpoint, files
from edgekit.checkpoint import Checkpoint
from edgekit.data import Dataset
from edgekit.errors import TrainingError
from edgekit.group import ALONE, Group
from edgekit.recipe import ModelSpec
from edgekit.train import accelerator, batches, evaluate, schedule, seeds, setup
from edgekit.train import state as states
from edgekit.train.accelerator import Accelerator
from edgekit.train.augment import augmented, crop_draws, mixed, resized
from edgekit.train.batches import Feed
from edgekit.train.learner import Learner, silent
from edgekit.train.start import Confirm
from edgekit.train.state import State
from edgekit.trainspec import TrainSpec

BEST, LAST, METRICS = "best", "last", "metrics.jsonl"
MADE = (BEST, LAST, METRICS, *evaluate.MADE)
CHECK_STEPS = 16  # looking at the loss makes a GPU wait


def train(
    dataset: Dataset,
    model: ModelSpec,
    spec: TrainSpec,
    out: Path,
    *,
    resume: bool = False,
    group: Group = ALONE,
    say: Callable[[str], None] | None = None,
    confirm: Confirm | None = None,
) -> Checkpoint:
    """The best checkpoint by top-1 on the held-out images, in ``out/best``; the last one is in ``out/last``.

    After every epoch ``out/state.pt`` is replaced at once, and the others are written from it, with one line
    more in ``out/metrics.jsonl``; at the end come the pictures and figures of `evaluate`. With *resume* an
    interrupted training goes on after its last whole epoch and gives, on the CPU, the same weights bit for
    bit; where there is none, it starts. Without *resume* an earlier training in *out* is removed.

    All processes of *group* call this alike and share each batch; the main one writes. *say*, where it is given,
    gets notes for the user, *confirm* is asked before weights are downloaded.

    Raises UsageError for a model or a setting that cannot be used, DataError for too few images,
    CheckpointError when the state is damaged or of other settings, TrainingError when the loss is no number or
    memory does not suffice.
    """
    where = accelerator.choose(spec.precision, group.local_rank)
    say = say if say and group.main else silent
    saved = None
    if group.main:
        setup.check(model, spec, resume=resume and (out / states.STATE).is_file(), confirm=confirm)
        setup.check_data(dataset, spec, group)
        saved = states.read(out, states.settings(dataset, model, spec)) if resume else None
    saved = group.share(saved)  # the others wait for what was downloaded, too
    settings = saved.settings if saved else states.settings(dataset, model, spec)
    threads = saved.threads if saved else accelerator.cpu_threads()
    with accelerator.using_threads(threads), _own_random_numbers(where):
        learner = setup.learner(dataset, model, spec, where, group, say, resume=saved is not None)
        blank = Checkpoint(
            model=model,
            classes=dataset.classes,
            preprocess=dataset.preprocess,
            provenance=_provenance(dataset, spec, where, group),
        )
        state = saved or _start(settings, threads)
        if saved:
            learner.load_state_dict(saved.learner)
        if group.main:
            _prepare(out, saved, blank)
        for after in _epochs(learner, dataset, spec, state, out):
            state = after
            if group.main:
                states.write(out, state)
                with (out / METRICS).open("a", encoding="utf-8") as stream:
                    stream.write(_line(state.rows[-1]))
                best = state.best_metrics["epoch"] == state.epoch
                _write(out, blank, state, {BEST, LAST} if best else {LAST})
        if state.epoch < spec.epochs and group.main:
            say(_stopped_early(state, spec))
        learner.best_model.load_state_dict(state.best_weights)
        evaluate.evaluate(learner, Feed(dataset.val, where.device), dataset.classes, state.rows, out)
    return replace(blank, metrics=state.best_metrics) if not group.main else checkpoint.read(out / BEST)


def _prepare(out: Path, saved: State | None, blank: Checkpoint) -> None:
    """The folder as the state has it: empty for a new training."""
    out.mkdir(parents=True, exist_ok=True)
    if saved is None:
        states.clear(out, *MADE)
        return
    states.sweep(out, *MADE)
    # A kill may have come between the state and what follows from it.
    files.write_text(out / METRICS, "".join(_line(row) for row in saved.rows))
    _write(out, blank, saved, {BEST, LAST})


def _epochs(learner: Learner, dataset: Dataset, spec: TrainSpec, state: State, out: Path) -> Iterator[State]:
    """The state after each epoch that is left."""
    group, device = learner.group, learner.where.device
    feed, held_out = Feed(dataset.train, device), Feed(dataset.val, device)
    validation = batches.in_order(len(dataset.val), evaluate.BATCH, group.part(len(dataset.val)))
    images = sum(map(len, batches.shuffled(len(dataset.train), spec.batch_size, (spec.seed,), group.size)))
    freeze = spec.finetune.freeze_epochs if spec.finetune else 0
    with tqdm(
        total=spec.epochs * images,
        initial=state.epoch * images,
        unit="img",
        unit_scale=True,
        disable=None if group.main else True,
    ) as bar:
        for epoch in range(state.epoch + 1, spec.epochs + 1):
            if _patience_is_over(state, spec):
                return
            bar.set_description(f"epoch {epoch}/{spec.epochs}")
            began = time.perf_counter()
            learner.begin_epoch(frozen=epoch <= freeze)
            done = _epoch(learner, feed, dataset, spec, epoch, out, bar)
            seconds = time.perf_counter() - began
            val_top1 = learner.top1(held_out(validation))
            bar.set_postfix(loss=f"{done.loss:.3f}", top1=f"{done.top1:.3f}", val=f"{val_top1:.4f}")
            row = {
                "epoch": epoch,
                "loss": done.loss,
                "train_top1": done.top1,
                "val_top1": val_top1,
                "learning_rate": done.learning_rate,
                "side": done.side,
                "seconds": round(seconds, 3),
                "images_per_second": round(images / seconds, 1),
            }
            if spec.sparsify:
                row["sparse"] = float(learner.zeros.grown)
            last, metrics = learner.weights(), {"val_top1": val_top1, "epoch": float(epoch)}
            # Of equals the later one: its learning rate was lower.
            better = (
                not state.best_metrics
                or val_top1 >= state.best_metrics["val_top1"]
                or not state.rows[-1].get("sparse", 1.0)  # what came before is not what was asked for
            )
            state = State(
                settings=state.settings,
                epoch=epoch,
                threads=state.threads,
                learner=learner.state_dict(),
                rows=[*state.rows, row],
                best_metrics=metrics if better else state.best_metrics,
                best_weights=last if better else state.best_weights,
                last_weights=last,
            )
            yield state


def _patience_is_over(state: State, spec: TrainSpec) -> bool:
    if not spec.patience or not state.rows:
        return False
    frozen = spec.finetune.freeze_epochs if spec.finetune else 0  # while the body waits, little is expected
    best = state.best_metrics["val_top1"]
    first = min(row["epoch"] for row in state.rows if row["val_top1"] == best)  # an equal one is no progress
    return state.epoch - max(first, frozen) >= spec.patience


def _stopped_early(state: State, spec: TrainSpec) -> str:
    return (
        f"stopped after {state.epoch} of {spec.epochs} epochs: top-1 was best in epoch "
        f"{state.best_metrics['epoch']:.0f} (train.patience = {spec.patience})"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """An epoch: the mean loss, the share of right answers, the last learning rate, and the images' height."""

    loss: float
    top1: float
    learning_rate: float
    side: int


def _epoch(
    learner: Learner, feed: Feed, dataset: Dataset, spec: TrainSpec, epoch: int, out: Path, bar: Any
) -> Trained:
    """Train for one epoch."""
    group, augment, contract = learner.group, spec.augment, dataset.preprocess
    torch.manual_seed(seeds.number(spec.seed, epoch, "dropout", *([group.rank] if group.rank else [])))
    plan = batches.shuffled(len(feed.split), spec.batch_size, (spec.seed, epoch, "order"), group.size)
    rates = schedule.learning_rate(spec, len(plan))
    height, width = (schedule.side(s, spec.progressive, epoch, spec.epochs) for s in _sides(dataset))
    parts = [group.part(len(indices)) for indices in plan]
    mine = [indices[part] for indices, part in zip(plan, parts, strict=True)]
    draws = None
    if augment.crop and feed.split.has_files:  # cut from the whole picture while it is decoded
        draws = [crop_draws(len(all_), (spec.seed, epoch, i))[parts[i]] for i, all_ in enumerate(plan)]
        augment = replace(augment, crop=0.0)
    colour = (255 * contract.mean[0], 255 * contract.mean[1], 255 * contract.mean[2])
    losses, loss_sum, right_sum, done, rate = list[Tensor](), 0.0, 0.0, 0, 0.0
    rights = list[Tensor]()
    for step, (pixels, labels) in enumerate(feed(mine, spec.augment.crop, draws)):
        rate, seed, total = rates((epoch - 1) * len(plan) + step), (spec.seed, epoch, step), len(plan[step])
        x = augmented(pixels, augment, seed, colour=colour, first=parts[step].start, total=total)
        x, targets = mixed(resized(x, height, width), labels, len(dataset.classes), augment, seed)
        loss, correct = learner.step(x, targets, rate, total)
        losses.append(loss)
        rights.append(correct)
        done += len(labels)
        bar.update(total)
        if (step + 1) % CHECK_STEPS == 0 or step + 1 == len(plan):
            recent = torch.stack(losses).tolist()
            for back, value in enumerate(recent):
                if not abs(value) < float("inf"):
                    raise _diverged(f"the loss is {value}", epoch, step - len(recent) + back + 2, spec, out)
            loss_sum, right_sum = loss_sum + sum(recent), right_sum + float(torch.stack(rights).sum())
            losses, rights = [], []
            bar.set_postfix(loss=f"{recent[-1] / len(labels):.3f}", top1=f"{right_sum / done:.3f}")
    if not learner.finite():
        raise _diverged("a weight is not a finite number", epoch, len(plan), spec, out)
    sums = group.total(torch.tensor([loss_sum, right_sum], dtype=torch.float64)) / sum(map(len, plan))
    return Trained(loss=float(sums[0]), top1=float(sums[1]), learning_rate=rate, side=height)


def _sides(dataset: Dataset) -> tuple[int, int]:
    return dataset.preprocess.height, dataset.preprocess.width


def _diverged(what: str, epoch: int, step: int, spec: TrainSpec, out: Path) -> TrainingError:
    kept = f"the checkpoints of epoch {epoch - 1} are kept in {out}" if epoch > 1 else "no epoch was finished"
    return TrainingError(
        f"training stopped in epoch {epoch}, step {step}: {what}; {kept}. Lower "
        f"train.learning_rate ({spec.learning_rate:g}) or warm up longer (train.warmup_epochs = "
        f"{spec.warmup_epochs:g}), and train anew"
    )


@contextmanager
def _own_random_numbers(where: Accelerator) -> Iterator[None]:
    """torch's global generators are seeded inside, and as before afterwards."""
    devices = [where.device] if where.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _start(settings: dict[str, Any], threads: int) -> State:
    return State(
        settings=settings,
        epoch=0,
        threads=threads,
        learner={},
        rows=[],
        best_metrics={},
        best_weights={},
        last_weights={},
    )


def _write(out: Path, blank: Checkpoint, state: State, which: set[str]) -> None:
    """The checkpoints that follow from the state."""
    if BEST in which:
        checkpoint.write(out / BEST, replace(blank, metrics=state.best_metrics), state.best_weights)
    if LAST in which:
        row = state.rows[-1]
        metrics = {"val_top1": row["val_top1"], "epoch": float(row["epoch"])}
        checkpoint.write(out / LAST, replace(blank, metrics=metrics), state.last_weights)


def _line(row: dict[str, float]) -> str:
    return json.dumps(row) + "\n"


def _provenance(dataset: Dataset, spec: TrainSpec, where: Accelerator, group: Group) -> dict[str, str]:
    return {
        "data": dataset.name,
        "train_images": str(len(dataset.train)),
        "val_images": str(len(dataset.val)),
        "train_images_sha256": dataset.train.images_sha256,
        "val_images_sha256": dataset.val.images_sha256,
        "seed": str(spec.seed),
        "device": where.name if group.size == 1 else f"{group.size} x {where.name}",
        "torch": torch.__version__,
        "edgekit": __version__,
    }
