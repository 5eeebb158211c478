"""A latency budget, met by what is measured on the device: short runs of candidates beside the dense network.

Source of the idea: https://arxiv.org/abs/1804.03230.
"""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from edgekit import models
from edgekit.artifact import Artifact, Calibration
from edgekit.bench import bench
from edgekit.checkpoint import Checkpoint
from edgekit.convert import converter, described, noise
from edgekit.device import open_device
from edgekit.errors import DeviceError, UsageError
from edgekit.export import CalibrationImages, ExportSource, PixelClassifier
from edgekit.measure import block_medians_ms
from edgekit.prune.candidate import Candidate, Chooser
from edgekit.prunespec import PruneSpec
from edgekit.recipe import BenchSpec, Variant
from edgekit.stats import t_interval

CLOSE = 0.05  # a budget is met within this share of it
NEAR = 0.02  # the search goes on until it is that near: what is measured on another day differs by some per cent
TRIES = 8
FINE = 0.004  # of the dense network's multiply-accumulates: nothing is to be found in between
EDGE = 0.1  # of what is left to be searched: a guess keeps that far from what was measured

TARGET = "tflite"
SHORT = BenchSpec(samples=200, seconds=5.0, blocks=8, warmup_seconds=0.3)  # load is told of blocks from 0.5 s on
VISITS, SURE = 3, 0.03  # a measurement is repeated, at most so often, until its interval reaches no farther

Meter = Callable[[Candidate], float]  # the candidate's time as a share of the dense network's


def closest(chooser: Chooser, target: float, dense_macs: int, meter: Meter) -> tuple[Candidate, float]:
    """The candidate whose measured time is nearest to *target* of the dense one's, within 5 %, and that time.

    Searches over the multiply-accumulates that are kept, with which time grows nearly as a line. What is within
    5 % is measured twice, so that no lucky measurement ends the search. Raises UsageError where even the narrowest
    is too slow, and where no candidate comes close.
    """
    low, high = chooser.least, chooser.graph.macs
    under: tuple[int, float] | None = None
    over = dense_macs, 1.0
    macs = max(low, min(high, int(target * dense_macs)))
    tried: list[tuple[Candidate, float]] = []
    for _ in range(TRIES):
        candidate = chooser.candidate(macs)
        time = meter(candidate)
        if _off(time, target) <= CLOSE:
            time = math.sqrt(time * meter(candidate))
        tried.append((candidate, time))
        if _off(time, target) <= NEAR:
            return candidate, time
        if time > target and macs == chooser.least:
            break
        if time > target:
            high, over = macs, (macs, time)
        else:
            low, under = macs, (macs, time)
        if high - low > FINE * dense_macs:
            macs = _guess(target, over, under or (dense_macs, 1.0), low, high)
        elif low == chooser.least and under is None:
            macs = low
        else:
            break
    candidate, time = min(tried, key=lambda one: _off(one[1], target))
    if _off(time, target) <= CLOSE:
        return candidate, time
    listed = ", ".join(f"{one.plan.macs / dense_macs:.3f}: {time:.3f}" for one, time in tried)
    candidate, time = tried[-1]
    if time > target and macs == chooser.least:
        raise UsageError(
            f"keep_latency = {target:g} cannot be met: the least reachable is {time:.3f}, with "
            f"{candidate.plan.macs / dense_macs:.3f} of the multiply-accumulates"
        )
    raise UsageError(
        f"keep_latency = {target:g} was not met within {100 * CLOSE:.0f} %; by multiply-accumulates kept, "
        f"the times were {listed}: a quiet device measures more evenly"
    )


def _off(time: float, target: float) -> float:
    """How far it is from the budget, as a share of it."""
    return abs(time / target - 1)


def _guess(target: float, over: tuple[int, float], other: tuple[int, float], low: int, high: int) -> int:
    """Where the line through two points (multiply-accumulates, time) meets *target*, inside the bounds."""
    rise = (over[1] - other[1]) / (over[0] - other[0]) if over[0] != other[0] else 0.0
    if rise <= 0:  # noise, or the dense network alone: half-way
        return (low + high) // 2
    edge = int(EDGE * (high - low))
    wanted = int(over[0] + (target - over[1]) / rise)
    return low if wanted <= low else max(low + edge, min(high - edge, wanted))


def on_device(dense: Checkpoint, spec: PruneSpec, say: Callable[[str], None]) -> Meter:
    """Measures on the device that *spec* names: TFLite files of both networks, block by block in turn."""
    whole, address = models.restore(dense), spec.device

    def measure(candidate: Candidate) -> float:
        ratios: list[float] = []
        device = open_device(address)
        try:
            if TARGET not in device.runtimes:
                raise DeviceError(f"{address} cannot run {TARGET} files, by which --keep-latency is measured")
            with tempfile.TemporaryDirectory(prefix="edgekit-prune-") as folder:
                pair = [
                    _file(model, dense, spec.precision, Path(folder), name)
                    for name, model in (("dense", whole), ("pruned", candidate.model))
                ]
                for _ in range(VISITS):
                    found = bench(pair, device, SHORT, Path(folder, "results"), images=None, progress=_quiet)
                    slow, fast = (block_medians_ms(one.measurement) for one in found)
                    ratios += [fast[block] / slow[block] for block in sorted(slow.keys() & fast.keys())]
                    low, high, _ = t_interval(np.log(ratios).tolist())
                    if high - low <= 2 * SURE:
                        break
        finally:
            device.close()
        share = float(np.median(ratios))  # of blocks side by side: what slows down the device slows down both
        dense_ms, reach = float(np.median([*slow.values()])), 50 * (high - low)
        told = f"{100 * share:.1f} % of the dense network's {dense_ms:.3f} ms, give or take {reach:.1f} %"
        doubts = dict.fromkeys(reason for one in found for reason in one.validity.reasons)
        doubt = f"; doubtful: {', '.join(doubts)}" if doubts else ""
        say(f"measured on {address} in {spec.precision}: {share * dense_ms:.3f} ms, {told}{doubt}")
        return share

    return measure


def _file(model: nn.Module, dense: Checkpoint, precision: str, folder: Path, name: str) -> Artifact:
    contract = dense.preprocess
    images = noise((contract.height, contract.width, 3), 8)  # whatever its ranges are, an int8 file is as fast
    record = Calibration(count=len(images), seed=0, method="min-max", images_sha256="")
    source = ExportSource(
        model=PixelClassifier(model, contract).eval(),
        preprocess=contract,
        labels=dense.classes,
        calibrate=lambda _: CalibrationImages(pixels_NHWC=images, record=record),
    )
    tool, variant = converter(TARGET), Variant(target=TARGET, precision=precision)
    path = folder / f"{name}{tool.suffix}"  # a visit tells its files apart by their names
    return described(source, variant, tool.convert(source, variant, path), path)


def _quiet(text: str, share: float) -> None:
    """Nobody is told of the parts of a short run."""
