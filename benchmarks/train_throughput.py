"""What the training loop costs beside the network: its images per second over those of a bare forward-backward.

    python benchmarks/train_throughput.py [--model mobilenet_v2] [--size 32] [--batch 128] [--images 2048]
    python benchmarks/train_throughput.py --data DIR --size 224 [--decode]

The loop is edgekit's own, a whole epoch with batches, augmentation, loss, optimizer and weight average; the bare
side does a forward and a backward pass over one batch of random numbers of the same shape, again and again, and
nothing else. Both take turns: A B A B ... The goal is at least 0.9 on a GPU: input never starves it. Without
--data the images are random and in memory; with --decode files are decoded every time, as a large folder's are.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edgekit import data, models  # noqa: E402
from edgekit.data import Dataset, memory  # noqa: E402
from edgekit.data.dataset import Memory, Split  # noqa: E402
from edgekit.models.normalize import Normalize  # noqa: E402
from edgekit.preprocess import preset  # noqa: E402
from edgekit.recipe import DataSpec, ModelSpec  # noqa: E402
from edgekit.train import accelerator, loop  # noqa: E402
from edgekit.train.batches import Feed  # noqa: E402
from edgekit.train.learner import Learner  # noqa: E402
from edgekit.trainspec import AugmentSpec, TrainSpec  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=2048, help="in an epoch, without --data")
    parser.add_argument("--data", metavar="DIR")
    parser.add_argument("--decode", action="store_true", help="decode the files of --data in every epoch")
    parser.add_argument("--policy", default="none", choices=("none", "rand", "trivial"))
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--threads", type=int, default=accelerator.cpu_threads(), help="of the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    contract = preset("imagenet", options.size, options.size)
    if options.decode:
        memory.MEMORY_BYTES = 0
    if options.data:
        dataset = data.load(DataSpec(source=options.data, preprocess=contract))
    else:
        noise = random_images(options.images, options.size)
        dataset = Dataset(name="random", classes=("a", "b"), train=noise, val=noise, preprocess=contract)
    augment = AugmentSpec(policy=options.policy, crop=0.3)
    spec = TrainSpec(epochs=2, batch_size=options.batch, ema=0.99, augment=augment)
    where = accelerator.choose(spec.precision)
    small = options.size <= 64
    model = ModelSpec(name=options.model, width=options.width, stem_stride=1 if small else 2)
    network = models.build(model, len(dataset.classes), options.size)
    learner = Learner(network, contract, spec, where)
    learner.begin_epoch(frozen=False)
    feed = Feed(dataset.train, where.device)
    steps = max(1, len(dataset.train) // options.batch)
    rates: dict[str, list[float]] = {"loop": [], "bare": []}
    for block in range(options.blocks + 1):
        for side in rates:
            images, start = steps * options.batch, time.perf_counter()
            if side == "loop":
                bar = tqdm(disable=True)
                loop._epoch(learner, feed, dataset, spec, 1, Path(), bar)
            else:
                bare(learner, options.batch, options.size, steps)
            rate = images / (time.perf_counter() - start)
            if block:  # the first is the warm-up
                rates[side].append(rate)
    ratios = [one / two for one, two in zip(rates["loop"], rates["bare"], strict=True)]
    print(f"{model.name} {options.width:g}, {options.size} px, batch {options.batch}, {where.name}")
    for side, found in rates.items():
        print(f"{side}: {median(found):8.0f} images/s (blocks {min(found):.0f}-{max(found):.0f})")
    print(f"loop / bare: {median(ratios):.3f} (blocks {min(ratios):.2f}-{max(ratios):.2f})")


def bare(learner: Learner, batch: int, size: int, steps: int) -> None:
    """Forward and backward, in the learner's own precision, over one batch of random numbers."""
    device = learner.where.device
    x = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    normalize = Normalize(preset("0to1", size, size)).to(device)
    x = normalize(x).contiguous(memory_format=torch.channels_last)
    for _ in range(steps):
        learner.model.zero_grad(set_to_none=True)
        with learner._autocast():
            logits = learner.model(x)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
    if device.type == "cuda":
        torch.cuda.synchronize()


def random_images(count: int, size: int) -> Split:
    rng = np.random.default_rng(0)
    return Split(
        ids=tuple(map(str, range(count))),
        labels=tuple(int(label) for label in rng.integers(0, 2, count)),
        reader=Memory(pixels=rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)),
        rows=np.arange(count),
    )


if __name__ == "__main__":
    main()
