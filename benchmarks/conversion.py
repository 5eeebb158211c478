"""How long a network takes to become a TFLite file, and how much memory: edgekit against litert-torch's own call.

    python benchmarks/conversion.py [--model mobilenet_v2] [--side 224] [--rounds 3] [--images 64]

Every conversion runs in a process of its own, ours and theirs in turn: A B A B ... Timed is the way from a module
to a float file. `first` is the first conversion of the process, after all imports; `second` the one after it;
`process` is everything from start to end with one conversion. Peak memory is the process's largest resident set.
Then, in turn as well: five precisions of one model, and int8 alone, with the same images to calibrate on.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from edgekit.export import ExportSource

FIVE = ("fp32", "fp16", "w8", "dyn8", "int8")
Job = Callable[[Path], None]  # writes what it makes into a folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64, help="for calibration")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--child", choices=JOBS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print("\n" + json.dumps(child(options)))
        return
    for pair in (("ours", "theirs"), ("five", "one")):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in pair}
        for _ in range(options.rounds):
            for name in pair:
                found[name].append(measure(name))
                print(f"{name:7}", *(f"{key} {value:.4g}" for key, value in found[name][-1].items()), flush=True)
        for key in found[pair[0]][0]:
            middle = [median(run[key] for run in runs) for runs in found.values()]
            print(f"{pair[0]} / {pair[1]}, {key}: {middle[0] / middle[1]:.3f}")


def measure(name: str) -> dict[str, float]:
    """What a child process found, and how long all of it took."""
    command = [sys.executable, *sys.argv, "--child", name]
    begin = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    process_s = time.perf_counter() - begin
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "process_s": process_s - found["second_s"]}


def child(options: argparse.Namespace) -> dict[str, float]:
    """Two conversions, one after the other."""
    import torch
    import torch.export._trace  # what the first export would import; litert-torch's import has it, too

    torch.set_num_threads(options.threads)
    job, seconds = JOBS[options.child](sample(options)), []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            begin = time.perf_counter()
            job(Path(folder))
            seconds.append(time.perf_counter() - begin)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"first_s": seconds[0], "second_s": seconds[1], "peak_mb": peak_mb}


def sample(options: argparse.Namespace) -> "ExportSource":
    """The model with random weights, and pictures of blobs to calibrate on."""
    from edgekit import convert, models
    from edgekit.artifact import Calibration
    from edgekit.export import CalibrationImages, ExportSource, PixelClassifier
    from edgekit.preprocess import preset
    from edgekit.recipe import ModelSpec

    contract = preset("imagenet", options.side, options.side)
    network = models.build(ModelSpec(name=options.model), 1000)
    pictures = convert.noise((options.side, options.side, 3), options.images)
    record = Calibration(count=options.images, seed=0, method="min-max", images_sha256="")
    return ExportSource(
        model=PixelClassifier(network, contract).eval(),
        preprocess=contract,
        labels=tuple(map(str, range(1000))),
        calibrate=lambda spec: CalibrationImages(pixels_NHWC=pictures, record=record),
    )


def ours(source: "ExportSource") -> Job:
    from edgekit.lower import lower

    def convert(folder: Path) -> None:
        (folder / "ours.tflite").write_bytes(lower(source.model, source.shape_NHWC))

    return convert


def theirs(source: "ExportSource") -> Job:
    import litert_torch
    import torch

    def convert(folder: Path) -> None:
        channels_last = litert_torch.to_channel_last_io(source.model, args=[0]).eval()
        made = litert_torch.convert(channels_last, (torch.zeros(source.shape_NHWC),))
        made.export(str(folder / "theirs.tflite"))

    return convert


def in_precisions(*names: str) -> Callable[["ExportSource"], Job]:
    def prepared(source: "ExportSource") -> Job:
        from edgekit.convert import converter
        from edgekit.recipe import Variant

        tflite = converter("tflite")

        def convert(folder: Path) -> None:
            fresh = replace(source, _memo={})  # nothing of the conversion before
            for name in names:
                tflite.convert(fresh, Variant(target="tflite", precision=name), folder / f"{name}.tflite")

        return convert

    return prepared


JOBS: dict[str, Callable[["ExportSource"], Job]] = {
    "ours": ours,
    "theirs": theirs,
    "five": in_precisions(*FIVE),
    "one": in_precisions("int8"),
}

if __name__ == "__main__":
    main()
