"""Quantization-aware training of a TFLite file's network (precision ``int8-qat``)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgekit.calibrate import Range
from edgekit.calibrate.observe import logits
from edgekit.export import Lessons
from edgekit.preprocess import Pixels
from edgekit.qat.learn import learn
from edgekit.qat.network import Network
from edgekit.trainspec import QatSpec

__all__ = ["Network", "Trained", "agreement", "learn", "train"]

BATCH = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """The float file after training, the ranges to quantize it with, notes for the user, and what was trained."""

    content: bytes
    ranges: dict[str, Range]
    notes: tuple[str, ...]
    network: Network


def train(float_file: bytes, int8_file: bytes, lessons: Lessons, spec: QatSpec, state: Path) -> Trained:
    """Train the network of the two flatbuffers, see `Network` and `learn`, which raise."""
    network = Network(float_file, int8_file)
    notes = learn(network, lessons, spec, state)
    epochs = "1 epoch" if spec.epochs == 1 else f"{spec.epochs} epochs"
    drawn = f"{spec.images} drawn from " if 0 < spec.images < len(lessons.split) else ""
    told = (
        f"trained with its rounding in place for {epochs} of {drawn}{len(lessons.split)} images "
        f"(list {lessons.split.images_sha256[:12]}), learning rate {spec.learning_rate:g}, "
        f"{spec.distill:.0%} of the loss from the float network's answers"
    )
    return Trained(content=network.trained_file(), ranges=network.ranges(), notes=(*notes, told), network=network)


@torch.no_grad()
def agreement(network: Network, int8_file: bytes, pixels_NHWC: Pixels) -> int:
    """For how many of the images network and file give one class."""
    batches = np.array_split(pixels_NHWC, -(-len(pixels_NHWC) // BATCH))
    mine = [network(torch.from_numpy(np.array(one)).float()).argmax(1).numpy() for one in batches]
    return int((np.concatenate(mine) == logits(int8_file, pixels_NHWC).argmax(1)).sum())
