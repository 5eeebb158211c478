"""What the agent adds to a model's latency: its median over that of a bare loop, blocks taken in turn.

    python benchmarks/runner_overhead.py [MODEL.tflite] [--blocks 10] [--seconds 1]

The bare loop sets one input and calls `invoke()` between two readings of the clock, in a process of its own that
streams nothing. Both sides run for themselves in one visit: A B A B ... A ratio of 1.00 means that the streaming,
the telemetry and the cycling through inputs do not show in what is measured. Without a model, a dense layer over
224 x 224 pixels is made.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edgekit.device import BenchJob, Entry, open_device  # noqa: E402
from tests import tiny_models  # noqa: E402

BARE = """
import json, sys, time
import numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
detail = interpreter.get_input_details()[0]
value = np.random.default_rng(0).integers(0, 256, detail["shape"]).astype(detail["dtype"])
interpreter.set_tensor(detail["index"], value)
for line in sys.stdin:
    for phase in (0.3, float(line)):
        samples, end = [], time.perf_counter() + phase
        while time.perf_counter() < end:
            start = time.perf_counter_ns()
            interpreter.invoke()
            samples.append(time.perf_counter_ns() - start)
    print(json.dumps(sorted(samples)[len(samples) // 2]), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="per block and side")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact = tiny_models.tflite(folder / "dense.tflite", side=224)
        inputs = tiny_models.pixels(64, side=224)
        if options.model:
            from ai_edge_litert.interpreter import Interpreter

            (detail,) = Interpreter(model_path=str(options.model)).get_input_details()
            artifact = replace(artifact, path=options.model, file=options.model.name)
            rng = np.random.default_rng(0)
            inputs = rng.integers(0, 256, (64, *detail["shape"][1:])).astype(detail["dtype"])
        np.save(folder / "inputs.npy", inputs)
        entry = Entry(artifact=artifact, threads=1, inputs=folder / "inputs.npy", predict=False)
        # One visit of the agent a block: its turn is over when its process is.
        job = BenchJob(
            entries=(entry,), samples=1, seconds=options.seconds, blocks=1, warmup=10, warmup_seconds=0.3
        )
        device, ratios = open_device("local"), []
        command = [sys.executable, "-c", BARE, str(artifact.path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as bare:
            assert bare.stdin is not None
            assert bare.stdout is not None
            for block in range(options.blocks):
                bare.stdin.write(f"{options.seconds}\n")
                bare.stdin.flush()
                bare_ns = json.loads(bare.stdout.readline())
                (outcome,) = device.run(job, lambda text, share: None)
                assert outcome.measurement is not None, outcome.error
                agent_ns = median(outcome.measurement.samples_ns)
                ratios.append(agent_ns / bare_ns)
                print(f"block {block}: bare {bare_ns / 1e3:.2f} us, agent {agent_ns / 1e3:.2f} us")
            bare.stdin.close()
    print(f"agent / bare: {median(ratios):.3f} (median of {len(ratios)}; {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
