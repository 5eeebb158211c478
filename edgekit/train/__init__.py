"""Training: a dataset and a model's name become checkpoints."""

from edgekit.train.evaluate import CONFUSION, CURVES, EVALUATION
from edgekit.train.loop import BEST, LAST, METRICS, train
from edgekit.train.state import STATE

__all__ = ["BEST", "CONFUSION", "CURVES", "EVALUATION", "LAST", "METRICS", "STATE", "train"]
