"""The training loop: epochs of steps, a validation after each, and everything on disk after each."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from edgekit import __version__, checkpoint, files, models
from edgekit.checkpoint import Checkpoint
from edgekit.data import Dataset
from edgekit.errors import DataError, TrainingError, UsageError
from edgekit.recipe import ModelSpec, TrainSpec
from edgekit.train import accelerator, batches, seeds
from edgekit.train import state as states
from edgekit.train.accelerator import Accelerator
from edgekit.train.augment import augmented
from edgekit.train.batches import Feed
from edgekit.train.learner import Learner, probe
from edgekit.train.schedule import learning_rate
from edgekit.train.state import State

BEST, LAST, METRICS = "best", "last", "metrics.jsonl"
CHECK_STEPS = 16  # looking at the loss makes a GPU wait
VAL_BATCH = 256


def train(dataset: Dataset, model: ModelSpec, spec: TrainSpec, out: Path, *, resume: bool = False) -> Checkpoint:
    """The best checkpoint by top-1 on the held-out images, in ``out/best``; the last one is in ``out/last``.

    After every epoch ``out/state.pt`` is replaced at once, and the others are written from it, with one line
    more in ``out/metrics.jsonl``. With *resume* an interrupted training goes on after its last whole epoch and
    gives, on the CPU, the same weights bit for bit; where there is none, it starts. Without *resume* an earlier
    training in *out* is removed.

    Raises UsageError for a model or a setting that cannot be used, DataError for too few images,
    CheckpointError when the state is damaged or of other settings, TrainingError when the loss is no number.
    """
    where = accelerator.choose(spec.precision)
    _check(dataset, model, spec)
    settings = states.settings(dataset, model, spec)
    saved = states.read(out, settings) if resume else None
    out.mkdir(parents=True, exist_ok=True)
    threads = saved.threads if saved else accelerator.cpu_threads()
    with accelerator.using_threads(threads), _own_random_numbers(where):
        learner = _learner(dataset, model, spec, where)
        blank = Checkpoint(
            model=model,
            classes=dataset.classes,
            preprocess=dataset.preprocess,
            provenance=_provenance(dataset, spec, where),
        )
        if saved is None:
            states.clear(out, BEST, LAST, METRICS)
            state = _start(settings, threads)
        else:
            state = saved
            states.sweep(out, BEST, LAST, METRICS)
            learner.load_state_dict(state.learner)
            # A kill may have come between the state and what follows from it.
            files.write_text(out / METRICS, "".join(_line(row) for row in state.rows))
            _write(out, blank, state, {BEST, LAST})
        for after in _epochs(learner, dataset, spec, state, out):
            states.write(out, after)
            with (out / METRICS).open("a", encoding="utf-8") as stream:
                stream.write(_line(after.rows[-1]))
            _write(out, blank, after, {BEST, LAST} if after.best_metrics["epoch"] == after.epoch else {LAST})
    return checkpoint.read(out / BEST)


def _epochs(learner: Learner, dataset: Dataset, spec: TrainSpec, state: State, out: Path) -> Iterator[State]:
    """The state after each epoch that is left."""
    feeds = [Feed(split, learner.where.device) for split in (dataset.train, dataset.val)]
    count = len(dataset.train)
    images = sum(map(len, batches.shuffled(count, spec.batch_size, (spec.seed,))))
    with tqdm(
        total=spec.epochs * images, initial=state.epoch * images, unit="img", unit_scale=True, disable=None
    ) as bar:
        for epoch in range(state.epoch + 1, spec.epochs + 1):
            bar.set_description(f"epoch {epoch}/{spec.epochs}")
            start = time.perf_counter()
            loss, train_top1, rate = _epoch(learner, feeds[0], spec, epoch, out, bar)
            seconds = time.perf_counter() - start
            val_top1 = learner.top1(feeds[1](batches.in_order(len(dataset.val), VAL_BATCH)))
            bar.set_postfix(loss=f"{loss:.3f}", top1=f"{train_top1:.3f}", val=f"{val_top1:.4f}")
            row = {
                "epoch": epoch,
                "loss": loss,
                "train_top1": train_top1,
                "val_top1": val_top1,
                "learning_rate": rate,
                "seconds": round(seconds, 3),
                "images_per_second": round(images / seconds, 1),
            }
            last, metrics = learner.weights(), {"val_top1": val_top1, "epoch": float(epoch)}
            # Of equals the later one: its learning rate was lower.
            better = not state.best_metrics or val_top1 >= state.best_metrics["val_top1"]
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


def _epoch(
    learner: Learner, feed: Feed, spec: TrainSpec, epoch: int, out: Path, bar: Any
) -> tuple[float, float, float]:
    """Train for one epoch. Returns the mean loss, the share of right answers and the last learning rate."""
    torch.manual_seed(seeds.number(spec.seed, epoch, "dropout"))
    plan = batches.shuffled(len(feed.split), spec.batch_size, (spec.seed, epoch, "order"))
    steps, warmup = spec.epochs * len(plan), round(spec.warmup_epochs * len(plan))
    losses, right, rate = list[Tensor](), list[Tensor](), 0.0
    learner.model.train()
    for step, (pixels, labels) in enumerate(feed(plan)):
        rate = learning_rate(
            (epoch - 1) * len(plan) + step, steps=steps, warmup=min(warmup, steps), peak=spec.learning_rate
        )
        x = augmented(pixels, spec.augment, (spec.seed, epoch, step))
        loss, correct = learner.step(x, labels, rate)
        losses.append(loss)
        right.append(correct)
        bar.update(len(labels))
        if (step + 1) % CHECK_STEPS == 0 or step + 1 == len(plan):
            recent = torch.stack(losses[step - step % CHECK_STEPS :]).tolist()
            for back, value in enumerate(recent):
                if not abs(value) < float("inf"):
                    raise _diverged(f"the loss is {value}", epoch, step - step % CHECK_STEPS + back + 1, spec, out)
            done = sum(len(indices) for indices in plan[: step + 1])
            share = float(torch.stack(right).sum()) / done
            bar.set_postfix(loss=f"{recent[-1]:.3f}", top1=f"{share:.3f}")
    if not learner.finite():
        raise _diverged("a weight is not a finite number", epoch, len(plan), spec, out)
    images = sum(map(len, plan))
    sizes = torch.tensor([len(indices) for indices in plan], dtype=torch.float64)
    mean = float((torch.stack(losses).double().cpu() * sizes).sum() / images)
    return mean, float(torch.stack(right).sum()) / images, rate


def _diverged(what: str, epoch: int, step: int, spec: TrainSpec, out: Path) -> TrainingError:
    kept = f"the checkpoints of epoch {epoch - 1} are kept in {out}" if epoch > 1 else "no epoch was finished"
    return TrainingError(
        f"training stopped in epoch {epoch}, step {step}: {what}; {kept}. Lower "
        f"train.learning_rate ({spec.learning_rate:g}) or warm up longer (train.warmup_epochs = "
        f"{spec.warmup_epochs:g}), and train anew"
    )


def _check(dataset: Dataset, model: ModelSpec, spec: TrainSpec) -> None:
    models.check(model)
    if spec.batch_size < 2:
        raise UsageError("train.batch_size = 1: batch norm needs two images or more in a batch")
    if len(dataset.train) < 2 or not len(dataset.val):
        raise DataError(
            f"{dataset.name} has {len(dataset.train)} training and {len(dataset.val)} held-out images; a training "
            "needs at least 2 and 1"
        )


@contextmanager
def _own_random_numbers(where: Accelerator) -> Iterator[None]:
    """torch's global generators are seeded inside, and as before afterwards."""
    devices = [where.device] if where.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _learner(dataset: Dataset, model: ModelSpec, spec: TrainSpec, where: Accelerator) -> Learner:
    torch.manual_seed(seeds.number(spec.seed, "weights"))
    network = models.build(model, len(dataset.classes), models.side_of(dataset.preprocess))
    probe(network, dataset.preprocess, len(dataset.classes), model.name)
    return Learner(network, dataset.preprocess, spec, where)


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


def _provenance(dataset: Dataset, spec: TrainSpec, where: Accelerator) -> dict[str, str]:
    return {
        "data": dataset.name,
        "train_images": str(len(dataset.train)),
        "val_images": str(len(dataset.val)),
        "train_images_sha256": dataset.train.images_sha256,
        "val_images_sha256": dataset.val.images_sha256,
        "seed": str(spec.seed),
        "device": where.name,
        "torch": torch.__version__,
        "edgekit": __version__,
    }
