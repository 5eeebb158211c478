"""Which operators of a TFLite file XNNPACK takes on this machine; the others run on builtin kernels.

The runtime does not tell. But when it is ready it lists the file's operators, and behind them one of kind DELEGATE
for each part that XNNPACK took, with the tensors on its border: what lies between those is inside.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgekit.errors import ArtifactError
from edgekit.requires import require

TIMEOUT_S = 120


def taken(path: Path) -> tuple[bool, ...]:
    """For each operator of the file, in its order, whether XNNPACK takes it. Raises ArtifactError.

    The file is loaded in a process of its own: a damaged one can end it.
    """
    require("ai_edge_litert", feature="Asking XNNPACK", extra="tflite")
    command = [sys.executable, "-m", "edgekit.xnnpack", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        return tuple(json.loads(done.stdout))
    except subprocess.CalledProcessError as error:
        message = " ".join(re.split(r"^\w+: ", error.stderr, flags=re.MULTILINE)[-1].split())
        raise ArtifactError(f"the runtime cannot load {path}: {message} (status {error.returncode})") from error
    except subprocess.TimeoutExpired as error:
        raise ArtifactError(f"the runtime did not load {path} within {TIMEOUT_S} s") from error


def inside(operators: list[dict[str, Any]]) -> list[bool]:
    """The same, of the interpreter's list: walks back from what each DELEGATE gives to what it takes."""
    own = [operator for operator in operators if operator["op_name"] != "DELEGATE"]
    makers = {int(tensor): place for place, operator in enumerate(own) for tensor in operator["outputs"]}
    found = [False] * len(own)
    for delegate in operators:
        if delegate["op_name"] != "DELEGATE":
            continue
        border, waiting = {int(t) for t in delegate["inputs"]}, [int(t) for t in delegate["outputs"]]
        while waiting:
            place = makers.get(waiting.pop())
            if place is not None and not found[place]:
                found[place] = True
                waiting += [t for tensor in own[place]["inputs"] if (t := int(tensor)) not in border]
    return found


def _main(path: str) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    print(json.dumps(inside(interpreter._get_ops_details())))


if __name__ == "__main__":
    _main(sys.argv[1])
