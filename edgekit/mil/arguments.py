"""How operators take their inputs: by MIL's names, tensors wide, strings and flags as they are."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Operator = Callable[[dict[str, Any]], Tensor | tuple[Tensor, ...]]

DTYPES = {
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "bool": torch.bool,
}


def ints(value: Tensor) -> list[int]:
    """The whole numbers that a constant holds."""
    return [int(item) for item in value.reshape(-1)]
