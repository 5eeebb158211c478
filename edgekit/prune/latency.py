"""A latency budget, met by what is measured on the device: short runs of candidates beside the dense network.

Source of the idea: https://arxiv.org/abs/1804.03230.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from edgekit import models
from edgekit.artifact import Artifact
from edgekit.bench import bench
from edgekit.checkpoint import Checkpoint
from edgekit.convert import convert, noise
from edgekit.device import open_device
from edgekit.errors import DeviceError, UsageError
from edgekit.export import ExportSource, PixelClassifier
from edgekit.prune.candidate import Candidate, Chooser
from edgekit.recipe import BenchSpec, Variant

CLOSE = 0.05  # a budget is met within this share of it
TRIES = 12
FINE = 0.004  # of the dense network's multiply-accumulates: nothing is to be found in between

TARGET = "tflite"
SHORT = BenchSpec(samples=200, seconds=2.0, blocks=10, warmup_seconds=0.3)

Meter = Callable[[Candidate], float]  # the candidate's time as a share of the dense network's


def closest(chooser: Chooser, target: float, dense_macs: int, meter: Meter) -> tuple[Candidate, float]:
    """The candidate whose measured time is *target* of the dense one's within 5 %, and that time.

    Bisects over the multiply-accumulates that are kept. Raises UsageError where even the narrowest is too slow,
    and where no candidate comes close.
    """
    low, high = chooser.least, chooser.graph.macs
    macs = max(low, min(high, int(target * dense_macs)))  # time goes with them, nearly
    tried: list[str] = []
    for _ in range(TRIES):
        candidate = chooser.candidate(macs)
        time = meter(candidate)
        tried.append(f"{candidate.plan.macs / dense_macs:.3f}: {time:.3f}")
        if abs(time - target) <= CLOSE * target:
            return candidate, time
        if time > target and macs == chooser.least:
            raise UsageError(
                f"keep_latency = {target:g} cannot be met: the least reachable is {time:.3f}, with "
                f"{candidate.plan.macs / dense_macs:.3f} of the multiply-accumulates"
            )
        low, high = (low, macs) if time > target else (macs, high)
        if high - low <= FINE * dense_macs:
            if low > chooser.least or time < target:
                break
            macs = low
        else:
            macs = (low + high) // 2
    raise UsageError(
        f"keep_latency = {target:g} was not met within {100 * CLOSE:.0f} %; by multiply-accumulates kept, "
        f"the times were {', '.join(tried)}: a quiet device measures more evenly"
    )


def on_device(dense: Checkpoint, address: str, say: Callable[[str], None]) -> Meter:
    """Measures on the device at *address*: float TFLite files of both networks, block by block in turn."""
    whole = models.restore(dense)

    def measure(candidate: Candidate) -> float:
        device = open_device(address)
        try:
            if TARGET not in device.runtimes:
                raise DeviceError(f"{address} cannot run {TARGET} files, by which --keep-latency is measured")
            with tempfile.TemporaryDirectory(prefix="edgekit-prune-") as folder:
                files = [
                    _file(model, dense, Path(folder, name))
                    for name, model in (("dense", whole), ("pruned", candidate.model))
                ]
                found = bench(files, device, SHORT, Path(folder, "results"), images=None, progress=_quiet)
        finally:
            device.close()
        slow, fast = (float(np.median(one.measurement.samples_ns)) for one in found)
        share = f"{100 * fast / slow:.1f} % of the dense network's {slow / 1e6:.3f} ms"
        say(f"measured on {address}: {fast / 1e6:.3f} ms, {share}")
        return fast / slow

    return measure


def _file(model: nn.Module, described: Checkpoint, folder: Path) -> Artifact:
    source = ExportSource(
        model=PixelClassifier(model, described.preprocess).eval(),
        preprocess=described.preprocess,
        labels=described.classes,
    )
    images = noise(source.shape_NHWC[1:], 8)
    (made,) = convert(source, [Variant(target=TARGET, precision="fp32")], images, folder, _quiet)
    path = made.path.with_name(f"{folder.name}{made.path.suffix}")  # a visit tells its files apart by their names
    made.path.rename(path)
    return replace(made, file=path.name, path=path)


def _quiet(text: str, share: float) -> None:
    """Nobody is told of the parts of a short run."""
