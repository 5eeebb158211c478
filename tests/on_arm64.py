"""Run by test_arm64 on this machine and under QEMU: what XNNPACK takes of TFLite files, and what they answer.

python on_arm64.py JOB.json: ``{"inputs": an .npy file (N, H, W, 3), "files": [paths]}``; a JSON line each.
"""

import json
import platform
import sys


def main(path: str) -> None:
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    from edgekit import xnnpack

    with open(path, encoding="utf-8") as stream:
        job = json.load(stream)
    images = np.load(job["inputs"])
    for file in job["files"]:
        interpreter = Interpreter(model_path=file, num_threads=1)
        interpreter.allocate_tensors()
        before, after = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        answers = []
        for image in images:
            interpreter.set_tensor(before["index"], image[None])
            interpreter.invoke()
            answers.append(interpreter.get_tensor(after["index"])[0].astype(float).tolist())
        found = {
            "file": file,
            "machine": platform.machine(),
            "taken": xnnpack.inside(interpreter._get_ops_details()),
            "answers": answers,
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
