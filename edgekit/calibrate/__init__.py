"""Which range of values the integers of each tensor cover, found with images.

`observe` runs the float TFLite file once over the images and keeps a few kilobytes of each tensor; of that
`by_rule` makes ranges by one rule, and `choose` by what is measured to be best for this network.
"""

from edgekit.calibrate.choose import Chosen, Ranges, by_rule, by_rules, choose, per_tensor
from edgekit.calibrate.histogram import Histogram
from edgekit.calibrate.images import doubts
from edgekit.calibrate.observe import Observed, loaded, logits, observe
from edgekit.calibrate.ranges import RULES, Range, error

__all__ = [
    "RULES",
    "Chosen",
    "Histogram",
    "Observed",
    "Range",
    "Ranges",
    "by_rule",
    "by_rules",
    "choose",
    "doubts",
    "error",
    "loaded",
    "logits",
    "observe",
    "per_tensor",
]
