"""How long a comparison of many results takes, its memory, and how long a browser takes to open the page.

    python benchmarks/compare_scale.py [--results 500] [--samples 10000] [--images 10000] [--devices 1]

Makes seeded results of networks of 1,000 classes with top-5 predictions, telemetry and a profile of 66 operators
each, as files in a temporary folder; runs `edgekit compare FOLDER --html` on them in a process of its own; opens
the page in a headless Chromium, where there is one. Goals for 500 x 10,000 x 10,000: 10 s, 2 GB, 3 s.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edgekit import files, result, units  # noqa: E402
from edgekit.measure import Telemetry  # noqa: E402
from edgekit.operators import Cost, Profile  # noqa: E402
from edgekit.result import Predictions, Result  # noqa: E402
from tests import report_samples  # noqa: E402
from tests.browser import CHROMIUM, browser  # noqa: E402

CLASSES, TOP_K, OPERATORS = 1_000, 5, 66


def made(number: int, *, samples: int, images: int, devices: int) -> Result:
    """The result of that number: number 0 of each device is the reference."""
    rng = np.random.default_rng(number)
    variant, device = divmod(number, devices)
    drop = 0.0 if variant == 0 else float(rng.uniform(0, 0.05))
    truth = np.random.default_rng(1).integers(0, CLASSES, images)
    # Files of one network are wrong on much the same images, so the same draw decides for all.
    right = np.random.default_rng(2).random(images) < 0.75 - drop
    top1 = np.where(right, truth, rng.integers(0, CLASSES, images))
    top = (top1[:, None] + np.arange(TOP_K) * 7) % CLASSES
    p50_ms = 4.0 if variant == 0 else float(rng.uniform(1.0, 12.0))
    one = report_samples.result(
        "tflite",
        "fp32" if variant == 0 else ("fp16", "int8", "dyn8")[variant % 3],
        p50_ms,
        None,
        size=14_000_000 if variant == 0 else int(rng.integers(1_000_000, 14_000_000)),
        visit=f"visit-{device}",
        file=f"net-{variant:03}.tflite",
        device=replace(report_samples.DEVICE, model=f"Board {device}", address=f"ssh://board-{device}"),
    )
    measured = report_samples.measurement(p50_ms, seed=number, count=samples)
    first, last = measured.starts_ns[0], measured.starts_ns[-1]
    at = np.linspace(first, last, 60).astype(int).tolist()
    telemetry = tuple(
        Telemetry(time_ns=t, temperature_c=50 + i / 10, clock_mhz=1800.0, governor="performance", throttled=False)
        for i, t in enumerate(at)
    )
    costs = tuple(
        Cost(operator="Convolution", layer=f"features.{i}.conv", delegated=True, mean_us=float(us))
        for i, us in enumerate(rng.uniform(1, 200, OPERATORS))
    )
    labels = tuple(f"class {i}" for i in range(CLASSES))
    return replace(
        one,
        artifact=replace(one.artifact, labels=labels),
        measurement=measured,
        telemetry=telemetry,
        profile=Profile(runs=50, total_us=1e3 * p50_ms, costs=costs),
        predictions=Predictions(
            dataset="photographs/val",
            images_sha256=files.sha256_of(images),
            truth=tuple(truth.tolist()),
            k=TOP_K,
            top=tuple(top.reshape(-1).tolist()),
        ),
    )


def compare(folder: Path, page: Path) -> tuple[float, float, int]:
    """Seconds, seconds of the processor, and peak bytes of the command."""
    command = [sys.executable, "-m", "edgekit", "compare", str(folder), "--html", str(page)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    begin = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    seconds = time.perf_counter() - begin
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # it is the only child that was waited for
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=int, default=500)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--devices", type=int, default=1, help="the results are shared out among so many")
    parser.add_argument("--keep", type=Path, help="make the files here, or use those that are here already")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, page = options.keep or Path(temporary, "results"), Path(temporary, "report.html")
        if not folder.exists():
            folder.mkdir(parents=True)
            for number in range(options.results):
                one = made(number, samples=options.samples, images=options.images, devices=options.devices)
                result.write(one, folder / f"{number:04}.json")
        found = sorted(folder.glob("*.json"))
        print(f"{len(found)} results, {units.size(sum(path.stat().st_size for path in found))}")
        seconds, busy, peak = compare(folder, page)
        sizes = f"peak memory {units.size(peak)}, page {units.size(page.stat().st_size)}"
        print(f"compare: {seconds:.1f} s ({busy:.1f} s of the processor), {sizes}")
        if CHROMIUM is None:
            print("the page was not opened: no chromium on this machine")
            return
        with browser(Path(temporary)) as opened:
            opened.screen(1280, 900)
            times, busy_s = [], []
            for _ in range(3):
                times.append(opened.open(page))
                busy_s.append(opened.busy_s())
            if opened.said:
                raise SystemExit(f"the page has errors: {opened.said[0]}")
        each = ", ".join(f"{one:.2f}" for one in times)
        print(f"open: {sorted(times)[1]:.2f} s ({sorted(busy_s)[1]:.2f} s of the processor), the median of {each}")


if __name__ == "__main__":
    main()
