"""Which images make a batch, and their pixels on the training device."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from edgekit.data import Split
from edgekit.preprocess import Pixels
from edgekit.train.seeds import generator

ENOUGH = 8  # so many whole batches make an incomplete one dispensable
UPLOAD = 1024  # images copied to the device at a time
RESIDENT_SHARE = 0.125  # of a GPU's memory, for the images of one split
AHEAD = 3  # batches that are read while one is trained on


def steps(count: int, batch_size: int, processes: int = 1) -> int:
    """How many batches an epoch of *count* images has.

    The incomplete last one counts only where there are few others, and never with a single image for one of the
    *processes*: batch norm cannot be trained on one. The order changes with each epoch, so no image is left out
    for good.
    """
    whole, rest = divmod(count, batch_size)
    return whole + (1 if whole < ENOUGH and rest >= 2 * processes else 0)


def shuffled(count: int, batch_size: int, seed: tuple[object, ...], processes: int = 1) -> list[Tensor]:
    """The indices of each batch of one epoch."""
    order = torch.randperm(count, generator=generator(*seed))
    return _cut(order, batch_size)[: steps(count, batch_size, processes)]


def in_order(count: int, batch_size: int, part: slice = slice(None)) -> list[Tensor]:
    """The indices of each batch, all images of *part* once."""
    return _cut(torch.arange(count)[part], batch_size)


def _cut(order: Tensor, batch_size: int) -> list[Tensor]:
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


class Feed:
    """A split's images on *device*.

    Pixels in memory that take at most RESIDENT_SHARE of a GPU's are copied there once; the rest is read ahead
    by threads and sent from pinned memory.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self.split, self.device = split, device
        self.labels = torch.tensor(split.labels, device=device)
        self.resident = _upload(split, device) if _fits(split, device) else None

    def __call__(
        self, batches: Sequence[Tensor], crop: float = 0.0, draws: Sequence[Tensor] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels (N, 3, H, W), uint8 and channels-last, and labels (N) of each batch in turn.

        With *draws* (N, 4) each image is a random resized crop of at least the share *crop* of its file.
        """
        if not batches:
            return
        # All indices at once: a copy for each batch would make the GPU finish the one before first.
        there = torch.split(torch.cat(list(batches)).to(self.device), [len(indices) for indices in batches])
        if self.resident is not None:
            for at in there:
                yield self.resident[at].permute(0, 3, 1, 2), self.labels[at]
            return
        for at, pixels in zip(there, self._read(batches, crop, draws), strict=True):
            x = torch.from_numpy(pixels)
            if self.device.type == "cuda":
                x = x.pin_memory().to(self.device, non_blocking=True)
            yield x.permute(0, 3, 1, 2), self.labels[at]

    def _read(self, batches: Sequence[Tensor], crop: float, draws: Sequence[Tensor] | None) -> Iterator[Pixels]:
        if self.split.in_memory:
            yield from (self.split.read(indices.numpy()) for indices in batches)
            return
        # Threads, because Pillow decodes outside of the GIL: no copies between processes, nothing to pickle.
        # A batch is read in pieces, so that one large batch keeps all of them busy.
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's, on this machine
        workers = max(1, (os.cpu_count() or 1) // processes)

        def pieces(step: int) -> list[Future[Pixels]]:
            size = max(1, -(-len(batches[step]) // workers))
            cuts = [slice(start, start + size) for start in range(0, len(batches[step]), size)]
            if draws is None:
                return [pool.submit(self.split.read, batches[step][cut].numpy()) for cut in cuts]
            return [
                pool.submit(self.split.read_crops, batches[step][cut].numpy(), draws[step][cut].numpy(), crop)
                for cut in cuts
            ]

        pool, ahead = ThreadPoolExecutor(workers), deque[list[Future[Pixels]]]()
        try:
            for step in range(len(batches) + AHEAD):
                if step < len(batches):
                    ahead.append(pieces(step))
                if step >= AHEAD:
                    yield np.concatenate([future.result() for future in ahead.popleft()])
        finally:
            pool.shutdown(cancel_futures=True)


def _fits(split: Split, device: torch.device) -> bool:
    """Whether the pixels live on a GPU."""
    if device.type != "cuda" or not split.in_memory or not len(split):
        return False
    bytes_each = split.read([0]).nbytes
    return len(split) * bytes_each <= RESIDENT_SHARE * torch.cuda.get_device_properties(device).total_memory


def _upload(split: Split, device: torch.device) -> Tensor:
    """All pixels (N, H, W, 3) on the device."""
    first = split.read([0])
    out = torch.empty((len(split), *first.shape[1:]), dtype=torch.uint8, device=device)
    for start in range(0, len(split), UPLOAD):
        rows = np.arange(start, min(start + UPLOAD, len(split)))
        out[start : start + len(rows)] = torch.from_numpy(split.read(rows))
    return out
