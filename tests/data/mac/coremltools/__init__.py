"""Stands in for coremltools on a Mac: the part of its interface that the agent uses, over made-up packages.

A package holds `stand_in.json`: {"labels": [...], "weights": (classes, 3)}; scores are the softmax of the weights
times the mean colour. It answers and refuses as coremltools 9.0 does, as far as the source of that can tell.
"""

import enum

from coremltools import models
from coremltools.models import utils

__version__ = "9.0+fake"
__all__ = ["ComputeUnit", "models", "utils"]


class ComputeUnit(enum.Enum):
    ALL = 1
    CPU_AND_GPU = 2
    CPU_ONLY = 3
    CPU_AND_NE = 4
