"""Whether the int8 file is the network that int8-qat trained: on how many held-out images they give one class.

    python benchmarks/qat_agreement.py RUN... [--epochs 1] [--images 2560]

A run is one of docs/quantization.md. It is measured before training and after it; --images is of an epoch.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=2560)
    options = parser.parse_args()
    for run in options.runs:
        before, after, count = measured(run, options.epochs, options.images)
        told = f"before training {100 * before / count:.2f} %, after it {100 * after / count:.2f} %"
        print(f"{run.name}: one class for {told} of {count} images", flush=True)


def measured(run: Path, epochs: int, images: int) -> tuple[int, int, int]:
    """On how many images network and file agree before and after training, of how many."""
    from edgekit import calibrate, source
    from edgekit.lower import lower
    from edgekit.qat import Network, agreement, learn
    from edgekit.quantize import quantize
    from edgekit.quiet import quiet
    from edgekit.recipe import CalibrationSpec
    from edgekit.trainspec import QatSpec

    found = source.find(
        str(run), preprocess=None, labels=None, weights=None, calibrate=None, confirm=lambda _: False
    ).source
    assert found.calibrate is not None
    assert found.held_out is not None
    assert found.lessons is not None
    pixels = found.held_out().pixels_NHWC
    with quiet():
        exact = lower(found.torch_model("tflite"), found.shape_NHWC)
        observed = calibrate.observe(exact, found.calibrate(CalibrationSpec()).pixels_NHWC)
        int8 = quantize(exact, "int8", calibrate.by_rule(observed, "moving-average").ranges)
        network = Network(exact, int8)
        before = agreement(network, int8, pixels)
    with tempfile.TemporaryDirectory() as folder:
        learn(network, found.lessons(), QatSpec(epochs=epochs, images=images), Path(folder, "state"))
    with quiet():
        trained = quantize(network.trained_file(), "int8", network.ranges())
        return before, agreement(network, trained, pixels), len(pixels)


if __name__ == "__main__":
    main()
