"""Where a training computes, and in which precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from edgekit.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """*autocast*: the type that the forward pass computes in, None for plain fp32."""

    device: torch.device
    autocast: torch.dtype | None

    @property
    def name(self) -> str:
        precision = str(self.autocast or torch.float32).removeprefix("torch.")
        hardware = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return f"{hardware} {precision}"


def choose(precision: str, number: int = 0) -> Accelerator:
    """GPU *number* if there is one, else the CPU.

    ``auto``: bf16 on a GPU that has it, fp16 on another, else fp32.
    """
    if torch.cuda.is_available():
        device, half = (
            torch.device("cuda", number),
            torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16,
        )
        wanted = {"auto": half, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
        return Accelerator(device=device, autocast=wanted[precision])
    # bf16 on a CPU gave weights that are no numbers in one of three equal runs (torch 2.14.1, a Xeon with AMX).
    if precision in ("fp16", "bf16"):
        raise UsageError(
            f"train.precision = {precision!r} needs a GPU, and torch finds none: use 'auto' or 'fp32'"
        )
    return Accelerator(device=torch.device("cpu"), autocast=None)


def cpu_threads() -> int:
    """How many threads a training takes: one less than torch would, but at least one.

    Small layers leave little between two barriers. With MobileNetV2 0.35 at 32 px on 2 cores, two threads gave
    710 images/s on an idle machine but 122 beside one busy program; one thread gave 500 in both cases.
    """
    return max(1, torch.get_num_threads() - 1)


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """torch computes with *count* threads inside, and as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
