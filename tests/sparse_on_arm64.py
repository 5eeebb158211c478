"""Run by test_sparse under QEMU: which operators of TFLite files ran, by LiteRT's profiler, and an answer of each.

python sparse_on_arm64.py AGENT.py JOB.json: a list of paths; a JSON line each.
"""

import glob
import importlib.util
import json
import os
import sys


def main(agent_path: str, job: str) -> None:
    import ai_edge_litert
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    spec = importlib.util.spec_from_file_location("agent", agent_path)
    assert spec is not None
    assert spec.loader is not None
    agent = importlib.util.module_from_spec(spec)
    sys.modules["agent"] = agent
    spec.loader.exec_module(agent)
    (library,) = glob.glob(os.path.join(ai_edge_litert.__path__[0], "libLiteRt.so"))
    with open(job, encoding="utf-8") as stream:
        paths = json.load(stream)
    for path in paths:
        interpreter = Interpreter(model_path=path, num_threads=1)
        interpreter.allocate_tensors()
        before = interpreter.get_input_details()[0]
        pixels = np.random.default_rng(0).integers(0, 256, before["shape"]).astype(before["dtype"])
        interpreter.set_tensor(before["index"], pixels)
        interpreter.invoke()
        answer = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0].tolist()
        _, events = agent.LiteRt(library).profile(path, 1, pixels.tobytes())
        operators = sorted({event[0] for event in events})
        print(json.dumps({"file": path, "operators": operators, "answer": answer}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
