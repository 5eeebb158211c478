"""Quantization-aware training: the network learns with its rounding in place, from the float network's answers."""

import copy
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from edgekit import files
from edgekit.errors import TrainingError
from edgekit.export import Lessons
from edgekit.qat.network import Network
from edgekit.schema import encode
from edgekit.train import accelerator, batches, schedule
from edgekit.train.augment import augmented
from edgekit.train.batches import Feed
from edgekit.train.zeros import HELD
from edgekit.trainspec import QatSpec, TrainSpec

FORMAT = 2
# By the weights' learning rate: the logarithms of scales, and zero points, which count steps of int8. Ranges have
# far to go; weights are at the nearest step already.
RATES = {"weight": 1.0, "scale": 20.0, "zero": 1000.0}
DAMAGED = (RuntimeError, EOFError, ValueError, LookupError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile)


def learn(network: Network, lessons: Lessons, spec: QatSpec, state: Path) -> tuple[str, ...]:
    """Train *network* in place; it ends on the CPU. Gives notes for the user.

    After every epoch *state* is replaced. Where it stands already and is of this very training, this goes on from
    it and gives, on the CPU, the same weights; it is removed by whoever has stored what was learnt. Raises
    TrainingError when the loss is no number.
    """
    where = accelerator.choose("fp32")
    images = [lessons.split.images_sha256, list(lessons.truth), encode(lessons.augment)]
    key = files.sha256_of([FORMAT, network.sha256, images, encode(spec)])
    with accelerator.using_threads(accelerator.cpu_threads()):
        teacher = copy.deepcopy(network).requires_grad_(False).to(where.device)
        pupil = network.to(where.device)
        zeros = _zeros(pupil)
        groups = [
            {"params": parameters, "rate": RATES[kind]}
            for kind, parameters in network.groups().items()
            if parameters
        ]
        optimizer = torch.optim.Adam(groups, lr=spec.learning_rate)
        done, notes = _resumed(state, key, pupil, optimizer)
        feed = Feed(lessons.split, where.device)
        truth = torch.tensor(lessons.truth, device=where.device)
        count = len(_plan(lessons, spec, 0))
        rate = schedule.learning_rate(_as_training(spec), count)
        with tqdm(
            total=spec.epochs * count, initial=done * count, unit="batch", disable=None, leave=False, desc="QAT"
        ) as bar:
            for epoch in range(done + 1, spec.epochs + 1):
                plan = _plan(lessons, spec, epoch)
                for step, (pixels, _) in enumerate(feed(plan)):
                    x = augmented(pixels, lessons.augment, (spec.seed, epoch, step))
                    x_NHWC = x.permute(0, 2, 3, 1).contiguous()
                    for group in optimizer.param_groups:
                        group["lr"] = rate((epoch - 1) * count + step) * group["rate"]
                    loss = _loss(pupil, teacher, x_NHWC, truth[plan[step].to(where.device)], spec)
                    if not math.isfinite(shown := float(loss.detach())):
                        raise _diverged(shown, epoch, step, spec)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    with torch.no_grad():
                        for parameter, mask in zeros:
                            parameter.mul_(mask)
                    bar.set_postfix(epoch=epoch, loss=f"{shown:.4f}", refresh=False)
                    bar.update()
                _save(state, key, epoch, pupil, optimizer)
        network.to("cpu")
    return notes


def _plan(lessons: Lessons, spec: QatSpec, epoch: int) -> list[Tensor]:
    """The images of each batch of an epoch."""
    plan = batches.shuffled(len(lessons.split), spec.batch_size, (spec.seed, epoch, "order"))
    return plan[: math.ceil(spec.images / spec.batch_size)] if spec.images else plan


def _zeros(network: Network) -> list[tuple[torch.nn.Parameter, Tensor]]:
    """The weights of layers that were made sparse, and what of them is not zero."""
    pairs = [(parameter, parameter.detach() != 0) for parameter in network.groups()["weight"]]
    return [(one, mask) for one, mask in pairs if one.ndim == 4 and float(mask.float().mean()) <= 1 - HELD]


def _loss(pupil: Network, teacher: Network, x_NHWC: Tensor, truth: Tensor, spec: QatSpec) -> Tensor:
    with torch.no_grad():
        wanted = teacher(x_NHWC, rounding=False, logits=True)
    logits = pupil(x_NHWC, logits=True)
    t = spec.temperature  # its square, because the gradients of soft targets shrink by it
    soft = F.kl_div(
        (logits / t).log_softmax(1), (wanted / t).log_softmax(1), reduction="batchmean", log_target=True
    )
    own = F.cross_entropy(logits, truth) if spec.distill < 1 else logits.new_zeros(())
    return spec.distill * t * t * soft + (1 - spec.distill) * own


def _diverged(loss: float, epoch: int, step: int, spec: QatSpec) -> TrainingError:
    return TrainingError(
        f"quantization-aware training stopped in epoch {epoch}, step {step + 1}: the loss is {loss}; lower "
        f"qat.learning_rate ({spec.learning_rate:g})"
    )


def _as_training(spec: QatSpec) -> TrainSpec:
    """For its schedule: a tenth of an epoch of warming up, and half a cosine."""
    return TrainSpec(epochs=spec.epochs, learning_rate=spec.learning_rate, warmup_epochs=0.1)


def _save(path: Path, key: str, epoch: int, network: Network, optimizer: torch.optim.Optimizer) -> None:
    values = {"key": key, "epoch": epoch, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
    with files.replacing(path) as temporary:
        torch.save(values, temporary)


def _resumed(
    path: Path, key: str, network: Network, optimizer: torch.optim.Optimizer
) -> tuple[int, tuple[str, ...]]:
    """How many epochs are done, none where there is no state or one of another training; and notes."""
    if not path.is_file():
        return 0, ()
    try:
        values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if values["key"] != key:
            return 0, ()
        network.load_state_dict(values["network"])
        optimizer.load_state_dict(values["optimizer"])
        epoch = int(values["epoch"])
    except DAMAGED as error:
        return 0, (f"{path} was damaged ({type(error).__name__}): training began anew",)
    return epoch, (f"training went on after epoch {epoch}, where it had been cut off",)
