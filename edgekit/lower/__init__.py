"""A torch classifier as a float32 TFLite file, without litert-torch: read, made lean, written.

`read` turns the program of torch.export into TFLite operators one by one; `passes` folds and fuses them; `write`
stores the flatbuffer. Only what convolutional classifiers use is known: anything else is an UnknownOperator.
"""

from edgekit.lower.lowering import lower
from edgekit.lower.read import UnknownOperator

__all__ = ["UnknownOperator", "lower"]
