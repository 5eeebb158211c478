"""Which images make a batch, and their pixels on the training device."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from edgekit.data import Split
from edgekit.preprocess import Pixels
from edgekit.train.seeds import generator

ENOUGH = 8  # so many whole batches make an incomplete one dispensable
UPLOAD = 1024  # images copied to the device at a time


def steps(count: int, batch_size: int) -> int:
    """How many batches an epoch of *count* images has.

    The incomplete last one counts only where there are few others, and never with a single image: batch norm
    cannot be trained on one. The order changes with each epoch, so no image is left out for good.
    """
    whole, rest = divmod(count, batch_size)
    return whole + (1 if whole < ENOUGH and rest >= 2 else 0)


def shuffled(count: int, batch_size: int, seed: tuple[object, ...]) -> list[Tensor]:
    """The indices of each batch of one epoch."""
    order = torch.randperm(count, generator=generator(*seed))
    return _cut(order, batch_size)[: steps(count, batch_size)]


def in_order(count: int, batch_size: int) -> list[Tensor]:
    """The indices of each batch, all images once."""
    return _cut(torch.arange(count), batch_size)


def _cut(order: Tensor, batch_size: int) -> list[Tensor]:
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


class Feed:
    """A split's images on *device*. Pixels in memory are copied to a GPU once; files are read ahead by threads."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self.split, self.device = split, device
        self.labels = torch.tensor(split.labels, device=device)
        self.resident = _upload(split, device) if split.in_memory and device.type != "cpu" else None

    def __call__(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels (N, 3, H, W), uint8 and channels-last, and labels (N) of each batch in turn."""
        if self.resident is not None:
            for indices in batches:
                at = indices.to(self.device)
                yield self.resident[at].permute(0, 3, 1, 2), self.labels[at]
            return
        for indices, pixels in zip(batches, self._read(batches), strict=True):
            x = torch.from_numpy(pixels)
            if self.device.type == "cuda":
                x = x.pin_memory().to(self.device, non_blocking=True)
            yield x.permute(0, 3, 1, 2), self.labels[indices.to(self.device)]

    def _read(self, batches: Sequence[Tensor]) -> Iterator[Pixels]:
        if self.split.in_memory:
            yield from (self.split.read(indices.numpy()) for indices in batches)
            return
        # Threads, because Pillow decodes outside of the GIL: no copies between processes, nothing to pickle.
        workers = os.cpu_count() or 1
        waiting, ahead = iter(batches), deque[Future[Pixels]]()
        pool = ThreadPoolExecutor(workers)
        try:
            for indices in islice(waiting, 2 * workers):
                ahead.append(pool.submit(self.split.read, indices.numpy()))
            while ahead:
                yield ahead.popleft().result()
                for indices in islice(waiting, 1):
                    ahead.append(pool.submit(self.split.read, indices.numpy()))
        finally:
            pool.shutdown(cancel_futures=True)


def _upload(split: Split, device: torch.device) -> Tensor:
    """All pixels (N, H, W, 3) on the device."""
    first = split.read([0])
    out = torch.empty((len(split), *first.shape[1:]), dtype=torch.uint8, device=device)
    for start in range(0, len(split), UPLOAD):
        rows = np.arange(start, min(start + UPLOAD, len(split)))
        out[start : start + len(rows)] = torch.from_numpy(split.read(rows))
    return out
