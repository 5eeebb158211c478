"""Which rule sets which tensor's range: one rule for all, or what is measured to leave the least error."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Calibration
from edgekit.calibrate.observe import Observed, logits
from edgekit.calibrate.ranges import RULES, Range, error
from edgekit.parity import divergence
from edgekit.preprocess import Pixels

PLAIN = "min-max"  # clips nothing: others must beat it
PER_TENSOR = "per tensor"
GAIN = 0.9  # another rule must leave at most this part of its error: less may be chance
JUDGES = 256  # images that the files are compared on

Ranges = Mapping[str, Range]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """For each tensor a range and the rule that gave it. *divergence*: of each file that was compared."""

    ranges: dict[str, Range]
    rules: dict[str, str]
    divergence: dict[str, float] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors each rule set."""
        used = list(self.rules.values())
        return {rule: used.count(rule) for rule in RULES if rule in used}

    def recorded(self, record: Calibration) -> Calibration:
        """The record with what was chosen, for the sidecar."""
        return replace(record, rules=self.counts, divergence=self.divergence)


def by_rule(observed: Mapping[str, Observed], rule: str, bits: int = 8) -> Chosen:
    """All tensors by one rule but the last, see `by_rules`."""
    return by_rules(observed, dict.fromkeys(observed, rule), bits)


def by_rules(observed: Mapping[str, Observed], rules: dict[str, str], bits: int = 8) -> Chosen:
    """Each tensor by a rule of its own, but the last by min-max.

    Clipping takes from the largest logit, which is the one that decides.
    """
    rules = {**rules, tuple(observed)[-1]: PLAIN}
    return Chosen(ranges={name: RULES[rule](observed[name], bits) for name, rule in rules.items()}, rules=rules)


def per_tensor(observed: Mapping[str, Observed], bits: int = 8) -> Chosen:
    """Each tensor by the rule that leaves the least error in it; by min-max where clipping gains little."""
    return by_rules(observed, {name: _best(seen, bits) for name, seen in observed.items()}, bits)


def _best(seen: Observed, bits: int) -> str:
    errors = {name: error(seen, rule(seen, bits), bits) for name, rule in RULES.items()}
    best = min(errors, key=lambda name: errors[name])
    return best if errors[best] < GAIN * errors[PLAIN] else PLAIN


def choose(
    observed: Mapping[str, Observed], content: bytes, pixels_NHWC: Pixels, quantize: Callable[[Ranges], bytes]
) -> Chosen:
    """The ranges whose int8 file is nearest to the float file, *content*, in what it says of the images.

    No rule is best for all networks, and the error inside a tensor does not tell what it does to the answer. So
    each rule, and the best one of each tensor, is made into a file by *quantize* and measured on calibration
    images. To go on from there, tensor by tensor, mostly fits the choice to these images.
    """
    rows = np.linspace(0, len(pixels_NHWC) - 1, min(JUDGES, len(pixels_NHWC))).astype(int)
    wanted = logits(content, pixels_NHWC[rows])
    candidates = {rule: by_rule(observed, rule) for rule in RULES} | {PER_TENSOR: per_tensor(observed)}
    found = {
        name: divergence(wanted, logits(quantize(candidate.ranges), pixels_NHWC[rows]))
        for name, candidate in candidates.items()
    }
    best = min(found, key=lambda name: found[name])
    return replace(candidates[best if found[best] < GAIN * found[PLAIN] else PLAIN], divergence=found)
