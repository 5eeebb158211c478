"""8-bit activations without a Mac: ranges found by edgekit's reference, put in by coremltools's own passes.

The passes are those of ``coremltools.optimize.coreml.linear_quantize_activations``, which runs the model with Core
ML for its ranges. Their names are private to coremltools: the package is pinned, and a test asks for them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgekit import mil
from edgekit.calibrate.choose import GAIN, PER_TENSOR, PLAIN, Chosen, Ranges, by_rule, per_tensor
from edgekit.calibrate.images import check
from edgekit.calibrate.observe import Observed
from edgekit.calibrate.ranges import RULES
from edgekit.errors import ConversionError
from edgekit.parity import divergence
from edgekit.preprocess import Pixels

# What the passes quantize: the operators with one input, and the sum of two.
PREFIX = "compression::insert_prefix_quantize_dequantize_pair"
SUFFIX = "compression::insert_suffix_quantize_dequantize_pair"
ELIMINATION = "common::dequantize_quantize_pair_elimination"

Logits = npt.NDArray[np.float32]


def observe(function: Any, pixels_NHWC: Pixels, ids: Sequence[str] = ()) -> dict[str, Observed]:
    """What each float activation is over the images (N, H, W, 3), by name, in the order of the program.

    Raises DataError for images that cannot set ranges, ConversionError for NaN or infinite activations.
    """
    check(pixels_NHWC)
    reference = mil.Reference(function)
    names = _activations(function)
    observed = {name: Observed() for name in names}
    images = torch.from_numpy(np.array(pixels_NHWC)).permute(0, 3, 1, 2).float()
    for turn, number in enumerate(np.random.default_rng(0).permutation(len(images)).tolist()):
        for name, value in reference.values(images[number : number + 1], names).items():
            values = value.numpy()
            low, high = float(values.min()), float(values.max())
            if not np.isfinite([low, high]).all():
                which = ids[number] if ids else f"number {number}"
                raise ConversionError(
                    f"calibration: {name} is NaN or infinite for image {which}: the fp16 program is broken there"
                )
            observed[name].add_(values, low, high, turn)
    return observed


def _activations(function: Any) -> list[str]:
    """The float variables up to the last softmax."""
    found = []
    for operation in function.operations:
        if operation.op_type == "softmax" and operation.outputs[0].shape == function.outputs[-1].shape:
            break
        if not mil.is_constant(operation):
            found += [one.name for one in operation.outputs if mil.is_float(one)]
    return found


def quantize_(program: Any, ranges: Ranges, keep: Collection[str]) -> None:
    """Insert quantize and dequantize by coremltools's passes, but around the operators named in *keep*."""
    from coremltools.converters.mil.mil.passes.graph_pass import PassOption
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
    from coremltools.optimize.coreml import OpLinearQuantizerConfig, OptimizationConfig

    stats = {
        name: {"rmin": np.float32(one.low), "rmax": np.float32(max(one.high, one.low + 1e-6))}
        for name, one in _joined(program.functions["main"], ranges).items()
    }
    config = OptimizationConfig(
        global_config=OpLinearQuantizerConfig(mode="linear"), op_name_configs=dict.fromkeys(keep)
    )
    for name in (PREFIX, SUFFIX):
        one = PASS_REGISTRY[name]
        one.set_options([PassOption("config", config), PassOption("activation_stats", stats)])
        one.apply(program)
    PASS_REGISTRY[ELIMINATION].apply(program)


def _joined(function: Any, ranges: Ranges) -> Ranges:
    """With one range for all that a concatenation joins: else each would be rounded twice."""
    found = dict(ranges)
    for operation in reversed(list(function.operations)):  # a chain of them gets its last one's
        if operation.op_type == "concat":
            names = [*(one.name for one in operation.inputs["values"]), operation.outputs[0].name]
            known = [found[name] for name in names if name in found]
            for name in names if known else ():
                found[name] = replace(
                    known[0], low=min(one.low for one in known), high=max(one.high for one in known)
                )
    return found


def choose(
    observed: Mapping[str, Observed], wanted: Logits, predict: Callable[[Ranges], Logits], method: str = "auto"
) -> Chosen:
    """The ranges by one rule, or with ``auto`` those whose answers are nearest to *wanted* (N, K).

    *predict* gives the answers of a program with some ranges. As in `edgekit.calibrate`, which does it for TFLite.
    """
    if method != "auto":
        return by_rule(observed, method)
    candidates = {rule: by_rule(observed, rule) for rule in RULES} | {PER_TENSOR: per_tensor(observed)}
    found = {name: divergence(wanted, predict(one.ranges)) for name, one in candidates.items()}
    best = min(found, key=lambda name: found[name])
    return replace(candidates[best if found[best] < GAIN * found[PLAIN] else PLAIN], divergence=found)
