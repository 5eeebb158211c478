"""One training in several processes, on several GPUs or machines, as ``torchrun`` starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from edgekit.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
WAIT = timedelta(hours=3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """This process's *rank* among *size*, and its number on its machine, which is its GPU's."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Which of *count* things this process takes: parts in a row, their sizes at most one apart."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def share(self, value: T) -> T:
        """The main process's value, in all of them."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box: list[Any] = [value]
        with _together():
            dist.broadcast_object_list(box)
        shared: T = box[0]
        return shared

    def total(self, tensor: "Tensor") -> "Tensor":
        """The sum over all processes, in place."""
        if self.size > 1:
            import torch.distributed as dist

            with _together():
                dist.all_reduce(tensor)
        return tensor


@contextmanager
def _together() -> Iterator[None]:
    """Inside it a lost connection is told in one line: why it was lost, the process that stopped has said."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingError("another process of this training stopped; its own message says why") from error


ALONE = Group()


@contextmanager
def joined() -> Iterator[Group]:
    """The group that torchrun started this process in; a group of one without torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    group = Group(
        rank=int(os.environ["RANK"]),
        size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )
    if torch.cuda.is_available():
        if group.local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"this is process {group.local_rank + 1} of this machine, which has {torch.cuda.device_count()} "
                "GPUs: start one process for each (torchrun --nproc-per-node)"
            )
        torch.cuda.set_device(group.local_rank)
    # With a GPU, tensors on the CPU (counts, objects) still travel by gloo. The others wait while the main process
    # downloads and checks a million files.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=WAIT)
    try:
        yield group
    finally:
        dist.destroy_process_group()
